// Where another thread says which of a disk's requests may be asked about again (BlockReplica::MayChange): a mailbox
// that wakes the disk's worker, and outlives the disk as long as that thread may use it.
//
// Thread-safe. What is said of a run of the device that has ended is not heard.
#pragma once

#include <sys/eventfd.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/mutex.h"

namespace hk {

// One disk's.
class BlockPermits : public std::enable_shared_from_this<BlockPermits> {
 public:
  // What was said of a request. Plain value.
  struct Permit {
    size_t request = 0;
    absl::Status status;
  };

  // Null: the kernel has no eventfd for it, see errno.
  static std::shared_ptr<BlockPermits> Create() {
    std::shared_ptr<BlockPermits> permits(new BlockPermits);
    return permits->event_.valid() ? permits : nullptr;
  }

  // To be watched: it can be read when something was said.
  int event() const { return event_.get(); }
  // Says something of a request of the present run; from any thread, also when the disk is gone.
  std::function<void(const absl::Status&)> CallbackFor(size_t request) {
    MutexLock lock(&mutex_);
    return [self = shared_from_this(), request, run = run_](const absl::Status& status) {
      self->Say(run, {.request = request, .status = status});
    };
  }
  // What was said since the last time, in order.
  std::vector<Permit> Take() {
    MutexLock lock(&mutex_);
    eventfd_t count = 0;
    ::eventfd_read(event_.get(), &count);
    return std::exchange(said_, {});
  }
  // Nothing that was said, or will be, of requests until now is heard.
  void EndRun() {
    MutexLock lock(&mutex_);
    ++run_;
    said_.clear();
  }

 private:
  BlockPermits() : event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  void Say(uint64_t run, Permit permit) {
    MutexLock lock(&mutex_);
    if (run != run_) return;
    said_.push_back(std::move(permit));
    ::eventfd_write(event_.get(), 1);
  }

  const OwnedFd event_;
  Mutex mutex_;
  uint64_t run_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<Permit> said_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hk
