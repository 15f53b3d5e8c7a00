// Keeps a guest from being started again and again when that does not help. Pure; not thread-safe.
#pragma once

#include <cstddef>
#include <deque>

#include "hyperkernel/base/clock.h"

namespace hk {

// Allows a number of restarts within a window of time that slides.
class RestartGuard {
 public:
  RestartGuard(size_t limit, Monotonic::duration window) : limit_(limit), window_(window) {}

  // Counts an end of the guest; true if it may be started again: fewer than `limit` ends within the window.
  bool Allow(Monotonic now) {
    while (!ends_.empty() && now - ends_.front() >= window_) ends_.pop_front();
    ends_.push_back(now);
    if (ends_.size() > limit_) ends_.pop_front();
    return ends_.size() < limit_;
  }
  // Forgets: somebody has looked at it.
  void Clear() { ends_.clear(); }

  size_t limit() const { return limit_; }
  Monotonic::duration window() const { return window_; }

 private:
  const size_t limit_;
  const Monotonic::duration window_;
  std::deque<Monotonic> ends_;  // at most limit_
};

}  // namespace hk
