// The states of a node's slots, shared by all back ends: who may touch a slot's memory, and when it may be used again.
// Pure: no memory, time or thread of its own; a back end calls it under a lock and maps a slot's index to memory.
// The rules are in rdma/README.md, Slots.
//
// Invariants:
// 1. A receive slot that was named to others is Free again only after its answer came, or after no node is left that
//    could still write to it.
// 2. A send slot is Free again only after its owner released it and every message that carries it is acknowledged or
//    its session is over.
// 3. A SlotId is given out once, also over a node's lives.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "rdma/transport.h"

namespace hk {

// Most slots of one class and use: the index has 14 bits. With bulk slots that is 1 GiB of pinned memory.
inline constexpr uint32_t kMaxSlots = 1U << 14;

// How a SlotId is built: bit 15 bulk, bit 14 send, 14 bits of index, 48 bits of use counter from 1.
struct SlotName {
  MessageClass message_class = MessageClass::kFault;
  SlotUse use = SlotUse::kReceive;
  uint32_t index = 0;
  uint64_t counter = 0;  // 1 to 2^48 - 1

  constexpr SlotId Encode() const {
    return SlotId(counter << kCounterShift | (message_class == MessageClass::kBulk ? kBulkBit : 0) |
                  (use == SlotUse::kSend ? kSendBit : 0) | index);
  }
  static constexpr SlotName Decode(SlotId slot) {
    const uint64_t value = slot.value();
    return {.message_class = (value & kBulkBit) != 0 ? MessageClass::kBulk : MessageClass::kFault,
            .use = (value & kSendBit) != 0 ? SlotUse::kSend : SlotUse::kReceive,
            .index = static_cast<uint32_t>(value & (kSendBit - 1)),
            .counter = value >> kCounterShift};
  }

 private:
  static constexpr uint64_t kBulkBit = 1U << 15;
  static constexpr uint64_t kSendBit = 1U << 14;
  static constexpr int kCounterShift = 16;
};

// Where a node's counters start, so that they are above those of its lives before: another node may still hold a
// request of such a life, and the answer must be refused, not land in a slot of the present one. Counts 8 us steps of
// wall time from 2020: enough for 71 years. Holds while a node takes less than 125,000 slots a second on average over a
// life, and its clock is not set back by more than the time that its restart takes.
uint64_t FirstSlotCounter(WallTime now);

// Slots per class and use. Each at most kMaxSlots.
struct SlotCounts {
  uint32_t fault_receive = 0, fault_send = 0, bulk_receive = 0, bulk_send = 0;
};

// A request that ended without an answer, as told to OnRequestExpired.
struct ExpiredRequest {
  NodeId asked;
  MessageClass message_class;
  uint64_t transaction;
  SlotId slot;
  RequestFailure why;
};

// What became of an answer. All but the first two are dropped by the caller: kStale is counted (kStaleSlot); kForeign
// breaks the contract, since a peer names a slot that it cannot have been given: the peer is failed as kMalformed.
enum class AnswerFate : uint8_t { kDelivered, kLate, kStale, kForeign };

// All slots of a node. Not thread-safe. Calls that look at all slots (Expire, NextDeadline, PeerReset, EpochRaised,
// PeerPassed) take time proportional to the receive slots; the others are constant.
class SlotTable {
 public:
  enum class State : uint8_t { kFree, kLent, kInFlight, kSending, kQuarantined };

  // What is known of a request while it is in flight.
  struct Request {
    NodeId asked;
    NodeSet writers;  // without this node itself
    GuestId guest;
    uint32_t generation = 0;
    Epoch epoch;
    uint64_t transaction = 0;
    Monotonic sent{};
    Monotonic deadline{};
  };

  // `first_counter`: of the first slot that is given out, FirstSlotCounter's but in tests.
  explicit SlotTable(const SlotCounts& counts, uint64_t first_counter = 1);

  // Free to Lent. kResourceExhausted: none is free. kInvalidArgument: the class has no slots.
  absl::StatusOr<SlotId> Acquire(MessageClass message_class, SlotUse use);
  // Ends the owner's use: Lent to Free, or Sending without an owner. False and no change: not the owner's slot.
  bool Release(SlotId slot);
  // True once after a refused Acquire of these slots, when one is free.
  bool TakeSlotsFree(MessageClass message_class, SlotUse use);
  // False: TakeSlotsFree would say no for all slots.
  bool AnyRefused() const { return refused_pools_ != 0; }

