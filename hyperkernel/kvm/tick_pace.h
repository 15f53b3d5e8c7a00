// When the local APIC's timer may interrupt a vCPU again whose pages come from other nodes.
//
// A guest's tick touches what all its CPUs write: the clock, the run queues. Where to fetch that takes as long as ticks
// are apart, a vCPU does nothing else, for ever. So a timer that is due waits until the vCPU has had more time for
// itself than it was stalled, since the interrupt before, within a bound. Where the host's processors are busy with
// fetching, what a stall takes is mostly the time that the vCPU is ready to run and does not: that counts too, but
// only beside stalls, since a host that is busy with other things is no reason for fewer ticks. Periods that pass
// meanwhile are one interrupt: a kernel that counts ticks counts too few, until it has a clock (for Linux: until it has
// chosen its clock source).
#pragma once

#include <algorithm>
#include <chrono>

#include "hyperkernel/base/clock.h"
#include "hyperkernel/kvm/thread_stall.h"

namespace hk {

// One vCPU's. No thread safety.
class TickPace {
 public:
  // When a timer that is due may interrupt: `now`, or later; to be asked again then. `waits`: what the vCPU has waited
  // for but its guest's halts, since some moment.
  Monotonic Next(Monotonic now, ThreadWaits waits) const {
    const Monotonic::duration since = now - last_;
    const Monotonic::duration stalled = std::max<Monotonic::duration>(waits.stalled - waits_.stalled, {});
    const Monotonic::duration ready = std::max<Monotonic::duration>(waits.ready - waits_.ready, {});
    const Monotonic::duration waited = std::min(stalled + std::min(ready, kReadyBesideStall * stalled), since);
    const Monotonic::duration missing = kShare * waited - (since - waited);
    if (since >= kMost || missing.count() <= 0) return now;
    return std::min<Monotonic>(now + std::max({missing, since / kLooks, kLeast}), last_ + kMost);
  }
  // It has, now.
  void Interrupted(Monotonic now, ThreadWaits waits) {
    last_ = now;
    waits_ = waits;
  }

 private:
  // Stalls, those of ticks among them, take a third of the time between ticks at most.
  static constexpr int kShare = 2;
  // Of the time that it was ready and did not run, so many times its stalls is put down to them: a page costs a busy
  // host several times the processor time that its vCPU sees as a stall.
  static constexpr int kReadyBesideStall = 8;
  // But two interrupts a second come in any case.
  static constexpr Monotonic::duration kMost = std::chrono::milliseconds(500);
  // It is not looked at again sooner: that takes a signal, an exit and system calls. Nor sooner than after this part of
  // the time since the last one: whoever has waited so long may wait so much longer.
  static constexpr Monotonic::duration kLeast = std::chrono::milliseconds(2);
  static constexpr int kLooks = 2;

  Monotonic last_;
  ThreadWaits waits_;
};

}  // namespace hk
