#include "hyperkernel/memory/userfaultfd_trial.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#include "fmt/format.h"
#include "hyperkernel/base/mapping.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/base/types.h"

namespace hk {
namespace {

constexpr size_t kPages = 4;
constexpr int kEventTimeoutMs = 500;  // an event comes within microseconds
constexpr uint8_t kMark = 0x5a;
constexpr uint64_t kNeededFeatures =
    UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
constexpr uint64_t kNeededIoctls =
    uint64_t{1} << _UFFDIO_COPY | uint64_t{1} << _UFFDIO_WRITEPROTECT | uint64_t{1} << _UFFDIO_WAKE;

struct Pipe {
  OwnedFd read;
  OwnedFd write;
};

absl::StatusOr<Pipe> MakePipe() {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0) return ErrnoStatus(errno, "pipe2");
  return Pipe{.read = OwnedFd(fds[0]), .write = OwnedFd(fds[1])};
}

// A memfd of kPages holes, a mapping of it, and a userfaultfd on which the mapping is registered.
struct Area {
  OwnedFd file;
  Mapping mapping;
  OwnedFd faults;
  uint64_t ioctls = 0;

  uint64_t Address(size_t page) const { return reinterpret_cast<uint64_t>(mapping.data()) + page * kPageSize; }
};

absl::StatusOr<Area> MakeArea(uint64_t features, uint64_t modes) {
  Area area;
  area.file = OwnedFd(memfd_create("hk-probe", MFD_CLOEXEC));
  if (!area.file.valid()) return ErrnoStatus(errno, "memfd_create");
  if (ftruncate(area.file.get(), kPages * kPageSize) < 0) return ErrnoStatus(errno, "ftruncate of a memfd");
  HK_ASSIGN_OR_RETURN(
      area.mapping, Mapping::Create(kPages * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, area.file.get(), "memfd"));
  // As guest memory has it. Either may be refused by a kernel without the option, which does not matter here.
  madvise(area.mapping.data(), area.mapping.size(), MADV_NOHUGEPAGE);
  madvise(area.mapping.data(), area.mapping.size(), MADV_DONTFORK);
  HK_ASSIGN_OR_RETURN(KernelModeUserfaultfd opened, OpenKernelModeUserfaultfd());
  area.faults = std::move(opened.fd);
  HK_RETURN_IF_ERROR(UserfaultfdHandshake(area.faults.get(), features).status());
  uffdio_register request = {};
  request.range = {.start = area.Address(0), .len = area.mapping.size()};
  request.mode = modes;
  if (ioctl(area.faults.get(), UFFDIO_REGISTER, &request) < 0) return ErrnoStatus(errno, "UFFDIO_REGISTER");
  area.ioctls = request.ioctls;
  return area;
}

// One access of the toucher's thread: the kernel reads a byte of the memory into the pipe, or writes the pipe's byte to
// it.
struct Touch {
  bool write;
  uint64_t address;
};

// Makes the accesses in order; each blocks in its fault until somebody resolves it or closes the userfaultfd.
void TouchAll(const Pipe& pipe, const std::vector<Touch>& touches) {
  for (const Touch& touch : touches) {
    void* address = reinterpret_cast<void*>(touch.address);
    if (touch.write) {
      [[maybe_unused]] ssize_t done = read(pipe.read.get(), address, 1);
    } else {
      [[maybe_unused]] ssize_t done = write(pipe.write.get(), address, 1);
    }
  }
}

// Waits for the fault at `address` and checks its kind.
absl::Status ExpectFault(int fd, uint64_t address, uint64_t flags) {
  pollfd waiting = {.fd = fd, .events = POLLIN, .revents = 0};
  const int ready = poll(&waiting, 1, kEventTimeoutMs);
  if (ready < 0) return ErrnoStatus(errno, "poll of a userfaultfd");
  if (ready == 0) return absl::DeadlineExceededError(fmt::format("no fault event within {} ms", kEventTimeoutMs));
  uffd_msg message = {};
  if (read(fd, &message, sizeof(message)) != sizeof(message)) return ErrnoStatus(errno, "read of a userfaultfd");
  if (message.event != UFFD_EVENT_PAGEFAULT) {
    return absl::InternalError(fmt::format("event {:#x} instead of a page fault", message.event));
  }
  const auto& fault = message.arg.pagefault;
  constexpr uint64_t kKinds = UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP;
  if ((fault.address & ~(kPageSize - 1)) != address || (fault.flags & kKinds) != flags) {
    return absl::InternalError(
        fmt::format("fault {} bytes from where it was expected, with flags {:#x} instead of {:#x}",
                    static_cast<int64_t>(fault.address - address), uint64_t{fault.flags}, flags));
  }
  return absl::OkStatus();
}

absl::Status WriteProtect(int fd, uint64_t address, bool on) {
  uffdio_writeprotect request = {};
  request.range = {.start = address, .len = kPageSize};
  request.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
  if (ioctl(fd, UFFDIO_WRITEPROTECT, &request) < 0) return ErrnoStatus(errno, "UFFDIO_WRITEPROTECT");
  return absl::OkStatus();
}

absl::Status ResolveMissing(const Area& area) {
  HK_RETURN_IF_ERROR(ExpectFault(area.faults.get(), area.Address(0), 0));
  const std::vector<uint8_t> content(kPageSize, kMark);
  uffdio_copy copy = {};
  copy.dst = area.Address(0);
  copy.src = reinterpret_cast<uint64_t>(content.data());
  copy.len = kPageSize;
  copy.mode = UFFDIO_COPY_MODE_WP;
  if (ioctl(area.faults.get(), UFFDIO_COPY, &copy) < 0) return ErrnoStatus(errno, "UFFDIO_COPY with MODE_WP");
  return absl::OkStatus();
}

absl::Status ResolveWriteProtect(const Area& area, size_t page) {
  HK_RETURN_IF_ERROR(
      ExpectFault(area.faults.get(), area.Address(page), UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_WRITE));
  return WriteProtect(area.faults.get(), area.Address(page), false);
}

// Both bytes as the toucher must have left them: what was installed, and what it wrote.
absl::Status ExpectFileContent(int file) {
  uint8_t bytes[2] = {};
  if (pread(file, bytes, sizeof(bytes), 0) != sizeof(bytes)) return ErrnoStatus(errno, "pread of a memfd");
  if (bytes[0] != kMark || bytes[1] != kMark) return absl::DataLossError("the page does not hold what was written");
  return absl::OkStatus();
}

// The steps, each only after the one before. The toucher: page 0 read, page 0 written at byte 1, page 1 written.
void ResolveAll(const Area& area, UserfaultfdTrial* trial) {
  trial->missing = ResolveMissing(area);
  if (!trial->missing.ok()) return;
  trial->write_protect = ResolveWriteProtect(area, 0);
  if (!trial->write_protect.ok()) return;
  trial->rearm = ResolveWriteProtect(area, 1);
}

absl::StatusOr<int64_t> AllocatedBytes(int file) {
  struct stat info = {};
  if (fstat(file, &info) < 0) return ErrnoStatus(errno, "fstat of a memfd");
  return int64_t{info.st_blocks} * 512;
}

}  // namespace

