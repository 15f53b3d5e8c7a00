#include "rdma/verbs_link.h"

#include <arpa/inet.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "rdma/slots.h"
#include "rdma/verbs_poller.h"

namespace hk {

namespace {

// Messages of one link that are handled before other links get their turn.
constexpr int kTurn = 32;

// The part of a SlotId that an immediate carries: class, use and index.
constexpr uint64_t kImmediateMask = 0xffff;

}  // namespace

VerbsLink::VerbsLink(const LinkTicket& ticket, uint64_t key, std::unique_ptr<QueuePair> pair, const VerbsPool& pool,
                     Engine* engine, VerbsPoller* poller)
    : ticket_(ticket), key_(key), pair_(std::move(pair)), pool_(pool), engine_(engine), poller_(poller) {}

VerbsLink::~VerbsLink() = default;

// --- Sending ---

Link::Sent VerbsLink::Send(const Header& header, std::span<const std::byte> body, std::span<const std::byte> payload,
                           bool more) {
  std::byte* room = pair_->Room();
  if (room == nullptr) {
    // Room may have come before the event was asked for: Continue looks again.
    if (Continue() != Sent::kTaken) return pair_->send_error().empty() ? Sent::kFull : Sent::kBroken;
    room = pair_->Room();
    if (room == nullptr) return Sent::kBroken;
  }
  const std::array<std::byte, kHeaderBytes> encoded = EncodeHeader(header);
  const std::span<std::byte> control(room, kHeaderBytes + body.size());
  bool posted = false;
  if (payload.empty()) {
    std::memcpy(room, encoded.data(), encoded.size());
    if (!body.empty()) std::memcpy(room + kHeaderBytes, body.data(), body.size());
    // Nothing follows a Goodbye that would make its completion seen.
    const bool last = header.message.type == static_cast<uint16_t>(OwnType::kGoodbye);
    posted = pair_->PostControl(control, last, more);
  } else {
    if (!body.empty()) std::memcpy(room, body.data(), body.size());
    std::memcpy(room + body.size(), encoded.data(), encoded.size());
    const SlotName name = SlotName::Decode(header.message.slot);
    const uint64_t slot = peer_setup_.slots_address + uint64_t{name.index} * peer_setup_.slot_stride;
    posted = pair_->PostWrite(control, payload, pool_.local_key(ticket_.message_class),
                              {.address = slot - control.size(),
                               .key = peer_setup_.slots_key,
                               .immediate = static_cast<uint32_t>(header.message.slot.value() & kImmediateMask)},
                              more);
  }
  return posted ? Sent::kTaken : Sent::kBroken;
}

Link::Sent VerbsLink::Continue() {
  if (!pair_->Flush()) return Sent::kBroken;
  if (pair_->Room() != nullptr) return Sent::kTaken;
  if (!pair_->ArmSends()) return Sent::kBroken;
  if (pair_->Room() != nullptr) return Sent::kTaken;
  return pair_->send_error().empty() ? Sent::kFull : Sent::kBroken;
}

void VerbsLink::Close(bool abort) {
  // What the peer still writes is refused; what we said before still gets there.
  says_farewell_ = !abort && pair_->send_error().empty() && pair_->ForbidWrites() && pair_->Flush();
  if (!says_farewell_) pair_->Reset();
  closed_.store(true, std::memory_order_release);
  poller_->Closed();
}

void VerbsLink::Resume() {
  poller_->Resume(key_);
}

void VerbsLink::FillSetup(SetupBody* setup) const {
  if (ticket_.message_class == MessageClass::kInvalidate) return;
  const SlotMemory& memory = engine_->memory();
  setup->slots_address = reinterpret_cast<uintptr_t>(memory.First(ticket_.message_class, SlotUse::kReceive));
  setup->slots_key = pool_.remote_key(ticket_.message_class);
  setup->slot_stride = static_cast<uint32_t>(memory.Stride(ticket_.message_class));
}

void VerbsLink::OnSetup(const SetupBody& setup) {
  peer_setup_ = setup;
}

bool VerbsLink::Farewell() {
  if (!says_farewell_ || peer_closed_.load()) return true;
  for (int look = 0; look < 2; ++look) {
    if (!pair_->Reap() || pair_->all_sent()) return true;
    if (look == 0 && !pair_->ArmSends()) return true;
  }
  return false;
}

// --- Receiving ---

VerbsLink::PollResult VerbsLink::Poll(bool* progress) {
  for (int handled = 0;; ++handled) {
    if (closed()) return PollResult::kClosed;
    if (batch_next_ == batch_count_) {
      if (handled >= kTurn) return PollResult::kMore;
      // Before the queue is looked at: what the peer sent before it closed is there by then.
      const bool last = peer_closed_.load();
      const int count = pair_->PollReceives(batch_);
      batch_next_ = 0;
      batch_count_ = static_cast<size_t>(std::max(count, 0));
      if (count < 0) {
        Broken("ibv_poll_cq failed");
        return PollResult::kClosed;
      }
      if (count == 0 && last) {
        Broken("closed by the peer");
        return PollResult::kClosed;
      }
      if (count == 0) return PollResult::kIdle;
    }
    switch (Handle(batch_[batch_next_])) {
      case Step::kGoOn:
        ++batch_next_;
        *progress = true;
        break;
      case Step::kPaused:
        return PollResult::kPaused;
      case Step::kClosed:
        return PollResult::kClosed;
    }
  }
}

VerbsLink::Step VerbsLink::Handle(const ibv_wc& completion) {
  if (!copied_) {
    if (completion.status != IBV_WC_SUCCESS) return Broken(ibv_wc_status_str(completion.status));
    const Step step = completion.opcode == IBV_WC_RECV_RDMA_WITH_IMM ? CopyWrite(completion) : CopySend(completion);
    if (step != Step::kGoOn) return step;
    copied_ = true;
  }
  return HandleMessage();
}

VerbsLink::Step VerbsLink::CopySend(const ibv_wc& completion) {
  const size_t size = std::min<size_t>(completion.byte_len, control_.size());
  std::memcpy(control_.data(), pair_->Buffer(completion.wr_id), size);
  // Before the message is acknowledged: the peer counts on it.
  if (!pair_->Repost(completion.wr_id)) return Broken("ibv_post_recv failed");
  const std::span<const std::byte> bytes = std::span<const std::byte>(control_).first(size);
  const WireError error = DecodeHeader(bytes, ticket_.message_class, &header_);
  if (error != WireError::kNone) return Malformed(fmt::format("header: {}", WireErrorName(error)));
  if (header_.payload_bytes != 0 || completion.byte_len != kHeaderBytes + header_.body_bytes) {
    return Malformed(fmt::format("a send of {} bytes that says otherwise", completion.byte_len));
  }
  body_ = bytes.subspan(kHeaderBytes);
  payload_ = {};
  return Step::kGoOn;
}

VerbsLink::Step VerbsLink::CopyWrite(const ibv_wc& completion) {
  if (!pair_->Repost(completion.wr_id)) return Broken("ibv_post_recv failed");
  const uint32_t immediate = ntohl(completion.imm_data);
  const SlotName name = SlotName::Decode(SlotId(immediate & kImmediateMask));
  const TransportSettings& settings = engine_->settings();
  const uint32_t count =
      ticket_.message_class == MessageClass::kFault ? settings.fault_receive_slots : settings.bulk_receive_slots;
  if (immediate > kImmediateMask || name.message_class != ticket_.message_class || name.use != SlotUse::kReceive ||
      name.index >= count) {
    return Malformed(fmt::format("a write for slot {:#x}, which there is not", immediate));
  }
  // The peer, or another, could still write here: header first, once, into our own memory; then all goes by that copy.
  const std::span<const std::byte> slot = engine_->memory().Bytes(SlotId(immediate & kImmediateMask));
  std::memcpy(control_.data() + kMaxBodyBytes, slot.data() - kHeaderBytes, kHeaderBytes);
  const std::span<const std::byte> control(control_);
  const WireError error = DecodeHeader(control.subspan(kMaxBodyBytes), ticket_.message_class, &header_);
  if (error != WireError::kNone) return Malformed(fmt::format("header in a slot: {}", WireErrorName(error)));
  const bool same_slot = (header_.message.slot.value() & kImmediateMask) == immediate || HK_MUTANT(immediate_unchecked);
  if (header_.payload_bytes == 0 || !same_slot ||
      completion.byte_len != kHeaderBytes + header_.body_bytes + header_.payload_bytes) {
    return Malformed("a write that is not what its header says");
  }
  std::memcpy(control_.data(), slot.data() - kHeaderBytes - header_.body_bytes, header_.body_bytes);
  body_ = control.first(header_.body_bytes);
  payload_ = slot.first(header_.payload_bytes);
  return Step::kGoOn;
}

VerbsLink::Step VerbsLink::HandleMessage() {
  switch (engine_->Deliver(ticket_, header_, body_, payload_)) {
    case Engine::Fate::kTaken:
      copied_ = false;
      return Step::kGoOn;
    case Engine::Fate::kHold:
      return Step::kPaused;
    case Engine::Fate::kClosed:
      break;
  }
  return Step::kClosed;
}

VerbsLink::Step VerbsLink::Malformed(const std::string& detail) {
  engine_->OnMalformed(ticket_, detail);
  return Step::kClosed;
}

VerbsLink::Step VerbsLink::Broken(const std::string& detail) {
  engine_->OnBroken(ticket_, detail);
  return Step::kClosed;
}

}  // namespace hk
