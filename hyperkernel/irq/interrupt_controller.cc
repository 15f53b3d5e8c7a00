#include "hyperkernel/irq/interrupt_controller.h"

#include <algorithm>
#include <bit>

#include "hyperkernel/base/check.h"
#include "hyperkernel/irq/interrupt_across.h"
#include "hyperkernel/irq/msi.h"

namespace hk {

namespace {

// The source of messages that no vCPU sends; they have no shorthands, so it is never looked at.
constexpr VcpuId kDevice{kMaxVcpus};

}  // namespace

InterruptController::InterruptController(const InterruptControllerOptions& options, const Clock* clock,
                                         VcpuWaker* waker)
    : extended_destination_(options.extended_destination),
      x2apic_(options.x2apic),
      clock_(clock),
      waker_(waker),
      io_apic_(options.extended_destination),
      table_(options.vcpus) {
  HK_CHECK(options.vcpus >= 1 && options.vcpus <= kMaxVcpus);
  ports_.reserve(options.vcpus);
  for (uint32_t i = 0; i < options.vcpus; ++i) {
    ports_.push_back(std::make_unique<VcpuPort>(this, VcpuId(i), x2apic_));
    const ApicAddressing addressing = ports_.back()->Addressing();
    MutexLock lock(&router_mutex_);
    table_.Update(VcpuId(i), addressing);
  }
}

InterruptController::~InterruptController() = default;

VcpuInterrupts& InterruptController::vcpu(VcpuId vcpu) {
  HK_CHECK(vcpu.value() < ports_.size());
  return *ports_[vcpu.value()];
}

void InterruptController::WakeAll(const VcpuSet& wake) {
  wake.ForEach([this](VcpuId vcpu) { waker_->Wake(vcpu); });
}

// Of a guest on this node only, `elsewhere` is not used.
bool InterruptController::Deliver(const InterruptMessage& message, VcpuId source, VcpuId target, VcpuSet& wake,
                                  VcpuSet* elsewhere) {
  if (target.value() >= ports_.size()) {
    return false;
  }
  Acceptance acceptance;
  if (!ports_[target.value()]->Accept(message, source == target, &acceptance)) [[unlikely]] {
    elsewhere != nullptr ? elsewhere->Add(target) : ExportTo(message, source, target, wake);
    return false;
  }
  if (acceptance.wake) {
    wake.Add(target);
  }
  return acceptance.accepted;
}

bool InterruptController::Route(const InterruptMessage& message, VcpuId source, VcpuSet& wake) {
  if (const auto only = OnlyDestination(message, source)) {
    return Deliver(message, source, *only, wake, nullptr);
  }
  VcpuSet targets;
  {
    MutexLock lock(&router_mutex_);
    targets = table_.Resolve(message, source);
    if (message.mode == DeliveryMode::kLowestPriority) {
      const auto winner = arbiter_.Pick(targets, [this](VcpuId vcpu) { return ports_[vcpu.value()]->Priority(); });
      targets = VcpuSet();
      if (winner) {
        targets.Add(*winner);
      }
    }
  }
  bool accepted = false;
  VcpuSet elsewhere;  // these share messages
  targets.ForEach([&](VcpuId target) { accepted |= Deliver(message, source, target, wake, &elsewhere); });
  if (!elsewhere.Empty()) {
    Export(message, source, elsewhere, wake);
  }
  return accepted;
}

void InterruptController::Collect(IoApic::Pins pins, PinMessages* messages) {
  messages->count = 0;
  for (; pins != 0; pins &= pins - 1) {
    messages->messages[messages->count++] = io_apic_.MessageOf(static_cast<uint8_t>(std::countr_zero(pins)));
  }
}

void InterruptController::RoutePins(PinMessages* pins, VcpuSet& wake) {
  bool again = pins->count != 0;
  while (again) {
    again = false;
    const uint64_t changes = routing_changes_.load();
    for (uint8_t i = 0; i < pins->count; ++i) {
      const InterruptMessage& message = pins->messages[i];
      const bool accepted =
          message.level && across_ != nullptr ? RouteLevel(message, changes, wake) : Route(message, kDevice, wake);
      if (!accepted && message.level) {
        MutexLock lock(&io_apic_mutex_);
        io_apic_.Rejected({.pin = message.pin, .generation = message.generation});
        // A vCPU that began to accept meanwhile has retried too early, while the pin still waited for its EOI.
        again |= routing_changes_.load() != changes;
      }
    }
    if (again) {
      MutexLock lock(&io_apic_mutex_);
      Collect(io_apic_.RetryAsserted(), pins);
    }
  }
}

void InterruptController::SetAddressing(VcpuId vcpu, const ApicAddressing& addressing, VcpuSet& wake) {
  {
    MutexLock lock(&router_mutex_);
    table_.Update(vcpu, addressing);
  }
  routing_changes_.fetch_add(1);
  PinMessages pins;
  {
    MutexLock lock(&io_apic_mutex_);
    Collect(io_apic_.RetryAsserted(), &pins);
  }
  RoutePins(&pins, wake);
}

void InterruptController::Follow(VcpuId source, const PortOutcome& outcome) {
  const ApicEffects& effects = outcome.effects;
  if (across_ != nullptr && (effects.routing_changed || outcome.accepts_changed)) {
    FollowElsewhere(source, outcome);
  }
  if (!effects.routing_changed && !effects.ipi && effects.eoi_pins == 0) {
    return;
  }
  VcpuSet wake;
  if (effects.routing_changed) {
    SetAddressing(source, outcome.addressing, wake);
  }
  if (effects.ipi) {
    Route(*effects.ipi, source, wake);
  }
  const bool io_apic_here = across_ == nullptr || effects.eoi_pins == 0 || !ExportEois(outcome);
  for (uint32_t rest = io_apic_here ? effects.eoi_pins : 0; rest != 0; rest &= rest - 1) {
    const auto pin = static_cast<uint8_t>(std::countr_zero(rest));
    PinMessages pins;
    {
      MutexLock lock(&io_apic_mutex_);
      Collect(io_apic_.OnEoi({pin, outcome.eoi_generations[pin]}), &pins);
    }
    RoutePins(&pins, wake);
  }
  wake.Remove(source);  // it is not in the guest, and looks before it enters it
  WakeAll(wake);
}

void InterruptController::SetLine(uint8_t pin, bool asserted) {
  PinMessages pins;
  {
    MutexLock lock(&io_apic_mutex_);
    Collect(io_apic_.SetLine(pin, asserted), &pins);
  }
  VcpuSet wake;
  RoutePins(&pins, wake);
  WakeAll(wake);
}

bool InterruptController::SendMsi(uint64_t address, uint32_t data) {
  const auto message = DecodeMsi(address, data, extended_destination_);
  if (!message) {
    return false;
  }
  VcpuSet wake;
  Route(*message, kDevice, wake);
  WakeAll(wake);
  return true;
}

bool InterruptController::InjectNmi(VcpuId vcpu) {
  VcpuSet wake;
  VcpuSet elsewhere;
  const InterruptMessage nmi{.mode = DeliveryMode::kNmi};
  const bool accepted = Deliver(nmi, kDevice, vcpu, wake, &elsewhere);
  if (!elsewhere.Empty()) {
    Export(nmi, kDevice, elsewhere, wake);
  }
  WakeAll(wake);
  return accepted || !elsewhere.Empty();
}

uint32_t InterruptController::IoApicRead(uint32_t offset) {
  MutexLock lock(&io_apic_mutex_);
  return io_apic_.Read(offset);
}

void InterruptController::IoApicWrite(uint32_t offset, uint32_t value) {
  PinMessages pins;
  {
    MutexLock lock(&io_apic_mutex_);
    Collect(io_apic_.Write(offset, value), &pins);
  }
  VcpuSet wake;
  RoutePins(&pins, wake);
  WakeAll(wake);
}

LocalApicState InterruptController::SaveVcpu(VcpuId vcpu) {
  HK_CHECK(vcpu.value() < ports_.size());
  return ports_[vcpu.value()]->Save(Now());
}

absl::Status InterruptController::RestorePort(VcpuId vcpu, const LocalApicState& state, PortOutcome* outcome) {
  HK_CHECK(vcpu.value() < ports_.size());
  if (auto status = ports_[vcpu.value()]->Restore(state, Now(), *outcome); !status.ok()) {
    return status;
  }
  MutexLock lock(&router_mutex_);
  table_.Update(vcpu, outcome->addressing);
  return absl::OkStatus();
}

absl::Status InterruptController::RestoreVcpu(VcpuId vcpu, const LocalApicState& state) {
  PortOutcome outcome;
  if (auto status = RestorePort(vcpu, state, &outcome); !status.ok()) {
    return status;
  }
  if (across_ != nullptr) {
    FollowElsewhere(vcpu, outcome);
  }
  waker_->Wake(vcpu);
  return absl::OkStatus();
}

IoApicState InterruptController::SaveIoApic() {
  MutexLock lock(&io_apic_mutex_);
  return io_apic_.Save();
}

absl::Status InterruptController::RestoreIoApic(const IoApicState& state) {
  if (across_ != nullptr) {
    ForgetPins();
  }
  MutexLock lock(&io_apic_mutex_);
  return io_apic_.Restore(state);
}

absl::Status InterruptController::Renew() {
  for (const auto& port : ports_) {
    if (auto status = port->Renew(Now()); !status.ok()) {
      return status;
    }
  }
  MutexLock lock(&io_apic_mutex_);
  IoApic renewed(extended_destination_);
  if (auto status = renewed.Restore(io_apic_.Save()); !status.ok()) {
    return status;
  }
  io_apic_ = renewed;
  return absl::OkStatus();
}

void InterruptController::Reset() {
  if (across_ != nullptr) {
    ForgetElsewhere();
  }
  {
    MutexLock lock(&io_apic_mutex_);
    io_apic_.Reset();
  }
  for (uint32_t i = 0; i < ports_.size(); ++i) {
    const Monotonic now = Now();
    const LocalApic fresh(i, i == 0, x2apic_);
    PortOutcome outcome;  // the same on all nodes: nobody needs to be told
    const absl::Status restored = RestorePort(VcpuId(i), fresh.Save(now), &outcome);
    HK_CHECK(restored.ok());
    if (across_ == nullptr || IsHere(VcpuId(i))) {
      waker_->Wake(VcpuId(i));
    }
  }
}

}  // namespace hk
