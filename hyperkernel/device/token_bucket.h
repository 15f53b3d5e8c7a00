// A rate limit with debt: work starts while there are tokens and may then spend more than there are; the next waits
// until the debt is paid. So the average is kept whatever the sizes.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "hyperkernel/base/clock.h"

namespace hk {

// Tokens of one kind, for example bytes. Pure: time is told. Not thread-safe.
class TokenBucket {
 public:
  // Starts full. A rate of 0 is no limit.
  TokenBucket(uint64_t per_second, uint64_t burst, Monotonic now)
      : rate_(static_cast<double>(per_second)), burst_(static_cast<double>(burst)), tokens_(burst_), last_(now) {}

  bool MayStart(Monotonic now) {
    Refill(now);
    return rate_ == 0 || tokens_ > 0;
  }
  void Spend(uint64_t tokens) { tokens_ -= rate_ == 0 ? 0 : static_cast<double>(tokens); }
  // When MayStart will be true.
  Monotonic NextStart() const {
    if (rate_ == 0 || tokens_ > 0) return last_;
    return last_ + std::chrono::nanoseconds(static_cast<int64_t>((1 - tokens_) / rate_ * 1e9) + 1);
  }

 private:
  void Refill(Monotonic now) {
    if (now <= last_) return;
    tokens_ = std::min(burst_, tokens_ + std::chrono::duration<double>(now - last_).count() * rate_);
    last_ = now;
  }

  const double rate_;
  const double burst_;
  double tokens_;
  Monotonic last_;
};

}  // namespace hk
