#include "hyperkernel/irq/local_apic.h"

#include <algorithm>
#include <bit>

namespace hk {
namespace {

constexpr uint64_t kBaseEnable = 1 << 11, kBaseX2apic = 1 << 10, kBaseBoot = 1 << 8;
constexpr uint64_t kBaseAddress = 0xfee00000;
constexpr uint32_t kLvtMasked = 1 << 16, kLvtPeriodic = 1 << 17;
constexpr uint32_t kEsrSendIllegal = 1 << 5, kEsrReceiveIllegal = 1 << 6;
constexpr uint8_t kFirstLegalVector = 16;
// Integrated APIC, 7 LVT entries (SDM vol. 3, 11.4.8).
constexpr uint32_t kVersionValue = 0x14 | 6 << 16;

int Highest(const std::array<uint32_t, 8>& bits) {
  for (int i = 7; i >= 0; i--) {
    if (bits[i] != 0) return i * 32 + 31 - std::countl_zero(bits[i]);
  }
  return -1;
}

bool Test(const std::array<uint32_t, 8>& bits, uint8_t vector) {
  return (bits[vector / 32] >> (vector % 32) & 1) != 0;
}
void Set(std::array<uint32_t, 8>* bits, uint8_t vector) {
  (*bits)[vector / 32] |= 1u << (vector % 32);
}
void Clear(std::array<uint32_t, 8>* bits, uint8_t vector) {
  (*bits)[vector / 32] &= ~(1u << (vector % 32));
}

}  // namespace

LocalApic::LocalApic(uint32_t id, bool boot_processor)
    : id_(id), base_(kBaseAddress | kBaseEnable | kBaseX2apic | (boot_processor ? kBaseBoot : 0)) {
  ResetForInit();
}

bool LocalApic::x2apic() const {
  return (base_ & kBaseX2apic) != 0;
}

void LocalApic::ResetForInit() {
  // SDM vol. 3, 11.4.7.3: as after power-up, but for the id and the base register.
  irr_ = isr_ = tmr_ = {};
  tpr_ = 0;
  svr_ = 0xff;
  ldr_ = 0;
  dfr_ = 0xffffffff;
  esr_ = esr_latched_ = 0;
  icr_ = 0;
  lvt_cmci_ = lvt_timer_ = lvt_thermal_ = lvt_perf_ = lvt_lint0_ = lvt_lint1_ = lvt_error_ = kLvtMasked;
  divide_ = initial_count_ = 0;
  deadline_.reset();
}

uint32_t* LocalApic::Lvt(uint32_t offset) {
  switch (offset) {
    case kLvtCmci:
      return &lvt_cmci_;
    case kLvtTimer:
      return &lvt_timer_;
    case kLvtThermal:
      return &lvt_thermal_;
    case kLvtPerf:
      return &lvt_perf_;
    case kLvtLint0:
      return &lvt_lint0_;
    case kLvtLint1:
      return &lvt_lint1_;
    case kLvtError:
      return &lvt_error_;
    default:
      return nullptr;
  }
}

uint32_t LocalApic::ReadRegister(uint32_t offset, Monotonic now) const {
  if (const uint32_t* lvt = Lvt(offset)) return *lvt;
  if (offset >= kIsr && offset < kIsr + 0x80) return isr_[(offset - kIsr) / 16];
  if (offset >= kTmr && offset < kTmr + 0x80) return tmr_[(offset - kTmr) / 16];
  if (offset >= kIrr && offset < kIrr + 0x80) return irr_[(offset - kIrr) / 16];
  switch (offset) {
    case kId:
      return x2apic() ? id_ : id_ << 24;
    case kVersion:
      return kVersionValue;
    case kTpr:
      return tpr_;
    case kPpr:
      return Ppr();
    case kLdr:
      return x2apic() ? X2apicLdr() : ldr_;
    case kDfr:
      return dfr_;
    case kSvr:
      return svr_;
    case kEsr:
      return esr_;
    case kIcrLow:
      return static_cast<uint32_t>(icr_);
    case kIcrHigh:
      return static_cast<uint32_t>(icr_ >> 32);
    case kInitialCount:
      return initial_count_;
    case kCurrentCount:
      return CurrentCount(now);
    case kDivide:
      return divide_;
    default:
      return 0;
  }
}

bool LocalApic::IsWritable(uint32_t offset) const {
  if (Lvt(offset) != nullptr) return true;
  switch (offset) {
    case kTpr:
    case kEoi:
    case kSvr:
    case kEsr:
    case kIcrLow:
    case kInitialCount:
    case kDivide:
    case kSelfIpi:
      return true;
    default:
      return false;
  }
}

bool LocalApic::HasReservedBits(uint32_t offset, uint64_t value) const {
  if (offset == kIcrLow)
    return (value & 0xfff32000u) != 0;  // low half: 13, 16, 17, 20 to 31 (SDM vol. 3, figure 11-28)
  if (value >> 32 != 0) return true;
  switch (offset) {
    case kTpr:
    case kSelfIpi:
      return value > 0xff;
    case kEoi:
    case kEsr:
      return value != 0;  // SDM vol. 3, table 11-6: a write of anything but zero faults
    default:
      return false;
  }
}

std::optional<uint64_t> LocalApic::ReadMsr(uint32_t msr, Monotonic now) const {
  if (msr == kMsrApicBase) return base_;
  if (!x2apic() || msr < kMsrX2apicFirst || msr > kMsrX2apicLast) return std::nullopt;
  const uint32_t offset = (msr - kMsrX2apicFirst) << 4;
  if (offset == kIcrLow) return icr_;
  const bool bitmaps = offset >= kIsr && offset < kIrr + 0x80;
  const bool readable = bitmaps || offset == kId || offset == kVersion || offset == kPpr || offset == kLdr ||
                        offset == kCurrentCount || (IsWritable(offset) && offset != kEoi && offset != kSelfIpi);
  if (!readable) return std::nullopt;
  return ReadRegister(offset, now);
}

bool LocalApic::WriteMsr(uint32_t msr, uint64_t value, Monotonic now, ApicEffects* effects) {
  if (msr == kMsrApicBase) {
    // SDM vol. 3, 11.12.5: xAPIC to x2APIC and either to disabled; x2APIC never straight to xAPIC; extended without
    // enabled never.
    const bool enable = (value & kBaseEnable) != 0, extended = (value & kBaseX2apic) != 0;
    const bool was_enabled = (base_ & kBaseEnable) != 0;
    if ((value & ~uint64_t{0xfffffffff000} & ~(kBaseEnable | kBaseX2apic | kBaseBoot)) != 0 || (extended && !enable))
      return false;
    if ((value & 0xfffffffff000) != kBaseAddress) return false;  // the page is not movable here
    if (x2apic() && enable && !extended) return false;
    if (!was_enabled && extended) return false;
    base_ = (value & ~kBaseBoot) | (base_ & kBaseBoot);
    if (!enable) ResetForInit();
    return true;
  }
  if (!x2apic() || msr < kMsrX2apicFirst || msr > kMsrX2apicLast) return false;
  const uint32_t offset = (msr - kMsrX2apicFirst) << 4;
  if (!IsWritable(offset) || HasReservedBits(offset, value)) return false;
  WriteRegister(offset, value, now, effects);
  return true;
}

uint32_t LocalApic::ReadMmio(uint32_t offset, Monotonic now) const {
  if (x2apic() || (offset & 0xf) != 0) return 0;
  return ReadRegister(offset, now);
}

void LocalApic::WriteMmio(uint32_t offset, uint32_t value, Monotonic now, ApicEffects* effects) {
  if (x2apic()) return;
  switch (offset) {
    case kLdr:
      ldr_ = value & 0xff000000;
      return;
    case kDfr:
      dfr_ = value | 0x0fffffff;
      return;
    case kIcrHigh:
      icr_ = (icr_ & 0xffffffff) | uint64_t{value & 0xff000000} << 32;
      return;
    case kIcrLow:
      WriteRegister(kIcrLow, (icr_ & 0xffffffff00000000) | value, now, effects);
      return;
    case kSelfIpi:
      return;
    default:
      if (IsWritable(offset)) WriteRegister(offset, value, now, effects);
  }
}

void LocalApic::WriteRegister(uint32_t offset, uint64_t value, Monotonic now, ApicEffects* effects) {
  const auto low = static_cast<uint32_t>(value);
  if (uint32_t* lvt = Lvt(offset)) {
    *lvt = low & 0x000715ff;  // vector, mode, polarity and trigger where they are, mask, timer mode
    if (!enabled()) *lvt |= kLvtMasked;
    if (offset == kLvtTimer) StartTimer(now);
    return;
  }
  switch (offset) {
    case kTpr:
      tpr_ = static_cast<uint8_t>(low);
      return;
    case kEoi:
      EndOfInterrupt(effects);
      return;
    case kSvr:
      svr_ = low & 0x1ff;
      if (!enabled()) {
        for (uint32_t at : {kLvtCmci, kLvtTimer, kLvtThermal, kLvtPerf, kLvtLint0, kLvtLint1, kLvtError})
          *Lvt(at) |= kLvtMasked;
      }
      return;
    case kEsr:
      esr_ = esr_latched_;
      esr_latched_ = 0;
      return;
    case kIcrLow:
      WriteIcr(value, effects);
      return;
    case kInitialCount:
      initial_count_ = low;
      StartTimer(now);
      return;
    case kDivide:
      divide_ = low & 0xb;
      StartTimer(now);
      return;
    case kSelfIpi:
      effects->message = InterruptMessage{.vector = static_cast<uint8_t>(low), .shorthand = Shorthand::kSelf};
      return;
    default:
      return;
  }
}

void LocalApic::WriteIcr(uint64_t value, ApicEffects* effects) {
  icr_ = value & ~uint64_t{1 << 12};  // sent at once: delivery status is always idle
  const auto mode = static_cast<DeliveryMode>(value >> 8 & 7);
  const bool assert_level = (value >> 14 & 1) != 0;
  if (mode == DeliveryMode::kInit && !assert_level) return;  // INIT level de-assert: nothing since the P6 (11.6.1)
  InterruptMessage message{.vector = static_cast<uint8_t>(value),
                           .mode = mode,
                           .logical = (value >> 11 & 1) != 0,
                           .x2apic = x2apic(),
                           .destination = static_cast<uint32_t>(x2apic() ? value >> 32 : value >> 56),
                           .shorthand = static_cast<Shorthand>(value >> 18 & 3)};
  const bool fixed = mode == DeliveryMode::kFixed || mode == DeliveryMode::kLowestPriority;
  if (fixed && message.vector < kFirstLegalVector) {
    esr_latched_ |= kEsrSendIllegal;
    return;
  }
  effects->message = message;
}

void LocalApic::EndOfInterrupt(ApicEffects* effects) {
  const int vector = Highest(isr_);
  if (vector < 0) return;
  Clear(&isr_, static_cast<uint8_t>(vector));
  if (Test(tmr_, static_cast<uint8_t>(vector))) effects->eoi = static_cast<uint8_t>(vector);
}

bool LocalApic::Matches(const InterruptMessage& message) const {
  if (!message.logical) {
    if (message.destination == (message.x2apic ? 0xffffffffu : 0xffu)) return true;
    return message.destination == id_;
  }
  if (x2apic()) {
    if (message.destination == 0xffffffffu) return true;
    const uint32_t ldr = X2apicLdr();
    // An 8-bit logical destination (I/O APIC, MSI) names members of cluster 0.
    const uint32_t cluster = message.x2apic ? message.destination >> 16 : 0;
    return cluster == ldr >> 16 && (message.destination & ldr & 0xffff) != 0;
  }
  const auto wanted = static_cast<uint8_t>(message.destination);
  const auto own = static_cast<uint8_t>(ldr_ >> 24);
  if (wanted == 0xff) return true;
  if (dfr_ >> 28 == 0xf) return (wanted & own) != 0;                // flat
  return (wanted >> 4) == (own >> 4) && (wanted & own & 0xf) != 0;  // cluster
}

bool LocalApic::Raise(uint8_t vector, bool level) {
  if (vector < kFirstLegalVector) {
    esr_latched_ |= kEsrReceiveIllegal;
    return false;
  }
  if (!enabled()) return false;
  Set(&irr_, vector);
  if (level) {
    Set(&tmr_, vector);
  } else {
    Clear(&tmr_, vector);
  }
  return true;
}

bool LocalApic::Accept(const InterruptMessage& message) {
  switch (message.mode) {
    case DeliveryMode::kFixed:
    case DeliveryMode::kLowestPriority:
      return Raise(message.vector, message.level);
    case DeliveryMode::kNmi:
      PushEvent({VcpuWork::Kind::kNmi, 0});
      return true;
    case DeliveryMode::kInit:
      PushEvent({VcpuWork::Kind::kInit, 0});
      return true;
    case DeliveryMode::kStartup:
      PushEvent({VcpuWork::Kind::kSipi, message.vector});
      return true;
    case DeliveryMode::kSmi:
    case DeliveryMode::kExtInt:
      return false;  // there is no SMM and no 8259 here
  }
  return false;
}

void LocalApic::PushEvent(VcpuWork work) {
  const auto end = events_.begin() + static_cast<ptrdiff_t>(event_count_);
  const auto count = [&](VcpuWork::Kind kind) {
    return std::count_if(events_.begin(), end, [&](const VcpuWork& at) { return at.kind == kind; });
  };
  if (work.kind == VcpuWork::Kind::kNmi && count(VcpuWork::Kind::kNmi) >= 2) return;
  if (work.kind == VcpuWork::Kind::kInit) event_count_ = 0;  // what came before has no meaning after a reset
  if (work.kind == VcpuWork::Kind::kSipi && count(VcpuWork::Kind::kSipi) >= 1) return;
  if (event_count_ < kMaxEvents) events_[event_count_++] = work;
}

VcpuWork LocalApic::Peek() const {
  if (event_count_ > 0) return events_[0];
  const int vector = Highest(irr_);
  if (vector < 0 || !enabled() || (vector & 0xf0) <= (Ppr() & 0xf0)) return {};
  return {VcpuWork::Kind::kInterrupt, static_cast<uint8_t>(vector)};
}

void LocalApic::Take(VcpuWork work) {
  if (event_count_ == 0 || events_[0].kind != work.kind) return;
  std::move(events_.begin() + 1, events_.begin() + static_cast<ptrdiff_t>(event_count_), events_.begin());
  event_count_--;
  if (work.kind == VcpuWork::Kind::kInit) ResetForInit();
}

std::optional<uint8_t> LocalApic::Acknowledge() {
  const int vector = Highest(irr_);
  if (vector < 0 || !enabled() || (vector & 0xf0) <= (Ppr() & 0xf0)) return std::nullopt;
  Clear(&irr_, static_cast<uint8_t>(vector));
  Set(&isr_, static_cast<uint8_t>(vector));
  return static_cast<uint8_t>(vector);
}

uint8_t LocalApic::Ppr() const {
  const int in_service = Highest(isr_);
  const int class_in_service = in_service < 0 ? 0 : in_service & 0xf0;
  return static_cast<uint8_t>((tpr_ & 0xf0) >= class_in_service ? tpr_ : class_in_service);
}

uint64_t LocalApic::TickNs() const {
  // SDM vol. 3, figure 11-10: bits 3, 1 and 0 select 2, 4, ... 128, and 111 is 1.
  const uint32_t select = (divide_ & 3) | (divide_ >> 1 & 4);
  const uint64_t divider = select == 7 ? 1 : uint64_t{2} << select;
  return divider * (1'000'000'000 / kBusHz);
}

void LocalApic::StartTimer(Monotonic now) {
  timer_start_ = now;
  deadline_.reset();
  const bool deadline_mode = (lvt_timer_ >> 18 & 1) != 0;  // not offered by CPUID
  if (initial_count_ != 0 && !deadline_mode) deadline_ = now + std::chrono::nanoseconds(initial_count_ * TickNs());
}

uint32_t LocalApic::CurrentCount(Monotonic now) const {
  if (initial_count_ == 0 || !deadline_.has_value()) return 0;
  const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(*deadline_ - now).count();
  return left <= 0 ? 0
                   : static_cast<uint32_t>(std::min<uint64_t>(static_cast<uint64_t>(left) / TickNs(), initial_count_));
}

bool LocalApic::OnTime(Monotonic now) {
  if (!deadline_.has_value() || *deadline_ > now) return false;
  if ((lvt_timer_ & kLvtPeriodic) != 0) {
    const auto period = std::chrono::nanoseconds(initial_count_ * TickNs());
    deadline_ = *deadline_ + period;
    if (*deadline_ <= now) deadline_ = now + period;  // ticks that could not be delivered in time are one
  } else {
    deadline_.reset();
  }
  if ((lvt_timer_ & kLvtMasked) != 0) return false;
  return Raise(static_cast<uint8_t>(lvt_timer_), false);
}

}  // namespace hk
