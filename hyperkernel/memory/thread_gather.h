// A thread's turn at pages that others want too. An instruction may need a dozen of them at once (in a guest: its page
// tables, stack, code and data), and two nodes that take them from each other one by one would both go on for ever.
// Each turn has a ticket, older before younger, as in wound-wait locking (Rosenkrantz, Stearns and Lewis, 1978): of two
// threads that wait, the older one gets the younger one's pages. README.md, "The engine", 6.
#pragma once

#include <atomic>
#include <cstdint>

namespace hk {

// Of one thread; written by whoever serves its faults, `rests` by the thread itself. Thread-safe.
struct ThreadGather {
  // Lower ones are older. 0: it has waited for nothing yet.
  std::atomic<uint64_t> ticket{0};
  std::atomic<int64_t> began_ns{0};        // when it took the ticket
  std::atomic<int64_t> ran_before_ns{0};   // what time of a processor it had had then
  std::atomic<int64_t> waits_since_ns{0};  // for the present page; 0: it does not
  std::atomic<int64_t> waited_ns{0};       // for those before, since it took the ticket
  std::atomic<bool> rests{false};          // it needs nothing now: a vCPU whose guest has halted it

  // For another thread.
  void Reset() {
    ticket.store(0, std::memory_order_relaxed);
    waits_since_ns.store(0, std::memory_order_relaxed);
    waited_ns.store(0, std::memory_order_relaxed);
    rests.store(false, std::memory_order_relaxed);
  }
};

}  // namespace hk
