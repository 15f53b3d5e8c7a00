#include "hyperkernel/kvm/vcpu_group.h"

#include <chrono>
#include <numeric>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

// A vCPU that is held does what it is told at once; by then its thread has had a processor.
constexpr std::chrono::seconds kStepLimit(5);

VcpuCounters Sum(VcpuCounters a, const VcpuCounters& b) {
  for (size_t i = 0; i < kVcpuExits; ++i) a.exits[i] += b.exits[i];
  a.interrupts += b.interrupts;
  a.nmis += b.nmis;
  a.unknown_msrs += b.unknown_msrs;
  a.halted_ns += b.halted_ns;
  a.settling_ns += b.settling_ns;
  a.exits_ns += b.exits_ns;
  return a;
}

template <typename Slot>
std::vector<std::unique_ptr<Slot>> MakeSlots(uint32_t count) {
  std::vector<std::unique_ptr<Slot>> slots;
  for (uint32_t i = 0; i < count; ++i) slots.push_back(std::make_unique<Slot>());
  return slots;
}

// All are asked first, so that they leave the guest at the same time.
absl::Status Hold(const std::vector<Vcpu*>& vcpus, Monotonic deadline) {
  for (Vcpu* vcpu : vcpus) vcpu->RequestPause();
  for (Vcpu* vcpu : vcpus) HK_RETURN_IF_ERROR(vcpu->Pause(deadline));
  return absl::OkStatus();
}

}  // namespace

VcpuState AfterTscSteps(VcpuState state, uint64_t ticks) {
  if (!HK_MUTANT(joined_tsc_not_stepped)) state.tsc_offset += ticks;
  return state;
}

VcpuGroup::VcpuGroup(uint32_t count) : slots_(MakeSlots<Slot>(count)) {
  HK_CHECK(count > 0);
}

VcpuGroup::~VcpuGroup() {
  Clear();
}

// The slots are emptied first: a device or a timer that still wakes someone finds nobody.
void VcpuGroup::Clear() {
  MutexLock operation(&operation_);
  std::vector<std::unique_ptr<Vcpu>> doomed;
  for (const auto& slot : slots_) {
    MutexLock lock(&slot->mutex);
    if (slot->vcpu == nullptr) continue;
    slot->earlier = Sum(slot->earlier, slot->vcpu->counters());
    doomed.push_back(std::move(slot->vcpu));
  }
  for (const auto& vcpu : doomed) vcpu->RequestStop();
  doomed.clear();
  leavers_.clear();
  prepared_ = {};
  vm_.reset();
}

absl::Status VcpuGroup::Create(std::unique_ptr<Vm> vm, const std::vector<VcpuConfig>& configs,
                               EnvironmentOf environment) {
  MutexLock operation(&operation_);
  HK_CHECK(vm_ == nullptr);
  vm_ = std::move(vm);
  environment_ = std::move(environment);
  for (const VcpuConfig& config : configs) {
    HK_ASSIGN_OR_RETURN(std::unique_ptr<Vcpu> vcpu, Vcpu::Create(vm_.get(), config, environment_(config.id)));
    Slot& slot = *slots_.at(config.id.value());
    MutexLock lock(&slot.mutex);
    slot.vcpu = std::move(vcpu);
  }
  return absl::OkStatus();
}

