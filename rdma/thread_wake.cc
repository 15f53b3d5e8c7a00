#include "rdma/thread_wake.h"

#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/status.h"

namespace hk {

unsigned UsableCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return static_cast<unsigned>(CPU_COUNT(&set));
}

absl::Status WakeFlag::Open() {
  fd_ = OwnedFd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  return fd_.valid() ? absl::OkStatus() : ErrnoStatus(errno, "eventfd");
}

void WakeFlag::Wake() {
  if (woken_.exchange(true) || !sleeping_.load()) return;
  const uint64_t one = 1;
  HK_CHECK(::write(fd_.get(), &one, sizeof one) == sizeof one);
}

bool WakeFlag::Sleep() {
  sleeping_.store(true);
  if (!woken_.load()) return true;
  sleeping_.store(false);
  return false;
}

void WakeFlag::Awake() {
  // Who still sees it asleep writes to the fd in vain.
  sleeping_.store(false, std::memory_order_release);
}

void WakeFlag::Drain() {
  uint64_t times = 0;
  static_cast<void>(::read(fd_.get(), &times, sizeof times));
}

}  // namespace hk
