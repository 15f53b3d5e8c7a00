// How the threads of a back end are woken, and how many of them may spin.
#pragma once

#include <atomic>

#include "absl/status/status.h"
#include "hyperkernel/base/fd.h"

namespace hk {

// CPUs that this process may use.
unsigned UsableCpus();

// How many threads of a transport may spin at once: one CPU is left for those who send what is waited for. Thread-safe.
class SpinPermits {
 public:
  explicit SpinPermits(unsigned cpus) : free_(cpus > 0 ? static_cast<int>(cpus) - 1 : 0) {}
  bool Take() {
    if (free_.fetch_sub(1) > 0) return true;
    free_.fetch_add(1);
    return false;
  }
  void Give() { free_.fetch_add(1); }

 private:
  std::atomic<int> free_;
};

// Wakes a thread that sleeps in poll or epoll; costs no system call while the thread is awake.
class WakeFlag {
 public:
  // Errors: errno of eventfd.
  absl::Status Open();
  int fd() const { return fd_.get(); }
  // Any thread: the owner's next Take says true; wakes it if it sleeps.
  void Wake();
  // The owner: before and after a wait that the fd ends. False: do not wait.
  bool Sleep();
  void Awake();
  bool Take() { return woken_.load(std::memory_order_relaxed) && woken_.exchange(false); }
  // The owner: the fd was readable.
  void Drain();

 private:
  OwnedFd fd_;
  std::atomic<bool> woken_{false};
  std::atomic<bool> sleeping_{false};
};

}  // namespace hk