absl::Status VcpuGroup::CreateFrom(std::unique_ptr<Vm> vm, std::map<VcpuId, VcpuState> states,
                                   EnvironmentOf environment, Monotonic deadline) {
  MutexLock operation(&operation_);
  HK_CHECK(vm_ == nullptr);
  vm_ = std::move(vm);
  environment_ = std::move(environment);
  if (states.size() != slots_.size() || states.rbegin()->first.value() >= slots_.size()) {
    return absl::InvalidArgumentError(fmt::format("states of {} vCPUs, expected {}", states.size(), slots_.size()));
  }
  for (auto& [id, state] : states) {
    HK_ASSIGN_OR_RETURN(std::unique_ptr<Vcpu> vcpu,
                        Vcpu::CreateFrom(vm_.get(), id, std::move(state), environment_(id), deadline));
    Slot& slot = *slots_[id.value()];
    MutexLock lock(&slot.mutex);
    slot.vcpu = std::move(vcpu);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::map<VcpuId, VcpuState>> VcpuGroup::Save(Monotonic deadline) {
  MutexLock operation(&operation_);
  std::map<VcpuId, VcpuState> states;
  for (Vcpu* vcpu : Present()) {
    if (vcpu->state() == Vcpu::State::kFailed) return absl::FailedPreconditionError(vcpu->failure());
    HK_ASSIGN_OR_RETURN(states[vcpu->id()], vcpu->SaveState(deadline));
  }
  return states;
}

std::vector<Vcpu*> VcpuGroup::Present() const {
  std::vector<Vcpu*> vcpus;
  for (const auto& slot : slots_) {
    MutexLock lock(&slot->mutex);
    if (slot->vcpu != nullptr) vcpus.push_back(slot->vcpu.get());
  }
  return vcpus;
}

absl::Status VcpuGroup::Start(const InitialCpuState& boot, Monotonic deadline) {
  MutexLock operation(&operation_);
  const std::vector<Vcpu*> vcpus = Present();
  HK_CHECK(!vcpus.empty() && vcpus[0]->id() == VcpuId(0));
  running_ = true;
  for (size_t i = 1; i < vcpus.size(); ++i) HK_RETURN_IF_ERROR(vcpus[i]->Resume());
  return vcpus[0]->Start(boot, deadline);
}

absl::Status VcpuGroup::Pause(Monotonic deadline) {
  MutexLock operation(&operation_);
  const std::vector<Vcpu*> vcpus = Present();
  if (absl::Status status = Hold(vcpus, deadline); !status.ok()) {
    GoOn(vcpus);
    return status;
  }
  running_ = false;
  return absl::OkStatus();
}

absl::Status VcpuGroup::Resume() {
  MutexLock operation(&operation_);
  running_ = true;
  for (Vcpu* vcpu : Present()) HK_RETURN_IF_ERROR(vcpu->Resume());
  return absl::OkStatus();
}

// As it was before something that failed: a vCPU that has failed by itself stays so.
void VcpuGroup::GoOn(const std::vector<Vcpu*>& vcpus) {
  if (!running_) return;
  for (Vcpu* vcpu : vcpus) static_cast<void>(vcpu->Resume());
}

absl::StatusOr<std::vector<std::unique_ptr<Vcpu>>> VcpuGroup::Copy(const std::vector<Vcpu*>& vcpus, Vm* vm,
                                                                   Monotonic deadline) {
  std::vector<std::unique_ptr<Vcpu>> copies;
  for (Vcpu* vcpu : vcpus) {
    if (vcpu->state() == Vcpu::State::kFailed) return absl::FailedPreconditionError(vcpu->failure());
    HK_ASSIGN_OR_RETURN(const VcpuState saved, vcpu->SaveState(deadline));
    HK_ASSIGN_OR_RETURN(VcpuState state, DecodeVcpuState(EncodeVcpuState(saved)));
    HK_ASSIGN_OR_RETURN(std::unique_ptr<Vcpu> copy,
                        Vcpu::CreateFrom(vm, vcpu->id(), std::move(state), environment_(vcpu->id()), deadline));
    copies.push_back(std::move(copy));
  }
  return copies;
}

void VcpuGroup::Exchange(std::vector<std::unique_ptr<Vcpu>>* copies, std::unique_ptr<Vm>* vm) {
  for (std::unique_ptr<Vcpu>& copy : *copies) {
    Slot& slot = *slots_[copy->id().value()];
    MutexLock lock(&slot.mutex);
    slot.earlier = Sum(slot.earlier, slot.vcpu->counters());
    std::swap(slot.vcpu, copy);
  }
  std::swap(vm_, *vm);
}

absl::Status VcpuGroup::Renew(const std::function<absl::Status(Vm*)>& while_held, Monotonic deadline) {
  MutexLock operation(&operation_);
  const std::vector<Vcpu*> vcpus = Present();
  leavers_.clear();
  prepared_ = {};
  std::unique_ptr<Vm> vm;  // before the copies: it outlives them
  std::vector<std::unique_ptr<Vcpu>> copies;
  // Copies first: whatever is wrong with a vCPU shows before `while_held` changes anything.
  const auto make = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(operation_) -> absl::Status {
    HK_RETURN_IF_ERROR(Hold(vcpus, deadline));
    HK_ASSIGN_OR_RETURN(vm, vm_->CreateLike());
    HK_ASSIGN_OR_RETURN(copies, Copy(vcpus, vm.get(), deadline));
    return while_held(vm.get());
  };
  if (absl::Status status = make(); !status.ok()) {
    GoOn(vcpus);
    return status;
  }
  Exchange(&copies, &vm);
  // The old ones end while the new ones run: to take a VM apart waits for the kernel's grace periods.
  GoOn(Present());
  return absl::OkStatus();
}

absl::Status VcpuGroup::Prepare(const VcpuConfig& config) {
  MutexLock operation(&operation_);
  HK_CHECK(vm_ != nullptr);
  leavers_.clear();
  prepared_ = {};
  HK_CHECK(config.id.value() < slots_.size());
  {
    const Slot& slot = *slots_[config.id.value()];
    MutexLock lock(&slot.mutex);
    if (slot.vcpu != nullptr) return absl::OkStatus();
  }
  if (!vm_->HasParked(config.id)) {
    HK_ASSIGN_OR_RETURN(VcpuFd fd, vm_->TakeVcpu(config.id));
    const absl::Status status = WriteCpuid(fd, config.cpuid);
    vm_->ParkVcpu(config.id, std::move(fd));
    HK_RETURN_IF_ERROR(status);
  }
  HK_ASSIGN_OR_RETURN(std::unique_ptr<Vcpu> vcpu, Vcpu::CreateEmpty(vm_.get(), config, environment_(config.id)));
  prepared_ = {.id = config.id, .vcpu = std::move(vcpu)};
  return absl::OkStatus();
}

absl::Status VcpuGroup::Leave(VcpuId id, const std::function<absl::Status(const VcpuState& state)>& take,
                              Monotonic deadline) {
  MutexLock operation(&operation_);
  HK_CHECK(id.value() < slots_.size());
  Slot* const slot = slots_[id.value()].get();
  Vcpu* vcpu = nullptr;
  {
    MutexLock lock(&slot->mutex);
    vcpu = slot->vcpu.get();
  }
  if (vcpu == nullptr) return absl::NotFoundError(fmt::format("vCPU {} is not here", id.value()));
  const auto hold = [&]() -> absl::Status {
    HK_RETURN_IF_ERROR(vcpu->Pause(deadline));
    if (vcpu->state() == Vcpu::State::kFailed) return absl::FailedPreconditionError(vcpu->failure());
    HK_ASSIGN_OR_RETURN(const VcpuState state, vcpu->SaveState(deadline));
    return take(state);
  };
  if (absl::Status status = hold(); !status.ok()) {
    GoOn({vcpu});
    return status;
  }
  LetGo(slot, deadline);
  return absl::OkStatus();
}

// What is not parked in time is closed: KVM has one number less for vCPUs of this VM.
void VcpuGroup::LetGo(Slot* slot, Monotonic deadline) {
  std::unique_ptr<Vcpu> vcpu;
  {
    MutexLock lock(&slot->mutex);
    vcpu = std::move(slot->vcpu);
    slot->earlier = Sum(slot->earlier, vcpu->counters());
  }
  if (HK_MUTANT(moved_vcpu_runs_on)) {
    static_cast<void>(vcpu->Resume());
  } else {
    static_cast<void>(vcpu->Release(deadline));
    vcpu->RequestStop();
  }
  leavers_.push_back(std::move(vcpu));
}

absl::Status VcpuGroup::Join(VcpuId id, VcpuState state, const std::function<absl::Status()>& put, Monotonic deadline) {
  MutexLock operation(&operation_);
  HK_CHECK(id.value() < slots_.size() && vm_ != nullptr);
  leavers_.clear();
  Slot* const slot = slots_[id.value()].get();
  {
    MutexLock lock(&slot->mutex);
    if (slot->vcpu != nullptr) return absl::AlreadyExistsError(fmt::format("vCPU {} is here already", id.value()));
  }
  state = AfterTscSteps(std::move(state), tsc_stepped_);
  std::unique_ptr<Vcpu> made = prepared_.id == id ? std::move(prepared_.vcpu) : nullptr;
  if (made != nullptr) {
    HK_RETURN_IF_ERROR(made->RestoreState(vm_.get(), std::move(state), deadline));
  } else {
    HK_ASSIGN_OR_RETURN(made, Vcpu::CreateFrom(vm_.get(), id, std::move(state), environment_(id), deadline));
  }
  Vcpu* const vcpu = made.get();
  {
    MutexLock lock(&slot->mutex);
    slot->vcpu = std::move(made);
  }
  if (absl::Status status = put(); !status.ok()) {
    LetGo(slot, deadline);
    return status;
  }
  GoOn({vcpu});
  return absl::OkStatus();
}

absl::Status VcpuGroup::StepTsc(uint64_t ticks, Monotonic deadline) {
  MutexLock operation(&operation_);
  const std::vector<Vcpu*> vcpus = Present();
  absl::Status status = Hold(vcpus, deadline);
  if (status.ok()) {
    tsc_stepped_ += ticks;
    for (Vcpu* vcpu : vcpus) {
      if (vcpu->state() == Vcpu::State::kFailed) continue;
      status.Update(vcpu->StepTsc(ticks, RealClock().Now() + kStepLimit));
    }
  }
  GoOn(vcpus);
  return status;
}

absl::Status VcpuGroup::Stop(Monotonic deadline) {
  MutexLock operation(&operation_);
  const std::vector<Vcpu*> vcpus = Present();
  running_ = false;
  for (Vcpu* vcpu : vcpus) vcpu->RequestStop();
  absl::Status first;
  for (Vcpu* vcpu : vcpus) first.Update(vcpu->Stop(deadline));
  return first;
}

void VcpuGroup::Wake(VcpuId vcpu) {
  HK_CHECK(vcpu.value() < slots_.size());
  const Slot& slot = *slots_[vcpu.value()];
  MutexLock lock(&slot.mutex);
  if (slot.vcpu != nullptr) slot.vcpu->Wake();
}

VcpuCounters VcpuGroup::counters(VcpuId vcpu) const {
  HK_CHECK(vcpu.value() < slots_.size());
  const Slot& slot = *slots_[vcpu.value()];
  MutexLock lock(&slot.mutex);
  return slot.vcpu == nullptr ? slot.earlier : Sum(slot.earlier, slot.vcpu->counters());
}

VcpuCounters VcpuGroup::counters() const {
  VcpuCounters sum;
  for (const auto& slot : slots_) {
    MutexLock lock(&slot->mutex);
    sum = Sum(sum, slot->earlier);
    if (slot->vcpu != nullptr) sum = Sum(sum, slot->vcpu->counters());
  }
  return sum;
}

uint64_t VcpuGroup::exits() const {
  const VcpuCounters sum = counters();
  return std::accumulate(sum.exits.begin(), sum.exits.end(), uint64_t{0});
}

}  // namespace hk
