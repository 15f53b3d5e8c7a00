// One node's part in the interrupts of a guest that runs on several: where each vCPU is, what waits to reach those
// elsewhere, and what other nodes send. Rules, messages and failures: README.md, "Across nodes".
//
// Not thread-safe (InterruptController's lock for other nodes is around it). No clock, no thread, no descriptor, no
// queue: all that is to be sent is a state of its subject (vCPU, pin), so nothing here grows with the traffic, and
// nothing allocates after construction. Invariants:
//  1. A vCPU is here if and only if its place names this node. Its version rises with each move.
//  2. Of what this node sends to one vCPU, one Deliver at a time is under way, and its answer says that the APIC has
//  it;
//     meanwhile the rest gathers (Lane). So nothing overtakes anything, wherever the vCPU goes.
//  3. A vCPU that is here and whose lane is empty is sent to without this class (LocalApics::Direct).
//  4. Of each node and vCPU at most one Deliver is held here, until the vCPU comes, or it is known to be elsewhere.
//  5. A node believes another about that node only: "it is mine", never "it is his".
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/node_set.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/irq/interrupt_link.h"
#include "hyperkernel/irq/interrupt_message.h"
#include "hyperkernel/irq/interrupt_wire.h"
#include "hyperkernel/irq/local_apic.h"
#include "hyperkernel/irq/pending_interrupts.h"
#include "hyperkernel/irq/vcpu_set.h"

namespace hk {

// A vCPU's place has no later version: more moves than a guest lives through.
inline constexpr uint32_t kLastVersion = 0x7fffffff;

// Which nodes a guest runs on, as its start has it, the same on all of them but for `self`. Plain value.
struct InterruptNodes {
  NodeId self;
  NodeId io_node;                 // has the I/O APIC
  std::vector<NodeId> nodes;      // all, each once
  std::vector<NodeId> vcpus;      // where each vCPU starts
  InterruptLink* link = nullptr;  // outlives the controller
};

// Where a vCPU is. Plain value.
struct VcpuPlace {
  NodeId node;
  uint32_t version = 1;

  bool operator==(const VcpuPlace&) const = default;
};

// This node's local APICs, as the exchange needs them. Called with the controller's lock for other nodes held.
class LocalApics {
 public:
  virtual ~LocalApics() = default;
  // Gives it all to the APIC of a vCPU that is here, in one step. Returns whether the vCPU must be woken.
  virtual bool Apply(VcpuId vcpu, const PendingInterrupts& content) = 0;
  // The priority of a vCPU, or kAcceptsNothing.
  virtual uint16_t Hint(VcpuId vcpu) = 0;
  // From now on messages may go to the vCPU's APIC directly. REQUIRES: it is here.
  virtual void Direct(VcpuId vcpu) = 0;
  // What another node has said of a vCPU that is not here.
  virtual void SetHint(VcpuId vcpu, uint16_t hint) = 0;
  virtual void SetAddressing(VcpuId vcpu, const ApicAddressing& addressing) = 0;
};

// What is to be done once the lock is released. Plain value.
struct ExchangeOutcome {
  // Deliveries of pins that nobody accepted, and the number that BeginPin was given.
  struct Rejected {
    uint32_t generation;
    uint64_t changes;
  };
  VcpuSet wake;
  bool routing_changed = false;  // as ApicEffects says, of a vCPU elsewhere
  bool ceased = false;           // a vCPU elsewhere has ceased to accept: what chose it may choose again
  bool retry = false;            // see TakeRetry
  uint32_t eoi_pins = 0;         // I/O APIC pins whose service ended
  std::array<uint32_t, kIoApicPins> eoi_generations;
  uint32_t rejected_pins = 0;
  std::array<Rejected, kIoApicPins> rejected;

