// The slots that one connection's answers may be expected in, in the order of their requests. One thread pushes (or
// several under one lock), one other takes; neither waits.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "hyperkernel/base/mutant.h"
#include "rdma/transport.h"

namespace hk {

// Forgets what does not fit: who expects nothing loses time, nothing else.
class ExpectedSlots {
 public:
  // More requests than one node has under way to one other.
  static constexpr size_t kSize = 64;
  // Answers that come before the oldest's, until it is given up. Each of them was read to a wrong place and is copied,
  // which a request that is never answered would cost for as long as its connection lasts. Peers that serve several
  // requests at a time pass a slow one by fewer.
  static constexpr int kMostPasses = 8;

  // The pushing side.
  void Push(SlotId slot) {
    const size_t end = end_.load(std::memory_order_relaxed);
    if (end - begin_.load(std::memory_order_acquire) == kSize) return;
    slots_[end % kSize] = slot;
    end_.store(end + 1, std::memory_order_release);
  }

  // The taking side. The oldest; SlotId(): none.
  SlotId First() {
    const size_t begin = SkipErased();
    return begin == end_.load(std::memory_order_acquire) ? SlotId() : slots_[begin % kSize];
  }
  // An answer into the slot has come, whether it was expected or not.
  void Erase(SlotId slot) {
    const size_t begin = SkipErased(), end = end_.load(std::memory_order_acquire);
    if (begin == end) return;
    const bool passes = slots_[begin % kSize] != slot;
    for (size_t i = begin; i != end; ++i) {
      if (slots_[i % kSize] != slot) continue;
      slots_[i % kSize] = SlotId();
      break;
    }
    if (!passes || ++passes_ < kMostPasses || HK_MUTANT(unanswered_stays_expected)) return;
    slots_[begin % kSize] = SlotId();
    passes_ = 0;
  }
  void Clear() {
    begin_.store(end_.load(std::memory_order_acquire), std::memory_order_release);
    passes_ = 0;
  }

 private:
  // Erased ones stay in their places until they are the oldest. Returns the place of the oldest that is left.
  size_t SkipErased() {
    const size_t before = begin_.load(std::memory_order_relaxed), end = end_.load(std::memory_order_acquire);
    size_t begin = before;
    while (begin != end && slots_[begin % kSize] == SlotId()) ++begin;
    if (begin == before) return begin;
    begin_.store(begin, std::memory_order_release);
    passes_ = 0;
    return begin;
  }

  std::array<SlotId, kSize> slots_;  // from begin_ to end_ the taking side's, else the pushing side's
  std::atomic<size_t> begin_{0}, end_{0};
  int passes_ = 0;  // of the oldest; the taking side's
};

}  // namespace hk
