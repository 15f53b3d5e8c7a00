#include "hyperkernel/kvm/vcpu_exits.h"

#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

constexpr uint64_t kApicPage = 0xfee00000;
constexpr uint32_t kMsrApicBase = 0x1b;
constexpr uint32_t kMsrX2apicFirst = 0x800, kMsrX2apicLast = 0x8ff;
// A guest that probes MSRs does not fill the log.
constexpr uint32_t kMostLoggedMsrs = 32;
// Newer than Debian 12's header: KVM_RUN fails with EFAULT and says which address.
constexpr uint32_t kExitMemoryFault = 39;

bool IsApicMsr(uint32_t msr) {
  return msr == kMsrApicBase || (msr >= kMsrX2apicFirst && msr <= kMsrX2apicLast);
}

// Keeps KVM's copy of APIC_BASE in step: CPUID's APIC bit follows it. False: KVM refuses (x2APIC that CPUID does not
// have).
bool TellKvmApicBase(const VcpuFd& vcpu, uint64_t value) {
  struct {
    kvm_msrs header;
    kvm_msr_entry entry;
  } set = {};
  set.header.nmsrs = 1;
  set.entry.index = kMsrApicBase;
  set.entry.data = value;
  return ioctl(vcpu.get(), KVM_SET_MSRS, &set) == 1;
}

std::string_view InternalErrorName(uint32_t suberror) {
  switch (suberror) {
    case KVM_INTERNAL_ERROR_EMULATION:
      return "instruction emulation failed";
    case KVM_INTERNAL_ERROR_SIMUL_EX:
      return "simultaneous exceptions";
    case KVM_INTERNAL_ERROR_DELIVERY_EV:
      return "event delivery";
    case KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON:
      return "unexpected exit reason of the CPU";
    default:
      return "of unknown kind";
  }
}

}  // namespace

std::string_view NameOf(VcpuExit exit) {
  constexpr std::string_view kNames[] = {"port",   "mmio",   "apic_mmio", "rdmsr", "wrmsr", "hlt",
                                         "window", "signal", "tpr",       "fail",  "other"};
  static_assert(std::size(kNames) == kVcpuExits);
  return kNames[static_cast<size_t>(exit)];
}

VcpuExits::Next VcpuExits::Handle(const VcpuFd& vcpu) {
  kvm_run* run = vcpu.run();
  switch (run->exit_reason) {
    case KVM_EXIT_IO:
      return Port(vcpu);
    case KVM_EXIT_MMIO:
      return Mmio(run);
    case KVM_EXIT_X86_RDMSR:
      return ReadMsr(run);
    case KVM_EXIT_X86_WRMSR:
      return WriteMsr(vcpu);
    case KVM_EXIT_HLT:
      return Halt();
    case KVM_EXIT_IRQ_WINDOW_OPEN:
      Count(VcpuExit::kInterruptWindow);
      return Next::kRun;
    case KVM_EXIT_INTR:
      Count(VcpuExit::kSignal);
      return Next::kRun;
    case KVM_EXIT_SET_TPR:
      return TaskPriority();
    case KVM_EXIT_SHUTDOWN:
      return Shutdown(vcpu);
    case KVM_EXIT_FAIL_ENTRY:
      return EntryFailed(vcpu);
    case KVM_EXIT_INTERNAL_ERROR:
      return InternalError(vcpu);
    case KVM_EXIT_SYSTEM_EVENT:
      return SystemEvent(vcpu);
    case KVM_EXIT_DEBUG:
      return Debug(vcpu);
    default:
      return Unknown(vcpu);
  }
}

VcpuExits::Next VcpuExits::HandleRunError(const VcpuFd& vcpu, int error) {
  std::string what = MessageOf(ErrnoStatus(error, "KVM_RUN"));
  if (error == EFAULT && vcpu.run()->exit_reason == kExitMemoryFault) {
    // kvm_run.memory_fault: flags, gpa, size; the union starts where every other one does.
    uint64_t fault[3];
    std::memcpy(fault, &vcpu.run()->hw, sizeof(fault));
    what += fmt::format(", guest-physical address {:#x}", fault[1]);
  }
  Count(VcpuExit::kFailure);
  return Fail(vcpu, std::move(what));
}

