// The local APIC's registers: numbers, bits, and which accesses fault in x2APIC mode (SDM 3A tables 11-1 and 11-6).
// Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace hk {

// A register's number: its xAPIC offset / 16, and its MSR - 0x800.
enum class ApicRegister : uint32_t {
  kId = 0x02,
  kVersion = 0x03,
  kTaskPriority = 0x08,
  kArbitrationPriority = 0x09,  // xAPIC only, reads 0
  kProcessorPriority = 0x0a,
  kEoi = 0x0b,
  kRemoteRead = 0x0c,  // xAPIC only, reads 0
  kLogicalDestination = 0x0d,
  kDestinationFormat = 0x0e,  // xAPIC only
  kSpurious = 0x0f,
  kInService = 0x10,    // and the next 7
  kTriggerMode = 0x18,  // and the next 7
  kRequest = 0x20,      // and the next 7
  kErrorStatus = 0x28,
  kLvtCmci = 0x2f,
  kCommand = 0x30,
  kCommandHigh = 0x31,  // xAPIC only
  kLvtTimer = 0x32,
  kLvtThermal = 0x33,
  kLvtPerformance = 0x34,
  kLvtLint0 = 0x35,
  kLvtLint1 = 0x36,
  kLvtError = 0x37,
  kTimerInitial = 0x38,
  kTimerCurrent = 0x39,
  kTimerDivide = 0x3e,
  kSelfIpi = 0x3f,  // x2APIC only
};

// Entries of the local vector table, in the order they are stored.
enum class LocalSource : uint8_t { kCmci, kTimer, kThermal, kPerformance, kLint0, kLint1, kError };
inline constexpr size_t kLocalSources = 7;

inline constexpr uint32_t kMsrApicBase = 0x1b;
inline constexpr uint32_t kMsrX2ApicFirst = 0x800;
inline constexpr uint32_t kMsrX2ApicLast = 0x8ff;

// IA32_APIC_BASE (SDM 3A 11.4.4, 11.12.1).
inline constexpr uint64_t kApicBaseBsp = 1 << 8;
inline constexpr uint64_t kApicBaseX2Apic = 1 << 10;
inline constexpr uint64_t kApicBaseEnabled = 1 << 11;
inline constexpr uint64_t kApicBaseAddress = 0xfee00000;  // not relocatable here; boot/address_map.h has the same

// Integrated APIC 0x14, last LVT entry 6 (CMCI is there), EOI broadcast can be suppressed (SDM 3A 11.4.8): the I/O APIC
// here has the EOI register that suppression needs.
inline constexpr uint32_t kApicVersion = 0x14 | 6 << 16 | 1 << 24;

// Spurious-interrupt vector register (SDM 3A 11.9).
inline constexpr uint32_t kSpuriousEnabled = 1 << 8;
inline constexpr uint32_t kSpuriousNoEoiBroadcast = 1 << 12;
inline constexpr uint32_t kSpuriousWritable = 0x13ff;  // bit 9 (focus checking) is kept and means nothing

// LVT (SDM 3A 11.5.1).
inline constexpr uint32_t kLvtMasked = 1 << 16;
inline constexpr uint32_t kLvtPeriodic = 1 << 17;
inline constexpr uint32_t kLvtStatus = 1 << 12;     // read-only, always idle here
inline constexpr uint32_t kLvtRemoteIrr = 1 << 14;  // read-only, always 0 here

// Error status register (SDM 3A 11.5.3).
inline constexpr uint32_t kErrorSendIllegalVector = 1 << 5;
inline constexpr uint32_t kErrorReceiveIllegalVector = 1 << 6;
inline constexpr uint32_t kErrorIllegalRegister = 1 << 7;
inline constexpr uint32_t kErrorBits = 0xe0;

// Bits of the ICR that read as written (SDM 3A 11.6.1); bit 12 is the delivery status, always idle.
inline constexpr uint64_t kCommandLowWritable = 0xccfff;

inline constexpr uint32_t kTimerDivideWritable = 0xb;

// The LVT entry a register is, if it is one.
std::optional<LocalSource> LocalSourceOf(ApicRegister reg);
// Bits of an LVT entry software may set.
uint32_t LvtWritable(LocalSource source);
// Whether RDMSR of the register works in x2APIC mode.
bool X2ApicReadable(ApicRegister reg);
// Bits that WRMSR must not set in x2APIC mode; nullopt if the register cannot be written.
std::optional<uint64_t> X2ApicReserved(ApicRegister reg);
// Whether the xAPIC page has a register there; an access elsewhere is an error (ESR bit 7).
bool XApicExists(ApicRegister reg);

}  // namespace hk
