// The default policy: pages come to their vCPUs; a vCPU that waits mostly for one node, and uses more there than it
// leaves, is moved there.
//
// Rules (README.md says why the numbers are these):
//  1. Time is cut into windows of kInterval. What a vCPU has waited in one, as a share of it, goes into a running share
//     with half the weight; per holder, and in all. Stalls that were dropped count as those of their node that were
//     not. What it waited for on a node that it has left does not count.
//  2. A vCPU may go to a node for whose pages it waits kLeastShare of its time, and kMajority of all its waiting.
//  3. Of that node's pages it has lacked kLeastPages different ones in the last two spans of kSpan windows, and
//     kOutweighs times as many as it is known to leave: what it has had from third nodes, and what it lacked of its
//     present node's when it came, which is forgotten by half every kForget windows.
//  4. What it would gain in kHorizon, if it goes on like that, is kGainOverCost times what the move costs: kMoveCost,
//     and a wait for each page that it leaves.
//  5. Rules 2 to 4 hold for kSustained windows one after another, for the same node.
//  6. No node gets more vCPUs than its bound.
//  7. One vCPU at a time, the one that gains most; of those the first. After a move, by whomever, all begin rule 5
//  anew,
//     and none is moved for kSettle windows: of two that take pages from each other, one goes to the other.
//  8. A vCPU that was moved stays for kLeastStay windows. If it waits then kStillWaits as much as before, the move was
//     of no use, and it stays kLonger times as long as it had to the last time. One of use makes up for those before.
//  9. A node that refused a vCPU is not asked for it again for kRefused windows.
//
// Bounded: 9 KiB for each vCPU, whatever comes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "migration/page_sketch.h"
#include "migration/placement_policy.h"

namespace hk {

// See above, and PlacementPolicy.
class BalancePolicy final : public PlacementPolicy {
 public:
  static constexpr double kLeastShare = 0.2, kMajority = 2.0 / 3, kLeastPages = 16, kOutweighs = 1.5;
  static constexpr uint64_t kSpan = 4, kForget = 30, kSustained = 3, kSettle = 3;
  static constexpr std::chrono::seconds kHorizon{20};
  static constexpr double kGainOverCost = 4;
  // Both nodes' orders, the vCPU's state, and its first instructions there.
  static constexpr std::chrono::milliseconds kMoveCost{50};
  static constexpr uint64_t kLeastStay = 5, kLonger = 4, kMostDoubts = 5;  // 5 s to 85 min
  static constexpr double kStillWaits = 0.75;
  static constexpr uint64_t kRefused = 60;

  // REQUIRES: as MakePolicy checks.
  explicit BalancePolicy(const PolicyMachine& machine);

  std::string_view name() const override { return kBalancePolicy; }
  void OnStall(const StallEvent& stall) override;
  void OnDropped(NodeId node, uint64_t stalls) override;
  void OnMoved(VcpuId vcpu, NodeId to, Monotonic now) override;
  void OnRefused(VcpuId vcpu, NodeId to, Monotonic now) override;
  std::vector<PolicyMove> Decide(Monotonic now) override;

 private:
  // What a vCPU lacks of one node.
  struct Lack {
    std::optional<NodeId> holder;  // nothing: a free place
    uint64_t window_ns = 0;        // in this window
    double share = 0;
    PageSketch span, last_span;

    double pages() const { return PageSketch::CountOf(span, last_span); }
  };
  // Nodes that one vCPU lacks pages of at a time; of more, those that it waits for least are not told apart.
  static constexpr size_t kHolders = 16;

  struct Vcpu {
    NodeId node;
    uint64_t window_ns = 0;
    double share = 0;
    std::array<Lack, kHolders> lacks;
    double known_here = 0;               // pages of its node that it lacked when it came
    std::optional<NodeId> wants;         // where it may go by rules 2 to 4
    uint64_t sustained = 0;              // for so many windows
    uint64_t stays_until = 0;            // window
    uint64_t doubts = 0;                 // moves of no use since one of use
    std::optional<uint64_t> judged;      // window
    double share_before = 0;             // of the last move
    double share_since = 0;              // sum over windows
    std::map<NodeId, uint64_t> refused;  // until which window
  };
  // What a node has told in this window.
  struct Told {
    uint32_t most_vcpus = 0;
    uint64_t stalls = 0, dropped = 0;
  };

  Lack* LackOf(Vcpu* vcpu, NodeId holder) const;
  void EndWindow(std::chrono::nanoseconds length);
  void EndWindow(Vcpu* vcpu, std::chrono::nanoseconds length);
  void Judge(Vcpu* vcpu) const;
  double LeavesBehind(const Vcpu& vcpu, const Lack& lack) const;
  // Of a move to the lack's holder, as a part of kHorizon; nothing: rules 2 to 4 are against it.
  std::optional<double> Gain(const Vcpu& vcpu, const Lack& lack) const;
  bool HasRoom(NodeId node) const;

  std::map<NodeId, Told> nodes_;
  std::vector<Vcpu> vcpus_;
  std::optional<Monotonic> window_began_;
  uint64_t window_ = 0;           // number
  uint64_t settled_ = 0;          // in which window
  uint64_t stalls_ = 0, ns_ = 0;  // in this window, of all
  double mean_ns_ = 0;            // running, of a stall
};

}  // namespace hk
