// What the time of a node's vCPUs of one machine goes to, as operators see it (Vm.vcpu_times).
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/kvm/vcpu.h"
#include "hyperkernel/kvm/vcpu_group.h"
#include "hyperkernel/memory/fault_meter.h"
#include "proto/vm.pb.h"

namespace hk {

// The vCPUs, by id. One that moves is counted at each node while it is there. Thread-safe.
class VcpuWaits final : public VcpuThreads {
 public:
  explicit VcpuWaits(uint32_t vcpus) : count_(vcpus), vcpus_(vcpus) {}

  // Whose faults are counted; outlives the vCPUs' threads. Null: nobody's. REQUIRES: none of them runs yet.
  void SetMeter(FaultMeter* meter) {
    if (meter != nullptr) meter->SetKick(KickThread);
    meter_.store(meter, std::memory_order_release);
  }

  void OnThread(VcpuId vcpu, uint32_t thread) override;
  void OnThreadEnd(VcpuId vcpu, uint32_t thread) override;
  void OnRest(uint32_t thread, bool rests) override;
  std::optional<Gfn> AskedFor(uint32_t thread) override;
  void OnAccess(uint32_t thread, const GuestAccess& access) override;

  // Of those that are or were here, while they were; without their node.
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
    bool known = false;                // it is or was here
    uint32_t threads = 0;              // that it has now
    Monotonic since;                   // it had none before
    std::chrono::nanoseconds lived{};  // while it had some, before that
    uint32_t thread = 0;               // whose faults are counted; 0: none now
    FaultTimes earlier;                // of threads that have ended
    HostTimes earlier_host;
  };

  const uint32_t count_;
  FaultMeter* meter() const { return meter_.load(std::memory_order_acquire); }

  std::atomic<FaultMeter*> meter_{nullptr};
  mutable Mutex mutex_;
  std::vector<Entry> vcpus_ ABSL_GUARDED_BY(mutex_);
};

// Of one vCPU, at two nodes together; the node stays.
void AddTimes(const v1::VcpuTimes& more, v1::VcpuTimes* sum);

}  // namespace hk
