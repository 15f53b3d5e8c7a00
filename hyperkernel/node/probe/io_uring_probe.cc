#include <liburing.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/probe_group.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/probe/host_parts.h"

namespace hk {
namespace {

constexpr ProbeQuestion kSetup = {
    .name = "a ring can be made",
    .lost = "block devices: no guest's I/O node can be here (the node can still hold memory and run vCPUs)",
    .fix =
        "sysctl kernel.io_uring_disabled=0 (1 suffices for root or kernel.io_uring_group); in a container its seccomp "
        "profile must allow io_uring; not there at all: a kernel with CONFIG_IO_URING"};
constexpr ProbeQuestion kReadWrite = {.name = "READ and WRITE",
                                      .lost = "block devices: no guest's I/O node can be here",
                                      .fix = "boot a stock kernel, 6.1 or later"};
constexpr ProbeQuestion kFsync = {.name = "FSYNC",
                                  .lost = "FLUSH of block devices: no guest's I/O node can be here",
                                  .fix = "boot a stock kernel, 6.1 or later"};
constexpr ProbeQuestion kFallocate = {.name = "FALLOCATE",
                                      .lost = "discard and write-zeroes of block devices: images do not shrink",
                                      .fix = "boot a stock kernel, 6.1 or later"};

// Owns a ring. Not movable: liburing keeps no pointers to it, but nothing needs to move it.
class Ring {
 public:
  // `error` is negative errno on failure, as liburing has it.
  explicit Ring(int* error) { *error = result_ = io_uring_queue_init(4, &ring_, 0); }
  ~Ring() {
    if (result_ == 0) io_uring_queue_exit(&ring_);
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  io_uring* get() { return &ring_; }

 private:
  io_uring ring_ = {};
  int result_ = 0;
};

struct ProbeDeleter {
  void operator()(io_uring_probe* probe) const { io_uring_free_probe(probe); }
};

// The sysctl exists from 6.6 on.
std::string Disabled() {
  auto text = ReadSmallFile("/proc/sys/kernel/io_uring_disabled", 64);
  return text.ok() ? fmt::format("kernel.io_uring_disabled={}", text->substr(0, text->find('\n')))
                   : "no sysctl kernel.io_uring_disabled";
}

void AnswerOperations(const ProbeQuestion& question, const io_uring_probe* probe, const std::vector<int>& operations,
                      ProbeGroup* group) {
  if (probe == nullptr) return group->No(question, "IORING_REGISTER_PROBE failed");
  std::vector<int> missing;
  for (int operation : operations) {
    if (!io_uring_opcode_supported(probe, operation)) missing.push_back(operation);
  }
  group->Answer(question, missing.empty(),
                missing.empty() ? "supported" : fmt::format("not supported: opcodes {}", fmt::join(missing, ", ")));
}

// Does something with the ring: a no-operation goes in and comes out.
absl::Status TryNop(io_uring* ring) {
  io_uring_sqe* entry = io_uring_get_sqe(ring);
  if (entry == nullptr) return absl::InternalError("no submission entry");
  io_uring_prep_nop(entry);
  if (const int result = io_uring_submit(ring); result < 0) return ErrnoStatus(-result, "io_uring_submit");
  io_uring_cqe* done = nullptr;
  __kernel_timespec timeout = {.tv_sec = 1, .tv_nsec = 0};
  if (const int result = io_uring_wait_cqe_timeout(ring, &done, &timeout); result < 0) {
    return ErrnoStatus(-result, "wait for a no-operation");
  }
  const int result = done->res;
  io_uring_cqe_seen(ring, done);
  return result < 0 ? ErrnoStatus(-result, "no-operation") : absl::OkStatus();
}

}  // namespace

ProbeItems ProbeIoUring() {
  // One ring at a time. liburing maps and unmaps by system calls that ThreadSanitizer does not see: where another
  // thread's ring was a moment ago, it would report races with that.
  static Mutex one_at_a_time;
  MutexLock lock(&one_at_a_time);
  ProbeGroup group("io_uring");
  int error = 0;
  Ring ring(&error);
  if (error < 0) {
    group.No(kSetup, fmt::format("{}; {}", MessageOf(ErrnoStatus(-error, "io_uring_setup")), Disabled()));
    return group.Take();
  }
  const absl::Status works = TryNop(ring.get());
  group.Answer(kSetup, works.ok(), works.ok() ? Disabled() : MessageOf(works));
  std::unique_ptr<io_uring_probe, ProbeDeleter> probe(io_uring_get_probe_ring(ring.get()));
  AnswerOperations(kReadWrite, probe.get(), {IORING_OP_READ, IORING_OP_WRITE, IORING_OP_READV, IORING_OP_WRITEV},
                   &group);
  AnswerOperations(kFsync, probe.get(), {IORING_OP_FSYNC}, &group);
  AnswerOperations(kFallocate, probe.get(), {IORING_OP_FALLOCATE}, &group);
  return group.Take();
}

}  // namespace hk
