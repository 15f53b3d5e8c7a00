// When the local APIC's timer may interrupt a vCPU again whose pages come from other nodes.
//
// A guest's tick touches what all its CPUs write: the clock, the run queues. Where to fetch that takes as long as ticks
// are apart, a vCPU does nothing else, for ever. So a timer that is due waits until the vCPU has had more time for
// itself than it was stalled, since the interrupt before, within a bound. Periods that pass meanwhile are one
// interrupt: a kernel that counts ticks counts too few, until it has a clock (for Linux: until it has chosen its clock
// source).
#pragma once

#include <algorithm>
#include <chrono>

#include "hyperkernel/base/clock.h"

namespace hk {

// One vCPU's. No thread safety.
class TickPace {
 public:
  // When a timer that is due may interrupt: `now`, or later; to be asked again then. `stalled`: how long the vCPU has
  // waited for anything but its guest's halts, since some moment.
  Monotonic Next(Monotonic now, std::chrono::nanoseconds stalled) const {
    const Monotonic::duration since = now - last_;
    const Monotonic::duration waited =
        std::clamp<Monotonic::duration>(stalled - stalled_, Monotonic::duration(0), since);
    const Monotonic::duration missing = kShare * waited - (since - waited);
    if (since >= kMost || missing.count() <= 0) return now;
    return std::min<Monotonic>(now + std::max<Monotonic::duration>(missing, kLeast), last_ + kMost);
  }
  // It has, now.
  void Interrupted(Monotonic now, std::chrono::nanoseconds stalled) {
    last_ = now;
    stalled_ = stalled;
  }

 private:
  // Stalls, those of ticks among them, take a third of the time between ticks at most.
  static constexpr int kShare = 2;
  // But ten interrupts a second come in any case.
  static constexpr std::chrono::milliseconds kMost{100};
  // It is not looked at again sooner: that takes system calls.
  static constexpr std::chrono::milliseconds kLeast{2};

  Monotonic last_;
  std::chrono::nanoseconds stalled_{};
};

}  // namespace hk
