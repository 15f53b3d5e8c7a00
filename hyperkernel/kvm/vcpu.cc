// The outside of a vCPU: commands, states, kicks. What its thread does is in vcpu_run.cc.
#include "hyperkernel/kvm/vcpu.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <system_error>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

using std::chrono::milliseconds;

// A kick is repeated until it is acknowledged, at intervals that double.
constexpr milliseconds kFirstKickInterval{1};
constexpr milliseconds kLastKickInterval{50};
constexpr milliseconds kCreateLimit{10'000};

void InstallKickHandler() {
  static const bool installed = [] {
    struct sigaction action = {};
    action.sa_sigaction = VcpuTimer::OnSignal;
    action.sa_flags = SA_SIGINFO | SA_RESTART;  // a device's own system calls go on; KVM_RUN returns EINTR all the same
    HK_CHECK(sigaction(KickSignal(), &action, nullptr) == 0);
    return true;
  }();
  static_cast<void>(installed);
}

}  // namespace

void KickThread(uint32_t thread) {
  // Fails if it has ended, and is then nobody's loss.
  static_cast<void>(::tgkill(::getpid(), static_cast<pid_t>(thread), KickSignal()));
}

Vcpu::Vcpu(Vm* vm, VcpuConfig config, const VcpuEnvironment& environment)
    : id_(config.id),
      config_(std::move(config)),
      environment_(environment),
      interrupts_(*environment.interrupts),
      eoi_(environment.guest_word),
      vm_(vm),
      exits_(id_, environment.devices, environment.interrupts, environment.clock, &eoi_) {}

absl::StatusOr<std::unique_ptr<Vcpu>> Vcpu::Spawn(Vm* vm, VcpuConfig config, const VcpuEnvironment& environment) {
  HK_CHECK(vm != nullptr && environment.devices != nullptr && environment.interrupts != nullptr);
  InstallKickHandler();
  std::unique_ptr<Vcpu> vcpu(new Vcpu(vm, std::move(config), environment));
  // The thread is born with every signal blocked but the kick, so that no handler of the process runs on it.
  sigset_t blocked, before;
  sigfillset(&blocked);
  sigdelset(&blocked, KickSignal());
  HK_CHECK(pthread_sigmask(SIG_SETMASK, &blocked, &before) == 0);
  int error = 0;
  try {
    vcpu->thread_ = std::thread([raw = vcpu.get()] { raw->ThreadMain(); });
  } catch (const std::system_error& failed) {
    error = failed.code().value();
  }
  HK_CHECK(pthread_sigmask(SIG_SETMASK, &before, nullptr) == 0);
  if (error != 0) return ErrnoStatus(error, fmt::format("thread of vCPU {}", vcpu->id_.value()));
  pthread_setname_np(vcpu->thread_.native_handle(), fmt::format("vcpu{}", vcpu->id_.value()).c_str());
  return vcpu;
}

absl::StatusOr<std::unique_ptr<Vcpu>> Vcpu::Create(Vm* vm, VcpuConfig config, const VcpuEnvironment& environment) {
  HK_ASSIGN_OR_RETURN(std::unique_ptr<Vcpu> vcpu, Spawn(vm, std::move(config), environment));
  absl::Status made = vcpu->Execute([raw = vcpu.get()] { return raw->SetUp(); }, RealClock().Now() + kCreateLimit);
  if (!made.ok()) return WithContext(made, fmt::format("vCPU {}", vcpu->id_.value()));
  return vcpu;
}

absl::StatusOr<std::unique_ptr<Vcpu>> Vcpu::CreateEmpty(Vm* vm, VcpuConfig config, const VcpuEnvironment& environment) {
  HK_ASSIGN_OR_RETURN(std::unique_ptr<Vcpu> vcpu, Spawn(vm, std::move(config), environment));
  absl::Status made = vcpu->Execute([raw = vcpu.get()] { return raw->MakeTimer(); }, RealClock().Now() + kCreateLimit);
  if (!made.ok()) return WithContext(made, fmt::format("vCPU {}", vcpu->id_.value()));
  return vcpu;
}

