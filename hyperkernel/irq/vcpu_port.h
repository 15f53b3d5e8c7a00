// One local APIC made thread-safe: its lock, and what others may know of it without the lock.
//
// Thread-safe. The VcpuInterrupts half is called by the vCPU's own thread, the rest by any.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/irq/interrupt_wire.h"
#include "hyperkernel/irq/local_apic.h"
#include "hyperkernel/irq/pending_interrupts.h"
#include "hyperkernel/irq/vcpu_interrupts.h"

namespace hk {

class InterruptController;

// What is to be done after the lock of a port was released.
struct PortOutcome {
  ApicEffects effects;
  ApicAddressing addressing;     // if effects.routing_changed, or after a restore
  bool accepts_changed = false;  // begins or ceases to accept fixed interrupts
  uint32_t
      eoi_generations[kIoApicPins];  // of the pins in effects.eoi_pins; others are not set: most outcomes have none
};

// One vCPU's port.
class VcpuPort final : public VcpuInterrupts {
 public:
  VcpuPort(InterruptController* controller, VcpuId id, bool x2apic);

  std::optional<uint64_t> ReadMsr(uint32_t msr) override ABSL_LOCKS_EXCLUDED(mutex_);
  bool WriteMsr(uint32_t msr, uint64_t value) override ABSL_LOCKS_EXCLUDED(mutex_);
  uint32_t ReadMmio(uint32_t offset) override ABSL_LOCKS_EXCLUDED(mutex_);
  void WriteMmio(uint32_t offset, uint32_t value) override ABSL_LOCKS_EXCLUDED(mutex_);
  VcpuWork Peek() override ABSL_LOCKS_EXCLUDED(mutex_);
  void Take(VcpuWork work) override ABSL_LOCKS_EXCLUDED(mutex_);
  std::optional<uint8_t> Acknowledge() override ABSL_LOCKS_EXCLUDED(mutex_);
  bool OfferEoi() override ABSL_LOCKS_EXCLUDED(mutex_);
  void EndEoiOffer(bool ended) override ABSL_LOCKS_EXCLUDED(mutex_);
  bool Settled() override ABSL_LOCKS_EXCLUDED(mutex_);
  void SetCr8(uint8_t cr8) override ABSL_LOCKS_EXCLUDED(mutex_);
  uint8_t Cr8() override ABSL_LOCKS_EXCLUDED(mutex_);
  Monotonic TimerDeadline() const override;
  void RunTimer(Monotonic now) override ABSL_LOCKS_EXCLUDED(mutex_) { static_cast<void>(OnTime(now)); }
  void PaceTimer() override ABSL_LOCKS_EXCLUDED(mutex_);

  // `own`: the vCPU sends it to itself. False, and nothing was done: it must go through the exchange. (As a third flag
  // of Acceptance, that made every IPI a quarter slower.)
  bool Accept(const InterruptMessage& message, bool own, Acceptance* acceptance) ABSL_LOCKS_EXCLUDED(mutex_);
  // True: the vCPU must look.
  bool OnTime(Monotonic now) ABSL_LOCKS_EXCLUDED(mutex_);
  LocalApicState Save(Monotonic now) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Restore(const LocalApicState& state, Monotonic now, PortOutcome& outcome) ABSL_LOCKS_EXCLUDED(mutex_);
  // Replaces the local APIC by a new one made of its saved state.
  absl::Status Renew(Monotonic now) ABSL_LOCKS_EXCLUDED(mutex_);
  ApicAddressing Addressing() ABSL_LOCKS_EXCLUDED(mutex_);

  // For a guest that runs on several nodes. A vCPU is here and reached directly, or through the exchange, behind what
  // is under way to it (kDetour); or elsewhere. Called with the controller's lock for other nodes held, or before
  // others know of this.
  enum class Residence : uint8_t { kHere, kDetour, kAway };
  void SetResidence(Residence residence) ABSL_LOCKS_EXCLUDED(mutex_);
  // All of it in one step. True: the vCPU must look.
  bool AcceptAll(const PendingInterrupts& content) ABSL_LOCKS_EXCLUDED(mutex_);
  // From now on it is elsewhere, with this state.
  LocalApicState TakeAway(Monotonic now) ABSL_LOCKS_EXCLUDED(mutex_);
  // Another node's news.
  void SetHint(uint16_t hint) ABSL_LOCKS_EXCLUDED(mutex_);
  // Priority() in the form of the wire.
  uint16_t Hint() const { return static_cast<uint16_t>(priority_.load(std::memory_order_relaxed)); }

  // Without the lock, as last published: a decision on them may be a moment late, as in hardware.
  // nullopt: accepts no fixed interrupts.
  std::optional<uint8_t> Priority() const;

 private:
  void Publish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Conclude(const ApicEffects& effects, PortOutcome* outcome) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  InterruptController* const controller_;
  const VcpuId id_;
  Mutex mutex_;
  LocalApic apic_ ABSL_GUARDED_BY(mutex_);
  bool paced_ ABSL_GUARDED_BY(mutex_) = false;
  Residence residence_ ABSL_GUARDED_BY(mutex_) = Residence::kHere;
  // Written under mutex_ only.
  std::atomic<uint32_t> priority_{0};
  std::atomic<Monotonic::rep> deadline_;
};

}  // namespace hk
