// How long threads wait for pages, thread by thread: what a virtual CPU's time goes to, and, for who listens, each wait
// for another node. A fault names its thread (UFFD_FEATURE_THREAD_ID); the wait is from the moment that a fault was
// read to the one that wakes its page.
//
// Thread-safe, without locks but for who listens: Began and Woken are on the way of every fault. Threads that nobody
// watches cost a look through those that are.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/page_lookout.h"
#include "hyperkernel/memory/stall_ring.h"
#include "hyperkernel/memory/thread_gather.h"

namespace hk {

// What a thread has waited for, by cause. Plain value.
struct FaultTimes {
  std::array<uint64_t, kFaultCauses> faults{}, ns{};
};

// The threads of one process that are watched.
class FaultMeter {
 public:
  // A node's virtual CPUs of one machine, while each of them is exchanged for a new one.
  static constexpr size_t kMostThreads = 512;

  // From now on its waits are counted, from zero. `who`: what RemoteStall calls it. False: too many are watched.
  bool Watch(uint32_t thread, uint32_t who = 0) {
    for (size_t i = 0; i < kMostThreads; ++i) {
      uint32_t none = 0;
      if (!threads_[i].compare_exchange_strong(none, kBeingMade)) continue;
      pages_[i].store(kNoPage);
      for (size_t cause = 0; cause < kFaultCauses; ++cause) {
        times_[i].faults[cause].store(0);
        times_[i].ns[cause].store(0);
      }
      times_[i].gather.Reset();
      times_[i].who.store(who);
      times_[i].looked_for.store(kNoPage);
      threads_[i].store(thread, std::memory_order_release);
      size_t used = used_.load();
      while (used < i + 1 && !used_.compare_exchange_weak(used, i + 1)) {
      }
      return true;
    }
    return false;
  }
  // Called by the thread, or after its end.
  void Forget(uint32_t thread) {
    if (const std::optional<size_t> i = Find(thread); i.has_value()) threads_[*i].store(0);
  }
  // All zero if it is not watched.
  FaultTimes Of(uint32_t thread) const {
    FaultTimes times;
    const std::optional<size_t> i = Find(thread);
    if (!i.has_value()) return times;
    for (size_t cause = 0; cause < kFaultCauses; ++cause) {
      times.faults[cause] = times_[*i].faults[cause].load(std::memory_order_relaxed);
      times.ns[cause] = times_[*i].ns[cause].load(std::memory_order_relaxed);
    }
    return times;
  }
  // It waits for a page now.
  bool Waits(uint32_t thread) const {
    const std::optional<size_t> i = Find(thread);
    return i.has_value() && pages_[*i].load(std::memory_order_acquire) != kNoPage;
  }

  // What it gathers; null: it is not watched. Another thread's, once it is forgotten.
  ThreadGather* GatherOf(uint32_t thread) {
    const std::optional<size_t> i = Find(thread);
    return i.has_value() ? &times_[*i].gather : nullptr;
  }

  // Pages of which somebody asks what the guest does with them.
  PageLookout& lookout() { return lookout_; }
  // How a watched thread is made to leave the guest, before the next instruction, once it has its page; never blocks.
  // Without it nobody is asked.
  void SetKick(void (*kick)(uint32_t thread)) { kick_.store(kick, std::memory_order_release); }
  // The page by which the thread was stopped for the lookout, if it was; once. Of a thread that has met the page
  // outside of the guest it may be the stop after that.
  std::optional<Gfn> TakeLookedFor(uint32_t thread) {
    const std::optional<size_t> i = Find(thread);
    if (!i.has_value()) return std::nullopt;
    const uint64_t page = times_[*i].looked_for.exchange(kNoPage, std::memory_order_acquire);
    return page == kNoPage ? std::nullopt : std::optional(Gfn(page));
  }

