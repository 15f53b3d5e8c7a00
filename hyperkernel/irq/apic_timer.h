// The local APIC's timer (SDM 3A 11.5.4) over time that is given: one-shot and periodic, on a bus clock of 1 GHz.
//
// Pure and single-threaded. Expiry is found by Expire(now); nothing counts in between.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include "hyperkernel/base/clock.h"

namespace hk {

// The count goes down once per `divide` of these.
inline constexpr std::chrono::nanoseconds kApicBusTick{1};
// A periodic timer is not run faster: a period of nanoseconds would keep a host thread spinning (KVM has the same
// floor).
inline constexpr std::chrono::nanoseconds kMinTimerPeriod = std::chrono::microseconds(200);
// No saved timer is further away than this: 2^32 counts divided by 128 are 550 s.
inline constexpr std::chrono::nanoseconds kMaxTimerRemaining = std::chrono::seconds(600);

// One timer. The LVT entry (masking, vector) is its owner's business.
class ApicTimer {
 public:
  // Starts the countdown; 0 stops the timer.
  void WriteInitial(uint32_t count, Monotonic now);
  // `value` is the divide configuration register (bits 0, 1 and 3). A countdown goes on at the new rate.
  void WriteDivide(uint32_t value, Monotonic now);
  // Applies from the next expiry on: a countdown goes on, a timer at rest stays at rest.
  void SetPeriodic(bool periodic) { periodic_ = periodic; }

  uint32_t initial() const { return initial_; }
  uint32_t divide_register() const { return divide_register_; }
  uint32_t Current(Monotonic now) const;
  // When the count reaches zero next; nullopt at rest.
  std::optional<Monotonic> deadline() const { return deadline_; }
  // True if the count has reached zero since the last call, however often. A periodic timer goes on in phase.
  bool Expire(Monotonic now);

  // Puts back a saved timer. `remaining` is nullopt for one at rest.
  void Restore(uint32_t initial, uint32_t divide_register, bool periodic,
               std::optional<std::chrono::nanoseconds> remaining, Monotonic now);

 private:
  std::chrono::nanoseconds Unit() const;  // time of one count
  std::chrono::nanoseconds Period() const;

  uint32_t initial_ = 0;
  uint32_t divide_register_ = 0;
  bool periodic_ = false;
  std::optional<Monotonic> deadline_;
};

}  // namespace hk
