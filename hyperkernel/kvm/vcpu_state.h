// The whole state of a vCPU: read from one KVM vCPU, set into another, and as bytes for another node.
//
// The local APIC's registers are not here: they belong to VcpuInterrupts and travel beside it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/kvm/kvm_api.h"
#include "hyperkernel/kvm/pv_clock.h"
#include "hyperkernel/kvm/vm.h"

namespace hk {

// What a vCPU does when it is not stopped. KVM knows nothing of the last two without an in-kernel APIC.
enum class VcpuActivity : uint8_t {
  kRunning = 0,
  kHalted = 1,       // HLT: until an event
  kWaitForSipi = 2,  // after INIT: until SIPI
};

// A vCPU between two instructions. Plain value.
struct VcpuState {
  VcpuActivity activity = VcpuActivity::kRunning;
  std::vector<kvm_cpuid_entry2> cpuid;
  uint32_t tsc_khz = 0;
  uint64_t tsc_offset = 0;  // guest TSC - host TSC: of the host it was read on
  kvm_xcrs xcrs = {};
  std::vector<std::byte> xsave;
  kvm_sregs sregs = {};
  kvm_regs regs = {};
  kvm_debugregs debugregs = {};
  std::vector<kvm_msr_entry> msrs;
  kvm_vcpu_events events = {};
  PvClockVcpuState clock;
  uint64_t pv_eoi_msr = 0;
};

// Reads all that KVM has (not activity, clock and pv_eoi_msr). REQUIRES: the calling thread is the vCPU's; no exit is
// unfinished. Errors: the ioctl that failed, with errno.
absl::Status ReadVcpuState(const VcpuFd& vcpu, const KvmFacts& facts, VcpuState* state);

// Sets it, in the order that README.md explains. The vCPU may be fresh or one that has run with the same CPUID. On
// failure the vCPU is in no usable state. Errors: the ioctl that failed, with errno; kFailedPrecondition if this host
// cannot hold the state (an MSR that it refuses or does not know, XSAVE area of another size, TSC rate).
absl::Status WriteVcpuState(const VcpuFd& vcpu, const KvmFacts& facts, const VcpuState& state);

// The rate of this vCPU's TSC, and its setting: 0 leaves it. Errors: kFailedPrecondition if the rate is not reached.
absl::StatusOr<uint32_t> ReadTscKhz(const VcpuFd& vcpu);
absl::Status WriteTscKhz(const VcpuFd& vcpu, uint32_t khz);
absl::StatusOr<uint64_t> ReadTscOffset(const VcpuFd& vcpu);
absl::Status WriteTscOffset(const VcpuFd& vcpu, uint64_t offset);
absl::Status WriteCpuid(const VcpuFd& vcpu, std::span<const kvm_cpuid_entry2> entries);

// Bounds of the byte form, and of the arrays above.
inline constexpr size_t kMostVcpuStateBytes = 128 << 10;

// The byte form (README.md, "Saved state"): version 2, little-endian. Every state has one form.
std::vector<std::byte> EncodeVcpuState(const VcpuState& state);
// Errors: kInvalidArgument with what is wrong: bytes are input from a peer or a file.
absl::StatusOr<VcpuState> DecodeVcpuState(std::span<const std::byte> bytes);

}  // namespace hk
