// How often something happened lately. Pure; not thread-safe.
#pragma once

#include <chrono>
#include <cmath>
#include <cstdint>

#include "hyperkernel/base/clock.h"

namespace hk {

// A count that halves every kHalfLife. Eight bytes, so that each extent can have one.
class DecayedCount {
 public:
  static constexpr std::chrono::seconds kHalfLife{10};

  void Add(Monotonic now, float by = 1) {
    value_ = At(now) + by;
    tick_ = TickOf(now);
  }
  // What is left of it now. A clock that goes back finds what was last counted.
  float At(Monotonic now) const {
    const int32_t ticks = static_cast<int32_t>(TickOf(now) - tick_);
    if (ticks <= 0 || value_ == 0) return value_;
    return value_ * std::exp2(-static_cast<float>(ticks) / kTicksPerHalfLife);
  }

 private:
  // Short against the half-life; of 32 bits half is 6 years, the longest time without a count that is told from the
  // past.
  static constexpr std::chrono::milliseconds kTick{100};
  static constexpr float kTicksPerHalfLife = static_cast<float>(kHalfLife / kTick);
  static uint32_t TickOf(Monotonic now) { return static_cast<uint32_t>(now.time_since_epoch() / kTick); }

  float value_ = 0;
  uint32_t tick_ = 0;
};

}  // namespace hk
