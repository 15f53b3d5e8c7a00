// All interrupt controllers of a guest on one node: a local APIC per vCPU, the I/O APIC, and the way between them.
//
// Thread-safe. Locks: one per local APIC, one for the I/O APIC; never two at a time. A message is decided under the
// sender's lock and delivered after unlocking; wake-ups are called with no lock held.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/irq/io_apic.h"
#include "hyperkernel/irq/local_apic.h"
#include "hyperkernel/irq/vcpu_interrupts.h"

namespace hk {

// Told that a vCPU has something to do. Called from any thread; must not block and must not call back.
class VcpuWaker {
 public:
  virtual ~VcpuWaker() = default;
  virtual void Wake(VcpuId vcpu) = 0;
};

// The interrupt controllers of one guest.
class InterruptController {
 public:
  // vCPU i has APIC id i; 0 is the boot processor. `waker` and `clock` outlive it.
  InterruptController(uint32_t vcpus, VcpuWaker* waker, const Clock& clock);
  ~InterruptController();

  // For vCPU threads. REQUIRES: vcpu < vcpus.
  VcpuInterrupts* vcpu(VcpuId vcpu);

  // Device lines and messages. Pins that do not exist and messages to nobody are dropped.
  void SetLine(uint8_t pin, bool level);
  void SendMsi(uint64_t address, uint32_t data);
  uint32_t ReadIoApic(uint32_t offset);
  void WriteIoApic(uint32_t offset, uint32_t value);

  // The earliest timer of all vCPUs; nullopt if none runs.
  std::optional<Monotonic> NextDeadline();
  // Fires the timers that are due.
  void OnTime(Monotonic now);
  // Called when a timer was set that may be earlier than NextDeadline said. Set before vCPUs run.
  void SetTimerHook(std::function<void()> hook) { timer_hook_ = std::move(hook); }

 private:
  class Vcpu;
  void Deliver(const InterruptMessage& message, std::optional<uint32_t> sender);
  void DeliverAll(const std::vector<InterruptMessage>& messages);
  void DeliverLowestPriority(const InterruptMessage& message);
  void EndOfInterrupt(uint8_t vector);

  VcpuWaker* const waker_;
  const Clock& clock_;
  std::function<void()> timer_hook_;
  std::vector<std::unique_ptr<Vcpu>> vcpus_;
  Mutex io_apic_mutex_;
  IoApic io_apic_ ABSL_GUARDED_BY(io_apic_mutex_);
};

}  // namespace hk
