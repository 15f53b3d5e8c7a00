// How long the calling thread has waited: neither ran nor was ready to run. Of a vCPU's thread that is not halted: for
// pages, and for other nodes to handle its exits. On a host that is itself a guest, what its own host takes away (steal
// time) may count too.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <utility>

#include "hyperkernel/base/fd.h"

namespace hk {

// The calling thread's; made, used and destroyed by it.
class ThreadStall {
 public:
  // Null if this kernel does not count it (proc(5): /proc/PID/schedstat).
  static std::unique_ptr<ThreadStall> OfThisThread();

  // Since some moment; two system calls. Nullopt: it is not known.
  std::optional<std::chrono::nanoseconds> Get() const;

 private:
  explicit ThreadStall(OwnedFd file) : file_(std::move(file)) {}

  OwnedFd file_;
};

}  // namespace hk
