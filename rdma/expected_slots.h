// The slots that one connection's answers may be expected in, in the order of their requests. One thread pushes (or
// several under one lock), one other takes; neither waits.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "rdma/transport.h"

namespace hk {

// Forgets what does not fit: who expects nothing loses time, nothing else.
class ExpectedSlots {
 public:
  // More requests than one node has under way to one other.
  static constexpr size_t kSize = 64;

  // The pushing side.
  void Push(SlotId slot) {
    const size_t end = end_.load(std::memory_order_relaxed);
    if (end - begin_.load(std::memory_order_acquire) == kSize) return;
    slots_[end % kSize] = slot;
    end_.store(end + 1, std::memory_order_release);
  }

  // The taking side. The oldest; SlotId(): none.
  SlotId First() {
    size_t begin = begin_.load(std::memory_order_relaxed);
    const size_t end = end_.load(std::memory_order_acquire);
    // Erased ones stay in their places until they are the oldest.
    while (begin != end && slots_[begin % kSize] == SlotId()) ++begin;
    begin_.store(begin, std::memory_order_release);
    return begin == end ? SlotId() : slots_[begin % kSize];
  }
  void Erase(SlotId slot) {
    const size_t end = end_.load(std::memory_order_acquire);
    for (size_t i = begin_.load(std::memory_order_relaxed); i != end; ++i) {
      if (slots_[i % kSize] != slot) continue;
      slots_[i % kSize] = SlotId();
      return;
    }
  }
  void Clear() { begin_.store(end_.load(std::memory_order_acquire), std::memory_order_release); }

 private:
  std::array<SlotId, kSize> slots_;  // from begin_ to end_ the taking side's, else the pushing side's
  std::atomic<size_t> begin_{0}, end_{0};
};

}  // namespace hk
