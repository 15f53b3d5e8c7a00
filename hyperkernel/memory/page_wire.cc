#include "hyperkernel/memory/page_wire.h"

#include <cstdint>
#include <string>

#include "hyperkernel/base/check.h"

namespace hk {
namespace {

using Type = PageMessageType;

constexpr uint8_t kTypes = static_cast<uint8_t>(Type::kPeeked) + 1;

class Writer {
 public:
  explicit Writer(PageBody* body) : body_(body) {}
  void U8(uint8_t value) { Put(value, 1); }
  void U16(uint16_t value) { Put(value, 2); }
  void U64(uint64_t value) { Put(value, 8); }

 private:
  void Put(uint64_t value, size_t bytes) {
    HK_DCHECK(body_->size + bytes <= body_->bytes.size());
    for (size_t i = 0; i < bytes; ++i) body_->bytes[body_->size++] = static_cast<std::byte>(value >> (8 * i));
  }
  PageBody* const body_;
};

// Reads beyond the end give zeroes and are remembered.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  uint8_t U8() { return static_cast<uint8_t>(Get(1)); }
  uint16_t U16() { return static_cast<uint16_t>(Get(2)); }
  uint64_t U64() { return Get(8); }
  // A number up to `most`, else the message is bad.
  template <typename Enum>
  Enum Of(Enum most) {
    const uint8_t value = U8();
    if (value > static_cast<uint8_t>(most)) bad_ = true;
    return static_cast<Enum>(value);
  }
  bool Flag() {
    const uint8_t value = U8();
    if (value > 1) bad_ = true;
    return value == 1;
  }
  NodeId Node() {
    const NodeId node(U16());
    if (node.value() >= kMaxNodes) bad_ = true;
    return node;
  }
  bool good() const { return !bad_ && at_ == bytes_.size(); }

 private:
  uint64_t Get(size_t bytes) {
    if (bytes_.size() - at_ < bytes) {
      bad_ = true;
      return 0;
    }
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; ++i) value |= static_cast<uint64_t>(bytes_[at_ + i]) << (8 * i);
    at_ += bytes;
    return value;
  }
  const std::span<const std::byte> bytes_;
  size_t at_ = 0;
  bool bad_ = false;
};

bool HasTransaction(Type type) {
  switch (type) {
    case Type::kRequest:
    case Type::kForward:
    case Type::kAnswer:
    case Type::kNack:
    case Type::kInvalidate:
    case Type::kAck:
    case Type::kDone:
    case Type::kPeek:
    case Type::kPeeked:
      return true;
    default:
      return false;
  }
}

// What class, slot and `answer` such a message has.
bool HasItsShape(const PageMessage& page, NodeId self, const Message& message) {
  const bool of_request = message.message_class != MessageClass::kInvalidate;
  switch (page.type) {
    case Type::kRequest:
      return of_request && !message.answer && message.slot != SlotId() && message.slot_node == page.from;
    case Type::kForward:
      return of_request && !message.answer && message.slot != SlotId() && message.slot_node == page.requester &&
             page.requester != self;
    case Type::kAnswer:
    case Type::kNack:
      return of_request && message.answer && message.slot != SlotId();
    case Type::kPeek:
      return message.message_class == MessageClass::kFault && !message.answer && message.slot != SlotId() &&
             message.slot_node == page.from;
    case Type::kPeeked:
      return message.message_class == MessageClass::kFault && message.answer && message.slot != SlotId();
    default:
      return message.message_class == ClassOf(page.type) && !message.answer && message.slot == SlotId();
  }
}

absl::Status Malformed(NodeId from, const std::string& what) {
  return absl::InvalidArgumentError("node " + std::to_string(from.value()) + " sent " + what);
}

}  // namespace

const char* Name(PageMessageType type) {
  static constexpr const char* kNames[kTypes] = {
      "Request",  "Forward", "Answer",       "Nack",        "Invalidate", "Ack",     "Done", "Release",
      "Released", "Evict",   "EvictGranted", "EvictDenied", "Offer",      "Stopped", "Peek", "Peeked"};
  return kNames[static_cast<size_t>(type)];
}

MessageClass ClassOf(PageMessageType type) {
  switch (type) {
    case Type::kInvalidate:
    case Type::kAck:
      return MessageClass::kInvalidate;
    case Type::kOffer:
      return MessageClass::kBulk;
    default:
      return MessageClass::kFault;
  }
}

PageBody EncodePageBody(const PageMessage& m) {
  PageBody body;
  Writer to(&body);
  switch (m.type) {
    case Type::kRequest:
      to.U8(static_cast<uint8_t>(m.kind));
      to.U8(m.has_copy ? 1 : 0);
      to.U8(m.peeks ? 1 : 0);
      to.U16(m.asked.value());
      to.U64(m.serial);
      to.U64(m.ticket);
      break;
    case Type::kForward:
      to.U16(m.requester.value());
      to.U8(static_cast<uint8_t>(m.kind));
      to.U64(m.serial);
      to.U64(m.acks.bits());
      to.U64(m.ticket);
      break;
    case Type::kAnswer:
      to.U8(static_cast<uint8_t>(m.kind));
      to.U8(static_cast<uint8_t>(m.right));
      to.U8(static_cast<uint8_t>(m.source));
      to.U64(m.serial);
      to.U64(m.storage);
      to.U64(m.acks.bits());
      break;
    case Type::kNack:
      to.U8(static_cast<uint8_t>(m.kind));
      to.U8(static_cast<uint8_t>(m.reason));
      to.U16(m.home.value());
      break;
    case Type::kInvalidate:
      to.U16(m.requester.value());
      to.U64(m.serial);
      to.U64(m.ticket);
      break;
    case Type::kDone:
      to.U64(m.serial);
      to.U8(m.declined ? 1 : 0);
      break;
    case Type::kAck:
    case Type::kRelease:
    case Type::kReleased:
      to.U64(m.serial);
      break;
    case Type::kPeeked:
      to.U8(m.source == PageSource::kPayload ? 1 : 0);
      break;
    case Type::kEvict:
      to.U8(static_cast<uint8_t>(m.source));
      to.U64(m.storage);
      break;
    case Type::kOffer:
      to.U8(m.urgent ? 1 : 0);
      break;
    case Type::kEvictGranted:
    case Type::kEvictDenied:
    case Type::kPeek:
      break;
  }
  return body;
}

