// How the TSC of a machine is kept one over hosts whose counters drift apart. Pure: counters and measurements in, steps
// out. README.md, "Machines over several nodes: clocks", has the rule and why it holds.
//
// The machine's TSC at a node is its host's counter and the node's offset. A node only ever adds to its offset, so no
// vCPU sees its TSC go back. The I/O node's vCPUs have the machine's TSC; who lags behind them steps up to them, and
// who leads tells by how much, so that the I/O node steps, and then the others.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/node/tsc_estimate.h"

namespace hk {

// KVM takes rates as equal up to 250 ppm apart, and so does CheckTscRate: no two counters of a machine drift faster.
inline constexpr int64_t kMostDriftPpb = 250'000;
// A step holds all vCPUs of a node for some tens of microseconds, so it has to be worth it; a page of another node
// takes longer than this (some 100 us over TCP).
inline constexpr std::chrono::nanoseconds kClockStepAt{20'000};
// What the I/O node steps at most at a time, whatever another node says of its clock. Drift makes less of it in half a
// minute, and no node is away for so long.
inline constexpr std::chrono::nanoseconds kMostClockStep{10'000'000};

// What a node says of its clock holds for so long: looks are a second apart, and one may be late.
inline constexpr std::chrono::seconds kClockBoundHolds{2};

// A counter less another, modulo 2^64: not less than `least`, and not more than `least + width`. Plain value.
struct TscRange {
  uint64_t least = 0, width = 0;
};

// How far another counter is ahead of this node's, by all that was measured: what the last measurements leave possible,
// and as much more as the counters may have drifted since. Not thread-safe.
class ClockFilter {
 public:
  // REQUIRES: tsc_khz > 0, of this node's counter.
  explicit ClockFilter(uint32_t tsc_khz) : tsc_khz_(tsc_khz) {}

  // In the order of their times. One that cannot be, if no counter jumped, begins everything anew.
  void Add(const TscOffset& measured);
  // REQUIRES: Add was called; `now`, of this node's counter, is not before the last one.
  TscRange At(uint64_t now) const;
  bool known() const { return known_; }
  uint64_t jumps() const { return jumps_; }

 private:
  struct Point {
    uint64_t at = 0;
    TscRange range;
  };
  void Begin(const Point& measured);
  void LearnDrift(const Point& measured);

  const uint32_t tsc_khz_;
  bool known_ = false;
  Point last_;  // all that is known, as of then
  Point base_;  // a measurement by itself, from which drift is taken
  // How much the offset changes in 10^9 ticks.
  int64_t least_drift_ = -kMostDriftPpb, most_drift_ = kMostDriftPpb;
  uint64_t jumps_ = 0;
};

// What a node does, of which it knows by how much it lags behind the I/O node. Ticks. Plain value.
struct ClockTurn {
  uint64_t step = 0;   // to be added to its offset
  uint64_t lead = 0;   // by so much at least it is ahead then
  uint64_t bound = 0;  // by so much at most it is ahead or behind then
};
// `ahead`: the I/O node's counter less this one's. `machine`: the I/O node's offset, `own`: this node's. Steps smaller
// than `step_at` are not made.
ClockTurn TurnOf(const TscRange& ahead, uint64_t machine, uint64_t own, uint64_t step_at);

// What the I/O node steps, told of all others' leads: up to the fastest that can be believed. Ticks.
uint64_t StepOfIoNode(const std::vector<uint64_t>& leads, uint64_t step_at, uint64_t most);

// So long at the rate, in ticks.
uint64_t TicksOf(std::chrono::nanoseconds time, uint32_t tsc_khz);
uint64_t NsOf(uint64_t ticks, uint32_t tsc_khz);

// What a node says of its clock after each look. Plain value.
struct ClockWord {
  uint64_t lead = 0;  // ticks
  // By how much its vCPUs' TSC may differ from those of the I/O node at most, until the next look is overdue; nullopt:
  // not known.
  std::optional<uint64_t> bound_ns;
};

// A node's clock of a machine whose I/O node is another. Not thread-safe.
class PartClock {
 public:
  // What it stands on.
  struct Host {
    bool one_host = false;  // with the I/O node: one counter
    uint32_t tsc_khz = 0;   // 0: not known, and nothing is followed
    std::function<uint64_t()> ticks;
    // As MachineLink::MeasureTsc.
    std::function<absl::StatusOr<TscOffset>(uint32_t exchanges, Monotonic deadline)> measure;
    // Adds to the offset of all vCPUs here; an error: nothing was added.
    std::function<absl::Status(uint64_t ticks)> step;
    const Clock* clock = nullptr;
  };
  explicit PartClock(Host host) : host_(std::move(host)), filter_(host_.tsc_khz == 0 ? 1 : host_.tsc_khz) {}

  // The first look, before there are vCPUs: the offset that they are made with. Errors: those of `measure`.
  absl::StatusOr<uint64_t> Begin(uint64_t machine);
  // Another one; `machine`: the I/O node's offset. Returns within half a second, and what a step takes.
  ClockWord Look(uint64_t machine);
  // By how much the first offset may be wrong.
  uint64_t first_error_ns() const { return first_error_ns_; }

 private:
  TscRange Ahead() const;
  ClockTurn Turn(uint64_t machine) const;

  const Host host_;
  ClockFilter filter_;
  uint64_t own_ = 0;  // offset of the vCPUs here
  uint64_t first_error_ns_ = 0;
};

}  // namespace hk
