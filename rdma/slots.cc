#include "rdma/slots.h"

#include <bit>
#include <utility>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"

namespace hk {

namespace {

constexpr uint64_t kCounterMask = (uint64_t{1} << 48) - 1;
constexpr int64_t kCounterStepUs = 8;
constexpr WallTime kCounterBegin = std::chrono::sys_days(std::chrono::year(2020) / 1 / 1);

bool IsOlder(const SlotTable::Request& request, GuestId guest, uint32_t generation, Epoch epoch) {
  return request.guest == guest && (request.generation < generation || request.epoch < epoch);
}

ExpiredRequest Expired(const SlotName& name, const SlotTable::Request& request, RequestFailure why) {
  return {request.asked, name.message_class, request.transaction, name.Encode(), why};
}

}  // namespace

uint64_t FirstSlotCounter(WallTime now) {
  const auto since =
      std::chrono::duration_cast<std::chrono::microseconds>(now - kCounterBegin).count() / kCounterStepUs;
  return since <= 0 || HK_MUTANT(slot_names_repeat) ? 1 : static_cast<uint64_t>(since) & kCounterMask;
}

SlotTable::SlotTable(const SlotCounts& counts, uint64_t first_counter) : next_counter_(first_counter) {
  first_counter_.fill(next_counter_);
  const std::array<uint32_t, 4> sizes = {counts.fault_receive, counts.fault_send, counts.bulk_receive,
                                         counts.bulk_send};
  for (size_t pool = 0; pool < pools_.size(); ++pool) {
    HK_CHECK(sizes[pool] <= kMaxSlots);
    pools_[pool].slots.resize(sizes[pool]);
    for (uint32_t index = sizes[pool]; index > 0; --index) pools_[pool].free.push_back(index - 1);
    counts_[static_cast<size_t>(State::kFree)] += sizes[pool];
  }
}

const SlotTable::Slot* SlotTable::Find(SlotId slot) const {
  const SlotName name = SlotName::Decode(slot);
  const Pool& pool = const_cast<SlotTable*>(this)->PoolOf(name.message_class, name.use);
  if (name.index >= pool.slots.size()) return nullptr;
  const Slot& found = pool.slots[name.index];
  return found.state != State::kFree && found.counter == name.counter ? &found : nullptr;
}

SlotTable::Slot* SlotTable::Find(SlotId slot) {
  return const_cast<Slot*>(static_cast<const SlotTable*>(this)->Find(slot));
}

void SlotTable::Enter(const SlotName& name, Slot* slot, State state) {
  --counts_[static_cast<size_t>(slot->state)];
  ++counts_[static_cast<size_t>(state)];
  slot->state = state;
  if (state == State::kFree) {
    slot->owned = false;
    slot->claimed.reset();
    PoolOf(name.message_class, name.use).free.push_back(name.index);
  }
}

absl::StatusOr<SlotId> SlotTable::Acquire(MessageClass message_class, SlotUse use) {
  if (message_class == MessageClass::kInvalidate) {
    return absl::InvalidArgumentError("the invalidate class has no slots");
  }
  Pool& pool = PoolOf(message_class, use);
  if (pool.free.empty()) {
    if (!std::exchange(pool.refused, true)) ++refused_pools_;
    return absl::ResourceExhaustedError("no free slot");
  }
  const SlotName name{message_class, use, pool.free.back(), next_counter_++};
  pool.free.pop_back();
  Slot& slot = pool.slots[name.index];
  slot.counter = name.counter;
  slot.owned = true;
  Enter(name, &slot, State::kLent);
  return name.Encode();
}

bool SlotTable::Release(SlotId slot) {
  Slot* found = Find(slot);
  if (found == nullptr || !found->owned) return false;
  found->owned = false;
  if (found->sends == 0 || HK_MUTANT(slot_freed_while_sending)) Enter(SlotName::Decode(slot), found, State::kFree);
  return true;
}

bool SlotTable::TakeSlotsFree(MessageClass message_class, SlotUse use) {
  if (message_class == MessageClass::kInvalidate) return false;
  Pool& pool = PoolOf(message_class, use);
  if (!pool.refused || pool.free.empty()) return false;
  pool.refused = false;
  --refused_pools_;
  return true;
}

absl::Status SlotTable::Ask(SlotId slot, const Request& request) {
  Slot* found = Find(slot);
  if (found == nullptr || found->state != State::kLent || SlotName::Decode(slot).use != SlotUse::kReceive) {
    return absl::FailedPreconditionError("a request names a slot that is not the caller's receive slot");
  }
  if (request.writers.empty()) return absl::InvalidArgumentError("a request that nobody may answer");
  for (uint64_t left = request.writers.bits(); left != 0; left &= left - 1) {
    if (found->counter < first_counter_[static_cast<size_t>(std::countr_zero(left))] && !HK_MUTANT(old_slots_asked)) {
      return absl::AbortedError("the slot was taken before a writer's connection was reset");
    }
  }
  found->request = request;
  found->owned = false;
  Enter(SlotName::Decode(slot), found, State::kInFlight);
  return absl::OkStatus();
}

AnswerFate SlotTable::Judge(NodeId from, const Message& message, Slot** found) {
  const SlotName name = SlotName::Decode(message.slot);
  if (name.use != SlotUse::kReceive || name.message_class != message.message_class || name.counter == 0 ||
      name.counter >= next_counter_ || name.index >= PoolOf(name.message_class, name.use).slots.size()) {
    return AnswerFate::kForeign;
  }
  Slot* slot = Find(message.slot);
  if (HK_MUTANT(slot_counter_ignored)) slot = &PoolOf(name.message_class, name.use).slots[name.index];
  if (slot == nullptr || (slot->state != State::kInFlight && slot->state != State::kQuarantined)) {
    return AnswerFate::kStale;
  }
  const Request& asked = slot->request;
  if (!asked.writers.Contains(from) && !HK_MUTANT(slot_any_writer)) return AnswerFate::kForeign;
  if (asked.guest != message.guest || asked.generation != message.generation || asked.epoch != message.epoch) {
    return AnswerFate::kForeign;
  }
  // Two answers to one request: the one that began to arrive is taken.
  if (slot->claimed && *slot->claimed != from && !HK_MUTANT(slot_claim_ignored)) return AnswerFate::kStale;
  *found = slot;
  return slot->state == State::kInFlight ? AnswerFate::kDelivered : AnswerFate::kLate;
}

AnswerFate SlotTable::Answer(NodeId from, const Message& message, bool deliver, Request* request) {
  Slot* found = nullptr;
  const AnswerFate fate = Judge(from, message, &found);
  if (found == nullptr) return fate;
  if (request != nullptr) *request = found->request;
  found->owned = deliver;
  found->claimed.reset();
  Enter(SlotName::Decode(message.slot), found, deliver ? State::kLent : State::kFree);
  return fate;
}

AnswerFate SlotTable::Claim(NodeId from, const Message& message) {
  Slot* found = nullptr;
  const AnswerFate fate = Judge(from, message, &found);
  if (found != nullptr) found->claimed = from;
  return fate;
}

void SlotTable::Abandon(NodeId from, SlotId slot) {
  Slot* found = Find(slot);
  if (found != nullptr && found->claimed == from) found->claimed.reset();
}

absl::Status SlotTable::Cancel(SlotId slot) {
  Slot* found = Find(slot);
  if (found == nullptr || found->state != State::kInFlight) return absl::NotFoundError("no such request in flight");
  Enter(SlotName::Decode(slot), found, State::kQuarantined);
  return absl::OkStatus();
}

template <typename Visitor>
void SlotTable::EachNamed(Visitor visit) {
  for (const MessageClass message_class : {MessageClass::kFault, MessageClass::kBulk}) {
    std::vector<Slot>& slots = PoolOf(message_class, SlotUse::kReceive).slots;
    for (uint32_t index = 0; index < slots.size(); ++index) {
      Slot& slot = slots[index];
      if (slot.state != State::kInFlight && slot.state != State::kQuarantined) continue;
      visit(SlotName{message_class, SlotUse::kReceive, index, slot.counter}, &slot);
    }
  }
}

std::vector<ExpiredRequest> SlotTable::Expire(Monotonic now) {
  std::vector<ExpiredRequest> expired;
  if (Count(State::kInFlight) == 0) return expired;
  EachNamed([&](const SlotName& name, Slot* slot) {
    if (slot->state != State::kInFlight || slot->request.deadline > now) return;
    Enter(name, slot, HK_MUTANT(slot_reused_after_deadline) ? State::kFree : State::kQuarantined);
    expired.push_back(Expired(name, slot->request, RequestFailure::kDeadline));
  });
  return expired;
}

std::optional<Monotonic> SlotTable::NextDeadline() const {
  std::optional<Monotonic> next;
  if (Count(State::kInFlight) == 0) return next;
  const_cast<SlotTable*>(this)->EachNamed([&](const SlotName&, const Slot* slot) {
    if (slot->state != State::kInFlight) return;
    if (!next || slot->request.deadline < *next) next = slot->request.deadline;
  });
  return next;
}

template <typename Predicate>
std::vector<ExpiredRequest> SlotTable::RemoveWriter(NodeId peer, RequestFailure why, Predicate older) {
  std::vector<ExpiredRequest> expired;
  EachNamed([&](const SlotName& name, Slot* slot) {
    if (!slot->request.writers.Contains(peer) || !older(name, slot->request)) return;
    slot->request.writers.Remove(peer);
    if (!slot->request.writers.empty() && !HK_MUTANT(slot_free_after_first_reset)) return;
    if (slot->state == State::kInFlight) expired.push_back(Expired(name, slot->request, why));
    Enter(name, slot, State::kFree);
  });
  return expired;
}

std::vector<ExpiredRequest> SlotTable::PeerReset(NodeId peer) {
  first_counter_[peer.value()] = next_counter_;
  return RemoveWriter(peer, RequestFailure::kNobodyLeft, [](const SlotName&, const Request&) { return true; });
}

std::vector<ExpiredRequest> SlotTable::EpochRaised(GuestId guest, uint32_t generation, Epoch epoch) {
  std::vector<ExpiredRequest> expired;
  EachNamed([&](const SlotName& name, Slot* slot) {
    if (slot->state != State::kInFlight || !IsOlder(slot->request, guest, generation, epoch)) return;
    Enter(name, slot, State::kQuarantined);
    expired.push_back(Expired(name, slot->request, RequestFailure::kOldEpoch));
  });
  return expired;
}

std::vector<ExpiredRequest> SlotTable::PeerPassed(NodeId peer, MessageClass message_class, GuestId guest,
                                                  uint32_t generation, Epoch epoch) {
  return RemoveWriter(peer, RequestFailure::kOldEpoch, [&](const SlotName& name, const Request& request) {
    return (name.message_class == message_class || HK_MUTANT(barrier_frees_every_class)) &&
           IsOlder(request, guest, generation, epoch);
  });
}

absl::Status SlotTable::SendStarted(SlotId slot) {
  Slot* found = Find(slot);
  if (found == nullptr || !found->owned || SlotName::Decode(slot).use != SlotUse::kSend) {
    return absl::FailedPreconditionError("a payload in a slot that is not the caller's send slot");
  }
  ++found->sends;
  if (found->state != State::kSending) Enter(SlotName::Decode(slot), found, State::kSending);
  return absl::OkStatus();
}

void SlotTable::SendDone(SlotId slot) {
  Slot* found = Find(slot);
  HK_CHECK(found != nullptr && found->sends > 0);
  if (--found->sends > 0) return;
  Enter(SlotName::Decode(slot), found, found->owned ? State::kLent : State::kFree);
}

SlotTable::State SlotTable::StateOf(SlotId slot) const {
  const Slot* found = Find(slot);
  return found == nullptr ? State::kFree : found->state;
}

bool SlotTable::IsOwners(SlotId slot) const {
  const Slot* found = Find(slot);
  return found != nullptr && found->owned;
}

size_t SlotTable::Count(State state) const {
  return counts_[static_cast<size_t>(state)];
}

}  // namespace hk