void SetPageHeader(const PageMessage& message, Message* header) {
  header->type = static_cast<uint16_t>(kFirstUserType + static_cast<uint16_t>(message.type));
  header->transaction = HasTransaction(message.type) ? message.transaction : 0;
  header->answer = message.type == Type::kAnswer || message.type == Type::kNack || message.type == Type::kPeeked;
}

absl::StatusOr<PageMessage> DecodePageMessage(NodeId from, NodeId self, const Message& message) {
  if (message.type < kFirstUserType || message.type - kFirstUserType >= kTypes || message.type == kSpaceStoppedType) {
    return Malformed(from, "a message of unknown type " + std::to_string(message.type));
  }
  PageMessage m;
  m.type = static_cast<Type>(message.type - kFirstUserType);
  m.from = from;
  m.to = self;
  Reader body(message.body);
  switch (m.type) {
    case Type::kRequest:
      m.requester = from;
      m.kind = body.Of(RequestKind::kAdopt);
      m.has_copy = body.Flag();
      m.peeks = body.Flag();
      m.asked = body.Node();
      m.serial = body.U64();
      m.ticket = body.U64();
      if (!m.peeks ? m.asked != NodeId() || m.serial != 0 : m.kind != RequestKind::kRead || m.has_copy) {
        return Malformed(from, "a malformed Request");
      }
      break;
    case Type::kForward:
      m.requester = body.Node();
      m.kind = body.Of(RequestKind::kAdopt);
      m.serial = body.U64();
      m.acks = NodeSet(body.U64());
      m.ticket = body.U64();
      break;
    case Type::kAnswer:
      m.requester = self;
      m.kind = body.Of(RequestKind::kAdopt);
      m.right = body.Of(PageRight::kExclusive);
      m.source = body.Of(PageSource::kPeeked);
      m.serial = body.U64();
      m.storage = body.U64();
      m.acks = NodeSet(body.U64());
      break;
    case Type::kNack:
      m.requester = self;
      m.kind = body.Of(RequestKind::kAdopt);
      m.reason = body.Of(NackReason::kLost);
      m.home = body.Node();
      break;
    case Type::kInvalidate:
      m.requester = body.Node();
      m.serial = body.U64();
      m.ticket = body.U64();
      break;
    case Type::kAck:
      m.requester = self;
      m.serial = body.U64();
      break;
    case Type::kDone:
      m.requester = from;
      m.serial = body.U64();
      m.declined = body.Flag();
      break;
    case Type::kPeek:
      m.requester = from;
      break;
    case Type::kPeeked:
      m.requester = self;
      m.source = body.Flag() ? PageSource::kPayload : PageSource::kNone;
      break;
    case Type::kRelease:
    case Type::kReleased:
      m.serial = body.U64();
      break;
    case Type::kEvict:
      m.source = body.Of(PageSource::kPayload);
      m.storage = body.U64();
      break;
    case Type::kOffer:
      m.urgent = body.Flag();
      break;
    case Type::kEvictGranted:
    case Type::kEvictDenied:
      break;
  }
  if (!body.good()) return Malformed(from, std::string("a malformed ") + Name(m.type));
  if (HasTransaction(m.type)) {
    m.transaction = message.transaction;
  } else if (message.transaction != 0) {
    return Malformed(from, std::string("a transaction with ") + Name(m.type));
  }
  if (!HasItsShape(m, self, message)) {
    return Malformed(from, std::string(Name(m.type)) + " on a class or with a slot that it has not");
  }
  return m;
}

Message SpaceHurryMessage(uint64_t transaction) {
  Message message;
  message.type = kSpaceHurryType;
  message.transaction = transaction;
  return message;
}

Message SpacePingMessage(bool pong, uint64_t transaction) {
  Message message;
  message.type = pong ? kSpacePongType : kSpacePingType;
  message.transaction = transaction;
  return message;
}

Message SpaceStoppedMessage(std::string_view why) {
  Message message;
  message.message_class = MessageClass::kInvalidate;  // behind nothing that waits for a slot
  message.type = kSpaceStoppedType;
  message.body = std::as_bytes(std::span(why.substr(0, kMaxBodyBytes)));
  return message;
}

Message SpaceRoomMessage(uint64_t pages, PageBody* body) {
  Writer(body).U64(pages);
  Message message;
  message.message_class = MessageClass::kBulk;
  message.type = kSpaceRoomType;
  message.body = body->span();
  return message;
}

absl::StatusOr<uint64_t> RoomIn(NodeId from, const Message& message) {
  Reader body(message.body);
  const uint64_t pages = body.U64();
  if (!body.good() || message.answer || message.slot != SlotId()) return Malformed(from, "a malformed Room");
  return pages;
}

std::string ReasonIn(const Message& message) {
  std::string why;
  for (const std::byte byte : message.body) {
    const auto c = static_cast<char>(byte);
    why += c >= ' ' && c <= '~' ? c : '?';
  }
  return why.empty() ? "it does not say why" : why;
}

}  // namespace hk
