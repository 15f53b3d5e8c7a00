#include "hyperkernel/irq/local_apic.h"

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"

namespace hk {

namespace {

uint8_t Class(uint32_t priority) {
  return static_cast<uint8_t>(priority >> 4);
}

}  // namespace

LocalApic::LocalApic(uint32_t apic_id, bool bootstrap, bool x2apic)
    : apic_id_(apic_id),
      base_(kApicBaseAddress | kApicBaseEnabled | (x2apic ? kApicBaseX2Apic : 0) | (bootstrap ? kApicBaseBsp : 0)),
      waiting_for_sipi_(!bootstrap) {
  HK_CHECK(apic_id < 255);
  ResetRegisters();
}

void LocalApic::ResetRegisters() {
  tpr_ = 0;
  ldr_ = 0;
  dfr_ = 0xffffffff;
  svr_ = 0xff;
  esr_ = 0;
  pending_errors_ = 0;
  icr_ = 0;
  irr_ = isr_ = tmr_ = VectorSet();
  lvt_.fill(kLvtMasked);
  timer_ = ApicTimer();
  level_sources_.fill(LevelSource());
  level_pins_ = 0;
}

LocalApic::Mode LocalApic::mode() const {
  if (!Enabled()) {
    return Mode::kDisabled;
  }
  return (base_ & kApicBaseX2Apic) != 0 ? Mode::kX2Apic : Mode::kXApic;
}

ApicAddressing LocalApic::addressing() const {
  using Model = ApicAddressing::Model;
  const uint32_t model = dfr_ >> 28;
  return {.mode = mode(),
          .model = model == 0xf ? Model::kFlat : (model == 0 ? Model::kCluster : Model::kNone),
          .logical_id = static_cast<uint8_t>(ldr_ >> 24)};
}

uint8_t LocalApic::ProcessorPriority() const {
  // SDM 3A 11.8.3.1. Where the classes are equal, bits 3:0 are model-specific; the TPR's are kept.
  const uint8_t in_service = isr_.Highest().value_or(0);
  return static_cast<uint8_t>(Class(tpr_) >= Class(in_service) ? tpr_ : in_service & 0xf0);
}

std::optional<uint8_t> LocalApic::Deliverable() const {
  const auto highest = irr_.Highest();
  if (!highest || Class(*highest) <= Class(ProcessorPriority())) {
    return std::nullopt;
  }
  return highest;
}

// Returns whether the request is new and can be taken now: only then must the vCPU look.
bool LocalApic::Request(uint8_t vector, bool level) {
  const bool is_new = !irr_.Test(vector);
  irr_.Set(vector);
  tmr_.Assign(vector, level);
  // With an EOI offered, the guest may have ended the interrupt in service without our knowledge.
  if (is_new && eoi_offered_ && !HK_MUTANT(eoi_offer_hides_requests)) return true;
  return is_new && Deliverable() == vector && !waiting_for_sipi_;
}

void LocalApic::NoteLevelSource(const InterruptMessage& message) {
  if (!message.level || message.pin >= kIoApicPins) {
    return;
  }
  LevelSource& source = level_sources_[message.pin];
  // A delivery that was overtaken on its way must not hide the newer one, whose EOI would then be taken for stale.
  const bool newer = !source.valid || static_cast<int32_t>(message.generation - source.generation) > 0;
  if (newer) {
    source = {.generation = message.generation, .vector = message.vector, .valid = 1};
    level_pins_ |= uint32_t{1} << message.pin;
  }
}

Acceptance LocalApic::Accept(const InterruptMessage& message) {
  if (!Enabled()) {
    return {};
  }
  bool is_new = false;
  switch (message.mode) {
    case DeliveryMode::kFixed:
    case DeliveryMode::kLowestPriority:
      if (!AcceptsFixed()) {
        return {};
      }
      if (message.vector < kFirstLegalVector) {
        LogError(kErrorReceiveIllegalVector);
        return {.accepted = false, .wake = Peek().kind != VcpuWork::Kind::kNone};
      }
      NoteLevelSource(message);
      return {.accepted = true, .wake = Request(message.vector, message.level)};
    case DeliveryMode::kNmi:
      is_new = events_.PushNmi();
      break;
    case DeliveryMode::kInit:
      is_new = events_.PushInit();
      break;
    case DeliveryMode::kStartup:
      is_new = events_.PushSipi(message.vector, waiting_for_sipi_);
      break;
    case DeliveryMode::kSmi:
    case DeliveryMode::kReserved:
    case DeliveryMode::kExtInt:
      return {};
  }
  return {.accepted = true, .wake = is_new && Peek().kind != VcpuWork::Kind::kNone};
}

bool LocalApic::RaiseLocal(LocalSource source) {
  const uint32_t entry = Lvt(source);
  if (!AcceptsFixed() || (entry & kLvtMasked) != 0) {
    return false;
  }
  if (source == LocalSource::kPerformance) {
    Lvt(source) |= kLvtMasked;  // SDM 3A 11.5.1: the entry masks itself
  }
  const bool always_fixed = source == LocalSource::kTimer || source == LocalSource::kError;
  const auto mode = always_fixed ? DeliveryMode::kFixed : static_cast<DeliveryMode>(entry >> 8 & 7);
  const auto vector = static_cast<uint8_t>(entry);
  switch (mode) {
    case DeliveryMode::kFixed:
      if (vector < kFirstLegalVector) {
        LogError(kErrorReceiveIllegalVector);
        return Peek().kind != VcpuWork::Kind::kNone;
      }
      return Request(vector, false);
    case DeliveryMode::kNmi:
      return events_.PushNmi() && Peek().kind != VcpuWork::Kind::kNone;
    case DeliveryMode::kInit:
      return events_.PushInit();
    default:
      return false;
  }
}

// The error interrupt occurs once until software writes the ESR (SDM 3A 11.5.3), which also ends the recursion of an
// error entry with an illegal vector.
void LocalApic::LogError(uint32_t bit) {
  const bool armed = pending_errors_ == 0;
  pending_errors_ |= bit;
  if (armed) {
    RaiseLocal(LocalSource::kError);
  }
}

std::optional<Monotonic> LocalApic::NextTimerDeadline() const {
  if ((Lvt(LocalSource::kTimer) & kLvtMasked) != 0) {
    return std::nullopt;
  }
  return timer_.deadline();
}

bool LocalApic::OnTime(Monotonic now) {
  return timer_.Expire(now) && RaiseLocal(LocalSource::kTimer);
}

VcpuWork LocalApic::Peek() const {
  if (const auto event = events_.Next(waiting_for_sipi_)) {
    switch (event->kind) {
      case ApicEvent::Kind::kNmi:
        return {VcpuWork::Kind::kNmi, 0};
      case ApicEvent::Kind::kInit:
        return {VcpuWork::Kind::kInit, 0};
      case ApicEvent::Kind::kSipi:
        return {VcpuWork::Kind::kSipi, event->vector};
    }
  }
  if (waiting_for_sipi_) {
    return {};
  }
  if (const auto vector = Deliverable()) {
    return {VcpuWork::Kind::kInterrupt, *vector};
  }
  return {};
}

bool LocalApic::Take(VcpuWork work) {
  switch (work.kind) {
    case VcpuWork::Kind::kNmi:
      events_.Take({ApicEvent::Kind::kNmi, 0});
      return false;
    case VcpuWork::Kind::kInit:
      // The mode, the id and IA32_APIC_BASE stay (SDM 3A 11.4.7.3, 11.12.5.1).
      if (!events_.Take({ApicEvent::Kind::kInit, 0})) {
        return false;
      }
      ResetRegisters();
      waiting_for_sipi_ = true;
      return true;
    case VcpuWork::Kind::kSipi:
      if (events_.Take({ApicEvent::Kind::kSipi, work.vector})) {
        waiting_for_sipi_ = false;
      }
      return false;
    case VcpuWork::Kind::kNone:
    case VcpuWork::Kind::kInterrupt:
      return false;
  }
  return false;
}

std::optional<uint8_t> LocalApic::Acknowledge() {
  const auto vector = waiting_for_sipi_ ? std::nullopt : Deliverable();
  if (vector) {
    irr_.Clear(*vector);
    isr_.Set(*vector);
  }
  return vector;
}

bool LocalApic::OfferEoi() {
  const auto vector = isr_.Highest();
  if (!vector || tmr_.Test(*vector) || level_pins_ != 0 || irr_.Highest()) {
    return false;
  }
  VectorSet others = isr_;
  others.Clear(*vector);
  eoi_offered_ = !others.Highest();
  return eoi_offered_;
}

ApicEffects LocalApic::EndEoiOffer(bool ended) {
  ApicEffects effects;
  eoi_offered_ = false;
  if (ended) {
    WriteEoi(effects);
  }
  return effects;
}

void LocalApic::SetCr8(uint8_t cr8) {
  // CR8 is TPR[7:4] (SDM 3A 11.8.6); an unchanged one does not lose TPR[3:0].
  if ((cr8 & 0xf) != Cr8()) {
    tpr_ = uint32_t{cr8} << 4 & 0xf0;
  }
}

}  // namespace hk
