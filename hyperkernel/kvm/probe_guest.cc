#include "hyperkernel/kvm/probe_guest.h"

#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/mapping.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/kvm/kvm_api.h"

namespace hk {
namespace {

using std::chrono::steady_clock;

constexpr size_t kMemoryBytes = 2 << 20;
// Tables in the guest's first 32 KiB.
constexpr uint64_t kPml4 = 0x1000, kPdpt = 0x2000, kPageDirectory = 0x3000, kGdt = 0x4000, kIdt = 0x5000,
                   kStubs = 0x6000;
constexpr uint16_t kCodeSelector = 0x08, kDataSelector = 0x10;
// Where the exception stubs write their vector.
constexpr uint16_t kExceptionPort = 0x11;
constexpr unsigned kExceptions = 32;
constexpr unsigned kStubBytes = 8;
// The stop signal is repeated at this interval, from the deadline until KVM_RUN has returned.
constexpr auto kStopInterval = std::chrono::milliseconds(10);

// Page table bits (Intel SDM vol. 3, 4.5): present and writable; PS makes a 2 MiB page.
constexpr uint64_t kPresentWritable = 0x3, kLargePage = 0x80;

template <typename T>
void Put(uint8_t* memory, uint64_t at, T value) {
  HK_CHECK(at + sizeof(value) <= kMemoryBytes);
  std::memcpy(memory + at, &value, sizeof(value));
}

void WriteTables(uint8_t* memory) {
  Put<uint64_t>(memory, kPml4, kPdpt | kPresentWritable);
  Put<uint64_t>(memory, kPdpt, kPageDirectory | kPresentWritable);
  Put<uint64_t>(memory, kPdpt + 8 * (kProbeGuestAlias >> 30), kPageDirectory | kPresentWritable);
  Put<uint64_t>(memory, kPageDirectory, 0 | kPresentWritable | kLargePage);
  Put<uint64_t>(memory, kGdt + kCodeSelector, 0x00af9b000000ffff);  // 64-bit code, accessed
  Put<uint64_t>(memory, kGdt + kDataSelector, 0x00cf93000000ffff);
}

// One gate and one stub per exception: mov al, VECTOR; out kExceptionPort, al; hlt.
void WriteInterruptTable(uint8_t* memory) {
  for (unsigned vector = 0; vector < kExceptions; ++vector) {
    const uint64_t stub = kStubs + vector * kStubBytes;
    const uint8_t code[] = {0xb0, static_cast<uint8_t>(vector), 0xe6, kExceptionPort, 0xf4};
    std::memcpy(memory + stub, code, sizeof(code));
    // 64-bit interrupt gate (Intel SDM vol. 3, 6.14.1): present, type 14; stubs lie below 64 KiB.
    Put<uint64_t>(memory, kIdt + 16 * vector, stub | uint64_t{kCodeSelector} << 16 | uint64_t{0x8e00} << 32);
  }
}

kvm_segment Segment(uint16_t selector, bool code) {
  kvm_segment segment = {};
  segment.limit = 0xffffffff;
  segment.selector = selector;
  segment.type = code ? 0xb : 0x3;  // accessed; execute/read or read/write
  segment.present = 1;
  segment.s = 1;
  segment.g = 1;
  segment.l = code ? 1 : 0;
  segment.db = code ? 0 : 1;
  return segment;
}

// The state in which a 64-bit Linux is entered, plus what it enables first for SSE.
void SetLongMode(kvm_sregs* sregs) {
  sregs->cs = Segment(kCodeSelector, true);
  sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = Segment(kDataSelector, false);
  sregs->gdt = {.base = kGdt, .limit = 0x17, .padding = {}};
  sregs->idt = {.base = kIdt, .limit = 16 * kExceptions - 1, .padding = {}};
  sregs->cr0 = 0x80000033;  // PG, NE, ET, MP, PE
  sregs->cr3 = kPml4;
  sregs->cr4 = 0x620;   // OSXMMEXCPT, OSFXSR, PAE
  sregs->efer = 0x500;  // LMA, LME
}

struct Guest {
  OwnedFd vm;
  OwnedFd vcpu;
  Mapping memory;
  Mapping run;
};

absl::StatusOr<Mapping> MapRunPage(int kvm_fd, int vcpu_fd) {
  int size = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
  if (size < static_cast<int>(sizeof(kvm_run))) return ErrnoStatus(size < 0 ? errno : EINVAL, "KVM_GET_VCPU_MMAP_SIZE");
  return Mapping::Create(static_cast<size_t>(size), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd, "vCPU run page");
}

// The guest sees the CPU that KVM offers, so that KVM has no reason to refuse an instruction that the host has.
absl::Status SetCpuid(int kvm_fd, int vcpu_fd) {
  constexpr uint32_t kMost = 256;
  std::vector<uint64_t> buffer((sizeof(kvm_cpuid2) + kMost * sizeof(kvm_cpuid_entry2)) / sizeof(uint64_t) + 1);
  auto* cpuid = reinterpret_cast<kvm_cpuid2*>(buffer.data());
  cpuid->nent = kMost;
  if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid) < 0) return ErrnoStatus(errno, "KVM_GET_SUPPORTED_CPUID");
  if (ioctl(vcpu_fd, KVM_SET_CPUID2, cpuid) < 0) return ErrnoStatus(errno, "KVM_SET_CPUID2");
  return absl::OkStatus();
}

