// How fast a counter grows. Pure; not thread-safe.
#pragma once

#include <cstdint>

#include "hyperkernel/base/clock.h"

namespace hk {

// The rate between the last two samples.
class RateMeter {
 public:
  // The counter begins at 0.
  void Begin(Monotonic now) { *this = RateMeter{now}; }
  // Takes a sample. One that comes less than a millisecond after the last says nothing, and is not taken.
  void Sample(uint64_t count, Monotonic now) {
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(now - at_).count();
    if (ms < 1) return;
    per_second_ = count < count_ ? 0 : (count - count_) * 1000 / static_cast<uint64_t>(ms);
    count_ = count;
    at_ = now;
  }
  uint64_t per_second() const { return per_second_; }

  RateMeter() = default;

 private:
  explicit RateMeter(Monotonic at) : at_(at) {}

  Monotonic at_;
  uint64_t count_ = 0;
  uint64_t per_second_ = 0;
};

}  // namespace hk