VcpuExits::Next VcpuExits::Port(const VcpuFd& vcpu) {
  Count(VcpuExit::kPort);
  const auto& io = vcpu.run()->io;
  const uint64_t bytes = uint64_t{io.size} * io.count;
  if (io.size == 0 || io.size > 4 || io.data_offset > vcpu.run_bytes() || bytes > vcpu.run_bytes() - io.data_offset) {
    return Fail(vcpu, fmt::format("port exit of {} times {} bytes", uint32_t{io.count}, uint8_t{io.size}));
  }
  auto* data = reinterpret_cast<std::byte*>(vcpu.run()) + io.data_offset;
  for (uint32_t i = 0; i < io.count; ++i, data += io.size) {
    if (io.direction == KVM_EXIT_IO_OUT) {
      devices_.PortWrite(io.port, std::span<const std::byte>(data, io.size));
    } else {
      devices_.PortRead(io.port, std::span<std::byte>(data, io.size));
    }
  }
  return Next::kRun;
}

VcpuExits::Next VcpuExits::Mmio(kvm_run* run) {
  auto& mmio = run->mmio;
  if ((mmio.phys_addr & ~(kPageSize - 1)) == kApicPage) return ApicMmio(run);
  Count(VcpuExit::kMmio);
  HK_CHECK(mmio.len <= sizeof(mmio.data));
  auto* data = reinterpret_cast<std::byte*>(mmio.data);
  if (mmio.is_write != 0) {
    devices_.MmioWrite(Gpa(mmio.phys_addr), std::span<const std::byte>(data, mmio.len));
  } else {
    devices_.MmioRead(Gpa(mmio.phys_addr), std::span<std::byte>(data, mmio.len));
  }
  return Next::kRun;
}

// SDM vol. 3, 11.4.1: registers are 32 bits wide on 16-byte boundaries; other accesses are undefined. Here they read
// zero and write nothing.
VcpuExits::Next VcpuExits::ApicMmio(kvm_run* run) {
  Count(VcpuExit::kApicMmio);
  auto& mmio = run->mmio;
  const auto offset = static_cast<uint32_t>(mmio.phys_addr & (kPageSize - 1));
  const bool defined = mmio.len == 4 && offset % 16 == 0;
  uint32_t value = 0;
  if (mmio.is_write != 0) {
    std::memcpy(&value, mmio.data, sizeof(value));
    if (defined) interrupts_.WriteMmio(offset, value);
  } else {
    if (defined) value = interrupts_.ReadMmio(offset);
    std::memset(mmio.data, 0, sizeof(mmio.data));
    std::memcpy(mmio.data, &value, sizeof(value));
  }
  return Next::kRun;
}

VcpuExits::Next VcpuExits::ReadMsr(kvm_run* run) {
  Count(VcpuExit::kReadMsr);
  auto& msr = run->msr;
  msr.error = 0;
  uint64_t value = 0;
  if (IsApicMsr(msr.index)) {
    const std::optional<uint64_t> read = interrupts_.ReadMsr(msr.index);
    msr.error = read.has_value() ? 0 : 1;
    msr.data = read.value_or(0);
    return Next::kRun;
  }
  if (msr.index == kMsrKvmEoi) {
    msr.data = eoi_.msr();
    return Next::kRun;
  }
  if (clock_ != nullptr && clock_->ReadMsr(id_, msr.index, &value)) {
    msr.data = value;
    return Next::kRun;
  }
  return UnknownMsr(run, false);
}

VcpuExits::Next VcpuExits::WriteMsr(const VcpuFd& vcpu) {
  Count(VcpuExit::kWriteMsr);
  auto& msr = vcpu.run()->msr;
  msr.error = 0;
  if (msr.index == kMsrApicBase) {
    // Both must agree, or the access faults and neither changes.
    const std::optional<uint64_t> before = interrupts_.ReadMsr(kMsrApicBase);
    msr.error = TellKvmApicBase(vcpu, msr.data) && interrupts_.WriteMsr(kMsrApicBase, msr.data) ? 0 : 1;
    if (msr.error != 0 && before.has_value()) static_cast<void>(TellKvmApicBase(vcpu, *before));
    return Next::kRun;
  }
  if (IsApicMsr(msr.index)) {
    msr.error = interrupts_.WriteMsr(msr.index, msr.data) ? 0 : 1;
    return Next::kRun;
  }
  if (msr.index == kMsrKvmEoi) {
    msr.error = eoi_.WriteMsr(msr.data) ? 0 : 1;
    return Next::kRun;
  }
  if (clock_ != nullptr && clock_->WriteMsr(id_, msr.index, msr.data)) return Next::kRun;
  return UnknownMsr(vcpu.run(), true);
}

