#include "hyperkernel/irq/interrupt_controller.h"

namespace hk {
namespace {

// MSIs are writes to this MiB (SDM vol. 3, 11.11.1).
constexpr uint64_t kMsiBase = 0xfee00000, kMsiMask = 0xfff00000;

}  // namespace

// One vCPU's local APIC behind its lock.
class InterruptController::Vcpu final : public VcpuInterrupts {
 public:
  Vcpu(InterruptController* controller, uint32_t id) : controller_(controller), id_(id), apic_(id, id == 0) {}

  std::optional<uint64_t> ReadMsr(uint32_t msr) override {
    MutexLock lock(&mutex_);
    return apic_.ReadMsr(msr, controller_->clock_.Now());
  }
  bool WriteMsr(uint32_t msr, uint64_t value) override {
    bool ok = false;
    const auto write = [&](LocalApic* apic, Monotonic now, ApicEffects* effects) {
      ok = apic->WriteMsr(msr, value, now, effects);
    };
    Change(write);
    return ok;
  }
  uint32_t ReadMmio(uint32_t offset) override {
    MutexLock lock(&mutex_);
    return apic_.ReadMmio(offset, controller_->clock_.Now());
  }
  void WriteMmio(uint32_t offset, uint32_t value) override {
    Change([&](LocalApic* apic, Monotonic now, ApicEffects* effects) { apic->WriteMmio(offset, value, now, effects); });
  }
  VcpuWork Peek() override {
    MutexLock lock(&mutex_);
    return apic_.Peek();
  }
  void Take(VcpuWork work) override {
    MutexLock lock(&mutex_);
    apic_.Take(work);
  }
  std::optional<uint8_t> Acknowledge() override {
    MutexLock lock(&mutex_);
    return apic_.Acknowledge();
  }
  void SetCr8(uint8_t cr8) override {
    MutexLock lock(&mutex_);
    apic_.SetCr8(cr8);
  }
  uint8_t Cr8() override {
    MutexLock lock(&mutex_);
    return apic_.Cr8();
  }

  // For the controller, with no lock held.
  bool Matches(const InterruptMessage& message) {
    MutexLock lock(&mutex_);
    return apic_.Matches(message);
  }
  uint8_t Priority() {
    MutexLock lock(&mutex_);
    return apic_.Ppr();
  }
  void Accept(const InterruptMessage& message) {
    bool news = false;
    {
      MutexLock lock(&mutex_);
      news = apic_.Accept(message);
    }
    if (news) controller_->waker_->Wake(VcpuId(id_));
  }
  std::optional<Monotonic> Deadline() {
    MutexLock lock(&mutex_);
    return apic_.Deadline();
  }
  void OnTime(Monotonic now) {
    bool news = false;
    {
      MutexLock lock(&mutex_);
      news = apic_.OnTime(now);
    }
    if (news) controller_->waker_->Wake(VcpuId(id_));
  }

 private:
  // A register write, and after unlocking what it makes happen elsewhere.
  template <typename Write>
  void Change(Write write) {
    ApicEffects effects;
    std::optional<Monotonic> before, after;
    {
      MutexLock lock(&mutex_);
      before = apic_.Deadline();
      write(&apic_, controller_->clock_.Now(), &effects);
      after = apic_.Deadline();
    }
    if (after.has_value() && (!before.has_value() || *after < *before) && controller_->timer_hook_)
      controller_->timer_hook_();
    if (effects.eoi.has_value()) controller_->EndOfInterrupt(*effects.eoi);
    if (effects.message.has_value()) controller_->Deliver(*effects.message, id_);
  }

