// One vCPU's local APIC as a state machine (SDM 3A chapter 11): xAPIC registers by MMIO offset, x2APIC ones by MSR.
//
// Pure and single-threaded: time is an argument, and what must happen elsewhere is returned as effects. Invariants:
//  1. IRR and ISR never hold a vector below 16.
//  2. Acknowledge puts into service only a vector whose class is above the processor priority's, so the vectors in
//     service have distinct classes and EOI ends the newest.
//  3. A level-triggered delivery from an I/O APIC pin ends with one LevelEoi that carries the newest generation
//     delivered, unless software suppressed EOI broadcasts or the APIC was reset.
//  4. While waiting for SIPI, only SIPI and INIT are work.
//  5. Nothing a guest writes is an error of ours.
// Not offered: TSC deadline (CPUID hides it), SMI and ExtINT (accepted, ignored), relocation of the xAPIC page (#GP).
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/irq/apic_event_queue.h"
#include "hyperkernel/irq/apic_registers.h"
#include "hyperkernel/irq/apic_timer.h"
#include "hyperkernel/irq/interrupt_message.h"
#include "hyperkernel/irq/local_apic_state.h"
#include "hyperkernel/irq/vcpu_interrupts.h"
#include "hyperkernel/irq/vector_set.h"

namespace hk {

// What a register write asks of the rest of the machine.
struct ApicEffects {
  bool fault = false;            // #GP; nothing was changed
  bool routing_changed = false;  // addressing() changed, or fixed interrupts are accepted that were not before
  std::optional<InterruptMessage> ipi;
  uint32_t eoi_pins = 0;  // I/O APIC pins whose service ended; see LocalApic::EoiOf
};

// How messages find a local APIC.
struct ApicAddressing {
  // SDM 3A table 11-5.
  enum class Mode : uint8_t { kDisabled, kXApic, kX2Apic };
  // SDM 3A 11.6.2.2; kNone is a reserved DFR value, which no logical destination matches.
  enum class Model : uint8_t { kFlat, kCluster, kNone };
  Mode mode = Mode::kDisabled;
  Model model = Model::kFlat;
  uint8_t logical_id = 0;  // xAPIC's LDR[31:24]

  bool operator==(const ApicAddressing&) const = default;
};

// What became of a message at one APIC.
struct Acceptance {
  bool accepted = false;
  bool wake = false;  // there is new work for the vCPU: it must look
};

// One local APIC.
class LocalApic final {
 public:
  // In the state after power-up, in x2APIC mode if so wished (as firmware would leave it). All but the bootstrap
  // processor wait for SIPI. REQUIRES: apic_id < 255.
  LocalApic(uint32_t apic_id, bool bootstrap, bool x2apic);

  // Registers. A fault (nullopt, effects.fault) changes nothing.
  std::optional<uint64_t> ReadMsr(uint32_t msr, Monotonic now);
  ApicEffects WriteMsr(uint32_t msr, uint64_t value, Monotonic now);
  // Outside xAPIC mode the page is not there: reads as all ones, writes are dropped.
  uint32_t ReadMmio(uint32_t offset, Monotonic now);
  ApicEffects WriteMmio(uint32_t offset, uint32_t value, Monotonic now);

  // A message addressed to this APIC arrives.
  Acceptance Accept(const InterruptMessage& message);
  // An interrupt of its own occurs, to be delivered as the LVT says. True: the vCPU must look.
  bool RaiseLocal(LocalSource source);

  // When OnTime must be called; nullopt if the timer is at rest or nobody would notice it.
  std::optional<Monotonic> NextTimerDeadline() const;
  // The timer may have expired. True: the vCPU must look.
  bool OnTime(Monotonic now);
  // From now on the timer's interrupt comes by OnTime, and when the guest sets the timer anew, but not when it touches
  // another register after the deadline. Not a part of the saved state.
  void PaceTimer() { paced_ = true; }

  // As VcpuInterrupts. Take says whether routing changed (INIT resets the addressing).
  VcpuWork Peek() const;
  bool Take(VcpuWork work);
  std::optional<uint8_t> Acknowledge();
  bool OfferEoi();
  ApicEffects EndEoiOffer(bool ended);
  void SetCr8(uint8_t cr8);
  uint8_t Cr8() const { return static_cast<uint8_t>(tpr_ >> 4); }

  LevelEoi EoiOf(uint8_t pin) const { return {pin, level_sources_[pin].generation}; }
  ApicAddressing addressing() const;
  uint8_t ProcessorPriority() const;
  // Fixed interrupts are accepted.
  bool AcceptsFixed() const { return Enabled() && (svr_ & kSpuriousEnabled) != 0; }
  uint32_t apic_id() const { return apic_id_; }

  LocalApicState Save(Monotonic now) const;
  // Replaces everything; on failure nothing changed. `state` may come from a peer and is checked.
  absl::Status Restore(const LocalApicState& state, Monotonic now);

 private:
  using Mode = ApicAddressing::Mode;

  bool Enabled() const { return (base_ & kApicBaseEnabled) != 0; }
  Mode mode() const;
  uint32_t& Lvt(LocalSource source) { return lvt_[static_cast<size_t>(source)]; }
  uint32_t Lvt(LocalSource source) const { return lvt_[static_cast<size_t>(source)]; }
  // The highest request that is above the processor's priority.
  std::optional<uint8_t> Deliverable() const;

  uint64_t ReadRegister(ApicRegister reg, Monotonic now) const;
  void WriteRegister(ApicRegister reg, uint32_t value, Monotonic now, ApicEffects& effects);
  void WriteBase(uint64_t value, ApicEffects& effects);
  void WriteSpurious(uint32_t value, ApicEffects& effects);
  void WriteLvt(LocalSource source, uint32_t value);
  void WriteCommand(uint64_t value, ApicEffects& effects);
  void WriteSelfIpi(uint8_t vector);
  void WriteEoi(ApicEffects& effects);

  // Before an access to the register.
  void SettleTimer(ApicRegister reg, Monotonic now);
  void ResetRegisters();  // SDM 3A 11.4.7.1 and 11.4.7.3
  bool Request(uint8_t vector, bool level);
  void NoteLevelSource(const InterruptMessage& message);
  void LogError(uint32_t bit);

  uint32_t apic_id_;
  bool paced_ = false;
  uint64_t base_;
  uint32_t tpr_ = 0;
  uint32_t ldr_ = 0;
  uint32_t dfr_ = 0;
  uint32_t svr_ = 0;
  uint32_t esr_ = 0;
  uint32_t pending_errors_ = 0;
  uint64_t icr_ = 0;
  VectorSet irr_;
  VectorSet isr_;
  VectorSet tmr_;
  std::array<uint32_t, kLocalSources> lvt_{};
  ApicTimer timer_;
  std::array<LevelSource, kIoApicPins> level_sources_{};
  uint32_t level_pins_ = 0;  // those of level_sources_ that are valid: most EOIs have none to look at
  ApicEventQueue events_;
  bool waiting_for_sipi_;
  bool eoi_offered_ = false;  // only while the vCPU is in the guest: not part of a saved state
};

}  // namespace hk
