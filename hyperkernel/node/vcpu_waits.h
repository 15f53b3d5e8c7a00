// What the time of a node's vCPUs of one machine goes to, as operators see it (Vm.vcpu_times).
#pragma once

#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/kvm/vcpu.h"
#include "hyperkernel/kvm/vcpu_group.h"
#include "hyperkernel/memory/fault_meter.h"
#include "proto/vm.pb.h"

namespace hk {

// The vCPUs, by id; those that never had a thread here are on other nodes. Thread-safe.
class VcpuWaits final : public VcpuThreads {
 public:
  explicit VcpuWaits(uint32_t vcpus) : count_(vcpus), vcpus_(vcpus) {}

  // Whose faults are counted; outlives the vCPUs' threads. Null: nobody's. REQUIRES: none of them runs yet.
  void SetMeter(FaultMeter* meter) {
    MutexLock lock(&mutex_);
    meter_ = meter;
  }

  void OnThread(VcpuId vcpu, uint32_t thread) override;
  void OnThreadEnd(VcpuId vcpu, uint32_t thread) override;

  // Of those that are here, since their first threads began; without their node.
  std::vector<v1::VcpuTimes> Times(const VcpuGroup& vcpus) const;

 private:
  // What a thread has had of the host's processors.
  struct HostTimes {
    uint64_t running_ns = 0, ready_ns = 0;
  };
  // Of a thread of this process that is there.
  static HostTimes TimesOf(uint32_t thread);

  // One vCPU.
  struct Entry {
    Monotonic since;      // its first thread began
    bool here = false;    // it did
    uint32_t thread = 0;  // 0: none now
    FaultTimes earlier;   // of threads that have ended
    HostTimes earlier_host;
  };

  const uint32_t count_;
  mutable Mutex mutex_;
  FaultMeter* meter_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::vector<Entry> vcpus_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hk
