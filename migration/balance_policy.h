// The default policy: pages come to their vCPUs; a vCPU that waits mostly for one node, and uses more there than it
// leaves, is moved there. Those that share so much that none of them runs meet on one node; if that has not enough
// cores for them when they run, they part again.
//
// Rules (README.md says why the numbers are these):
//  1. Time is cut into windows of kInterval. What a vCPU has waited in one, as a share of it, goes into a running share
//     with half the weight; per holder, and in all. Stalls that were dropped count as those of their node that were
//     not. What it waited for on a node that it has left does not count.
//  2. A vCPU may go to a node for whose pages it waits kLeastShare of its time, and kMajority of all its waiting. Pages
//     that go round, so that it has lacked them of that node and of others, count as that node's, whose they would be
//     if it were there.
//  3. Of that node's pages it has lacked kLeastPages different ones in the last two spans of kSpan windows, and
//     kOutweighs times as many as it is known to leave: what it has had from third nodes alone, and what it lacked of
//     its present node's when it came, which is forgotten by half every kForget windows.
//  4. What it would gain in kHorizon, if it goes on like that, is kGainOverCost times what the move costs: kMoveCost,
//     and a wait for each page that it leaves.
//  5. Rules 2 to 4 hold for kSustained windows one after another, for any node: where pages go round, it is now this
//  one
//     that gains most, and now that one.
//  6. No node gets more vCPUs than it has cores for, unless pages go to and fro: one that has waited for each page of
//     that node kAgain times may go there, if all that would be there have together run for less than kCrowd of its
//     cores, or if its part of them is kLikelier times what it has now.
//  7. One vCPU at a time, the one that gains most; of those the first; one on the I/O node, whose devices would be far
//     from it, only for 1 / kStaysAtDevices of that. After a move, by whomever, all begin rule 5 anew, and none is
//     moved for kSettle windows: of two that take pages from each other, one goes to the other. But those elsewhere
//     that wanted to go to one of the two nodes may follow at once to where it went.
//  8. A vCPU that was moved stays for kLeastStay windows. If it waits then kStillWaits as much as before, the move was
//     of no use, and it stays kLonger times as long as it had to the last time. One of use makes up for those before.
//  9. A node that refused a vCPU is not asked for it again for kRefused windows.
// 10. Where more vCPUs are than there are cores, one that was placed elsewhere, and was ready for a core, and had none,
//     for kLeastReady of its time in kSustained windows, while those there ran for kFull of the cores, goes back to
//     where it was placed, or if that is full where most cores are free; of several the one that was ready for longest.
//     Rules 7 and 9 hold, and 8, in which ready time counts as waiting; but none is moved until that is known, and if
//     it was of no use, rule 2 takes it back, and it parts from the others kLonger times as late as the last time.
// 11. After a move from one node to another none goes the other way for kComeAfter windows, unless by rule 10: what it
//     used where it was comes after it, and those whom it has joined wait for that once.
// 12. One on the I/O node does not go where vCPUs are for pages that go to and fro: they come to it, or to where it is.
//
// Bounded: 9 KiB for each vCPU, whatever comes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>
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
  static constexpr uint64_t kRefused = 60, kComeAfter = 20;
  static constexpr double kAgain = 2, kCrowd = 2.0 / 3, kLikelier = 3, kStaysAtDevices = 2.0 / 3, kLeastReady = 0.3,
                          kFull = 0.75;

  // REQUIRES: as MakePolicy checks.
  explicit BalancePolicy(const PolicyMachine& machine);

  std::string_view name() const override { return kBalancePolicy; }
  void OnStall(const StallEvent& stall) override;
  void OnDropped(NodeId node, uint64_t stalls) override;
  void OnRan(VcpuId vcpu, std::chrono::nanoseconds running, std::chrono::nanoseconds ready) override;
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
    uint64_t stalls = 0, last_stalls = 0;  // of the same spans

    double pages() const { return PageSketch::CountOf(span, last_span); }
    void AddTo(PageSketch* pages) const {
      pages->Add(span);
      pages->Add(last_span);
    }
  };
  // Nodes that one vCPU lacks pages of at a time; of more, those that it waits for least are not told apart.
  static constexpr size_t kHolders = 16;

  struct Vcpu {
    NodeId node, placed;
    uint64_t window_ns = 0, ran_ns = 0, ready_ns = 0;  // in this window
    double share = 0;
    std::optional<double> running;  // of the last windows; nothing: nobody has told
    double ready = 0;               // of the last
    uint64_t ready_for = 0;         // windows one after another
    uint64_t parts_from = 0;        // window
    uint64_t vain_partings = 0;     // since one of use
    bool parted = false;            // its last move was by rule 10
    std::array<Lack, kHolders> lacks;
    double known_here = 0;               // pages of its node that it lacked when it came
    uint64_t sustained = 0;              // windows in which it might go somewhere by rules 2 to 4
    std::optional<NodeId> wants;         // where, in the last of them
    uint64_t stays_until = 0;            // window
    uint64_t doubts = 0;                 // moves of no use since one of use
    std::optional<uint64_t> judged;      // window
    double lost_before = 0;              // the last move: of its time, waiting or ready
    double lost_since = 0;               // sum over windows
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
  // Pages that it would leave, and what it waits for pages that would be there.
  struct Weights {
    double left = 0, share = 0;
  };
  Weights Weigh(const Vcpu& vcpu, const Lack& lack) const;
  // Of a move to the lack's holder, as a part of kHorizon; nothing: rules 2 to 4 are against it.
  std::optional<double> Gain(const Vcpu& vcpu, const Lack& lack) const;
  size_t VcpusOn(NodeId node) const;
  // What the vCPUs there have together, in cores.
  double RunningOn(NodeId node) const;
  // Rule 6, of the lack's holder.
  bool Takes(const Lack& lack, const Vcpu& vcpu) const;
  bool WasRefused(const Vcpu& vcpu, NodeId node) const;
  // It has waited for each page of the lack's node kAgain times.
  static bool ToAndFro(const Lack& lack) {
    return static_cast<double>(lack.stalls + lack.last_stalls) >= kAgain * lack.pages();
  }
  // Rule 12.
  bool OthersCome(const Vcpu& vcpu, const Lack& lack) const;
  // Rule 11.
  bool ComesAfter(NodeId from, NodeId to) const;
  // Rules 2 to 9, and 10.
  std::optional<PolicyMove> Approach();
  std::optional<PolicyMove> Part();

  const std::optional<NodeId> io_node_;
  std::map<NodeId, Told> nodes_;
  std::vector<Vcpu> vcpus_;
  std::map<std::pair<NodeId, NodeId>, uint64_t> comes_after_;  // until which window; by who might go: from, to
  std::optional<PolicyMove> parting_;                          // is to be done
  std::optional<Monotonic> window_began_;
  uint64_t window_ = 0;           // number
  uint64_t settled_ = 0;          // in which window
  std::optional<NodeId> follow_;  // until then: where one has gone
  uint64_t stalls_ = 0, ns_ = 0;  // in this window, of all
  double mean_ns_ = 0;            // running, of a stall
};

}  // namespace hk
