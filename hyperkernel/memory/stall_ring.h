// Waits for pages of other nodes that are over, on their way to whoever looks at them (migration/placement_policy.h,
// hkctl vm trace): a ring of fixed size between the threads that wake programs and one that takes.
//
// Thread-safe. Push never waits, takes no lock and no memory; what finds no room is dropped and counted.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/types.h"

namespace hk {

// What a thread lacked.
enum class FaultCause : uint8_t {
  kRead,     // the page, to read
  kWrite,    // the page, to write
  kUpgrade,  // the right to write to a page that is here
};
inline constexpr size_t kFaultCauses = 3;

// A thread has waited for another node. Plain value.
struct RemoteStall {
  uint32_t who = 0;  // as FaultMeter::Watch has it
  FaultCause cause = FaultCause::kRead;
  Gfn page{};
  std::optional<NodeId> holder{};  // who had the page, or the right to it; nothing: nobody, its home alone was asked
  Monotonic end{};
  uint64_t waited_ns = 0;
};

// Any number of threads push; those that take do it one after another.
class StallRing {
 public:
  // Those of a second in which threads wait all the time for pages that take 0.1 ms each; 0.5 MiB.
  static constexpr size_t kCapacity = 8192;

  StallRing() {
    for (size_t i = 0; i < kCapacity; ++i) cells_[i].turn.store(i, std::memory_order_relaxed);
  }

  void Push(const RemoteStall& stall) {
    uint64_t at = tail_.load(std::memory_order_relaxed);
    while (true) {
      Cell& cell = cells_[at % kCapacity];
      const auto ahead = static_cast<int64_t>(cell.turn.load(std::memory_order_acquire) - at);
      if (ahead < 0 && !HK_MUTANT(stall_ring_overwrites)) {  // what was put there a round ago is there still
        dropped_.fetch_add(1, std::memory_order_relaxed);
        return;
      }
      if (ahead > 0) {
        at = tail_.load(std::memory_order_relaxed);
      } else if (tail_.compare_exchange_weak(at, at + 1, std::memory_order_relaxed)) {
        cell.stall = stall;
        cell.turn.store(at + 1, std::memory_order_release);
        return;
      }
    }
  }
  // The oldest; false: there is none, or it is being put there. One thread at a time.
  bool Take(RemoteStall* stall) {
    Cell& cell = cells_[head_ % kCapacity];
    if (cell.turn.load(std::memory_order_acquire) != head_ + 1) return false;
    *stall = cell.stall;
    cell.turn.store(head_ + kCapacity, std::memory_order_release);
    ++head_;
    return true;
  }
  // Since the last time.
  uint64_t TakeDropped() { return dropped_.exchange(0, std::memory_order_relaxed); }

 private:
  // A place. `turn`: the number of the push that may use it; one more: what it put there is to be taken.
  struct alignas(64) Cell {
    std::atomic<uint64_t> turn{0};
    RemoteStall stall;
  };
  std::array<Cell, kCapacity> cells_;
  alignas(64) std::atomic<uint64_t> tail_{0};
  alignas(64) uint64_t head_ = 0;
  std::atomic<uint64_t> dropped_{0};
};

}  // namespace hk
