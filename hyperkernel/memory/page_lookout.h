// Pages of which somebody asks what the guest does with them. A vCPU that comes to wait for one is stopped at that
// instruction, once for each time that the page is asked for: kMostPages stops at a time, and none where nobody asks.
//
// Thread-safe. Take is on the way of every fault, and takes no lock.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>

#include "absl/base/thread_annotations.h"
#include "hyperkernel/base/guest_access.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"

namespace hk {

// The pages of one node's part of a space; one asker at a time is served well, since Want replaces what was asked.
class PageLookout {
 public:
  // As many as a look at the most lost pages shows on a screen.
  static constexpr size_t kMostPages = 16;
  // Accesses that are remembered: those of the pages shown now, and of such as come and go on the screen.
  static constexpr size_t kMostSeen = 64;

  // The next access of each of these is wanted, and no longer of those that were asked for before. The first kMostPages
  // count.
  void Want(std::span<const Gfn> pages) {
    for (size_t i = 0; i < kMostPages; ++i) {
      wanted_[i].store(i < pages.size() ? pages[i].value() : kNoPage, std::memory_order_relaxed);
    }
    asked_.store(!pages.empty(), std::memory_order_release);
  }
  // Whether an access of this page is wanted; whoever is told so has it to itself.
  bool Take(Gfn page) {
    if (!asked_.load(std::memory_order_acquire)) return false;
    for (std::atomic<uint64_t>& wanted : wanted_) {
      uint64_t expected = page.value();
      if (HK_MUTANT(lookout_takes_again) && wanted.load() == expected) return true;
      if (wanted.compare_exchange_strong(expected, kNoPage, std::memory_order_relaxed)) return true;
    }
    return false;
  }

  // Instead of what was seen of the page before; or of the one that was seen least lately.
  void Note(const GuestAccess& access) {
    MutexLock lock(&mutex_);
    size_t at = kMostSeen;
    for (size_t i = 0; i < kMostSeen && at == kMostSeen; ++i) {
      if (seen_[i].has_value() && seen_[i]->page == access.page) at = i;
    }
    if (at == kMostSeen) {
      at = next_;
      next_ = (next_ + 1) % kMostSeen;
    }
    seen_[at] = access;
  }
  // What was seen of it last; nothing: not lately.
  std::optional<GuestAccess> Seen(Gfn page) const {
    MutexLock lock(&mutex_);
    for (const std::optional<GuestAccess>& access : seen_) {
      if (access.has_value() && access->page == page) return access;
    }
    return std::nullopt;
  }

 private:
  static constexpr uint64_t kNoPage = std::numeric_limits<uint64_t>::max();

  std::atomic<bool> asked_{false};
  std::array<std::atomic<uint64_t>, kMostPages> wanted_{};  // meaningful once asked_
  mutable Mutex mutex_;
  std::array<std::optional<GuestAccess>, kMostSeen> seen_ ABSL_GUARDED_BY(mutex_);
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;  // the one to be written over next
};

}  // namespace hk
