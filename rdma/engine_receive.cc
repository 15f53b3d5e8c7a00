// The way of a message from the wire to the handler.
#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "rdma/engine.h"
#include "rdma/send_rules.h"

namespace hk {

namespace {

// What a Goodbye means here: the peer's reason, seen from this side.
PeerFailure FailureOfGoodbye(PeerFailure said) {
  switch (said) {
    case PeerFailure::kLeft:
      return PeerFailure::kLeft;
    case PeerFailure::kMalformed:
    case PeerFailure::kRejected:
    case PeerFailure::kFenced:
      return PeerFailure::kRejected;
    case PeerFailure::kLeaseExpired:
    case PeerFailure::kRestarted:
    case PeerFailure::kLocal:
      break;
  }
  return PeerFailure::kRestarted;
}

// Which rule of slots a message breaks that is no answer; null: none. Of a slot of a third node the sender may know no
// more than we do: that one's restart may have changed how many there are.
const char* BrokenSlotRule(NodeId self, const Lane& lane, const Message& message)
    ABSL_SHARED_LOCKS_REQUIRED(lane.mutex) {
  if (message.slot == SlotId() || HK_MUTANT(named_slots_unchecked)) return nullptr;
  if (message.slot_node == self) return "it names a slot of ours in what is no answer";
  if (message.slot_node == lane.peer && SlotName::Decode(message.slot).index >= lane.peer_setup.slot_count) {
    return "it names a slot that it does not have";
  }
  return nullptr;
}

bool IsPeerFailure(uint8_t number) {
  return number >= static_cast<uint8_t>(PeerFailure::kLeaseExpired) &&
         number <= static_cast<uint8_t>(PeerFailure::kLocal);
}

}  // namespace

Engine::Fate Engine::Deliver(const LinkTicket& ticket, const Header& header, std::span<const std::byte> body,
                             std::span<const std::byte> payload) {
  Peer* peer = Find(ticket.peer);
  Lane& lane = LaneOf(ticket);
  Arrived arrived{.header = header, .body = body, .payload = payload, .now = clock_.Now(), .detail = {}};
  peer->heard.store(arrived.now, std::memory_order_relaxed);
  Verdict verdict;
  uint64_t session = 0;
  {
    MutexLock lock(&lane.mutex);
    if (lane.ticket != ticket.number && !HK_MUTANT(old_connection_read)) return Fate::kClosed;
    session = lane.session;
    verdict = Take(&lane, &arrived);
    if (verdict == Verdict::kHold) return Fate::kHold;
    if (verdict == Verdict::kDeliver) {
      lane.handlers.fetch_add(1);
      ++lane.statistics.received_messages;
      lane.statistics.received_bytes += kHeaderBytes + header.body_bytes + header.payload_bytes;
    } else {
      NoteAck(&lane, arrived.now);
    }
  }
  switch (verdict) {
    case Verdict::kDeliver: {
      if (arrived.late && !HK_MUTANT(late_answer_first)) RunEvents(ticket.message_class);
      Message message = header.message;
      message.body = body;
      handler_->OnMessage(ticket.peer, message, payload, arrived.late);
      Leave(&lane);
      if (!lane.owes_ack.load(std::memory_order_relaxed)) return Fate::kTaken;  // the handler's answer carried it
      MutexLock lock(&lane.mutex);
      if (lane.session == session) NoteAck(&lane, arrived.now);
      return Fate::kTaken;
    }
    case Verdict::kSetup:
      CheckUp(peer, session, ticket.message_class);
      return Fate::kTaken;
    case Verdict::kMalformed:
      malformed_.fetch_add(1, std::memory_order_relaxed);
      Fail(peer, session, PeerFailure::kMalformed, arrived.detail);
      return Fate::kClosed;
    case Verdict::kGoodbye:
      Fail(peer, session, FailureOfGoodbye(static_cast<PeerFailure>(header.message.flags)),
           fmt::format("it said goodbye, for reason {} of its own", header.message.flags));
      return Fate::kClosed;
    case Verdict::kDone:
    case Verdict::kHold:
      break;
  }
  return Fate::kTaken;
}

Engine::Verdict Engine::Take(Lane* lane, Arrived* arrived) {
  const uint16_t type = arrived->header.message.type;
  if (!lane->setup_received && type != static_cast<uint16_t>(OwnType::kSetup)) {
    arrived->detail = "its first message is no Setup";
    return Verdict::kMalformed;
  }
  if (arrived->header.sequence == 0) return TakeOwn(lane, arrived);
  if (!lane->open && !HK_MUTANT(delivered_before_up)) return Verdict::kHold;
  return TakeNumbered(lane, arrived);
}

Engine::Verdict Engine::TakeOwn(Lane* lane, Arrived* arrived) {
  const Header& header = arrived->header;
  switch (static_cast<OwnType>(header.message.type)) {
    case OwnType::kSetup: {
      SetupBody setup;
      const WireError error = DecodeSetup(arrived->body, &setup);
      if (error != WireError::kNone || lane->setup_received) {
        arrived->detail = fmt::format("Setup: {}", error == WireError::kNone ? "a second one" : WireErrorName(error));
        return Verdict::kMalformed;
      }
      lane->peer_setup = setup;
      lane->window.SetWindow(std::min(settings_.window_messages, setup.window_messages));
      lane->link->OnSetup(setup);
      lane->setup_received = true;
      lane->broken_since.reset();
      break;
    }
    case OwnType::kGoodbye:
      if (IsPeerFailure(header.message.flags)) return Verdict::kGoodbye;
      arrived->detail = "a Goodbye without reason";
      return Verdict::kMalformed;
    case OwnType::kAck:
    case OwnType::kHeartbeat:
    case OwnType::kBarrier:
      break;
  }
  if (!Acknowledge(lane, header.acknowledged)) {
    arrived->detail = "it acknowledges what was never sent";
    return Verdict::kMalformed;
  }
  if (!lane->delivered.empty()) {
    MutexLock lock(&tables_);
    FreeDelivered(lane);
  }
  WindowMoved(lane);
  return header.message.type == static_cast<uint16_t>(OwnType::kSetup) ? Verdict::kSetup : Verdict::kDone;
}

Engine::Verdict Engine::TakeNumbered(Lane* lane, Arrived* arrived) {
  const Header& header = arrived->header;
  const Arrival arrival = lane->received.Receive(header.sequence);
  if (arrival == Arrival::kGap) {
    arrived->detail = fmt::format("message {} follows {}", header.sequence, lane->received.received());
    return Verdict::kMalformed;
  }
  lane->owes_ack.store(true, std::memory_order_relaxed);
  if (!Acknowledge(lane, header.acknowledged)) {
    arrived->detail = "it acknowledges what was never sent";
    return Verdict::kMalformed;
  }
  Verdict verdict = Verdict::kDone;
  {
    MutexLock lock(&tables_);
    FreeDelivered(lane);
    if (arrival == Arrival::kDuplicate) {
      if (header.message.type >= kFirstUserType) {
        ++lane->statistics.dropped[static_cast<size_t>(DropReason::kDuplicate)];
      }
    } else {
      verdict = TakeMessage(lane, arrived);
    }
  }
  WindowMoved(lane);
  // Whoever asks may wait for what has not been said yet. It goes with the handler's answer, or after it (NoteAck).
  if (!header.message.answer && !HK_MUTANT(asked_for_in_vain)) lane->unhurried = false;
  return verdict;
}

Engine::Verdict Engine::TakeMessage(Lane* lane, Arrived* arrived) {
  const Message& message = arrived->header.message;
  if (message.type == static_cast<uint16_t>(OwnType::kBarrier)) {
    floors_.PeerRaised(lane->peer, lane->message_class, message.guest, message.generation, message.epoch);
    PostExpired(slots_.PeerPassed(lane->peer, lane->message_class, message.guest, message.generation, message.epoch));
    PostFreeSlots();
    return Verdict::kDone;
  }
  const bool old = floors_.IsOld(message);
  if (message.answer) return TakeAnswer(lane, old, arrived);
  if (const char* const broken = BrokenSlotRule(settings_.self, *lane, message)) {
    arrived->detail = broken;
    return Verdict::kMalformed;
  }
  if (!old) return Verdict::kDeliver;
  ++lane->statistics.dropped[static_cast<size_t>(DropReason::kOldEpoch)];
  return Verdict::kDone;
}

Engine::Verdict Engine::TakeAnswer(Lane* lane, bool old, Arrived* arrived) {
  const Header& header = arrived->header;
  if (header.message.slot_node != settings_.self) {
    arrived->detail = "an answer to a request of another node";
    return Verdict::kMalformed;
  }
  lane->claimed = SlotId();
  // Its payload was not kept (Destination), for a reason that may be gone by now: it does not end the request.
  const bool incomplete = arrived->payload.size() != header.payload_bytes;
  SlotTable::Request request;
  const AnswerFate fate =
      incomplete && !old ? AnswerFate::kStale : slots_.Answer(lane->peer, header.message, !old, &request);
  switch (fate) {
    case AnswerFate::kForeign:
      arrived->detail = "an answer to a slot that it was not given";
      return Verdict::kMalformed;
    case AnswerFate::kStale:
      ++lane->statistics.dropped[static_cast<size_t>(old ? DropReason::kOldEpoch : DropReason::kStaleSlot)];
      return Verdict::kDone;
    case AnswerFate::kDelivered:
    case AnswerFate::kLate:
      break;
  }
  if (old) {
    ++lane->statistics.dropped[static_cast<size_t>(DropReason::kOldEpoch)];
    PostFreeSlots();
    return Verdict::kDone;
  }
  arrived->late = fate == AnswerFate::kLate;
  ++lane->statistics.latency[LatencyBucket(arrived->now - request.sent)];
  return Verdict::kDeliver;
}

Engine::Fate Engine::Destination(const LinkTicket& ticket, const Header& header, std::span<std::byte>* destination) {
  *destination = {};
  const Message& message = header.message;
  Lane& lane = LaneOf(ticket);
  {
    MutexLock lock(&lane.mutex);
    if (lane.ticket != ticket.number) return Fate::kClosed;
    // What breaks a rule is found by Deliver; until then its payload goes nowhere.
    if (!lane.setup_received || header.sequence == 0) return Fate::kTaken;
    if (!lane.open) return Fate::kHold;
    if (header.sequence != lane.received.received() + 1 && !HK_MUTANT(replayed_payload_lands)) return Fate::kTaken;
    if (!message.answer || message.slot_node != settings_.self) return Fate::kTaken;
    MutexLock tables_lock(&tables_);
    if (floors_.IsOld(message)) return Fate::kTaken;
    switch (slots_.Claim(lane.peer, message)) {
      case AnswerFate::kDelivered:
      case AnswerFate::kLate:
        lane.claimed = message.slot;
        *destination = memory_.Bytes(message.slot).first(header.payload_bytes);
        return Fate::kTaken;
      case AnswerFate::kStale:
        return Fate::kTaken;
      case AnswerFate::kForeign:
        break;
    }
  }
  OnMalformed(ticket, "an answer to a slot that it was not given");
  return Fate::kClosed;
}

bool Engine::Acknowledge(Lane* lane, uint64_t through) {
  if (through == lane->window.acknowledged()) return true;
  // Else the payload's slot would be free, and what is put there next would go out in its place.
  if (lane->link != nullptr && through >= lane->link->FirstUnsent() && !HK_MUTANT(unsent_acknowledged)) return false;
  std::vector<SlotId>* const delivered = &lane->delivered;
  return lane->window.Acknowledge(through, [delivered](const Outgoing& outgoing) {
    if (outgoing.payload != SlotId()) delivered->push_back(outgoing.payload);
  });
}

void Engine::FreeDelivered(Lane* lane) {
  if (lane->delivered.empty()) return;
  for (const SlotId payload : lane->delivered) slots_.SendDone(payload);
  lane->delivered.clear();
  PostFreeSlots();
}

void Engine::WindowMoved(Lane* lane) {
  PayOwedBarriers(lane);
  // Before OnPeerUp has returned it could not be told; after it we are called once more.
  if (lane->open && lane->window.TakeWritable()) Post(lane->message_class, WritableEvent{lane->peer, lane->session});
  Pump(lane);
}

void Engine::NoteAck(Lane* lane, Monotonic now) {
  const uint64_t unacknowledged = lane->received.unacknowledged();
  if (unacknowledged == 0) return;
  if (!lane->unhurried && !lane->window.AllSent()) {
    Pump(lane);
    if (lane->received.unacknowledged() == 0) return;
  }
  if (unacknowledged >= std::min(settings_.window_messages, lane->peer_setup.window_messages) / 4) {
    lane->ack_due = true;
    Pump(lane);
    return;
  }
  ClassState& state = classes_[static_cast<size_t>(lane->message_class)];
  if (state.acks.empty()) state.acks_due = now + kAckDelay;
  state.acks.Add(lane->peer);
}

void Engine::Leave(Lane* lane) {
  lane->handlers.fetch_sub(1);
  // Perhaps the peer failed meanwhile, and its event waits for this.
  if (lane->ended.load()) wire_->WakeControl();
}

}  // namespace hk