absl::Status SetRegisters(int vcpu_fd) {
  kvm_sregs sregs = {};
  if (ioctl(vcpu_fd, KVM_GET_SREGS, &sregs) < 0) return ErrnoStatus(errno, "KVM_GET_SREGS");
  SetLongMode(&sregs);
  if (ioctl(vcpu_fd, KVM_SET_SREGS, &sregs) < 0) return ErrnoStatus(errno, "KVM_SET_SREGS");
  kvm_regs regs = {};
  regs.rip = kProbeGuestCode;
  regs.rsp = kProbeGuestStack;
  regs.rflags = 0x2;
  if (ioctl(vcpu_fd, KVM_SET_REGS, &regs) < 0) return ErrnoStatus(errno, "KVM_SET_REGS");
  return absl::OkStatus();
}

absl::StatusOr<Guest> MakeGuest(int kvm_fd, std::span<const uint8_t> program) {
  Guest guest;
  HK_ASSIGN_OR_RETURN(guest.memory, Mapping::Create(kMemoryBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                                                    -1, "guest memory"));
  // A fork of this process by another thread must not copy what KVM maps.
  madvise(guest.memory.data(), kMemoryBytes, MADV_DONTFORK);
  WriteTables(guest.memory.data());
  WriteInterruptTable(guest.memory.data());
  std::memcpy(guest.memory.data() + kProbeGuestCode, program.data(), program.size());

  guest.vm = OwnedFd(ioctl(kvm_fd, KVM_CREATE_VM, 0));
  if (!guest.vm.valid()) return ErrnoStatus(errno, "KVM_CREATE_VM");
  kvm_userspace_memory_region region = {};
  region.memory_size = kMemoryBytes;
  region.userspace_addr = reinterpret_cast<uint64_t>(guest.memory.data());
  if (ioctl(guest.vm.get(), KVM_SET_USER_MEMORY_REGION, &region) < 0) {
    return ErrnoStatus(errno, "KVM_SET_USER_MEMORY_REGION");
  }
  guest.vcpu = OwnedFd(ioctl(guest.vm.get(), KVM_CREATE_VCPU, 0));
  if (!guest.vcpu.valid()) return ErrnoStatus(errno, "KVM_CREATE_VCPU");
  HK_ASSIGN_OR_RETURN(guest.run, MapRunPage(kvm_fd, guest.vcpu.get()));
  HK_RETURN_IF_ERROR(SetCpuid(kvm_fd, guest.vcpu.get()));
  HK_RETURN_IF_ERROR(SetRegisters(guest.vcpu.get()));
  return guest;
}

// Makes KVM_RUN of this thread return at the deadline, and again every kStopInterval while the object lives.
//
// The signal stays blocked in this thread; KVM_SET_SIGNAL_MASK unblocks it for the time of KVM_RUN only, which returns
// EINTR while it is pending, without delivering it (KVM API 4.7). So there is no race between a check and KVM_RUN, no
// handler, and nobody else's handler is called. What is pending at the end of the thread vanishes with it.
class StopTimer {
 public:
  StopTimer() = default;
  StopTimer(const StopTimer&) = delete;
  StopTimer& operator=(const StopTimer&) = delete;
  ~StopTimer() {
    if (armed_) timer_delete(timer_);
  }

