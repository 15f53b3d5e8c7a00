// The guest's kvmclock, written by us instead of by KVM, so that it is one clock over all nodes (DESIGN: vCPUs,
// interrupts, time). Formats: Linux, Documentation/virt/kvm/x86/msr.rst and pvclock-abi.h.
//
// The guest computes its time as system_ns + (TSC - guest_tsc) scaled, from a page per vCPU. All pages of a guest hold
// the same origin, so with one guest TSC the vCPUs agree to the nanosecond, which is what the STABLE flag promises.
// A page is written when the guest asks for it and when the origin changes; not when a vCPU moves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"

namespace hk {

// MSRs by which a guest names its clock structures (feature CLOCKSOURCE2).
inline constexpr uint32_t kMsrKvmWallClock = 0x4b564d00;
inline constexpr uint32_t kMsrKvmSystemTime = 0x4b564d01;

// Where the guest's time starts, the same on all nodes. Plain value.
struct PvClockOrigin {
  uint64_t guest_tsc = 0;  // the guest's TSC ...
  uint64_t system_ns = 0;  // ... at this guest time
  uint64_t wall_ns = 0;    // wall-clock time (since 1970) at guest time 0
  uint32_t tsc_khz = 0;    // rate of the guest's TSC
  bool stable = true;      // the TSC is the same on all vCPUs
};

// What of the clock belongs to one vCPU and moves with it. Plain value.
struct PvClockVcpuState {
  uint64_t system_time_msr = 0;
  uint32_t version = 0;
  friend bool operator==(const PvClockVcpuState&, const PvClockVcpuState&) = default;
};

// What of the clock belongs to the guest. Plain value.
struct PvClockState {
  PvClockOrigin origin;
  uint64_t wall_clock_msr = 0;
  uint32_t wall_version = 0;
};

// Factor from TSC ticks to nanoseconds as the guest applies it: (ticks << shift) * multiplier >> 32, a negative shift
// being one to the right. Plain value.
struct PvClockScale {
  uint32_t multiplier = 0;
  int8_t shift = 0;
};
// REQUIRES: tsc_khz > 0. The multiplier is at least 2^31: relative error below 2^-31.
PvClockScale ScaleFor(uint32_t tsc_khz);

// The clock of one guest on one node. Thread-safe.
class PvClock {
 public:
  // Writes guest memory. May take as long as a remote page fault. An error means that the address is not RAM.
  using WriteGuest = std::function<absl::Status(Gpa, std::span<const std::byte>)>;

  // REQUIRES: origin.tsc_khz > 0, vcpus > 0.
  PvClock(const PvClockOrigin& origin, uint32_t vcpus, WriteGuest write);

  // The guest's accesses to the two MSRs. False: the access faults (#GP): another MSR, or an address that is not RAM.
  bool WriteMsr(VcpuId vcpu, uint32_t msr, uint64_t value);
  bool ReadMsr(VcpuId vcpu, uint32_t msr, uint64_t* value);

  // For a vCPU that leaves or arrives. The page travels as guest memory; it is not rewritten.
  PvClockVcpuState Save(VcpuId vcpu);
  void Restore(VcpuId vcpu, const PvClockVcpuState& state);

  // What belongs to all vCPUs, for a machine that is saved, and its setting: nothing is written to guest memory.
  // REQUIRES of the latter: the vCPUs do not run; state.origin.tsc_khz > 0.
  PvClockState SaveAll();
  void RestoreAll(const PvClockState& state);

  // Changes the origin and rewrites the pages of the given vCPUs (those of this node). The first error is returned,
  // the other pages are written all the same. REQUIRES: origin.tsc_khz > 0.
  absl::Status SetOrigin(const PvClockOrigin& origin, std::span<const VcpuId> vcpus);

 private:
  absl::Status WriteSystemTime(VcpuId vcpu) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status WriteWallClock(Gpa address) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const WriteGuest write_;
  Mutex mutex_;  // held over writes: two writers of one page would break its version protocol
  PvClockOrigin origin_ ABSL_GUARDED_BY(mutex_);
  uint64_t wall_clock_msr_ ABSL_GUARDED_BY(mutex_) = 0;
  uint32_t wall_version_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<PvClockVcpuState> vcpus_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hk