  ExchangeOutcome() {}  // the arrays are set where the bits say
};

// Since construction. Plain value.
struct InterruptExchangeStatistics {
  uint64_t sent_messages = 0, sent_items = 0, received_messages = 0, received_items = 0;
  uint64_t gathered = 0;   // interrupts that waited for the answer to an earlier Deliver
  uint64_t forwarded = 0;  // Delivers sent on, since their vCPU has left
  uint64_t held = 0;       // Delivers that came before their vCPU
  uint64_t retried = 0;    // lowest-priority interrupts whose first choice did not accept them
  uint64_t refused = 0;    // items that no correct node sends
};

// See above.
class InterruptExchange {
 public:
  // Lowest-priority edges under way to other nodes that can be sent elsewhere if their target does not accept them.
  // One more is sent like a fixed one: lost if just that target stops accepting meanwhile, as on one node.
  static constexpr size_t kLowestPriorityEdges = 32;

  // REQUIRES: `nodes` is as InterruptNodes says. `apics` outlives this.
  InterruptExchange(const InterruptNodes& nodes, LocalApics* apics);

  bool Here(VcpuId vcpu) const { return PlaceOf(vcpu).node == self_; }
  const VcpuPlace& PlaceOf(VcpuId vcpu) const { return places_[vcpu.value()]; }
  const InterruptExchangeStatistics& statistics() const { return statistics_; }

  // From this node. REQUIRES: target is a vCPU; what `source` sends to it, it sends one after the other.
  void Post(const InterruptMessage& message, VcpuId source, VcpuId target, ExchangeOutcome* outcome);
  // Around the Posts of one level-triggered delivery: it is rejected if no APIC accepts it. `accepted`: one that was
  // asked directly did. True: rejected now; else, outcomes will say if it is.
  void BeginPin(const InterruptMessage& message, uint64_t changes);
  bool EndPin(const InterruptMessage& message, bool accepted);
  // The I/O APIC was put back to an earlier state.
  void ForgetPins() { pins_.fill({}); }
  // To the I/O node. REQUIRES: that is another.
  void PostEoi(LevelEoi eoi);
  // A vCPU that is here is addressed differently, or begins or ceases to accept fixed interrupts. It is unsettled until
  // all nodes know.
  void Announce(VcpuId vcpu, const ApicAddressing& addressing);
  // A lowest-priority edge that must be routed again, and its source.
  struct Retry {
    InterruptMessage message;
    VcpuId source;
  };
  std::optional<Retry> TakeRetry();

  // From the link. An error: something in it is what no correct node sends; the rest of it counts.
  absl::Status OnMessage(NodeId from, std::span<const std::byte> bytes, ExchangeOutcome* outcome);
  void OnWritable(NodeId to);
  // Sends what there is to send. After each of the calls above and below, once for all of an operation.
  void Flush();

  // Every node knows how the vCPU, which is here, is addressed.
  bool Settled(VcpuId vcpu) const { return !unsettled_.Contains(vcpu); }
  bool AllSettled() const { return unsettled_.Empty(); }
  // And nothing that it has sent is under way. REQUIRES: it is stopped.
  bool Drained(VcpuId vcpu) const;
  // A vCPU goes, or comes with the version that Leave returned (a later one if it comes back). Errors change nothing.
  absl::StatusOr<uint32_t> Leave(VcpuId vcpu, NodeId to, ExchangeOutcome* outcome);
  absl::Status CanArrive(VcpuId vcpu, uint32_t version) const;
  void Arrive(VcpuId vcpu, uint32_t version, const ApicAddressing& addressing, ExchangeOutcome* outcome);

  // Forgets all that is under way. REQUIRES: nothing that was sent before arrives anywhere after.
  void Reset();

 private:
  using Item = InterruptItem;
  using Index = uint16_t;  // into peers_