  // Lent receive slot to InFlight. kFailedPrecondition: not the owner's receive slot. kInvalidArgument: no writers.
  // kAborted: a writer was reset since the slot was acquired and would refuse to answer into it; take another.
  absl::Status Ask(SlotId slot, const Request& request);
  // The message, with `answer` set, came from `from`. kDelivered and kLate make the slot Lent, and give its request if
  // `request` is not null. With `deliver` false (the answer is of an old epoch) the slot becomes Free instead.
  AnswerFate Answer(NodeId from, const Message& message, bool deliver, Request* request);
  // The message, whose payload arrives piece by piece (TCP), came as far as its header. kDelivered, kLate: the payload
  // may be put into the slot, and nobody else's answer ends the request until Answer or Abandon. Else nothing changed.
  AnswerFate Claim(NodeId from, const Message& message);
  // The claimed answer will not come whole: its connection is gone.
  void Abandon(NodeId from, SlotId slot);
  // InFlight to Quarantined. kNotFound: not in flight.
  absl::Status Cancel(SlotId slot);
  // Requests whose deadline is at or before `now`: InFlight to Quarantined.
  std::vector<ExpiredRequest> Expire(Monotonic now);
  // Earliest deadline of the requests in flight.
  std::optional<Monotonic> NextDeadline() const;
  // All connections of the peer are gone, and nothing of it can land any more; also called before a session with it
  // begins, so that no slot of before can be answered in it: requests that nobody is left to answer end (kNobodyLeft),
  // quarantined slots that only it could write become Free.
  std::vector<ExpiredRequest> PeerReset(NodeId peer);
  // The guest's floor was raised here: its older requests end, InFlight to Quarantined (kOldEpoch).
  std::vector<ExpiredRequest> EpochRaised(GuestId guest, uint32_t generation, Epoch epoch);
  // A Barrier of the peer: it sends nothing older for this guest on this class any more. As PeerReset, for the older
  // requests of that guest and class.
  std::vector<ExpiredRequest> PeerPassed(NodeId peer, MessageClass message_class, GuestId guest, uint32_t generation,
                                         Epoch epoch);

  // A message that carries the send slot was accepted; once for each such message. kFailedPrecondition: not the
  // owner's.
  absl::Status SendStarted(SlotId slot);
  // That message was acknowledged, or its session is over. REQUIRES: a SendStarted without SendDone.
  void SendDone(SlotId slot);

  State StateOf(SlotId slot) const;  // kFree for a SlotId of the past
  // True while the slot is Lent, or Sending with its owner still there.
  bool IsOwners(SlotId slot) const;
  size_t Count(State state) const;
  // Told to the peer in Setup, the same throughout a session: slots with a smaller counter were given out before the
  // peer was reset last, so an answer into them may meet another use; the peer refuses to send it.
  uint64_t FirstCounterFor(NodeId peer) const { return first_counter_[peer.value()]; }

 private:
  // One slot; `request` means something while InFlight or Quarantined.
  struct Slot {
    State state = State::kFree;
    bool owned = false;             // the caller has not released it
    std::optional<NodeId> claimed;  // whose answer is arriving in it
    uint32_t sends = 0;             // messages that carry it
    uint64_t counter = 0;           // of the present use
    Request request;
  };
  // The slots of one class and use.
  struct Pool {
    std::vector<Slot> slots;
    std::vector<uint32_t> free;
    bool refused = false;
  };

  Pool& PoolOf(MessageClass message_class, SlotUse use) {
    return pools_[(message_class == MessageClass::kBulk ? 2 : 0) + (use == SlotUse::kSend ? 1 : 0)];
  }
  Slot* Find(SlotId slot);
  const Slot* Find(SlotId slot) const;
  void Enter(const SlotName& name, Slot* slot, State state);
  // What an answer is; `found`: its slot, if it is kDelivered or kLate.
  AnswerFate Judge(NodeId from, const Message& message, Slot** found);
  // Takes `peer` from the writers of the receive slots that `older` holds for.
  template <typename Predicate>
  std::vector<ExpiredRequest> RemoveWriter(NodeId peer, RequestFailure why, Predicate older);
  // Calls visit(name, slot) for each receive slot that is in flight or quarantined.
  template <typename Visitor>
  void EachNamed(Visitor visit);

  std::array<Pool, 4> pools_;  // index: bulk * 2 + send
  std::array<size_t, 5> counts_{};
  int refused_pools_ = 0;  // how many are `refused`
  uint64_t next_counter_ = 1;
  std::array<uint64_t, kMaxNodes> first_counter_;
};

}  // namespace hk
