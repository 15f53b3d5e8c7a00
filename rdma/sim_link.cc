#include "rdma/sim_link.h"

#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "rdma/sim_wire.h"

namespace hk {

namespace {

// Of how many messages one may come again.
constexpr size_t kRepeatable = 4;

}  // namespace

SimLink::SimLink(SimWire* wire, const LinkTicket& ticket, std::unique_ptr<SimSocket> socket,
                 std::vector<std::byte> early)
    : wire_(wire), ticket_(ticket), socket_(std::move(socket)), in_(std::move(early)) {}

void SimLink::Begin() {
  if (socket_ == nullptr) return;
  socket_->SetHandler(weak_from_this());
  Parse();
}

// --- Sending ---

Link::Sent SimLink::Send(const Header& header, std::span<const std::byte> body, std::span<const std::byte> payload,
                         bool /*more*/) {
  if (full_) return Sent::kFull;
  const SimNetworkSettings& network = wire_->network().settings();
  if (std::exchange(sent_, true) && network.stalls_per_million != 0 &&
      wire_->simulation().Chance(network.stalls_per_million)) {
    full_ = true;
    ++wire_->network().counters().stalls;
    wire_->After(wire_->simulation().Between({}, network.stall_delay), [self = shared_from_this()] {
      self->full_ = false;
      self->wire_->WhenFree(self->ticket_.message_class, [self] { self->wire_->engine().OnSendable(self->ticket_); });
    });
    return Sent::kFull;
  }
  if (free_until_ != 0) free_until_ = header.acknowledged + wire_->engine().settings().window_messages;
  Header complete = header;
  if (!network.direct_writes) SetPayloadCrc(body, payload, &complete);
  const auto encoded = EncodeHeader(complete);
  std::vector<std::byte> bytes(encoded.begin(), encoded.end());
  bytes.insert(bytes.end(), body.begin(), body.end());
  if (network.direct_writes && !payload.empty()) {
    return socket_->SendWrite(header.message.slot, payload, bytes) ? Sent::kTaken : Sent::kBroken;
  }
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  return SendStream(header, bytes) ? Sent::kTaken : Sent::kBroken;
}

bool SimLink::SendStream(const Header& header, const std::vector<std::byte>& bytes) {
  const SimNetworkSettings& network = wire_->network().settings();
  if (!socket_->Send(bytes)) return false;
  if (header.sequence == 0 || network.repeats_per_million == 0 || network.direct_writes) return true;
  repeatable_.push_back(bytes);
  if (repeatable_.size() > kRepeatable) repeatable_.pop_front();
  if (wire_->simulation().Chance(network.repeats_per_million)) {
    socket_->Send(repeatable_[wire_->simulation().Below(repeatable_.size())]);
    ++wire_->network().counters().repeats;
  }
  return true;
}

void SimLink::Close(bool abort) {
  if (socket_ == nullptr) return;
  if (abort) {
    socket_->Abort();
  } else {
    socket_->Close();
  }
  socket_.reset();
  wire_->Forget(this);
}

// --- Receiving ---

void SimLink::Resume() {
  held_ = false;
  wire_->After({}, [self = shared_from_this()] { self->Parse(); });
}

void SimLink::OnBytes(std::span<const std::byte> bytes) {
  in_.insert(in_.end(), bytes.begin(), bytes.end());
  Parse();
}

void SimLink::OnClosed() {
  wire_->engine().OnBroken(ticket_, "closed by the peer");
}

std::span<std::byte> SimLink::ReceiveSlot(SlotId slot) const {
  const SlotName name = SlotName::Decode(slot);
  const TransportSettings& settings = wire_->engine().settings();
  const uint32_t count =
      name.message_class == MessageClass::kBulk ? settings.bulk_receive_slots : settings.fault_receive_slots;
  if (name.use != SlotUse::kReceive || name.message_class != ticket_.message_class || name.index >= count) return {};
  return wire_->engine().memory().Bytes(slot);
}

void SimLink::OnWrite(SlotId slot, std::span<const std::byte> payload) {
  const std::span<std::byte> memory = ReceiveSlot(slot);
  if (memory.size() < payload.size()) return wire_->engine().OnBroken(ticket_, "a write outside of the slots");
  std::copy(payload.begin(), payload.end(), memory.begin());
  wire_->Written(slot, payload);
}

void SimLink::Parse() {
  const auto self = shared_from_this();  // the engine may forget us
  while (socket_ != nullptr && !held_ && !wire_->busy(ticket_.message_class)) {
    if (ParseOne() != Step::kGoOn) break;
  }
  wire_->ClassDue(ticket_.message_class);
}

// The receive buffers of a queue pair: one for each message of the window, there again when it is acknowledged.
void SimLink::CheckWindow(const Header& header) {
  if (header.sequence == 0) return;
  // The first on this connection follows what was said to be received.
  if (free_until_ == 0) free_until_ = header.sequence - 1 + wire_->engine().settings().window_messages;
  SimObserver* const observer = wire_->network().observer();
  if (header.sequence > free_until_ && observer != nullptr) {
    observer->OnOverrun(wire_->engine().settings().self, ticket_.peer, ticket_.message_class);
  }
}

SimLink::Step SimLink::ParseOne() {
  if (in_payload_) return FillPayload();
  if (in_.size() < kHeaderBytes) return Step::kWait;
  Header header;
  const WireError error = DecodeHeader(in_, ticket_.message_class, &header);
  if (error != WireError::kNone) return Malformed(fmt::format("header: {}", WireErrorName(error)));
  if (in_.size() < kHeaderBytes + header.body_bytes) return Step::kWait;
  header_ = header;
  CheckWindow(header);
  const auto body = std::span<const std::byte>(in_).subspan(kHeaderBytes, header.body_bytes);
  body_.assign(body.begin(), body.end());
  if (wire_->network().settings().direct_writes) return ParseDirect(body_);
  if (header.payload_bytes != 0) {
    const Step step = StepOf(wire_->engine().Destination(ticket_, header, &payload_));
    if (step != Step::kGoOn) return step;
    refuse_.clear();
    if (payload_.empty()) {
      refuse_.resize(header.payload_bytes);
      payload_ = refuse_;
    }
    filled_ = 0;
    in_payload_ = true;
    Drop(kHeaderBytes + header.body_bytes);
    return Step::kGoOn;
  }
  if (CheckPayload(header, body_, {}) != WireError::kNone) return Malformed("body: payload-crc");
  const Step step = StepOf(wire_->engine().Deliver(ticket_, header, body_, {}));
  if (step != Step::kWait) Drop(kHeaderBytes + header.body_bytes);
  return step;
}

SimLink::Step SimLink::ParseDirect(std::span<const std::byte> body) {
  std::span<const std::byte> payload;
  if (header_.payload_bytes != 0) {
    const std::span<std::byte> memory = ReceiveSlot(header_.message.slot);
    if (memory.size() < header_.payload_bytes) return Malformed("a slot that is not there");
    payload = memory.first(header_.payload_bytes);
  }
  const size_t bytes = kHeaderBytes + body.size();
  const Step step = StepOf(wire_->engine().Deliver(ticket_, header_, body, payload));
  if (step != Step::kWait) Drop(bytes);
  return step;
}

SimLink::Step SimLink::FillPayload() {
  const size_t bytes = std::min(payload_.size() - filled_, in_.size());
  if (bytes != 0) {
    std::copy_n(in_.begin(), bytes, payload_.begin() + static_cast<ptrdiff_t>(filled_));
    if (refuse_.empty()) wire_->Written(header_.message.slot, payload_.subspan(filled_, bytes));
    filled_ += bytes;
    Drop(bytes);
  }
  if (filled_ != payload_.size()) return Step::kWait;
  if (CheckPayload(header_, body_, payload_) != WireError::kNone) return Malformed("payload: payload-crc");
  const std::span<std::byte> wanted = refuse_.empty() ? payload_ : std::span<std::byte>();
  const Step step = StepOf(wire_->engine().Deliver(ticket_, header_, body_, wanted));
  if (step != Step::kWait) in_payload_ = false;
  return step;
}

SimLink::Step SimLink::StepOf(Engine::Fate fate) {
  if (fate == Engine::Fate::kTaken) return Step::kGoOn;
  if (fate == Engine::Fate::kClosed) return Step::kClosed;
  held_ = true;
  return Step::kWait;
}

SimLink::Step SimLink::Malformed(const std::string& detail) {
  wire_->engine().OnMalformed(ticket_, detail);
  return Step::kClosed;
}

void SimLink::Drop(size_t bytes) {
  in_.erase(in_.begin(), in_.begin() + static_cast<ptrdiff_t>(bytes));
}

}  // namespace hk