absl::StatusOr<std::unique_ptr<Vcpu>> Vcpu::CreateFrom(Vm* vm, VcpuId id, VcpuState state,
                                                       const VcpuEnvironment& environment, Monotonic deadline) {
  VcpuConfig config = {.id = id, .cpuid = state.cpuid, .tsc_khz = state.tsc_khz, .tsc_offset = state.tsc_offset};
  HK_ASSIGN_OR_RETURN(std::unique_ptr<Vcpu> vcpu, Spawn(vm, std::move(config), environment));
  if (absl::Status made = vcpu->RestoreState(vm, std::move(state), deadline); !made.ok()) {
    return WithContext(made, fmt::format("vCPU {}", vcpu->id_.value()));
  }
  return vcpu;
}

Vcpu::~Vcpu() {
  if (!thread_.joinable()) return;
  while (!Stop(RealClock().Now() + std::chrono::seconds(5)).ok()) {
    log::Error("kvm", "a vCPU does not leave the guest", {{"vcpu", fmt::to_string(id_.value())}});
  }
  thread_.join();
}

absl::Status Vcpu::Start(const InitialCpuState& state, Monotonic deadline) {
  HK_RETURN_IF_ERROR(Execute([this, state] { return SetRegisters(state); }, deadline));
  return Resume();
}

absl::Status Vcpu::Resume() {
  {
    MutexLock lock(&mutex_);
    if (state_ == State::kFailed) return absl::FailedPreconditionError(failure_);
    if (wanted_ == Wanted::kFinished) {
      return absl::FailedPreconditionError(fmt::format("vCPU {} was stopped", id_.value()));
    }
  }
  Want(Wanted::kRunning);
  return absl::OkStatus();
}

void Vcpu::RequestPause() {
  Want(Wanted::kPaused);
}

absl::Status Vcpu::Pause(Monotonic deadline) {
  RequestPause();
  MutexLock lock(&mutex_);
  auto over = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return state_ != State::kRunning || wanted_ == Wanted::kRunning;
  };
  WaitFor(over, deadline);
  if (wanted_ == Wanted::kRunning) {
    return absl::AbortedError(fmt::format("vCPU {} was resumed before it had paused", id_.value()));
  }
  if (state_ == State::kRunning) {
    return absl::DeadlineExceededError(fmt::format("vCPU {} does not leave the guest", id_.value()));
  }
  if (state_ == State::kFinished) {
    return absl::FailedPreconditionError(fmt::format("vCPU {} was stopped", id_.value()));
  }
  return absl::OkStatus();
}

absl::StatusOr<VcpuState> Vcpu::SaveState(Monotonic deadline) {
  auto state = std::make_shared<VcpuState>();
  auto save = [this, state] {
    state->activity = activity_;
    if (environment_.clock != nullptr) state->clock = environment_.clock->Save(id_);
    state->pv_eoi_msr = eoi_.msr();
    return ReadVcpuState(fd_, vm_->facts(), state.get());
  };
  HK_RETURN_IF_ERROR(Execute(save, deadline));
  return std::move(*state);
}

absl::Status Vcpu::RestoreState(Vm* vm, VcpuState state, Monotonic deadline) {
  HK_CHECK(vm != nullptr);
  return Execute([this, vm, copy = std::make_shared<VcpuState>(std::move(state))] { return Replace(vm, *copy); },
                 deadline);
}

// Relative to what it has: the guest may have set its own.
absl::Status Vcpu::StepTsc(uint64_t ticks, Monotonic deadline) {
  const auto step = [this, ticks]() -> absl::Status {
    HK_ASSIGN_OR_RETURN(const uint64_t offset, ReadTscOffset(fd_));
    return WriteTscOffset(fd_, offset + ticks);
  };
  return Execute(step, deadline);
}

absl::Status Vcpu::Release(Monotonic deadline) {
  const auto park = [this]() -> absl::Status {
    // Paging off: KVM flushes the TLB when the next state brings page tables, even if they are at the same address.
    HK_RETURN_IF_ERROR(ApplyInit());
    if (timer_ != nullptr) timer_->SetRunPage(nullptr);
    VcpuFd fd;
    {
      MutexLock lock(&kick_mutex_);
      fd = std::exchange(fd_, VcpuFd());
    }
    vm_->ParkVcpu(id_, std::move(fd));
    return absl::OkStatus();
  };
  return Execute(park, deadline);
}

