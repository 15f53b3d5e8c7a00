#include "hyperkernel/irq/vcpu_port.h"

#include <bit>

#include "hyperkernel/base/check.h"
#include "hyperkernel/irq/interrupt_controller.h"

namespace hk {

namespace {

constexpr Monotonic kNever = Monotonic::max();

}  // namespace

VcpuPort::VcpuPort(InterruptController* controller, VcpuId id, bool x2apic)
    : controller_(controller),
      id_(id),
      apic_(id.value(), id.value() == 0, x2apic),
      deadline_(kNever.time_since_epoch().count()) {
  MutexLock lock(&mutex_);
  Publish();
}

void VcpuPort::Publish() {
  priority_.store(apic_.AcceptsFixed() ? apic_.ProcessorPriority() : kAcceptsNothing, std::memory_order_relaxed);
  deadline_.store(apic_.NextTimerDeadline().value_or(kNever).time_since_epoch().count(), std::memory_order_relaxed);
}

std::optional<uint8_t> VcpuPort::Priority() const {
  const uint32_t priority = priority_.load(std::memory_order_relaxed);
  return priority == kAcceptsNothing ? std::nullopt : std::optional(static_cast<uint8_t>(priority));
}

Monotonic VcpuPort::TimerDeadline() const {
  return Monotonic(Monotonic::duration(deadline_.load(std::memory_order_relaxed)));
}

void VcpuPort::Conclude(const ApicEffects& effects, PortOutcome* outcome) {
  const bool accepted = Hint() != kAcceptsNothing;
  Publish();
  outcome->accepts_changed = accepted != (Hint() != kAcceptsNothing);
  outcome->effects = effects;
  outcome->addressing = apic_.addressing();
  for (uint32_t rest = effects.eoi_pins; rest != 0; rest &= rest - 1) {
    const auto pin = static_cast<uint8_t>(std::countr_zero(rest));
    outcome->eoi_generations[pin] = apic_.EoiOf(pin).generation;
  }
}

std::optional<uint64_t> VcpuPort::ReadMsr(uint32_t msr) {
  const Monotonic now = controller_->Now();
  MutexLock lock(&mutex_);
  return apic_.ReadMsr(msr, now);
}

bool VcpuPort::WriteMsr(uint32_t msr, uint64_t value) {
  const Monotonic now = controller_->Now();
  PortOutcome outcome;
  {
    MutexLock lock(&mutex_);
    Conclude(apic_.WriteMsr(msr, value, now), &outcome);
  }
  controller_->Follow(id_, outcome);
  return !outcome.effects.fault;
}

uint32_t VcpuPort::ReadMmio(uint32_t offset) {
  const Monotonic now = controller_->Now();
  MutexLock lock(&mutex_);
  return apic_.ReadMmio(offset, now);
}

void VcpuPort::WriteMmio(uint32_t offset, uint32_t value) {
  const Monotonic now = controller_->Now();
  PortOutcome outcome;
  {
    MutexLock lock(&mutex_);
    Conclude(apic_.WriteMmio(offset, value, now), &outcome);
  }
  controller_->Follow(id_, outcome);
}

VcpuWork VcpuPort::Peek() {
  MutexLock lock(&mutex_);
  return apic_.Peek();
}

void VcpuPort::Take(VcpuWork work) {
  PortOutcome outcome;
  {
    MutexLock lock(&mutex_);
    ApicEffects effects;
    effects.routing_changed = apic_.Take(work);
    Conclude(effects, &outcome);
  }
  controller_->Follow(id_, outcome);
}

std::optional<uint8_t> VcpuPort::Acknowledge() {
  MutexLock lock(&mutex_);
  const auto vector = apic_.Acknowledge();
  Publish();
  return vector;
}

bool VcpuPort::OfferEoi() {
  MutexLock lock(&mutex_);
  return apic_.OfferEoi();
}

void VcpuPort::EndEoiOffer(bool ended) {
  PortOutcome outcome;
  {
    MutexLock lock(&mutex_);
    Conclude(apic_.EndEoiOffer(ended), &outcome);
  }
  controller_->Follow(id_, outcome);
}

bool VcpuPort::Settled() {
  return controller_->Settled(id_);
}

void VcpuPort::SetCr8(uint8_t cr8) {
  MutexLock lock(&mutex_);
  apic_.SetCr8(cr8);
  Publish();
}

uint8_t VcpuPort::Cr8() {
  MutexLock lock(&mutex_);
  return apic_.Cr8();
}

bool VcpuPort::Accept(const InterruptMessage& message, bool own, Acceptance* acceptance) {
  MutexLock lock(&mutex_);
  if (residence_ != Residence::kHere && (residence_ == Residence::kAway || !own)) [[unlikely]] {
    return false;
  }
  *acceptance = apic_.Accept(message);
  return true;
}

void VcpuPort::SetResidence(Residence residence) {
  MutexLock lock(&mutex_);
  residence_ = residence;
}

bool VcpuPort::AcceptAll(const PendingInterrupts& content) {
  MutexLock lock(&mutex_);
  HK_CHECK(residence_ != Residence::kAway);
  bool wake = false;
  LocalApic* const apic = &apic_;  // the analysis does not look into the lambda
  content.ForEachMessage([&](const InterruptMessage& message) { wake |= apic->Accept(message).wake; });
  return wake;
}

LocalApicState VcpuPort::TakeAway(Monotonic now) {
  MutexLock lock(&mutex_);
  HK_CHECK(residence_ != Residence::kAway);
  residence_ = Residence::kAway;
  deadline_.store(kNever.time_since_epoch().count(), std::memory_order_relaxed);
  return apic_.Save(now);
}

void VcpuPort::SetHint(uint16_t hint) {
  MutexLock lock(&mutex_);
  HK_CHECK(residence_ == Residence::kAway);
  priority_.store(hint, std::memory_order_relaxed);
}

bool VcpuPort::OnTime(Monotonic now) {
  MutexLock lock(&mutex_);
  const bool wake = apic_.OnTime(now);
  Publish();
  return wake;
}

void VcpuPort::PaceTimer() {
  MutexLock lock(&mutex_);
  paced_ = true;
  apic_.PaceTimer();
}

LocalApicState VcpuPort::Save(Monotonic now) {
  MutexLock lock(&mutex_);
  return apic_.Save(now);
}

absl::Status VcpuPort::Restore(const LocalApicState& state, Monotonic now, PortOutcome& outcome) {
  MutexLock lock(&mutex_);
  if (auto status = apic_.Restore(state, now); !status.ok()) {
    return status;
  }
  Conclude({}, &outcome);
  return absl::OkStatus();
}

// Under one lock, so that a message finds the old one or the new one.
absl::Status VcpuPort::Renew(Monotonic now) {
  MutexLock lock(&mutex_);
  LocalApic renewed(id_.value(), id_.value() == 0, true);
  if (auto status = renewed.Restore(apic_.Save(now), now); !status.ok()) {
    return status;
  }
  if (paced_) renewed.PaceTimer();
  apic_ = renewed;
  if (residence_ != Residence::kAway) {
    Publish();
  }
  return absl::OkStatus();
}

ApicAddressing VcpuPort::Addressing() {
  MutexLock lock(&mutex_);
  return apic_.addressing();
}

}  // namespace hk
