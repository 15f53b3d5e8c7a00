#include "rdma/verbs_link.h"

#include <arpa/inet.h>

#include <algorithm>
#include <utility>

#include "rdma/verbs_poller.h"

namespace hk {

namespace {

// Messages of one link that are handled before other links get their turn.
constexpr int kTurn = 32;

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
  bool posted = false;
  if (payload.empty()) {
    // Nothing follows a Goodbye that would make its completion seen.
    const bool last = header.message.type == static_cast<uint16_t>(OwnType::kGoodbye);
    posted = pair_->PostControl(EncodeSend(header, body, room), last, more);
  } else {
    const std::span<const std::byte> control = EncodeBeforePayload(header, body, room);
    posted = pair_->PostWrite(control, payload, pool_.local_key(ticket_.message_class),
                              WriteInto(peer_setup_, header.message.slot, control.size()), more);
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
  if (!read_) {
    if (completion.status != IBV_WC_SUCCESS) return Broken(pair_->WhyBroken(completion.status));
    const std::string broken_rule = Read(completion);
    // Before the message is acknowledged: the peer counts on the buffer.
    if (!pair_->Repost(completion.wr_id)) return Broken("ibv_post_recv failed");
    if (!broken_rule.empty()) return Malformed(broken_rule);
    read_ = true;
  }
  switch (engine_->Deliver(ticket_, message_.header(), message_.body(), message_.payload())) {
    case Engine::Fate::kTaken:
      read_ = false;
      return Step::kGoOn;
    case Engine::Fate::kHold:
      return Step::kPaused;
    case Engine::Fate::kClosed:
      break;
  }
  return Step::kClosed;
}

std::string VerbsLink::Read(const ibv_wc& completion) {
  const MessageClass message_class = ticket_.message_class;
  if (completion.opcode != IBV_WC_RECV_RDMA_WITH_IMM) {
    return message_.ReadSend(message_class, pair_->Buffer(completion.wr_id), completion.byte_len);
  }
  if (message_class == MessageClass::kInvalidate) return "a write on the invalidate class";
  const TransportSettings& settings = engine_->settings();
  const uint32_t slots =
      message_class == MessageClass::kFault ? settings.fault_receive_slots : settings.bulk_receive_slots;
  return message_.ReadWrite(message_class, engine_->memory(), slots, ntohl(completion.imm_data), completion.byte_len);
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