void Vcpu::RequestStop() {
  Want(Wanted::kFinished);
}

absl::Status Vcpu::Stop(Monotonic deadline) {
  RequestStop();
  MutexLock lock(&mutex_);
  if (WaitFor([this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return state_ == State::kFinished; }, deadline)) {
    return absl::OkStatus();
  }
  return absl::DeadlineExceededError(fmt::format("vCPU {} does not leave the guest", id_.value()));
}

absl::Status Vcpu::Kick(Monotonic deadline) {
  const uint64_t entries = entries_;
  Wake();
  MutexLock lock(&mutex_);
  if (WaitFor([this, entries] { return !in_kvm_ || entries_ != entries; }, deadline)) return absl::OkStatus();
  return absl::DeadlineExceededError(fmt::format("vCPU {} does not leave the guest", id_.value()));
}

VcpuCounters Vcpu::counters() const {
  VcpuCounters counters = exits_.Snapshot();
  counters.halted_ns = halted_ns_.load(std::memory_order_relaxed);
  if (const int64_t since = asleep_since_ns_.load(std::memory_order_relaxed); since != 0) {
    counters.halted_ns +=
        static_cast<uint64_t>(std::max<int64_t>(RealClock().Now().time_since_epoch().count() - since, 0));
  }
  counters.settling_ns = settling_ns_.load(std::memory_order_relaxed);
  counters.exits_ns = exits_ns_.load(std::memory_order_relaxed);
  return counters;
}

Vcpu::State Vcpu::state() const {
  MutexLock lock(&mutex_);
  return state_;
}

std::string Vcpu::failure() const {
  MutexLock lock(&mutex_);
  return failure_;
}

// A stop is final.
void Vcpu::Want(Wanted wanted) {
  {
    MutexLock lock(&mutex_);
    if (wanted_ == Wanted::kFinished) return;
    wanted_ = wanted;
    news_.Signal();
  }
  Wake();
}

absl::Status Vcpu::Execute(std::function<absl::Status()> action, Monotonic deadline) {
  auto command = std::make_shared<Command>();
  command->action = std::move(action);
  MutexLock lock(&mutex_);
  // A vCPU that was asked to run counts as running.
  if (state_ != State::kPaused || wanted_ != Wanted::kPaused) {
    return absl::FailedPreconditionError(fmt::format("vCPU {} is not paused", id_.value()));
  }
  commands_.push_back(command);
  news_.Signal();
  if (WaitFor([&command] { return command->done; }, deadline)) return command->result;
  // What has not begun never will.
  std::erase(commands_, command);
  return absl::DeadlineExceededError(fmt::format("vCPU {} is busy", id_.value()));
}

// Waits, and kicks the vCPU out of KVM_RUN again and again. False if the deadline came first.
template <typename Reached>
bool Vcpu::WaitFor(Reached reached, Monotonic deadline) {
  milliseconds interval = kFirstKickInterval;
  while (!reached()) {
    const Monotonic now = RealClock().Now();
    if (now >= deadline) return false;
    const Monotonic next = now + interval;
    changed_.WaitUntil(&mutex_, std::min(deadline, next));
    if (RealClock().Now() < next) continue;
    interval = std::min(2 * interval, kLastKickInterval);
    if (in_kvm_) KickOutOfKvm(true);
  }
  return true;
}

void Vcpu::Wake() {
  attention_ = true;
  if (in_kvm_) {
    KickOutOfKvm(false);
  } else if (asleep_) {
    MutexLock lock(&mutex_);
    news_.Signal();
  }
}

// Sets immediate_exit, then sends the signal: whichever side of KVM_RUN's entry the thread is on, one of them stops it.
// Unless `always`, a kick that is still under way is enough.
void Vcpu::KickOutOfKvm(bool always) {
  MutexLock lock(&kick_mutex_);
  if (!fd_.valid()) return;
  std::atomic_ref<uint8_t> immediate_exit(fd_.run()->immediate_exit);
  if (immediate_exit.exchange(1) != 0 && !always) return;
  pthread_kill(thread_.native_handle(), KickSignal());
}

}  // namespace hk
