// One local APIC (Intel SDM vol. 3, chapter 11) as a pure state machine: registers in, work for the vCPU and messages
// out. Time is an argument. Not thread-safe: InterruptController locks it.
//
// Invariants:
//  1. A vector is in IRR or ISR only if it is 16 or more.
//  2. INIT, SIPI and NMI keep their order (queue below); INIT drops older SIPIs, and NMIs beyond two waiting are one.
//  3. The timer fires only while its count is not zero; writing a count of zero stops it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "hyperkernel/base/clock.h"
#include "hyperkernel/irq/vcpu_interrupts.h"

namespace hk {

// Delivery modes of ICR, I/O APIC entries and MSIs (SDM vol. 3, 11.6.1).
enum class DeliveryMode : uint8_t {
  kFixed = 0,
  kLowestPriority = 1,
  kSmi = 2,
  kNmi = 4,
  kInit = 5,
  kStartup = 6,
  kExtInt = 7
};

// Destination shorthands of the ICR (SDM vol. 3, 11.6.1).
enum class Shorthand : uint8_t { kNone = 0, kSelf = 1, kAllIncludingSelf = 2, kAllExcludingSelf = 3 };

// An interrupt on its way to one or more vCPUs. Plain value.
struct InterruptMessage {
  uint8_t vector = 0;
  DeliveryMode mode = DeliveryMode::kFixed;
  bool logical = false;
  bool level = false;
  bool x2apic = false;  // the destination has 32 bits, as the ICR of an x2APIC has it; else 8
  uint32_t destination = 0;
  Shorthand shorthand = Shorthand::kNone;
};

// What a register write makes happen elsewhere. Plain value.
struct ApicEffects {
  std::optional<InterruptMessage> message;  // an IPI was sent
  std::optional<uint8_t> eoi;               // a level-triggered interrupt ended: tell the I/O APICs
};

// One local APIC.
class LocalApic {
 public:
  // Register offsets in the xAPIC page; an x2APIC register's MSR is 0x800 + offset / 16 (SDM vol. 3, tables 11-1 and
  // 11-6).
  enum Register : uint32_t {
    kId = 0x20,
    kVersion = 0x30,
    kTpr = 0x80,
    kPpr = 0xa0,
    kEoi = 0xb0,
    kLdr = 0xd0,
    kDfr = 0xe0,
    kSvr = 0xf0,
    kIsr = 0x100,
    kTmr = 0x180,
    kIrr = 0x200,
    kEsr = 0x280,
    kLvtCmci = 0x2f0,
    kIcrLow = 0x300,
    kIcrHigh = 0x310,
    kLvtTimer = 0x320,
    kLvtThermal = 0x330,
    kLvtPerf = 0x340,
    kLvtLint0 = 0x350,
    kLvtLint1 = 0x360,
    kLvtError = 0x370,
    kInitialCount = 0x380,
    kCurrentCount = 0x390,
    kDivide = 0x3e0,
    kSelfIpi = 0x3f0,
  };
  static constexpr uint32_t kMsrApicBase = 0x1b;
  static constexpr uint32_t kMsrX2apicFirst = 0x800;
  static constexpr uint32_t kMsrX2apicLast = 0x8ff;
  // Rate of the timer before division: what the guest calibrates it to.
  static constexpr uint64_t kBusHz = 1'000'000'000;

  // In x2APIC mode from the start: the kernel is entered without firmware that would have switched.
  LocalApic(uint32_t id, bool boot_processor);

  // False / nullopt: #GP.
  std::optional<uint64_t> ReadMsr(uint32_t msr, Monotonic now) const;
  bool WriteMsr(uint32_t msr, uint64_t value, Monotonic now, ApicEffects* effects);
  uint32_t ReadMmio(uint32_t offset, Monotonic now) const;
  void WriteMmio(uint32_t offset, uint32_t value, Monotonic now, ApicEffects* effects);

  // A message arrived. True if the vCPU has news.
  bool Accept(const InterruptMessage& message);
  // Whether a message with this destination is for this APIC.
  bool Matches(const InterruptMessage& message) const;

  VcpuWork Peek() const;
  void Take(VcpuWork work);
  std::optional<uint8_t> Acknowledge();
  void SetCr8(uint8_t cr8) { tpr_ = static_cast<uint8_t>(cr8 << 4); }
  uint8_t Cr8() const { return tpr_ >> 4; }
  // Processor priority (SDM vol. 3, 11.8.3.1).
  uint8_t Ppr() const;

  // When the timer fires next.
  std::optional<Monotonic> Deadline() const { return deadline_; }
  // Fires what is due. True if the vCPU has news.
  bool OnTime(Monotonic now);

 private:
  using Bits = std::array<uint32_t, 8>;
  static constexpr size_t kMaxEvents = 4;  // INIT, SIPI and two NMIs: all that can wait (invariant 2)

  bool x2apic() const;
  bool enabled() const { return (svr_ & 0x100) != 0; }
  uint32_t XapicLdr() const { return ldr_; }
  uint32_t X2apicLdr() const { return (id_ >> 4) << 16 | 1u << (id_ & 15); }
  uint32_t ReadRegister(uint32_t offset, Monotonic now) const;
  void WriteRegister(uint32_t offset, uint64_t value, Monotonic now, ApicEffects* effects);
  bool IsWritable(uint32_t offset) const;
  bool HasReservedBits(uint32_t offset, uint64_t value) const;
  void WriteIcr(uint64_t value, ApicEffects* effects);
  void EndOfInterrupt(ApicEffects* effects);
  bool Raise(uint8_t vector, bool level);
  void PushEvent(VcpuWork work);
  void StartTimer(Monotonic now);
  uint32_t CurrentCount(Monotonic now) const;
  uint64_t TickNs() const;
  void ResetForInit();
  uint32_t* Lvt(uint32_t offset);
  const uint32_t* Lvt(uint32_t offset) const { return const_cast<LocalApic*>(this)->Lvt(offset); }

  const uint32_t id_;
  uint64_t base_;
  Bits irr_{}, isr_{}, tmr_{};
  uint8_t tpr_ = 0;
  uint32_t svr_ = 0xff;
  uint32_t ldr_ = 0;
  uint32_t dfr_ = 0xffffffff;
  uint32_t esr_ = 0, esr_latched_ = 0;
  uint64_t icr_ = 0;
  uint32_t lvt_cmci_, lvt_timer_, lvt_thermal_, lvt_perf_, lvt_lint0_, lvt_lint1_, lvt_error_;
  uint32_t divide_ = 0;
  uint32_t initial_count_ = 0;
  Monotonic timer_start_;
  std::optional<Monotonic> deadline_;
  std::array<VcpuWork, kMaxEvents> events_{};
  size_t event_count_ = 0;
};

}  // namespace hk
