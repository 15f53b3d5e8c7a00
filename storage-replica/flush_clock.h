// Which writes of a disk are on stable storage: flushes of the disk, counted (README.md, "Flushes"). Pure.
//
// Thread safety: none; the owner serialises.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "storage-replica/replica_entry.h"

namespace hk {

// The flushes of one disk. A write that has completed is stable once the flush that current() named then, and all
// before it, have ended.
class FlushClock {
 public:
  // `last`: the greatest number that any entry of the disk has had.
  explicit FlushClock(uint32_t last = 0) : current_(last == kNeverFlushed ? last : last + 1) {}

  // The flush that will cover what completes now.
  uint32_t current() const { return current_; }
  // All flushes up to it have ended; 0: none.
  uint32_t durable() const { return durable_; }
  // A flush is about to be submitted: it covers what has completed. Its number, for End; 0 at the end of the numbers:
  // nothing counts as stable any more.
  uint32_t Begin() {
    if (current_ == kNeverFlushed) return 0;
    under_way_.push_back(current_);
    return current_++;
  }
  // That flush has ended. If it failed, what it should have covered is no longer believed anyway.
  void End(uint32_t flush) {
    std::erase(under_way_, flush);
    last_ended_ = std::max(last_ended_, flush);
    // One that is under way may yet fail, and the kernel tells of a failure once.
    const uint32_t first = under_way_.empty() ? kNeverFlushed : *std::min_element(under_way_.begin(), under_way_.end());
    durable_ = std::max(durable_, std::min(last_ended_, first - 1));
  }

 private:
  uint32_t current_;
  uint32_t durable_ = 0;
  uint32_t last_ended_ = 0;
  std::vector<uint32_t> under_way_;  // few: a driver has one, seldom more
};

}  // namespace hk