  absl::Status Arm(int vcpu_fd, std::chrono::nanoseconds after) {
    const int signal = SIGRTMIN + 7;
    HK_RETURN_IF_ERROR(UnblockInRunOnly(vcpu_fd, signal));
    sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = signal;
    event._sigev_un._tid = gettid();
    if (timer_create(CLOCK_MONOTONIC, &event, &timer_) < 0) return ErrnoStatus(errno, "timer_create");
    armed_ = true;
    itimerspec when = {.it_interval = ToTimespec(kStopInterval), .it_value = ToTimespec(after)};
    if (timer_settime(timer_, 0, &when, nullptr) < 0) return ErrnoStatus(errno, "timer_settime");
    return absl::OkStatus();
  }

 private:
  static timespec ToTimespec(std::chrono::nanoseconds time) {
    auto seconds = std::chrono::duration_cast<std::chrono::seconds>(time);
    return {.tv_sec = seconds.count(), .tv_nsec = (time - seconds).count()};
  }

  // Blocks every signal in this thread, and all but `signal` while it is in KVM_RUN.
  static absl::Status UnblockInRunOnly(int vcpu_fd, int signal) {
    sigset_t all;
    sigfillset(&all);
    if (int error = pthread_sigmask(SIG_SETMASK, &all, nullptr); error != 0) {
      return ErrnoStatus(error, "pthread_sigmask");
    }
    // The kernel's sigset_t: 64 bits, bit N-1 for signal N.
    struct {
      uint32_t len;
      uint8_t set[8];
    } mask = {.len = 8, .set = {}};
    const uint64_t blocked = ~(uint64_t{1} << (signal - 1));
    std::memcpy(mask.set, &blocked, sizeof(blocked));
    if (ioctl(vcpu_fd, KVM_SET_SIGNAL_MASK, &mask) < 0) return ErrnoStatus(errno, "KVM_SET_SIGNAL_MASK");
    return absl::OkStatus();
  }

  timer_t timer_ = {};
  bool armed_ = false;
};

std::string_view ExceptionName(unsigned vector) {
  switch (vector) {
    case 6:
      return "#UD, invalid opcode";
    case 8:
      return "#DF, double fault";
    case 13:
      return "#GP, general protection";
    case 14:
      return "#PF, page fault";
    default:
      return "see the CPU's manual";
  }
}

std::string InternalErrorText(const kvm_run& run) {
  switch (run.internal.suberror) {
    case KVM_INTERNAL_ERROR_EMULATION:
      return "KVM internal error 1: instruction emulation failed";
    case KVM_INTERNAL_ERROR_SIMUL_EX:
      return "KVM internal error 2: simultaneous exceptions";
    case KVM_INTERNAL_ERROR_DELIVERY_EV:
      return "KVM internal error 3: event delivery";
    case KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON:
      return "KVM internal error 4: unexpected exit reason";
    default:
      return fmt::format("KVM internal error {}", run.internal.suberror);
  }
}