  // From this node to one vCPU.
  struct Lane {
    PendingInterrupts pending{};    // gathers
    PendingInterrupts in_flight{};  // waits for its answer
    VcpuSet pending_sources{}, in_flight_sources{};
    uint32_t serial = 0;
    bool waiting = false;  // in_flight is in use
  };
  // A Deliver of a node to a vCPU that is not here.
  struct Held {
    PendingInterrupts content;
    uint32_t version = 0, serial = 0;
  };
  // An answer that is to be sent.
  struct Answer {
    uint32_t version = 0, serial = 0;
    uint16_t hint = 0;
  };
  // How a vCPU is addressed, and since when.
  struct Stamp {
    uint32_t version = 1, serial = 0;
    friend auto operator<=>(const Stamp&, const Stamp&) = default;
  };
  // One node, this one too: its lane may come back to it.
  struct Peer {
    NodeId id;
    bool writable = true;
    VcpuSet answers, held, forwards;  // members of answer_of and held_of that are in use
    VcpuSet announce, unknown;        // vCPUs here that it must be told of; that it has not said it knows
    VcpuSet known;                    // vCPUs that it has told us of
    std::vector<Answer> answer_of;
    std::vector<Held> held_of;
    std::vector<Stamp> told;
  };
  // A level-triggered delivery whose answers are awaited.
  struct PinDelivery {
    uint32_t generation = 0, awaited = 0;
    uint64_t changes = 0;
    bool valid = false, accepted = false;
  };
  // See kLowestPriorityEdges.
  struct Edge {
    enum class State : uint8_t { kFree, kPending, kInFlight, kRetry };
    State state = State::kFree;
    InterruptMessage message;
    VcpuId source, target;
  };
  class Composer;

  Peer& PeerOf(NodeId node) { return peers_[index_[node.value()]]; }
  bool Knows(NodeId node) const { return node.value() < kMaxNodes && nodes_.Contains(node); }
  void Mark(NodeId node) { marked_.Add(node); }

  void StartNext(VcpuId target, ExchangeOutcome* outcome);
  void ApplyLane(VcpuId target, ExchangeOutcome* outcome);
  void FinishLane(VcpuId target, bool accepts, ExchangeOutcome* outcome);
  void ApplyTo(VcpuId vcpu, const PendingInterrupts& content, ExchangeOutcome* outcome);
  void AnswerPin(uint8_t pin, uint32_t generation, bool accepted, ExchangeOutcome* outcome);
  void RememberEdge(const InterruptMessage& message, VcpuId source, VcpuId target);
  void FinishEdges(VcpuId target, bool accepts, ExchangeOutcome* outcome);
  void Settle(Peer& origin, VcpuId target, ExchangeOutcome* outcome);
  void Tell(VcpuId vcpu, bool must_be_known);
  void SetPlace(VcpuId vcpu, VcpuPlace place, ExchangeOutcome* outcome);
  void NoteHint(VcpuId vcpu, uint16_t hint, ExchangeOutcome* outcome);

  absl::Status Check(NodeId from, const Item& item) const;
  absl::Status Take(NodeId from, const Item& item, ExchangeOutcome* outcome);
  absl::Status TakeDeliver(const Item& item, ExchangeOutcome* outcome);
  absl::Status TakeAnswer(NodeId from, const Item& item, ExchangeOutcome* outcome);
  absl::Status TakeVcpu(NodeId from, const Item& item, ExchangeOutcome* outcome);
  // `from` says that it has the vCPU. False, and why: that cannot be. Older news change nothing.
  absl::Status Claim(NodeId from, VcpuId vcpu, uint32_t version, ExchangeOutcome* outcome);

  bool Compose(Peer& peer);

  const NodeId self_;
  const NodeId io_node_;
  InterruptLink* const link_;
  LocalApics* const apics_;
  NodeSet nodes_;
  std::array<uint8_t, kMaxNodes> index_{};
  std::vector<Peer> peers_;
  std::vector<VcpuPlace> places_;
  std::vector<Stamp> stamps_;
  std::vector<ApicAddressing> addressing_;  // as last told; of one that nobody has told of, disabled
  std::vector<uint16_t> hints_;             // of vCPUs that are elsewhere
  std::vector<Lane> lanes_;
  VcpuSet unsettled_;  // in `unknown` of some peer
  VcpuSet unsent_;     // lanes whose in_flight is to be sent
  NodeSet marked_;     // there may be something to send
  std::array<PinDelivery, kIoApicPins> pins_{};
  uint32_t eois_ = 0;
  std::array<uint32_t, kIoApicPins> eoi_generations_{};
  std::array<Edge, kLowestPriorityEdges> edges_{};
  uint32_t edges_used_ = 0;
  InterruptExchangeStatistics statistics_;
};

}  // namespace hk
