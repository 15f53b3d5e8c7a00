#include "hyperkernel/irq/apic_registers.h"

namespace hk {

namespace {

constexpr uint64_t kHigh = 0xffffffff00000000;

bool InBank(ApicRegister reg, ApicRegister first) {
  return reg >= first && static_cast<uint32_t>(reg) < static_cast<uint32_t>(first) + 8;
}

bool IsVectorBank(ApicRegister reg) {
  return InBank(reg, ApicRegister::kInService) || InBank(reg, ApicRegister::kTriggerMode) ||
         InBank(reg, ApicRegister::kRequest);
}

}  // namespace

std::optional<LocalSource> LocalSourceOf(ApicRegister reg) {
  switch (reg) {
    case ApicRegister::kLvtCmci:
      return LocalSource::kCmci;
    case ApicRegister::kLvtTimer:
      return LocalSource::kTimer;
    case ApicRegister::kLvtThermal:
      return LocalSource::kThermal;
    case ApicRegister::kLvtPerformance:
      return LocalSource::kPerformance;
    case ApicRegister::kLvtLint0:
      return LocalSource::kLint0;
    case ApicRegister::kLvtLint1:
      return LocalSource::kLint1;
    case ApicRegister::kLvtError:
      return LocalSource::kError;
    default:
      return std::nullopt;
  }
}

uint32_t LvtWritable(LocalSource source) {
  switch (source) {
    case LocalSource::kTimer:
      return 0xff | kLvtMasked | kLvtPeriodic;  // bit 18, TSC deadline, is not offered
    case LocalSource::kError:
      return 0xff | kLvtMasked;
    case LocalSource::kLint0:
    case LocalSource::kLint1:
      return 0x7ff | 1 << 13 | 1 << 15 | kLvtMasked;
    default:
      return 0x7ff | kLvtMasked;
  }
}

bool X2ApicReadable(ApicRegister reg) {
  if (IsVectorBank(reg) || LocalSourceOf(reg)) {
    return true;
  }
  switch (reg) {
    case ApicRegister::kId:
    case ApicRegister::kVersion:
    case ApicRegister::kTaskPriority:
    case ApicRegister::kProcessorPriority:
    case ApicRegister::kLogicalDestination:
    case ApicRegister::kSpurious:
    case ApicRegister::kErrorStatus:
    case ApicRegister::kCommand:
    case ApicRegister::kTimerInitial:
    case ApicRegister::kTimerCurrent:
    case ApicRegister::kTimerDivide:
      return true;
    default:
      return false;
  }
}

std::optional<uint64_t> X2ApicReserved(ApicRegister reg) {
  if (auto source = LocalSourceOf(reg)) {
    // Read-only bits may be written back as read, without effect.
    const bool lint = *source == LocalSource::kLint0 || *source == LocalSource::kLint1;
    return ~uint64_t{LvtWritable(*source) | kLvtStatus | (lint ? kLvtRemoteIrr : 0)};
  }
  switch (reg) {
    case ApicRegister::kTaskPriority:
    case ApicRegister::kSelfIpi:
      return ~uint64_t{0xff};
    case ApicRegister::kEoi:
    case ApicRegister::kErrorStatus:
      return ~uint64_t{0};
    case ApicRegister::kSpurious:
      return ~uint64_t{kSpuriousWritable};
    case ApicRegister::kCommand:
      // Bit 12 is tolerated as KVM tolerates it: software that knows the xAPIC's status bit writes it back.
      return 0xffffffff & ~(kCommandLowWritable | 1 << 12);
    case ApicRegister::kTimerInitial:
      return kHigh;
    case ApicRegister::kTimerDivide:
      return ~uint64_t{kTimerDivideWritable};
    default:
      return std::nullopt;
  }
}

bool XApicExists(ApicRegister reg) {
  switch (reg) {
    case ApicRegister::kArbitrationPriority:
    case ApicRegister::kEoi:
    case ApicRegister::kRemoteRead:
    case ApicRegister::kDestinationFormat:
    case ApicRegister::kCommandHigh:
      return true;
    default:
      return X2ApicReadable(reg);
  }
}

}  // namespace hk
