#include "rdma/wire.h"

#include <openssl/sha.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "rdma/slots.h"

namespace hk {

namespace {

constexpr uint32_t kHeaderMagic = 0x314d4b48;  // "HKM1" as bytes
constexpr uint32_t kHelloMagic = 0x31484b48;   // "HKH1" as bytes
constexpr uint16_t kFlagAnswer = 1U << 0;
constexpr uint16_t kFlagPayloadCrc = 1U << 1;
constexpr uint16_t kReservedFlags = 0x00fc;
constexpr int kUserFlagsShift = 8;
constexpr uint16_t kNoNode = 0xffff;

// Where the fields of a header are (rdma/README.md).
namespace header_at {
constexpr size_t kMagic = 0, kVersion = 4, kClass = 5, kType = 6, kFlags = 8, kSlotNode = 10, kGeneration = 12;
constexpr size_t kGuest = 16, kEpoch = 24, kTransaction = 32, kGfn = 40, kSequence = 48, kAcknowledged = 56, kSlot = 64;
constexpr size_t kBodyBytes = 72, kReserved = 74, kPayloadBytes = 76, kPayloadCrc = 80, kCrc = 84;
static_assert(kCrc + 4 == kHeaderBytes);
}  // namespace header_at

// Where the fields of a hello are.
namespace hello_at {
constexpr size_t kMagic = 0, kVersion = 4, kKind = 5, kClass = 6, kReserved = 7, kFrom = 8, kTo = 10, kCluster = 12;
constexpr size_t kNodeEpoch = 20, kSession = 28, kPeerSession = 36, kReceived = 44, kCrc = 52;
static_assert(kCrc + 4 == kHelloBytes);
}  // namespace hello_at

// Where the fields of a setup are.
namespace setup_at {
constexpr size_t kWindow = 0, kHeartbeat = 4, kCounter = 8, kAddress = 16, kKey = 24, kStride = 28, kCount = 32;
constexpr size_t kReserved = 36;
static_assert(kReserved + 4 == kSetupBytes);
}  // namespace setup_at

// The format is little-endian, and so is every host that has KVM's x86 interface: one load or store each.
static_assert(std::endian::native == std::endian::little);

template <typename T>
void Put(std::span<std::byte> bytes, size_t at, std::type_identity_t<T> value) {
  HK_DCHECK(at + sizeof value <= bytes.size());
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

template <typename T>
T Get(std::span<const std::byte> bytes, size_t at) {
  HK_DCHECK(at + sizeof(T) <= bytes.size());
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

bool IsNumbered(uint16_t type) {
  return type >= kFirstUserType || type == static_cast<uint16_t>(OwnType::kBarrier);
}

bool IsKnown(uint16_t type, MessageClass message_class) {
  if (type >= kFirstUserType) return true;
  switch (static_cast<OwnType>(type)) {
    case OwnType::kHeartbeat:
      return message_class == MessageClass::kInvalidate;
    case OwnType::kSetup:
    case OwnType::kAck:
    case OwnType::kGoodbye:
    case OwnType::kBarrier:
      return true;
  }
  return false;
}

size_t SlotBytesOf(MessageClass message_class) {
  if (message_class == MessageClass::kInvalidate) return 0;
  return message_class == MessageClass::kFault ? kFaultSlotBytes : kBulkSlotBytes;
}

// The body of the transport's own messages is of one size, and they have no payload.
bool LengthIsRight(const Header& header) {
  if (header.message.type < kFirstUserType) {
    const bool setup = header.message.type == static_cast<uint16_t>(OwnType::kSetup);
    return header.body_bytes == (setup ? kSetupBytes : 0) && header.payload_bytes == 0;
  }
  if (header.body_bytes > kMaxBodyBytes) return false;
  return header.payload_bytes == 0 ||
         (header.message.answer && header.payload_bytes <= SlotBytesOf(header.message.message_class));
}

bool SlotIsRight(const Message& message, uint16_t node) {
  if (message.slot == SlotId()) return node == kNoNode && !message.answer;
  const SlotName name = SlotName::Decode(message.slot);
  return node < kMaxNodes && message.type >= kFirstUserType && message.message_class == name.message_class &&
         name.use == SlotUse::kReceive && name.counter != 0;
}

WireError Start(std::span<const std::byte> bytes, size_t size, uint32_t magic, uint8_t current) {
  if (bytes.size() < size) return WireError::kTruncated;
  if (Get<uint32_t>(bytes, 0) != magic) return WireError::kMagic;
  if (!AcceptsVersion(Get<uint8_t>(bytes, 4), current) && !HK_MUTANT(wire_any_version)) return WireError::kVersion;
  if (Get<uint32_t>(bytes, size - 4) != Crc32c(bytes.first(size - 4))) return WireError::kHeaderCrc;
  return WireError::kNone;
}

}  // namespace

std::string_view WireErrorName(WireError error) {
  static constexpr std::array<std::string_view, kWireErrors> kNames = {
      "none",     "truncated", "magic", "version",  "header-crc",  "class", "type",
      "reserved", "length",    "slot",  "sequence", "payload-crc", "value"};
  const auto index = static_cast<size_t>(error);
  return index < kNames.size() ? kNames[index] : "unknown";
}

std::string_view HelloKindName(HelloKind kind) {
  switch (kind) {
    case HelloKind::kHello:
      return "hello";
    case HelloKind::kAcceptFresh:
      return "accepted";
    case HelloKind::kAcceptResumed:
      return "resumed";
    case HelloKind::kRejectVersion:
      return "protocol version not understood";
    case HelloKind::kRejectCluster:
      return "other cluster";
    case HelloKind::kRejectNode:
      return "no such peer here";
    case HelloKind::kRejectEpoch:
      return "old epoch: fenced";
    case HelloKind::kRejectSession:
      return "session not known";
    case HelloKind::kRejectResume:
      return "cannot be resumed";
    case HelloKind::kRejectBusy:
      return "out of resources";
    case HelloKind::kRejectRole:
      return "the smaller node number connects";
  }
  return "unknown";
}

std::array<std::byte, kHeaderBytes> EncodeHeader(const Header& header) {
  const Message& message = header.message;
  const bool slot = message.slot != SlotId();
  std::array<std::byte, kHeaderBytes> bytes{};
  Put<uint32_t>(bytes, header_at::kMagic, kHeaderMagic);
  Put<uint8_t>(bytes, header_at::kVersion, header.version);
  Put<uint8_t>(bytes, header_at::kClass, static_cast<uint8_t>(message.message_class));
  Put<uint16_t>(bytes, header_at::kType, message.type);
  Put<uint16_t>(
      bytes, header_at::kFlags,
      static_cast<uint16_t>((message.answer ? kFlagAnswer : 0) | (header.has_payload_crc ? kFlagPayloadCrc : 0) |
                            message.flags << kUserFlagsShift));
  Put<uint16_t>(bytes, header_at::kSlotNode, slot ? message.slot_node.value() : kNoNode);
  Put<uint32_t>(bytes, header_at::kGeneration, message.generation);
  Put<uint64_t>(bytes, header_at::kGuest, message.guest.value());
  Put<uint64_t>(bytes, header_at::kEpoch, message.epoch.value());
  Put<uint64_t>(bytes, header_at::kTransaction, message.transaction);
  Put<uint64_t>(bytes, header_at::kGfn, message.gfn.value());
  Put<uint64_t>(bytes, header_at::kSequence, header.sequence);
  Put<uint64_t>(bytes, header_at::kAcknowledged, header.acknowledged);
  Put<uint64_t>(bytes, header_at::kSlot, message.slot.value());
  Put<uint16_t>(bytes, header_at::kBodyBytes, header.body_bytes);
  Put<uint32_t>(bytes, header_at::kPayloadBytes, header.payload_bytes);
  Put<uint32_t>(bytes, header_at::kPayloadCrc, header.payload_crc);
  Put<uint32_t>(bytes, header_at::kCrc, Crc32c(std::span(bytes).first(header_at::kCrc)));
  return bytes;
}

WireError DecodeHeader(std::span<const std::byte> bytes, MessageClass expected, Header* header, uint8_t current) {
  if (const WireError error =
          Start(bytes.first(std::min(bytes.size(), kHeaderBytes)), kHeaderBytes, kHeaderMagic, current);
      error != WireError::kNone) {
    return error;
  }
  if (Get<uint8_t>(bytes, header_at::kClass) != static_cast<uint8_t>(expected)) return WireError::kClass;
  const auto type = Get<uint16_t>(bytes, header_at::kType);
  if (!IsKnown(type, expected)) return WireError::kType;
  const auto flags = Get<uint16_t>(bytes, header_at::kFlags);
  if ((flags & kReservedFlags) != 0 || Get<uint16_t>(bytes, header_at::kReserved) != 0) return WireError::kReserved;

  Header read;
  read.version = Get<uint8_t>(bytes, header_at::kVersion);
  read.message.message_class = expected;
  read.message.type = type;
  read.message.flags = static_cast<uint8_t>(flags >> kUserFlagsShift);
  read.message.answer = (flags & kFlagAnswer) != 0;
  read.message.guest = GuestId(Get<uint64_t>(bytes, header_at::kGuest));
  read.message.generation = Get<uint32_t>(bytes, header_at::kGeneration);
  read.message.epoch = Epoch(Get<uint64_t>(bytes, header_at::kEpoch));
  read.message.transaction = Get<uint64_t>(bytes, header_at::kTransaction);
  read.message.gfn = Gfn(Get<uint64_t>(bytes, header_at::kGfn));
  read.message.slot = SlotId(Get<uint64_t>(bytes, header_at::kSlot));
  read.sequence = Get<uint64_t>(bytes, header_at::kSequence);
  read.acknowledged = Get<uint64_t>(bytes, header_at::kAcknowledged);
  read.body_bytes = Get<uint16_t>(bytes, header_at::kBodyBytes);
  read.payload_bytes = Get<uint32_t>(bytes, header_at::kPayloadBytes);
  read.has_payload_crc = (flags & kFlagPayloadCrc) != 0;
  read.payload_crc = Get<uint32_t>(bytes, header_at::kPayloadCrc);

  const auto node = Get<uint16_t>(bytes, header_at::kSlotNode);
  if (!LengthIsRight(read) && !HK_MUTANT(wire_any_length)) return WireError::kLength;
  if (!SlotIsRight(read.message, node)) return WireError::kSlot;
  if ((read.sequence != 0) != IsNumbered(type)) return WireError::kSequence;
  if (!read.has_payload_crc && read.payload_crc != 0) return WireError::kPayloadCrc;
  read.message.slot_node = node == kNoNode ? NodeId() : NodeId(node);
  *header = read;
  return WireError::kNone;
}

void SetPayloadCrc(std::span<const std::byte> body, std::span<const std::byte> payload, Header* header) {
  HK_CHECK(header->body_bytes == body.size() && header->payload_bytes == payload.size());
  header->has_payload_crc = true;
  header->payload_crc = Crc32c(payload, Crc32c(body));
}

WireError CheckPayload(const Header& header, std::span<const std::byte> body, std::span<const std::byte> payload) {
  if (body.size() != header.body_bytes || payload.size() != header.payload_bytes) return WireError::kLength;
  if (HK_MUTANT(wire_payload_unchecked)) return WireError::kNone;
  if (!header.has_payload_crc || header.payload_crc != Crc32c(payload, Crc32c(body))) return WireError::kPayloadCrc;
  return WireError::kNone;
}

uint64_t ClusterHash(std::string_view cluster) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
  SHA256(reinterpret_cast<const unsigned char*>(cluster.data()), cluster.size(), digest.data());
  return Get<uint64_t>(std::as_bytes(std::span(digest)), 0);
}

std::array<std::byte, kHelloBytes> EncodeHello(const Hello& hello) {
  std::array<std::byte, kHelloBytes> bytes{};
  Put<uint32_t>(bytes, hello_at::kMagic, kHelloMagic);
  Put<uint8_t>(bytes, hello_at::kVersion, hello.version);
  Put<uint8_t>(bytes, hello_at::kKind, static_cast<uint8_t>(hello.kind));
  Put<uint8_t>(bytes, hello_at::kClass, static_cast<uint8_t>(hello.message_class));
  Put<uint16_t>(bytes, hello_at::kFrom, hello.from.value());
  Put<uint16_t>(bytes, hello_at::kTo, hello.to.value());
  Put<uint64_t>(bytes, hello_at::kCluster, hello.cluster);
  Put<uint64_t>(bytes, hello_at::kNodeEpoch, hello.node_epoch.value());
  Put<uint64_t>(bytes, hello_at::kSession, hello.session);
  Put<uint64_t>(bytes, hello_at::kPeerSession, hello.peer_session);
  Put<uint64_t>(bytes, hello_at::kReceived, hello.received);
  Put<uint32_t>(bytes, hello_at::kCrc, Crc32c(std::span(bytes).first(hello_at::kCrc)));
  return bytes;
}

WireError DecodeHello(std::span<const std::byte> bytes, Hello* hello, uint8_t current) {
  const std::span<const std::byte> own = bytes.first(std::min(bytes.size(), kHelloBytes));
  if (const WireError error = Start(own, kHelloBytes, kHelloMagic, current); error != WireError::kNone) return error;
  const auto message_class = Get<uint8_t>(bytes, hello_at::kClass);
  if (message_class >= kMessageClasses) return WireError::kClass;
  if (Get<uint8_t>(bytes, hello_at::kReserved) != 0) return WireError::kReserved;
  Hello read;
  read.version = Get<uint8_t>(bytes, hello_at::kVersion);
  read.kind = static_cast<HelloKind>(Get<uint8_t>(bytes, hello_at::kKind));
  read.message_class = static_cast<MessageClass>(message_class);
  read.from = NodeId(Get<uint16_t>(bytes, hello_at::kFrom));
  read.to = NodeId(Get<uint16_t>(bytes, hello_at::kTo));
  read.cluster = Get<uint64_t>(bytes, hello_at::kCluster);
  read.node_epoch = Epoch(Get<uint64_t>(bytes, hello_at::kNodeEpoch));
  read.session = Get<uint64_t>(bytes, hello_at::kSession);
  read.peer_session = Get<uint64_t>(bytes, hello_at::kPeerSession);
  read.received = Get<uint64_t>(bytes, hello_at::kReceived);
  if (HelloKindName(read.kind) == "unknown") return WireError::kType;
  if (read.from.value() >= kMaxNodes || read.to.value() >= kMaxNodes) return WireError::kValue;
  if (read.session == 0 && read.kind < HelloKind::kRejectVersion) return WireError::kValue;
  if (read.received != 0 && read.peer_session == 0) return WireError::kSequence;
  *hello = read;
  return WireError::kNone;
}

std::array<std::byte, kSetupBytes> EncodeSetup(const SetupBody& setup) {
  std::array<std::byte, kSetupBytes> bytes{};
  Put<uint32_t>(bytes, setup_at::kWindow, setup.window_messages);
  Put<uint32_t>(bytes, setup_at::kHeartbeat, setup.heartbeat_ms);
  Put<uint64_t>(bytes, setup_at::kCounter, setup.first_slot_counter);
  Put<uint64_t>(bytes, setup_at::kAddress, setup.slots_address);
  Put<uint32_t>(bytes, setup_at::kKey, setup.slots_key);
  Put<uint32_t>(bytes, setup_at::kStride, setup.slot_stride);
  Put<uint32_t>(bytes, setup_at::kCount, setup.slot_count);
  return bytes;
}

WireError DecodeSetup(std::span<const std::byte> bytes, SetupBody* setup) {
  if (bytes.size() != kSetupBytes) return WireError::kLength;
  if (Get<uint32_t>(bytes, setup_at::kReserved) != 0) return WireError::kReserved;
  SetupBody read;
  read.window_messages = Get<uint32_t>(bytes, setup_at::kWindow);
  read.heartbeat_ms = Get<uint32_t>(bytes, setup_at::kHeartbeat);
  read.first_slot_counter = Get<uint64_t>(bytes, setup_at::kCounter);
  read.slots_address = Get<uint64_t>(bytes, setup_at::kAddress);
  read.slots_key = Get<uint32_t>(bytes, setup_at::kKey);
  read.slot_stride = Get<uint32_t>(bytes, setup_at::kStride);
  read.slot_count = Get<uint32_t>(bytes, setup_at::kCount);
  if (read.window_messages < kMinWindow || read.window_messages > kMaxWindow || read.slot_count > kMaxSlots ||
      read.first_slot_counter == 0) {
    return WireError::kValue;
  }
  *setup = read;
  return WireError::kNone;
}

}  // namespace hk