absl::StatusOr<KernelModeUserfaultfd> OpenKernelModeUserfaultfd() {
  OwnedFd fd(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (fd.valid()) return KernelModeUserfaultfd{.fd = std::move(fd), .by_device = false};
  const absl::Status call = ErrnoStatus(errno, "userfaultfd()");
  OwnedFd device(open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (device.valid()) fd = OwnedFd(ioctl(device.get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK));
  if (fd.valid()) return KernelModeUserfaultfd{.fd = std::move(fd), .by_device = true};
  const absl::Status by_device = ErrnoStatus(errno, "/dev/userfaultfd");
  return absl::Status(call.code(), fmt::format("{}; {}", MessageOf(call), MessageOf(by_device)));
}

absl::StatusOr<uint64_t> UserfaultfdHandshake(int fd, uint64_t features) {
  uffdio_api api = {};
  api.api = UFFD_API;
  api.features = features;
  if (ioctl(fd, UFFDIO_API, &api) < 0) return ErrnoStatus(errno, fmt::format("UFFDIO_API, features {:#x}", features));
  return uint64_t{api.features};
}

UserfaultfdTrial TryFaults() {
  const absl::Status untried = absl::FailedPreconditionError("not tried: an earlier step failed");
  UserfaultfdTrial trial = {untried, untried, untried, untried};
  absl::StatusOr<Area> area = MakeArea(kNeededFeatures, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
  absl::StatusOr<Pipe> pipe = MakePipe();
  trial.registers = area.ok() ? pipe.status() : area.status();
  if (!trial.registers.ok()) return trial;
  if ((area->ioctls & kNeededIoctls) != kNeededIoctls) {
    trial.registers = absl::UnimplementedError(
        fmt::format("registered, but only ioctls {:#x} of {:#x}", area->ioctls, kNeededIoctls));
    return trial;
  }
  // Page 1 is in the file and not mapped: what a restarted daemon finds.
  absl::Status protects = pwrite(area->file.get(), &kMark, 1, kPageSize) == 1
                              ? WriteProtect(area->faults.get(), area->Address(1), true)
                              : ErrnoStatus(errno, "pwrite to a memfd");
  const std::vector<Touch> touches = {{.write = false, .address = area->Address(0)},
                                      {.write = true, .address = area->Address(0) + 1},
                                      {.write = false, .address = area->Address(0)},
                                      {.write = true, .address = area->Address(1) + 1}};
  try {
    std::thread toucher([&] { TouchAll(*pipe, touches); });
    ResolveAll(*area, &trial);
    // Wakes the toucher out of any fault that was not resolved; from here on its accesses are ordinary.
    area->faults.Reset();
    toucher.join();
  } catch (const std::system_error& error) {
    trial.missing = ErrnoStatus(error.code().value(), "start of a thread that takes the faults");
    return trial;
  }
  if (trial.write_protect.ok()) trial.write_protect = ExpectFileContent(area->file.get());
  if (!protects.ok()) trial.rearm = protects;
  return trial;
}

absl::Status TrySigbusMapping() {
  HK_ASSIGN_OR_RETURN(Area area,
                      MakeArea(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_SIGBUS, UFFDIO_REGISTER_MODE_MISSING));
  HK_ASSIGN_OR_RETURN(Pipe pipe, MakePipe());
  const int file = area.file.get();
  if (pwrite(file, &kMark, 1, 0) != 1) return ErrnoStatus(errno, "pwrite to a memfd");
  HK_ASSIGN_OR_RETURN(const int64_t before, AllocatedBytes(file));

  // The hole, by a system call: the CPU's own access would be a SIGBUS.
  if (write(pipe.write.get(), reinterpret_cast<void*>(area.Address(1)), 1) >= 0) {
    return absl::InternalError("touching a hole succeeds instead of giving an error");
  }
  if (errno != EFAULT) return ErrnoStatus(errno, "touching a hole");
  uint8_t byte = 0xff;
  if (pread(file, &byte, 1, 2 * kPageSize) != 1 || byte != 0) return absl::DataLossError("pread of a hole is not zero");
  HK_ASSIGN_OR_RETURN(const int64_t after, AllocatedBytes(file));
  if (after != before) return absl::InternalError(fmt::format("reading holes allocated {} bytes", after - before));

  if (write(pipe.write.get(), reinterpret_cast<void*>(area.Address(0)), 1) != 1) {
    return ErrnoStatus(errno, "touching a page that is there");
  }
  if (read(pipe.read.get(), &byte, 1) != 1 || byte != kMark) return absl::DataLossError("a page reads wrong");
  return absl::OkStatus();
}

}  // namespace hk
