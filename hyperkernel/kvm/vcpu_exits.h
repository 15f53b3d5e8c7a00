// What is done about each way out of KVM_RUN: one function per exit reason.
//
// Of the vCPU's own thread only, except the counters. Nothing here allocates or makes a system call on the way of an
// exit that a healthy guest makes often.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "hyperkernel/base/types.h"
#include "hyperkernel/irq/vcpu_interrupts.h"
#include "hyperkernel/kvm/exit_handler.h"
#include "hyperkernel/kvm/pv_clock.h"
#include "hyperkernel/kvm/pv_eoi.h"
#include "hyperkernel/kvm/vm.h"

namespace hk {

// Why KVM_RUN came back, as counted.
enum class VcpuExit : uint8_t {
  kPort,
  kMmio,
  kApicMmio,  // xAPIC page
  kReadMsr,
  kWriteMsr,
  kHalt,
  kInterruptWindow,
  kSignal,  // kicked
  kTaskPriority,
  kFailure,  // shutdown, internal error, failed entry, ...
  kOther,
};
inline constexpr size_t kVcpuExits = static_cast<size_t>(VcpuExit::kOther) + 1;
std::string_view NameOf(VcpuExit exit);

// Counters of one vCPU, since it was made. Plain value.
struct VcpuCounters {
  std::array<uint64_t, kVcpuExits> exits = {};
  uint64_t interrupts = 0;  // injected
  uint64_t nmis = 0;
  uint64_t unknown_msrs = 0;  // accesses that faulted
  uint64_t halted_ns = 0;     // or before SIPI
  uint64_t settling_ns = 0;   // not halted, and not Settled
  uint64_t exits_ns = 0;      // of a paced vCPU: in port and MMIO exits
};

// Handles exits of one vCPU.
class VcpuExits {
 public:
  // What the vCPU does next.
  enum class Next { kRun, kHalt, kFail };

  // All outlive this object. `clock` may be null: the guest has no kvmclock.
  VcpuExits(VcpuId vcpu, ExitHandler* devices, VcpuInterrupts* interrupts, PvClock* clock, PvEoi* eoi)
      : id_(vcpu), devices_(*devices), interrupts_(*interrupts), clock_(clock), eoi_(*eoi) {}

  // Handles the exit in vcpu's run page. After kFail, failure() says why.
  Next Handle(const VcpuFd& vcpu);
  // KVM_RUN failed with an errno that is neither EINTR nor EAGAIN.
  Next HandleRunError(const VcpuFd& vcpu, int error);
  const std::string& failure() const { return failure_; }

  // Counts; may be called by the vCPU's thread only. Snapshots are for everyone.
  void Count(VcpuExit exit) { Add(&exits_[static_cast<size_t>(exit)]); }
  void CountInterrupt() { Add(&injected_); }
  void CountNmi() { Add(&nmis_); }
  VcpuCounters Snapshot() const;

 private:
  using Counter = std::atomic<uint64_t>;
  // One writer: no locked instruction needed.
  static void Add(Counter* counter) {
    counter->store(counter->load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }

  Next Port(const VcpuFd& vcpu);
  Next Mmio(kvm_run* run);
  Next ApicMmio(kvm_run* run);
  Next ReadMsr(kvm_run* run);
  Next WriteMsr(const VcpuFd& vcpu);
  Next UnknownMsr(kvm_run* run, bool write);
  Next Halt();
  Next TaskPriority();
  Next Shutdown(const VcpuFd& vcpu);
  Next EntryFailed(const VcpuFd& vcpu);
  Next InternalError(const VcpuFd& vcpu);
  Next SystemEvent(const VcpuFd& vcpu);
  Next Debug(const VcpuFd& vcpu);
  Next Unknown(const VcpuFd& vcpu);
  // `what` and where the vCPU is.
  Next Fail(const VcpuFd& vcpu, std::string what);

  const VcpuId id_;
  ExitHandler& devices_;
  VcpuInterrupts& interrupts_;
  PvClock* const clock_;
  PvEoi& eoi_;
  std::string failure_;
  uint32_t logged_msrs_ = 0;

  std::array<Counter, kVcpuExits> exits_ = {};
  Counter injected_ = 0;
  Counter nmis_ = 0;
  Counter unknown_msrs_ = 0;
};

}  // namespace hk