  // Before anybody is asked for the page. A thread waits for one page at a time.
  void Began(uint32_t thread, Gfn page, FaultCause cause, Monotonic now) {
    const std::optional<size_t> i = Find(thread);
    if (!i.has_value()) return;
    Times& times = times_[*i];
    times.cause.store(cause, std::memory_order_relaxed);
    times.holder.store(kLocal, std::memory_order_relaxed);
    times.since_ns.store(now.time_since_epoch().count(), std::memory_order_relaxed);
    times.faults[static_cast<size_t>(cause)].fetch_add(1, std::memory_order_relaxed);
    pages_[*i].store(page.value(), std::memory_order_release);
    const bool asked = lookout_.Take(page);
    times.looked_for.store(asked ? page.value() : kNoPage, std::memory_order_release);
    void (*const kick)(uint32_t) = asked ? kick_.load(std::memory_order_acquire) : nullptr;
    if (kick != nullptr) kick(thread);
  }
  // Another node lets those go on that wait for one of these pages: `holder` had it; nothing: it had to be asked, but
  // nobody had the page. Before Woken.
  void NoteHolder(Gfn first, uint64_t count, std::optional<NodeId> holder) {
    if (!listened_to_.load(std::memory_order_relaxed)) return;
    const size_t used = used_.load(std::memory_order_acquire);
    for (size_t i = 0; i < used; ++i) {
      if (pages_[i].load(std::memory_order_acquire) - first.value() >= count) continue;
      times_[i].holder.store(holder.has_value() ? holder->value() : kNobody, std::memory_order_relaxed);
    }
  }
  // All that wait for one of these pages go on.
  void Woken(Gfn first, uint64_t count, Monotonic now) {
    const size_t used = used_.load(std::memory_order_acquire);
    for (size_t i = 0; i < used; ++i) {
      uint64_t page = pages_[i].load(std::memory_order_acquire);
      if (page - first.value() >= count) continue;
      const int64_t since = times_[i].since_ns.load(std::memory_order_relaxed);
      const FaultCause cause = times_[i].cause.load(std::memory_order_relaxed);
      const int32_t holder = times_[i].holder.load(std::memory_order_relaxed);
      const uint32_t who = times_[i].who.load(std::memory_order_relaxed);
      const Gfn waited_for(page);
      if (!pages_[i].compare_exchange_strong(page, kNoPage)) continue;  // another has woken it
      const int64_t waited = now.time_since_epoch().count() - since;
      if (waited > 0) {
        times_[i].ns[static_cast<size_t>(cause)].fetch_add(static_cast<uint64_t>(waited), std::memory_order_relaxed);
      }
      if (holder == kLocal || !listened_to_.load(std::memory_order_acquire)) continue;
      RemoteStall stall{.who = who, .cause = cause, .page = waited_for, .holder = {}, .end = now};
      if (holder != kNobody) stall.holder = NodeId(static_cast<uint16_t>(holder));
      stall.waited_ns = waited > 0 ? static_cast<uint64_t>(waited) : 0;
      ring_.load(std::memory_order_acquire)->Push(stall);
    }
  }

  // Whether waits for other nodes are kept for TakeStalls; at first they are not.
  void Listen(bool on) {
    MutexLock lock(&listener_);
    if (on == listened_to_.load(std::memory_order_relaxed)) return;
    if (on && kept_ring_ == nullptr) {
      kept_ring_ = std::make_unique<StallRing>();
      ring_.store(kept_ring_.get(), std::memory_order_release);
    }
    listened_to_.store(on, std::memory_order_release);
  }
  bool listened_to() const { return listened_to_.load(std::memory_order_relaxed); }
  // Appends those since the last time, in the order in which they ended; how many found no room meanwhile.
  uint64_t TakeStalls(std::vector<RemoteStall>* stalls) {
    MutexLock lock(&listener_);
    if (kept_ring_ == nullptr) return 0;
    RemoteStall stall;
    // Those that come meanwhile may be for the next time.
    for (size_t i = 0; i < StallRing::kCapacity && kept_ring_->Take(&stall); ++i) stalls->push_back(stall);
    return kept_ring_->TakeDropped();
  }

 private:
  static constexpr uint64_t kNoPage = std::numeric_limits<uint64_t>::max();
  static constexpr int32_t kLocal = -2, kNobody = -1;                           // else a node
  static constexpr uint32_t kBeingMade = std::numeric_limits<uint32_t>::max();  // no thread's number (kernel: 2^22)

  // What is known of one thread.
  struct alignas(64) Times {
    std::atomic<FaultCause> cause{FaultCause::kRead};
    std::atomic<uint32_t> who{0};
    std::atomic<int32_t> holder{kLocal};  // of the page that it waits for
    std::atomic<int64_t> since_ns{0};
    std::atomic<uint64_t> looked_for{kNoPage};
    std::array<std::atomic<uint64_t>, kFaultCauses> faults{}, ns{};
    ThreadGather gather;
  };

  std::optional<size_t> Find(uint32_t thread) const {
    const size_t used = used_.load(std::memory_order_acquire);
    for (size_t i = 0; i < used && thread != 0; ++i) {
      if (threads_[i].load(std::memory_order_acquire) == thread) return i;
    }
    return std::nullopt;
  }

  std::atomic<size_t> used_{0};                                // of the places, from the first on
  std::array<std::atomic<uint32_t>, kMostThreads> threads_{};  // 0: free
  std::array<std::atomic<uint64_t>, kMostThreads> pages_{};    // that it waits for
  std::array<Times, kMostThreads> times_{};
  PageLookout lookout_;
  std::atomic<void (*)(uint32_t)> kick_{nullptr};
  std::atomic<bool> listened_to_{false};
  std::atomic<StallRing*> ring_{nullptr};  // there since somebody listened first
  Mutex listener_;
  std::unique_ptr<StallRing> kept_ring_ ABSL_GUARDED_BY(listener_);
};

}  // namespace hk
