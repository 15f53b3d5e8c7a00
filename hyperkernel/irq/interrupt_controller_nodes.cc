// The controller's way to other nodes: the lock around InterruptExchange, and what follows from what comes.
#include <bit>
#include <utility>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/irq/interrupt_across.h"
#include "hyperkernel/irq/interrupt_controller.h"

namespace hk {

InterruptController::InterruptController(const InterruptControllerOptions& options, const InterruptNodes& nodes,
                                         const Clock* clock, VcpuWaker* waker)
    : InterruptController(options, clock, waker) {
  HK_CHECK(nodes.vcpus.size() == options.vcpus);
  across_ = std::make_unique<Across>(this, nodes);
  for (uint32_t i = 0; i < options.vcpus; ++i) {
    if (nodes.vcpus[i] != nodes.self) {
      ports_[i]->SetResidence(VcpuPort::Residence::kAway);
    }
  }
}

void InterruptController::Export(const InterruptMessage& message, VcpuId source, const VcpuSet& targets,
                                 VcpuSet& wake) {
  ExchangeOutcome outcome;
  {
    MutexLock lock(&across_->mutex);
    InterruptExchange* const exchange = &across_->exchange;  // the analysis does not look into the lambda
    targets.ForEach([&](VcpuId target) { exchange->Post(message, source, target, &outcome); });
    exchange->Flush();
  }
  Finish(outcome, wake);
}

void InterruptController::ExportTo(const InterruptMessage& message, VcpuId source, VcpuId target, VcpuSet& wake) {
  VcpuSet targets;
  targets.Add(target);
  Export(message, source, targets, wake);
}

bool InterruptController::RouteLevel(const InterruptMessage& message, uint64_t changes, VcpuSet& wake) {
  {
    MutexLock lock(&across_->mutex);
    across_->exchange.BeginPin(message, changes);
  }
  const bool accepted = Route(message, VcpuId(kMaxVcpus), wake);
  MutexLock lock(&across_->mutex);
  return !across_->exchange.EndPin(message, accepted);
}

void InterruptController::FollowElsewhere(VcpuId source, const PortOutcome& outcome) {
  MutexLock lock(&across_->mutex);
  across_->exchange.Announce(source, outcome.addressing);
  across_->NoteSettled();
  across_->exchange.Flush();
}

bool InterruptController::ExportEois(const PortOutcome& outcome) {
  if (across_->io_apic_here) {
    return false;
  }
  MutexLock lock(&across_->mutex);
  for (uint32_t rest = outcome.effects.eoi_pins; rest != 0; rest &= rest - 1) {
    const auto pin = static_cast<uint8_t>(std::countr_zero(rest));
    across_->exchange.PostEoi({.pin = pin, .generation = outcome.eoi_generations[pin]});
  }
  across_->exchange.Flush();
  return true;
}

void InterruptController::Finish(const ExchangeOutcome& outcome, VcpuSet& wake) {
  wake |= outcome.wake;
  if (outcome.routing_changed || outcome.ceased) {
    routing_changes_.fetch_add(1);
  }
  bool again = outcome.routing_changed;
  for (uint32_t rest = outcome.rejected_pins; rest != 0; rest &= rest - 1) {
    const auto pin = static_cast<uint8_t>(std::countr_zero(rest));
    const ExchangeOutcome::Rejected& rejected = outcome.rejected[pin];
    {
      MutexLock lock(&io_apic_mutex_);
      io_apic_.Rejected({.pin = pin, .generation = rejected.generation});
    }
    // A vCPU that began to accept while the answer was under way has retried too early (RoutePins).
    again |= routing_changes_.load() != rejected.changes && !HK_MUTANT(irq_rejected_for_good);
  }
  for (uint32_t rest = outcome.eoi_pins; rest != 0; rest &= rest - 1) {
    const auto pin = static_cast<uint8_t>(std::countr_zero(rest));
    PinMessages pins;
    {
      MutexLock lock(&io_apic_mutex_);
      Collect(io_apic_.OnEoi({.pin = pin, .generation = outcome.eoi_generations[pin]}), &pins);
    }
    RoutePins(&pins, wake);
  }
  if (again) {
    PinMessages pins;
    {
      MutexLock lock(&io_apic_mutex_);
      Collect(io_apic_.RetryAsserted(), &pins);
    }
    RoutePins(&pins, wake);
  }
  while (outcome.retry) {
    std::optional<InterruptExchange::Retry> retry;
    {
      MutexLock lock(&across_->mutex);
      retry = across_->exchange.TakeRetry();
    }
    if (!retry) {
      break;
    }
    Route(retry->message, retry->source, wake);
  }
}

absl::Status InterruptController::OnMessage(NodeId from, std::span<const std::byte> bytes) {
  HK_CHECK(across_ != nullptr);
  ExchangeOutcome outcome;
  absl::Status status;
  {
    MutexLock lock(&across_->mutex);
    status = across_->exchange.OnMessage(from, bytes, &outcome);
    across_->NoteSettled();
    across_->exchange.Flush();
  }
  VcpuSet wake;
  Finish(outcome, wake);
  WakeAll(wake);
  return status;
}

void InterruptController::OnWritable(NodeId to) {
  HK_CHECK(across_ != nullptr);
  MutexLock lock(&across_->mutex);
  across_->exchange.OnWritable(to);
  across_->exchange.Flush();
}

VcpuPlace InterruptController::PlaceOf(VcpuId vcpu) {
  HK_CHECK(across_ != nullptr && vcpu.value() < ports_.size());
  MutexLock lock(&across_->mutex);
  return across_->exchange.PlaceOf(vcpu);
}

bool InterruptController::Settled(VcpuId vcpu) {
  if (across_ == nullptr || across_->all_settled.load()) {
    return true;
  }
  MutexLock lock(&across_->mutex);
  return across_->exchange.Settled(vcpu);
}

bool InterruptController::Drained(VcpuId vcpu) {
  HK_CHECK(across_ != nullptr);
  MutexLock lock(&across_->mutex);
  return across_->exchange.Drained(vcpu);
}

absl::StatusOr<MovedVcpuInterrupts> InterruptController::TakeVcpu(VcpuId vcpu, NodeId to) {
  HK_CHECK(across_ != nullptr);
  ExchangeOutcome outcome;
  MovedVcpuInterrupts moved;
  {
    MutexLock lock(&across_->mutex);
    const absl::StatusOr<uint32_t> version = across_->exchange.Leave(vcpu, to, &outcome);
    if (!version.ok()) {
      return version.status();
    }
    moved.version = *version;
    // What reached the APIC since is part of its state; what comes later goes the way of all others.
    moved.apic = ports_[vcpu.value()]->TakeAway(Now());
    across_->exchange.Flush();
  }
  VcpuSet wake;
  Finish(outcome, wake);
  WakeAll(wake);
  return moved;
}

absl::Status InterruptController::PutVcpu(VcpuId vcpu, const MovedVcpuInterrupts& moved) {
  HK_CHECK(across_ != nullptr);
  ExchangeOutcome outcome;
  {
    MutexLock lock(&across_->mutex);
    if (auto status = across_->exchange.CanArrive(vcpu, moved.version); !status.ok()) {
      return status;
    }
    PortOutcome restored;
    if (auto status = ports_[vcpu.value()]->Restore(moved.apic, Now(), restored); !status.ok()) {
      return status;
    }
    across_->SetAddressing(vcpu, restored.addressing);
    ports_[vcpu.value()]->SetResidence(HK_MUTANT(irq_no_detour) ? VcpuPort::Residence::kHere
                                                                : VcpuPort::Residence::kDetour);
    across_->exchange.Arrive(vcpu, moved.version, restored.addressing, &outcome);
    across_->NoteSettled();
    across_->exchange.Flush();
  }
  VcpuSet wake;
  wake.Add(vcpu);
  Finish(outcome, wake);
  WakeAll(wake);
  return absl::OkStatus();
}

InterruptExchangeStatistics InterruptController::ExchangeStatistics() {
  HK_CHECK(across_ != nullptr);
  MutexLock lock(&across_->mutex);
  return across_->exchange.statistics();
}

bool InterruptController::IsHere(VcpuId vcpu) {
  MutexLock lock(&across_->mutex);
  return across_->exchange.Here(vcpu);
}

void InterruptController::ForgetElsewhere() {
  MutexLock lock(&across_->mutex);
  across_->exchange.Reset();
  across_->NoteSettled();
}

void InterruptController::ForgetPins() {
  MutexLock lock(&across_->mutex);
  across_->exchange.ForgetPins();
}

}  // namespace hk