  InterruptController* const controller_;
  const uint32_t id_;
  Mutex mutex_;
  LocalApic apic_ ABSL_GUARDED_BY(mutex_);
};

InterruptController::InterruptController(uint32_t vcpus, VcpuWaker* waker, const Clock& clock)
    : waker_(waker), clock_(clock) {
  for (uint32_t i = 0; i < vcpus; i++) vcpus_.push_back(std::make_unique<Vcpu>(this, i));
}

InterruptController::~InterruptController() = default;

VcpuInterrupts* InterruptController::vcpu(VcpuId vcpu) {
  return vcpus_[vcpu.value()].get();
}

void InterruptController::Deliver(const InterruptMessage& message, std::optional<uint32_t> sender) {
  if (message.shorthand == Shorthand::kSelf) {
    if (sender.has_value()) vcpus_[*sender]->Accept(message);
    return;
  }
  if (message.shorthand != Shorthand::kNone) {
    for (uint32_t i = 0; i < vcpus_.size(); i++) {
      if (message.shorthand == Shorthand::kAllExcludingSelf && sender == i) continue;
      vcpus_[i]->Accept(message);
    }
    return;
  }
  if (message.mode == DeliveryMode::kLowestPriority) return DeliverLowestPriority(message);
  // APIC ids are vCPU numbers: the common case needs no search.
  const uint32_t broadcast = message.x2apic ? 0xffffffff : 0xff;
  if (!message.logical && message.destination != broadcast) {
    if (message.destination < vcpus_.size()) vcpus_[message.destination]->Accept(message);
    return;
  }
  for (const auto& vcpu : vcpus_) {
    if (vcpu->Matches(message)) vcpu->Accept(message);
  }
}

void InterruptController::DeliverLowestPriority(const InterruptMessage& message) {
  Vcpu* chosen = nullptr;
  uint8_t lowest = 0;
  for (const auto& vcpu : vcpus_) {
    if (!vcpu->Matches(message)) continue;
    const uint8_t priority = vcpu->Priority();
    if (chosen != nullptr && priority >= lowest) continue;
    chosen = vcpu.get();
    lowest = priority;
  }
  if (chosen != nullptr) chosen->Accept(message);
}

void InterruptController::DeliverAll(const std::vector<InterruptMessage>& messages) {
  for (const InterruptMessage& message : messages) Deliver(message, std::nullopt);
}

void InterruptController::SetLine(uint8_t pin, bool level) {
  if (pin >= IoApic::kPins) return;
  std::vector<InterruptMessage> out;
  {
    MutexLock lock(&io_apic_mutex_);
    io_apic_.SetLine(pin, level, &out);
  }
  DeliverAll(out);
}

void InterruptController::SendMsi(uint64_t address, uint32_t data) {
  if ((address & kMsiMask) != kMsiBase || address >> 32 != 0) return;
  Deliver({.vector = static_cast<uint8_t>(data),
           .mode = static_cast<DeliveryMode>(data >> 8 & 7),
           .logical = (address >> 2 & 1) != 0,
           .destination = static_cast<uint32_t>(address >> 12 & 0xff)},
          std::nullopt);
}

uint32_t InterruptController::ReadIoApic(uint32_t offset) {
  MutexLock lock(&io_apic_mutex_);
  return io_apic_.Read(offset);
}

void InterruptController::WriteIoApic(uint32_t offset, uint32_t value) {
  std::vector<InterruptMessage> out;
  {
    MutexLock lock(&io_apic_mutex_);
    io_apic_.Write(offset, value, &out);
  }
  DeliverAll(out);
}

void InterruptController::EndOfInterrupt(uint8_t vector) {
  std::vector<InterruptMessage> out;
  {
    MutexLock lock(&io_apic_mutex_);
    io_apic_.EndOfInterrupt(vector, &out);
  }
  DeliverAll(out);
}

std::optional<Monotonic> InterruptController::NextDeadline() {
  std::optional<Monotonic> earliest;
  for (const auto& vcpu : vcpus_) {
    const std::optional<Monotonic> deadline = vcpu->Deadline();
    if (deadline.has_value() && (!earliest.has_value() || *deadline < *earliest)) earliest = deadline;
  }
  return earliest;
}

void InterruptController::OnTime(Monotonic now) {
  for (const auto& vcpu : vcpus_) vcpu->OnTime(now);
}

}  // namespace hk