// Time this thread has had on a CPU, in its guest too.
std::chrono::nanoseconds ThreadCpuTime() {
  timespec time = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

// Runs a guest to its end. One object per run; used by the guest's thread only.
class Runner {
 public:
  Runner(int vcpu_fd, uint8_t* run_page, ProbeGuestLimits limits)
      : vcpu_fd_(vcpu_fd), page_(run_page), run_(*reinterpret_cast<kvm_run*>(run_page)), limits_(limits) {}

  absl::StatusOr<ProbeGuestRun> Run() {
    StopTimer timer;
    const steady_clock::time_point start = steady_clock::now();
    const std::chrono::nanoseconds cpu_start = last_tick_ = ThreadCpuTime();
    HK_RETURN_IF_ERROR(timer.Arm(vcpu_fd_, limits_.time));
    while (true) {
      const int result = ioctl(vcpu_fd_, KVM_RUN, 0);
      const int error = errno;
      const bool late = steady_clock::now() - start >= limits_.time;
      if (result < 0 && error != EINTR && error != EAGAIN) {
        End(ProbeGuestEnd::kRunFailed, MessageOf(ErrnoStatus(error, "KVM_RUN")));
      } else if (result == 0) {
        HandleExit();
      }
      if (!ended_ && !late) continue;
      outcome_.cpu_time = ThreadCpuTime() - cpu_start;
      if (!ended_) {
        End(ProbeGuestEnd::kDeadline,
            fmt::format("no end after {} ms, {} of them on a CPU", limits_.time.count(),
                        std::chrono::duration_cast<std::chrono::milliseconds>(outcome_.cpu_time).count()));
      }
      return outcome_;
    }
  }

 private:
  void End(ProbeGuestEnd end, std::string how) {
    outcome_.end = end;
    outcome_.how = std::move(how);
    ended_ = true;
  }

  void HandleExit() {
    switch (run_.exit_reason) {
      case KVM_EXIT_IO:
        return HandlePort();
      case KVM_EXIT_INTR:
        return;
      case KVM_EXIT_SHUTDOWN:
        return End(ProbeGuestEnd::kShutdown, "triple fault");
      case KVM_EXIT_INTERNAL_ERROR:
        return End(ProbeGuestEnd::kInternalError, fmt::format("{}{}", InternalErrorText(run_), Where()));
      case KVM_EXIT_FAIL_ENTRY:
        return End(ProbeGuestEnd::kEntryFailed, fmt::format("the CPU refused to enter the guest, reason {:#x}",
                                                            run_.fail_entry.hardware_entry_failure_reason));
      default:
        return End(ProbeGuestEnd::kUnexpectedExit, fmt::format("exit reason {}{}", run_.exit_reason, Where()));
    }
  }

  void HandlePort() {
    const auto& io = run_.io;
    if (io.direction != KVM_EXIT_IO_OUT || io.size != 1 || io.count != 1) {
      return End(ProbeGuestEnd::kUnexpectedExit, fmt::format("access to port {:#x}", io.port));
    }
    const uint8_t byte = page_[io.data_offset];
    if (io.port == kExceptionPort) {
      return End(ProbeGuestEnd::kException, fmt::format("exception {} ({})", byte, ExceptionName(byte)));
    }
    if (io.port == kProbeGuestPort) {
      if (byte == static_cast<uint8_t>(ProbeGuestWord::kPassed)) return End(ProbeGuestEnd::kPassed, "");
      if (byte == static_cast<uint8_t>(ProbeGuestWord::kWrongResult)) {
        return End(ProbeGuestEnd::kWrongResult, "the instructions ran and gave a wrong result");
      }
      if (byte == static_cast<uint8_t>(ProbeGuestWord::kTick)) return HandleTick();
    }
    End(ProbeGuestEnd::kUnexpectedExit, fmt::format("byte {:#x} to port {:#x}", byte, uint16_t{io.port}));
  }

  void HandleTick() {
    const std::chrono::nanoseconds now = ThreadCpuTime();
    const std::chrono::nanoseconds took = now - last_tick_;
    last_tick_ = now;
    ++outcome_.ticks;
    // The first one also pays for building the guest's nested page tables.
    const bool first = outcome_.ticks <= 2;
    outcome_.fastest_tick = first ? took : std::min(outcome_.fastest_tick, took);
    if (outcome_.ticks >= limits_.ticks) End(ProbeGuestEnd::kTicks, "");
  }

  std::string Where() {
    kvm_regs regs = {};
    if (ioctl(vcpu_fd_, KVM_GET_REGS, &regs) < 0) return "";
    return fmt::format(" at code+{:#x}", uint64_t{regs.rip} - kProbeGuestCode);
  }

  const int vcpu_fd_;
  const uint8_t* const page_;
  const kvm_run& run_;
  const ProbeGuestLimits limits_;
  std::chrono::nanoseconds last_tick_{0};  // thread's CPU time
  ProbeGuestRun outcome_;
  bool ended_ = false;
};

}  // namespace

absl::StatusOr<ProbeGuestRun> RunProbeGuest(int kvm_fd, std::span<const uint8_t> program, ProbeGuestLimits limits) {
  HK_CHECK(program.size() <= kProbeGuestData - kProbeGuestCode);
  HK_ASSIGN_OR_RETURN(Guest guest, MakeGuest(kvm_fd, program));
  absl::StatusOr<ProbeGuestRun> outcome = ProbeGuestRun();
  try {
    std::thread([&] { outcome = Runner(guest.vcpu.get(), guest.run.data(), limits).Run(); }).join();
  } catch (const std::system_error& error) {
    return ErrnoStatus(error.code().value(), "start of the probe guest's thread");
  }
  return outcome;
}

}  // namespace hk
