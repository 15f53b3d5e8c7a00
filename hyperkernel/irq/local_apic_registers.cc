// The register half of LocalApic: what reads and writes do.
#include <bit>

#include "hyperkernel/base/mutant.h"
#include "hyperkernel/irq/local_apic.h"

namespace hk {

namespace {

uint32_t Word(const VectorSet& set, ApicRegister reg, ApicRegister first) {
  return set.words()[static_cast<uint32_t>(reg) - static_cast<uint32_t>(first)];
}

// SDM 3A 11.12.1.2: cluster and bit follow from the id.
uint32_t X2ApicLogicalId(uint32_t apic_id) {
  return (apic_id >> 4) << 16 | uint32_t{1} << (apic_id & 15);
}

// The message an ICR value sends; nullopt for the combinations that send none (SDM 3A table 11-3).
std::optional<InterruptMessage> MessageOfCommand(uint64_t icr, bool x2apic) {
  const auto mode = static_cast<DeliveryMode>(icr >> 8 & 7);
  const auto shorthand = static_cast<Shorthand>(icr >> 18 & 3);
  const bool level = (icr & 1 << 15) != 0;
  const bool asserted = (icr & 1 << 14) != 0;
  if (mode == DeliveryMode::kReserved || mode == DeliveryMode::kExtInt || (level && !asserted)) {
    return std::nullopt;  // with INIT, the last is the de-assert that no processor since the Pentium 4 knows
  }
  const bool includes_self = shorthand == Shorthand::kSelf || shorthand == Shorthand::kAll;
  if (includes_self && mode != DeliveryMode::kFixed && mode != DeliveryMode::kNmi) {
    return std::nullopt;  // NMI to oneself is invalid in the table too, and works on processors and KVM
  }
  return InterruptMessage{.destination = static_cast<uint32_t>(x2apic ? icr >> 32 : icr >> 56),
                          .width = x2apic ? DestinationWidth::kBits32 : DestinationWidth::kBits8,
                          .logical = (icr & 1 << 11) != 0,
                          .shorthand = shorthand,
                          .mode = mode,
                          .vector = static_cast<uint8_t>(icr)};
}

}  // namespace

void LocalApic::SettleTimer(ApicRegister reg, Monotonic now) {
  // These change the countdown; what it has come to before is not lost.
  const bool of_timer =
      reg == ApicRegister::kLvtTimer || reg == ApicRegister::kTimerInitial || reg == ApicRegister::kTimerDivide;
  if (!paced_ || of_timer || HK_MUTANT(apic_paced_timer_expires)) OnTime(now);
}

std::optional<uint64_t> LocalApic::ReadMsr(uint32_t msr, Monotonic now) {
  if (msr == kMsrApicBase) {
    return base_;
  }
  if (mode() != Mode::kX2Apic || msr < kMsrX2ApicFirst || msr > kMsrX2ApicLast) {
    return std::nullopt;
  }
  const auto reg = static_cast<ApicRegister>(msr - kMsrX2ApicFirst);
  if (!X2ApicReadable(reg)) {
    return std::nullopt;
  }
  SettleTimer(reg, now);
  return ReadRegister(reg, now);
}

ApicEffects LocalApic::WriteMsr(uint32_t msr, uint64_t value, Monotonic now) {
  ApicEffects effects;
  if (msr == kMsrApicBase) {
    OnTime(now);
    WriteBase(value, effects);
    return effects;
  }
  if (mode() != Mode::kX2Apic || msr < kMsrX2ApicFirst || msr > kMsrX2ApicLast) {
    effects.fault = true;
    return effects;
  }
  const auto reg = static_cast<ApicRegister>(msr - kMsrX2ApicFirst);
  const auto reserved = X2ApicReserved(reg);
  if (!reserved || (value & *reserved) != 0) {
    effects.fault = true;
    return effects;
  }
  SettleTimer(reg, now);
  if (reg == ApicRegister::kCommand) {
    WriteCommand(value, effects);
  } else if (reg == ApicRegister::kSelfIpi) {
    WriteSelfIpi(static_cast<uint8_t>(value));
  } else {
    WriteRegister(reg, static_cast<uint32_t>(value), now, effects);
  }
  return effects;
}

uint32_t LocalApic::ReadMmio(uint32_t offset, Monotonic now) {
  if (mode() != Mode::kXApic) {
    return 0xffffffff;
  }
  const auto reg = static_cast<ApicRegister>(offset >> 4);
  SettleTimer(reg, now);
  if (!XApicExists(reg)) {
    LogError(kErrorIllegalRegister);
    return 0;
  }
  if ((offset & 0xf) != 0) {
    return 0;  // undefined (SDM 3A 11.4.1)
  }
  switch (reg) {
    case ApicRegister::kId:
      return apic_id_ << 24;
    case ApicRegister::kLogicalDestination:
      return ldr_;
    case ApicRegister::kDestinationFormat:
      return dfr_;
    case ApicRegister::kCommandHigh:
      return static_cast<uint32_t>(icr_ >> 32);
    case ApicRegister::kArbitrationPriority:
    case ApicRegister::kRemoteRead:
    case ApicRegister::kEoi:
      return 0;
    default:
      return static_cast<uint32_t>(ReadRegister(reg, now));
  }
}

ApicEffects LocalApic::WriteMmio(uint32_t offset, uint32_t value, Monotonic now) {
  ApicEffects effects;
  if (mode() != Mode::kXApic) {
    return effects;
  }
  const auto reg = static_cast<ApicRegister>(offset >> 4);
  SettleTimer(reg, now);
  if (!XApicExists(reg)) {
    LogError(kErrorIllegalRegister);
    return effects;
  }
  if ((offset & 0xf) != 0) {
    return effects;
  }
  const ApicAddressing before = addressing();
  switch (reg) {
    case ApicRegister::kLogicalDestination:
      ldr_ = value & 0xff000000;
      break;
    case ApicRegister::kDestinationFormat:
      dfr_ = value | 0x0fffffff;
      break;
    case ApicRegister::kCommandHigh:
      icr_ = (icr_ & 0xffffffff) | uint64_t{value & 0xff000000} << 32;
      break;
    case ApicRegister::kCommand:
      WriteCommand((icr_ & 0xffffffff00000000) | value, effects);
      break;
    default:
      WriteRegister(reg, value, now, effects);
      break;
  }
  effects.routing_changed |= addressing() != before;
  return effects;
}

// What both modes read alike.
uint64_t LocalApic::ReadRegister(ApicRegister reg, Monotonic now) const {
  if (reg >= ApicRegister::kInService && reg < ApicRegister::kTriggerMode) {
    return Word(isr_, reg, ApicRegister::kInService);
  }
  if (reg >= ApicRegister::kTriggerMode && reg < ApicRegister::kRequest) {
    return Word(tmr_, reg, ApicRegister::kTriggerMode);
  }
  if (reg >= ApicRegister::kRequest && reg < ApicRegister::kErrorStatus) {
    return Word(irr_, reg, ApicRegister::kRequest);
  }
  if (const auto source = LocalSourceOf(reg)) {
    return Lvt(*source);
  }
  switch (reg) {
    case ApicRegister::kId:
      return apic_id_;
    case ApicRegister::kVersion:
      return kApicVersion;
    case ApicRegister::kTaskPriority:
      return tpr_;
    case ApicRegister::kProcessorPriority:
      return ProcessorPriority();
    case ApicRegister::kLogicalDestination:
      return X2ApicLogicalId(apic_id_);
    case ApicRegister::kSpurious:
      return svr_;
    case ApicRegister::kErrorStatus:
      return esr_;
    case ApicRegister::kCommand:
      return icr_;
    case ApicRegister::kTimerInitial:
      return timer_.initial();
    case ApicRegister::kTimerCurrent:
      return timer_.Current(now);
    case ApicRegister::kTimerDivide:
      return timer_.divide_register();
    default:
      return 0;
  }
}

// What both modes write alike; reserved bits are dropped, as xAPIC mode does, and read-only registers ignored.
void LocalApic::WriteRegister(ApicRegister reg, uint32_t value, Monotonic now, ApicEffects& effects) {
  if (const auto source = LocalSourceOf(reg)) {
    WriteLvt(*source, value);
    return;
  }
  switch (reg) {
    case ApicRegister::kTaskPriority:
      tpr_ = value & 0xff;
      return;
    case ApicRegister::kEoi:
      WriteEoi(effects);
      return;
    case ApicRegister::kSpurious:
      WriteSpurious(value, effects);
      return;
    case ApicRegister::kErrorStatus:
      esr_ = pending_errors_;
      pending_errors_ = 0;
      return;
    case ApicRegister::kTimerInitial:
      timer_.WriteInitial(value, now);
      return;
    case ApicRegister::kTimerDivide:
      timer_.WriteDivide(value, now);
      return;
    default:
      return;
  }
}

// SDM 3A 11.12.5: of the modes, x2APIC can be left only by way of disabled, and entered only from xAPIC.
void LocalApic::WriteBase(uint64_t value, ApicEffects& effects) {
  const Mode before = mode();
  const bool enabled = (value & kApicBaseEnabled) != 0;
  const bool extended = (value & kApicBaseX2Apic) != 0;
  const bool address_moves = (value & ~(kApicBaseBsp | kApicBaseX2Apic | kApicBaseEnabled)) != kApicBaseAddress;
  if (address_moves || (extended && !enabled) || (before == Mode::kX2Apic && enabled && !extended) ||
      (before == Mode::kDisabled && extended)) {
    effects.fault = true;
    return;
  }
  base_ = value;
  if (mode() == before) {
    return;
  }
  effects.routing_changed = true;
  if (mode() == Mode::kX2Apic) {
    icr_ &= 0xffffffff;  // the destination changes its format
  } else {
    ResetRegisters();  // SDM 3A 11.4.3: disabling loses the state, enabling starts as after power-up
  }
}

void LocalApic::WriteSpurious(uint32_t value, ApicEffects& effects) {
  const bool accepted = AcceptsFixed();
  svr_ = value & kSpuriousWritable;
  if (!AcceptsFixed()) {
    for (uint32_t& entry : lvt_) {
      entry |= kLvtMasked;  // SDM 3A 11.4.7.2
    }
  }
  effects.routing_changed |= !accepted && AcceptsFixed();
}

void LocalApic::WriteLvt(LocalSource source, uint32_t value) {
  const bool disabled = (svr_ & kSpuriousEnabled) == 0;
  Lvt(source) = (value & LvtWritable(source)) | (disabled ? kLvtMasked : 0);
  if (source == LocalSource::kTimer) {
    timer_.SetPeriodic((value & kLvtPeriodic) != 0);
  }
}

void LocalApic::WriteCommand(uint64_t value, ApicEffects& effects) {
  icr_ = (value & 0xffffffff00000000) | (value & kCommandLowWritable);
  const auto message = MessageOfCommand(icr_, mode() == Mode::kX2Apic);
  if (!message) {
    return;
  }
  const bool has_vector = message->mode == DeliveryMode::kFixed || message->mode == DeliveryMode::kLowestPriority;
  if (has_vector && message->vector < kFirstLegalVector) {
    LogError(kErrorSendIllegalVector);
    if (message->shorthand == Shorthand::kSelf) {
      LogError(kErrorReceiveIllegalVector);
    }
    return;
  }
  effects.ipi = message;
}

void LocalApic::WriteSelfIpi(uint8_t vector) {
  if (vector < kFirstLegalVector) {
    LogError(kErrorSendIllegalVector);
    LogError(kErrorReceiveIllegalVector);
  } else if (AcceptsFixed()) {
    Request(vector, false);
  }
}

void LocalApic::WriteEoi(ApicEffects& effects) {
  const auto vector = isr_.Highest();
  if (!vector) {
    return;
  }
  isr_.Clear(*vector);
  for (uint32_t rest = level_pins_; rest != 0; rest &= rest - 1) {
    LevelSource& source = level_sources_[static_cast<size_t>(std::countr_zero(rest))];
    if (source.vector == *vector) {
      source.valid = 0;
      effects.eoi_pins |= rest & ~(rest - 1);
    }
  }
  level_pins_ &= ~effects.eoi_pins;
  if ((svr_ & kSpuriousNoEoiBroadcast) != 0) {
    effects.eoi_pins = 0;  // software will write the I/O APIC's EOI register (SDM 3A 11.8.5)
  }
}

}  // namespace hk