// The access faults (#GP), as on a CPU that has no such register.
VcpuExits::Next VcpuExits::UnknownMsr(kvm_run* run, bool write) {
  Add(&unknown_msrs_);
  run->msr.error = 1;
  if (logged_msrs_ < kMostLoggedMsrs) {
    ++logged_msrs_;
    log::Debug("kvm", write ? "write of an unknown MSR faults" : "read of an unknown MSR faults",
               {{"vcpu", fmt::to_string(id_.value())}, {"msr", fmt::format("{:#x}", uint32_t{run->msr.index})}});
  }
  return Next::kRun;
}

VcpuExits::Next VcpuExits::Halt() {
  Count(VcpuExit::kHalt);
  return Next::kHalt;
}

// The guest lowered CR8; the caller passes the new value on before it looks for interrupts.
VcpuExits::Next VcpuExits::TaskPriority() {
  Count(VcpuExit::kTaskPriority);
  return Next::kRun;
}

VcpuExits::Next VcpuExits::Shutdown(const VcpuFd& vcpu) {
  Count(VcpuExit::kFailure);
  return Fail(vcpu, "triple fault");
}

VcpuExits::Next VcpuExits::EntryFailed(const VcpuFd& vcpu) {
  Count(VcpuExit::kFailure);
  return Fail(vcpu, fmt::format("the CPU refused to enter the guest, reason {:#x}",
                                uint64_t{vcpu.run()->fail_entry.hardware_entry_failure_reason}));
}

VcpuExits::Next VcpuExits::InternalError(const VcpuFd& vcpu) {
  Count(VcpuExit::kFailure);
  const auto& internal = vcpu.run()->internal;
  std::string what =
      fmt::format("KVM internal error {}, {}", uint32_t{internal.suberror}, InternalErrorName(internal.suberror));
  for (uint32_t i = 0; i < internal.ndata && i < std::size(internal.data); ++i) {
    what += fmt::format("{} {:#x}", i == 0 ? ":" : "", uint64_t{internal.data[i]});
  }
  return Fail(vcpu, std::move(what));
}

VcpuExits::Next VcpuExits::SystemEvent(const VcpuFd& vcpu) {
  Count(VcpuExit::kFailure);
  return Fail(vcpu, fmt::format("KVM system event {}", uint32_t{vcpu.run()->system_event.type}));
}

// Nobody asked KVM to debug the guest.
VcpuExits::Next VcpuExits::Debug(const VcpuFd& vcpu) {
  Count(VcpuExit::kFailure);
  return Fail(vcpu, "debug exit that nobody asked for");
}

VcpuExits::Next VcpuExits::Unknown(const VcpuFd& vcpu) {
  Count(VcpuExit::kOther);
  return Fail(vcpu, fmt::format("KVM exit {} is not known here", uint32_t{vcpu.run()->exit_reason}));
}

VcpuExits::Next VcpuExits::Fail(const VcpuFd& vcpu, std::string what) {
  failure_ = fmt::format("vCPU {}: {}", id_.value(), what);
  kvm_regs regs = {};
  kvm_sregs sregs = {};
  if (ioctl(vcpu.get(), KVM_GET_REGS, &regs) == 0 && ioctl(vcpu.get(), KVM_GET_SREGS, &sregs) == 0) {
    failure_ += fmt::format(" (rip {:#x}, cr0 {:#x}, cr3 {:#x}, cr2 {:#x})", uint64_t{regs.rip}, uint64_t{sregs.cr0},
                            uint64_t{sregs.cr3}, uint64_t{sregs.cr2});
  }
  return Next::kFail;
}

VcpuCounters VcpuExits::Snapshot() const {
  VcpuCounters counters;
  for (size_t i = 0; i < kVcpuExits; ++i) counters.exits[i] = exits_[i].load(std::memory_order_relaxed);
  counters.interrupts = injected_.load(std::memory_order_relaxed);
  counters.nmis = nmis_.load(std::memory_order_relaxed);
  counters.unknown_msrs = unknown_msrs_.load(std::memory_order_relaxed);
  return counters;
}

}  // namespace hk
