// The least that something took lately: what it costs where nothing is in its way. Any thread; no locks.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <limits>

#include "hyperkernel/base/clock.h"

namespace hk {

// The minimum over this window of time and the last one in which anything was counted. Counts that come while a window
// begins may be lost: the next ones are as good.
class LatencyFloor {
 public:
  static constexpr std::chrono::seconds kWindow{1};  // soon enough for a host or a link that becomes slow

  void Add(Monotonic now, Monotonic::duration took) {
    const int64_t window = now.time_since_epoch() / kWindow;
    int64_t seen = window_.load(std::memory_order_relaxed);
    if (seen != window && window_.compare_exchange_strong(seen, window, std::memory_order_relaxed)) {
      before_.store(least_.exchange(kNone, std::memory_order_relaxed), std::memory_order_relaxed);
    }
    const int64_t count = std::max<int64_t>(took.count(), 0);
    int64_t least = least_.load(std::memory_order_relaxed);
    while (count < least && !least_.compare_exchange_weak(least, count, std::memory_order_relaxed)) {
    }
  }
  // Zero if nothing was counted yet.
  Monotonic::duration Get() const {
    const int64_t least = std::min(least_.load(std::memory_order_relaxed), before_.load(std::memory_order_relaxed));
    return Monotonic::duration(least == kNone ? 0 : least);
  }

 private:
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> window_{-1}, least_{kNone}, before_{kNone};
};

}  // namespace hk
