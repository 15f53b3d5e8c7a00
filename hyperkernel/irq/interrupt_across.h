// InterruptController's own: its part in a guest on several nodes.
#pragma once

#include <atomic>

#include "absl/base/thread_annotations.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/irq/interrupt_controller.h"
#include "hyperkernel/irq/interrupt_exchange.h"

namespace hk {

// The exchange with its lock, and the local APICs as it sees them.
class InterruptController::Across final : public LocalApics {
 public:
  Across(InterruptController* controller, const InterruptNodes& nodes)
      : controller_(controller), io_apic_here(nodes.self == nodes.io_node), exchange(nodes, this) {}

  bool Apply(VcpuId vcpu, const PendingInterrupts& content) override { return Port(vcpu).AcceptAll(content); }
  uint16_t Hint(VcpuId vcpu) override { return Port(vcpu).Hint(); }
  void Direct(VcpuId vcpu) override { Port(vcpu).SetResidence(VcpuPort::Residence::kHere); }
  void SetHint(VcpuId vcpu, uint16_t hint) override { Port(vcpu).SetHint(hint); }
  void SetAddressing(VcpuId vcpu, const ApicAddressing& addressing) override {
    MutexLock lock(&controller_->router_mutex_);
    controller_->table_.Update(vcpu, addressing);
  }

 private:
  VcpuPort& Port(VcpuId vcpu) { return *controller_->ports_[vcpu.value()]; }
  InterruptController* const controller_;

 public:
  // The exchange has changed who is settled.
  void NoteSettled() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) { all_settled.store(exchange.AllSettled()); }

  const bool io_apic_here;
  std::atomic<bool> all_settled{true};  // written under the lock
  Mutex mutex;
  InterruptExchange exchange ABSL_GUARDED_BY(mutex);
};

}  // namespace hk
