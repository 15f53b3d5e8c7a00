// A KVM virtual machine without in-kernel interrupt controllers: memory slots, MSR exits, and vCPU file descriptors.
//
// Invariants:
//  1. No irqchip and no PIT are ever created: every APIC access exits.
//  2. KVM itself never writes guest memory: its paravirtual MSRs all exit (see kFilteredMsrs in vm.cc).
//  3. A vCPU file descriptor is never closed before the VM's: KVM counts it against its limit for ever, so one that a
//     vCPU has left is parked and taken again when the vCPU comes back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/mapping.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/kvm/kvm_api.h"

namespace hk {

// A piece of guest-physical space backed by host memory. Plain value.
struct MemorySlot {
  Gpa start;
  uint64_t bytes = 0;     // a multiple of the page size
  void* host = nullptr;   // page-aligned; must stay mapped while the slot exists
  bool readonly = false;  // guest writes become MMIO exits
};

// A vCPU as KVM has it: its descriptor and the page it shares with us. Movable.
class VcpuFd {
 public:
  VcpuFd() = default;
  VcpuFd(OwnedFd fd, Mapping run) : fd_(std::move(fd)), run_(std::move(run)) {}
  int get() const { return fd_.get(); }
  bool valid() const { return fd_.valid(); }
  // REQUIRES: valid().
  kvm_run* run() const { return reinterpret_cast<kvm_run*>(run_.data()); }
  size_t run_bytes() const { return run_.size(); }

 private:
  OwnedFd fd_;
  Mapping run_;
};

// What of the host's KVM is asked once. Plain value.
struct KvmFacts {
  size_t run_bytes = 0;        // of a vCPU's shared mapping
  size_t xsave_bytes = 0;      // KVM_GET_XSAVE2 (or 4096)
  bool has_xsave2 = false;     // KVM_CAP_XSAVE2
  bool has_xcrs = false;       // KVM_CAP_XCRS
  bool tsc_scaling = false;    // KVM_CAP_TSC_CONTROL
  uint32_t tsc_khz = 0;        // the host's TSC; 0: unknown
  uint32_t max_vcpus = 0;      // vCPUs that one VM can ever have
  std::vector<uint32_t> msrs;  // MSRs that make up a vCPU's state (KVM_GET_MSR_INDEX_LIST and MTRRs, less what is ours)
  std::vector<kvm_cpuid_entry2> cpuid;  // KVM_GET_SUPPORTED_CPUID
};

// One VM. Thread-safe. Vcpu objects hold its descriptors: it must outlive them.
class Vm {
 public:
  // REQUIRES: vcpus > 0. Errors: kInvalidArgument if KVM does not allow that many vCPUs; kUnimplemented if the kernel
  // lacks what we need; else errno with the call that failed.
  static absl::StatusOr<std::unique_ptr<Vm>> Create(uint32_t vcpus);
  // Another VM with the same memory slots, under the same numbers, and no vCPU yet. Errors: as Create and AddMemory.
  absl::StatusOr<std::unique_ptr<Vm>> CreateLike() const;
  ~Vm();
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;

  // Adds a slot and returns its number. Errors: kInvalidArgument (not aligned, empty), errno (overlap: EEXIST).
  absl::StatusOr<uint32_t> AddMemory(const MemorySlot& slot);
  // Removes it: accesses become MMIO exits. Errors: kNotFound, errno.
  absl::Status RemoveMemory(uint32_t slot);

  // The parked descriptor of this vCPU, or a new one. Errors: kResourceExhausted if KVM allows no more vCPUs in this
  // VM.
  absl::StatusOr<VcpuFd> TakeVcpu(VcpuId vcpu);
  bool HasParked(VcpuId vcpu) const;
  // Gives a descriptor back that the vCPU has left. REQUIRES: not in KVM_RUN, no exit unfinished.
  void ParkVcpu(VcpuId vcpu, VcpuFd fd);

  // Whether a guest TSC of `guest_khz` can run here: the host's rate, or hardware scaling. 0 means the host's rate.
  // Errors: kFailedPrecondition.
  absl::Status CheckTscKhz(uint32_t guest_khz) const;

  const KvmFacts& facts() const { return facts_; }
  int fd() const { return vm_.get(); }

 private:
  Vm() = default;
  absl::Status SetUp(uint32_t vcpus);
  absl::Status SetSlot(uint32_t number, const MemorySlot& slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status ReadFacts();
  absl::Status EnableMsrExits();

  uint32_t vcpus_ = 0;
  OwnedFd kvm_;
  OwnedFd vm_;
  KvmFacts facts_;
  mutable Mutex mutex_;
  std::map<uint32_t, MemorySlot> slots_ ABSL_GUARDED_BY(mutex_);
  uint32_t next_kvm_id_ ABSL_GUARDED_BY(mutex_) = 0;
  std::multimap<VcpuId, VcpuFd> parked_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hk
