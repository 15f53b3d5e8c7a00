// The way of a message from Send to the wire.
#include <string_view>
#include <utility>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "rdma/engine.h"
#include "rdma/send_rules.h"

namespace hk {

absl::Status Engine::Send(NodeId to, const Message& message, const SendOptions& options) {
  HK_RETURN_IF_ERROR(CheckSend(settings_.self, to, message, options));
  Lane& lane = Find(to)->LaneOf(message.message_class);
  MutexLock lock(&lane.mutex);
  bool only_peer = false;
  HK_RETURN_IF_ERROR(Admit(&lane, message, options, &only_peer));
  Outgoing outgoing{.message = message,
                    .body = std::string(reinterpret_cast<const char*>(message.body.data()), message.body.size()),
                    .payload = options.payload,
                    .payload_bytes = options.payload_bytes};
  outgoing.message.body = {};
  const bool alone = lane.window.AllSent() || lane.unhurried;
  HK_CHECK(lane.window.Push(std::move(outgoing)));
  if (options.when == SendWhen::kWithNext && alone && lane.window.waiting() < kMostUnhurried) {
    // Whoever owes an acknowledgement sends one soon, and with it all that waits. Else the class's thread sees to it.
    if (!std::exchange(lane.unhurried, true) && lane.received.unacknowledged() == 0) {
      Post(lane.message_class, UnhurriedEvent{lane.peer});
    }
    return absl::OkStatus();
  }
  lane.unhurried = false;
  Pump(&lane);
  // Only what went out in this same hold of the lock: later its slot may have been freed meanwhile.
  if (only_peer && lane.link != nullptr && lane.window.AllSent()) lane.link->Expect(message.slot);
  return absl::OkStatus();
}

void Engine::Flush(NodeId to, MessageClass message_class) {
  Peer* const peer = Find(to);
  if (peer == nullptr) return;
  Lane& lane = peer->LaneOf(message_class);
  MutexLock lock(&lane.mutex);
  if (std::exchange(lane.unhurried, false)) Pump(&lane);
}

// All that may refuse a message; with OK its slots are the transport's.
absl::Status Engine::Admit(Lane* lane, const Message& message, const SendOptions& options, bool* only_peer) {
  if (!lane->up) return absl::UnavailableError("the peer is not up");
  if (message.answer) {
    const SlotName name = SlotName::Decode(message.slot);
    if (name.counter < lane->peer_setup.first_slot_counter && !HK_MUTANT(void_slots_answered)) {
      return absl::AbortedError("the slot is of before this session");
    }
    // Whose fault it is nobody knows here: the request may have been forwarded, or be of a life before.
    if (name.index >= lane->peer_setup.slot_count) return absl::AbortedError("the peer has no such slot");
    const auto told = lane->told.find(message.guest);
    if (told != lane->told.end() && told->second.IsAbove(message.generation, message.epoch) &&
        !HK_MUTANT(forgotten_guest_answers)) {
      return absl::AbortedError("the peer was told that the answer's epoch is over");
    }
  }
  if (!lane->window.HasRoom()) {
    ++lane->statistics.refused_full;
    return absl::ResourceExhaustedError("the queue to the peer is full");
  }
  MutexLock lock(&tables_);
  if (floors_.IsOld(message)) return absl::AbortedError("the message is of an old epoch or generation");
  if (IsRequest(settings_.self, message)) {
    NodeSet writers = WritersOf(settings_.self, lane->peer, options);
    writers = NodeSet(writers.bits() & joined_[static_cast<size_t>(message.message_class)].bits());
    writers = floors_.WithoutPassed(writers, message);
    if (writers.empty()) return absl::AbortedError("nobody is left who would answer");
    const Monotonic now = clock_.Now();
    const auto deadline =
        now + (options.deadline.count() != 0 ? options.deadline : std::chrono::milliseconds(settings_.request_ms));
    HK_RETURN_IF_ERROR(slots_.Ask(message.slot, {.asked = lane->peer,
                                                 .writers = writers,
                                                 .guest = message.guest,
                                                 .generation = message.generation,
                                                 .epoch = message.epoch,
                                                 .transaction = message.transaction,
                                                 .sent = now,
                                                 .deadline = deadline}));
    *only_peer = writers == NodeSet::Of(lane->peer);
    if (deadline < next_deadline_) next_deadline_ = deadline;
    if (deadline < control_wakes_.load(std::memory_order_relaxed)) wire_->WakeControl();
  }
  if (options.payload != SlotId()) HK_RETURN_IF_ERROR(slots_.SendStarted(options.payload));
  return absl::OkStatus();
}

bool Engine::Handed(Lane* lane, Link::Sent result) {
  switch (result) {
    case Link::Sent::kTaken:
      lane->received.AckSent();
      lane->ack_due = false;
      lane->unhurried = false;
      lane->owes_ack.store(false, std::memory_order_relaxed);
      return true;
    case Link::Sent::kFull:
      lane->link_full = true;
      return false;
    case Link::Sent::kBroken:
      Detach(lane, true);
      wire_->WakeControl();
      return false;
  }
  return false;
}

bool Engine::SendOwn(Lane* lane, OwnType type, uint8_t flags, std::span<const std::byte> body) {
  Header header;
  header.message.message_class = lane->message_class;
  header.message.type = static_cast<uint16_t>(type);
  header.message.flags = flags;
  header.acknowledged = lane->received.received();
  header.body_bytes = static_cast<uint16_t>(body.size());
  return Handed(lane, lane->link->Send(header, body, {}, false));
}

void Engine::Pump(Lane* lane) {
  if (lane->unhurried && !lane->ack_due && !lane->heartbeat_due) return;
  // The peer's window is not known before its Setup.
  while (lane->link != nullptr && lane->setup_received && !lane->link_full) {
    Header header;
    Outgoing* const next = lane->window.Next(&header.sequence);
    if (next == nullptr) break;
    header.message = next->message;
    header.acknowledged = lane->received.received();
    header.body_bytes = static_cast<uint16_t>(next->body.size());
    header.payload_bytes = next->payload_bytes;
    std::span<const std::byte> payload;
    if (next->payload_bytes != 0) payload = memory_.Bytes(next->payload).first(next->payload_bytes);
    const size_t bytes = kHeaderBytes + next->body.size() + next->payload_bytes;
    const Link::Sent sent =
        lane->link->Send(header, std::as_bytes(std::span(next->body)), payload, lane->window.MoreAfterNext());
    if (!Handed(lane, sent)) continue;
    const bool again = lane->window.Sent();
    if (HK_MUTANT(payload_freed_when_sent) && next->payload != SlotId()) {
      MutexLock tables_lock(&tables_);
      slots_.SendDone(std::exchange(next->payload, SlotId()));
      next->payload_bytes = 0;
    }
    if (header.message.type < kFirstUserType) continue;  // statistics are the users'
    if (again) {
      ++lane->statistics.resent_messages;
    } else {
      ++lane->statistics.sent_messages;
      lane->statistics.sent_bytes += bytes;
    }
  }
  if (lane->link == nullptr || !lane->setup_received || lane->link_full) return;
  if (lane->heartbeat_due) {
    if (!SendOwn(lane, OwnType::kHeartbeat, 0, {})) return;
    lane->heartbeat_due = false;
  }
  if (lane->ack_due) SendOwn(lane, OwnType::kAck, 0, {});
}

void Engine::OnSendable(const LinkTicket& ticket) {
  Lane& lane = LaneOf(ticket);
  MutexLock lock(&lane.mutex);
  if (lane.ticket != ticket.number || lane.link == nullptr) return;
  switch (lane.link->Continue()) {
    case Link::Sent::kTaken:
      lane.link_full = false;
      Pump(&lane);
      return;
    case Link::Sent::kFull:
      return;
    case Link::Sent::kBroken:
      Detach(&lane, true);
      wire_->WakeControl();
      return;
  }
}

void Engine::PushBarrier(Lane* lane, GuestId guest, const EpochFloor& floor) {
  lane->unhurried = false;  // slots of peers are free when they know of it
  Outgoing barrier;
  barrier.message.message_class = lane->message_class;
  barrier.message.type = static_cast<uint16_t>(OwnType::kBarrier);
  barrier.message.guest = guest;
  barrier.message.generation = floor.generation;
  barrier.message.epoch = floor.epoch;
  if (lane->window.Push(std::move(barrier), true)) return NoteTold(lane, guest, floor);
  if (!HK_MUTANT(owed_barriers_lost)) lane->owed_barriers.insert(guest);
}

void Engine::NoteTold(Lane* lane, GuestId guest, const EpochFloor& floor) {
  if (lane->told.size() >= kMaxFloors && !lane->told.contains(guest)) {
    // Most of these guests were forgotten, and so long ago that nobody answers their requests any more.
    std::set<GuestId> known;
    {
      MutexLock lock(&tables_);
      for (const EpochFloors::Entry& entry : floors_.All()) known.insert(entry.guest);
    }
    std::erase_if(lane->told, [&known](const auto& entry) { return !known.contains(entry.first); });
  }
  lane->told[guest].Raise(floor.generation, floor.epoch);
}

void Engine::PayOwedBarriers(Lane* lane) {
  if (lane->owed_barriers.empty()) return;
  const std::set<GuestId> owed = std::exchange(lane->owed_barriers, {});
  std::vector<EpochFloors::Entry> floors;
  {
    MutexLock lock(&tables_);
    floors = floors_.All();
  }
  for (const EpochFloors::Entry& entry : floors) {
    if (owed.contains(entry.guest)) PushBarrier(lane, entry.guest, entry.floor);
  }
}

absl::Status Engine::SetEpoch(GuestId guest, uint32_t generation, Epoch epoch) {
  EpochFloor floor;
  {
    MutexLock lock(&tables_);
    bool raised = false;
    HK_RETURN_IF_ERROR(floors_.Raise(guest, generation, epoch, &raised));
    if (!raised) return absl::OkStatus();
    floor = floors_.Of(guest);
    PostExpired(slots_.EpochRaised(guest, floor.generation, floor.epoch));
  }
  // A Send that passed its check before the floor was raised has pushed its message before it gives the lane's lock up.
  for (const std::unique_ptr<Peer>& peer : peers_) {
    if (peer == nullptr) continue;
    for (Lane& lane : peer->lanes) {
      MutexLock lock(&lane.mutex);
      if (!lane.joined) continue;
      PushBarrier(&lane, guest, floor);
      Pump(&lane);
    }
  }
  return absl::OkStatus();
}

void Engine::ForgetGuest(GuestId guest) {
  MutexLock lock(&tables_);
  floors_.Forget(guest);
}

}  // namespace hk
