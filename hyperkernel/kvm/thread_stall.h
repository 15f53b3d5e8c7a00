// How long the calling thread has waited, and for what. Stalled: it neither ran nor was ready to run; of a vCPU's
// thread that is not halted: for pages, and for other nodes to handle its exits. Ready: it could have run, and others
// did. On a host that is itself a guest, what its own host takes away (steal time) may count as stalled.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <utility>

#include "hyperkernel/base/fd.h"

namespace hk {

// Since some moment. Plain value.
struct ThreadWaits {
  std::chrono::nanoseconds stalled{}, ready{};
};

// The calling thread's; made, used and destroyed by it.
class ThreadStall {
 public:
  // Null if this kernel does not count it (proc(5): /proc/PID/schedstat).
  static std::unique_ptr<ThreadStall> OfThisThread();

  // Two system calls. Nullopt: it is not known.
  std::optional<ThreadWaits> Get() const;

 private:
  explicit ThreadStall(OwnedFd file) : file_(std::move(file)) {}

  OwnedFd file_;
};

}  // namespace hk
