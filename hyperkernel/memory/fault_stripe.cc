#include "hyperkernel/memory/fault_stripe.h"

#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <utility>

#include "hyperkernel/base/log.h"
#include "hyperkernel/base/service_thread.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/userfaultfd_trial.h"

namespace hk {
namespace {

constexpr uint64_t kFeatures = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                               UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_THREAD_ID;
constexpr uint64_t kNeededIoctls =
    uint64_t{1} << _UFFDIO_COPY | uint64_t{1} << _UFFDIO_WRITEPROTECT | uint64_t{1} << _UFFDIO_WAKE;
// Events taken with one read.
constexpr size_t kBatch = 16;
// Zeros given with one UFFDIO_COPY.
constexpr uint64_t kMostCopyBytes = 64 << 10;
// EAGAIN means that the kernel is changing this part of the address space: microseconds. So many tries, each giving the
// CPU away, are a second at least.
constexpr int kMostTries = 1'000'000;

// ioctl() until it is not EAGAIN, or did a part. 0 or errno.
template <typename Request, typename DidPart>
int Retry(int fd, unsigned long what, Request* request, DidPart did_part) {
  for (int tries = 0;; tries++) {
    if (::ioctl(fd, what, request) == 0) return 0;
    if ((errno != EAGAIN && errno != EINTR) || tries == kMostTries || did_part()) return errno;
    ::sched_yield();
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<FaultStripe>> FaultStripe::Start(uint8_t* address, uint64_t bytes, Handler handler) {
  std::unique_ptr<FaultStripe> stripe(new FaultStripe(address, bytes, std::move(handler)));
  absl::StatusOr<KernelModeUserfaultfd> opened = OpenKernelModeUserfaultfd();
  if (!opened.ok()) return WithContext(opened.status(), "guest memory needs userfaultfd; see hyperkerneld --probe");
  stripe->faults_ = std::move(opened->fd);
  HK_RETURN_IF_ERROR(UserfaultfdHandshake(stripe->faults_.get(), kFeatures).status());
  uffdio_register request = {};
  request.range = {.start = reinterpret_cast<uint64_t>(address), .len = bytes};
  request.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP;
  if (::ioctl(stripe->faults_.get(), UFFDIO_REGISTER, &request) < 0) return ErrnoStatus(errno, "UFFDIO_REGISTER");
  if ((request.ioctls & kNeededIoctls) != kNeededIoctls) {
    return absl::UnimplementedError("userfaultfd lacks operations on this file; see hyperkerneld --probe");
  }
  stripe->stop_ = OwnedFd(::eventfd(0, EFD_CLOEXEC));
  if (!stripe->stop_.valid()) return ErrnoStatus(errno, "eventfd");
  stripe->thread_ = std::thread(&FaultStripe::Run, stripe.get());
  return stripe;
}

FaultStripe::~FaultStripe() {
  StopFaults();
}

void FaultStripe::StopFaults() {
  if (!thread_.joinable()) return;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(stop_.get(), &one, sizeof one);
  thread_.join();
}

void FaultStripe::Run() {
  ::pthread_setname_np(::pthread_self(), "hk-faults");
  ServeFirst();
  pollfd waiting[2] = {{.fd = faults_.get(), .events = POLLIN, .revents = 0},
                       {.fd = stop_.get(), .events = POLLIN, .revents = 0}};
  uffd_msg messages[kBatch];
  while (true) {
    // No deadline: a fault may never come, and the destructor's event ends the wait.
    if (::poll(waiting, 2, -1) < 0 && errno != EINTR) {
      log::Error("memory", "poll of a userfaultfd failed", {{"error", MessageOf(ErrnoStatus(errno, "poll"))}});
      return;
    }
    if (waiting[1].revents != 0) return;
    const ssize_t n = ::read(faults_.get(), messages, sizeof messages);
    if (n < 0) continue;  // EAGAIN: another event took it back; poll tells again
    for (size_t i = 0; i < static_cast<size_t>(n) / sizeof(uffd_msg); i++) {
      if (messages[i].event != UFFD_EVENT_PAGEFAULT) continue;
      const auto& fault = messages[i].arg.pagefault;
      // A write-protect event can be of a page that went meanwhile: a write all the same.
      handler_(this, {.offset = (fault.address - reinterpret_cast<uint64_t>(address_)) & ~(kPageSize - 1),
                      .write = (fault.flags & (UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP)) != 0,
                      .here = (fault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0,
                      .thread = fault.feat.ptid});
    }
  }
}

void FaultStripe::Wake(ViewRange range) {
  uffdio_range request = {.start = reinterpret_cast<uint64_t>(address_) + range.start, .len = range.bytes};
  if (::ioctl(faults_.get(), UFFDIO_WAKE, &request) < 0) {
    log::Error("memory", "a fault cannot be woken", {{"error", MessageOf(ErrnoStatus(errno, "UFFDIO_WAKE"))}});
  }
}

absl::Status FaultStripe::FillHoles(ViewRange range) {
  alignas(kPageSize) static constexpr std::byte kZeros[kMostCopyBytes] = {};
  const uint64_t end = range.start + range.bytes;
  for (uint64_t at = range.start; at < end;) {
    uffdio_copy copy = {};
    copy.dst = reinterpret_cast<uint64_t>(address_) + at;
    copy.src = reinterpret_cast<uint64_t>(kZeros);
    copy.len = std::min(kMostCopyBytes, end - at);
    copy.mode = UFFDIO_COPY_MODE_DONTWAKE;
    const int error = ::ioctl(faults_.get(), UFFDIO_COPY, &copy) == 0 ? 0 : errno;
    // Also after an error: what was done before it.
    if (copy.copy > 0) at += static_cast<uint64_t>(copy.copy);
    if (error == EEXIST && copy.copy <= 0) at += kPageSize;
    if (error != 0 && error != EEXIST) return ErrnoStatus(error, "UFFDIO_COPY");
  }
  return absl::OkStatus();
}

absl::Status FaultStripe::Install(uint64_t offset, std::span<const std::byte> bytes, bool write_protected, bool wake) {
  for (size_t at = 0; at < bytes.size();) {
    uffdio_copy copy = {};
    copy.dst = reinterpret_cast<uint64_t>(address_) + offset + at;
    copy.src = reinterpret_cast<uint64_t>(bytes.data()) + at;
    copy.len = bytes.size() - at;
    copy.mode = (wake ? 0 : UFFDIO_COPY_MODE_DONTWAKE) | (write_protected ? UFFDIO_COPY_MODE_WP : 0);
    const int error = Retry(faults_.get(), UFFDIO_COPY, &copy, [&copy] { return copy.copy > 0; });
    // A part of it: the rest by another call, which says why, if there is a reason.
    if (copy.copy > 0) {
      at += static_cast<size_t>(copy.copy);
    } else if (error == EEXIST) {
      return absl::AlreadyExistsError("UFFDIO_COPY: there is a page already");
    } else if (error == ENOMEM || error == ENOSPC) {
      return absl::ResourceExhaustedError("UFFDIO_COPY: no memory, or the frame store is full");
    } else {
      return ErrnoStatus(error == 0 ? EIO : error, "UFFDIO_COPY");
    }
  }
  return absl::OkStatus();
}

absl::Status FaultStripe::WriteProtect(ViewRange range, bool on, bool wake) {
  uffdio_writeprotect request = {};
  request.range = {.start = reinterpret_cast<uint64_t>(address_) + range.start, .len = range.bytes};
  request.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : wake ? 0 : UFFDIO_WRITEPROTECT_MODE_DONTWAKE;
  const int error = Retry(faults_.get(), UFFDIO_WRITEPROTECT, &request, [] { return false; });
  return error == 0 ? absl::OkStatus() : ErrnoStatus(error, "UFFDIO_WRITEPROTECT");
}

void FaultStripe::MakeInaccessible(ViewRange range) {
  // Tried on 6.1, where a vCPU in a fault cannot be interrupted: with nothing mapped there, KVM_RUN returns EFAULT and
  // the instruction is not executed. Never zeroes.
  void* const at = address_ + range.start;
  if (::mmap(at, range.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) ==
      MAP_FAILED) {
    log::Error("memory", "a page cannot be made inaccessible", {{"error", MessageOf(ErrnoStatus(errno, "mmap"))}});
  }
}

}  // namespace hk
