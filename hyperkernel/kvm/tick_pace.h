// When the local APIC's timer may interrupt a vCPU again whose pages come from other nodes.
//
// A guest's tick touches what all its CPUs write: the clock, the run queues. Where to fetch that takes as long as ticks
// are apart, a vCPU does nothing else, for ever. So the timer waits after each of its interrupts for some times what
// the vCPU was stalled since the one before, within a bound. What a guest sees of this it sees of a vCPU that another
// one has kept from its processor, too.
#pragma once

#include <algorithm>
#include <chrono>

#include "hyperkernel/base/clock.h"

namespace hk {

// One vCPU's. No thread safety.
class TickPace {
 public:
  // Before this the timer does not interrupt.
  Monotonic until() const { return until_; }
  // It has, now. `stalled`: how long the vCPU has waited for anything but its guest's halts, since some moment.
  void Interrupted(Monotonic now, std::chrono::nanoseconds stalled) {
    const std::chrono::nanoseconds since = std::max(stalled - stalled_, std::chrono::nanoseconds(0));
    stalled_ = stalled;
    until_ = now + std::min<std::chrono::nanoseconds>(since * kShare, kMost);
  }

 private:
  // So that ticks take a fifth of a vCPU's time at most.
  static constexpr int kShare = 4;
  // 25 interrupts a second are enough for a kernel that counts ticks, and for what runs beside others.
  static constexpr std::chrono::milliseconds kMost{40};

  Monotonic until_;
  std::chrono::nanoseconds stalled_{};
};

}  // namespace hk
