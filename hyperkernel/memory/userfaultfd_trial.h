// Tries on a few pages of a memfd what guest memory needs of userfaultfd: feature bits say what a kernel was built
// with, a trial says what works here. Used by the host probe.
//
// All faults are taken in system calls (a pipe's read and write on the memory), never by a load or store of ours: that
// is how KVM faults, in kernel mode; and what should fail gives EFAULT instead of a SIGBUS, which would kill the
// daemon.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/fd.h"

namespace hk {

// A userfaultfd that also reports faults of the kernel's own accesses.
struct KernelModeUserfaultfd {
  OwnedFd fd;
  bool by_device = false;  // from /dev/userfaultfd, not by the system call
};

// By the system call, else from /dev/userfaultfd. Errors: errno of both ways. Thread-safe.
absl::StatusOr<KernelModeUserfaultfd> OpenKernelModeUserfaultfd();

// The handshake, once per descriptor: asks for `features` and returns all that the kernel has. With 0 nothing is
// enabled: such a descriptor is for asking only. Errors: errno of UFFDIO_API.
absl::StatusOr<uint64_t> UserfaultfdHandshake(int fd, uint64_t features);

// How each step of the trial went; a step after a failed one says so.
struct UserfaultfdTrial {
  absl::Status registers;      // MISSING|WP on a memfd, and the ioctls that it must allow
  absl::Status missing;        // a read fault on a hole, resolved by UFFDIO_COPY, write-protected
  absl::Status write_protect;  // a write fault on that page, resolved
  absl::Status rearm;  // write-protecting a page that is in the file and not yet mapped: a restarted daemon's case
};
// Takes about a millisecond; if events do not come, at most 1.5 s. Thread-safe; uses a thread of its own, joined before
// return.
UserfaultfdTrial TryFaults();

// A second mapping with UFFD_FEATURE_SIGBUS: touching a hole is an error and allocates nothing; a page that is there is
// read; pread of a hole gives zeroes and allocates nothing. The service view depends on all of them.
absl::Status TrySigbusMapping();

}  // namespace hk
