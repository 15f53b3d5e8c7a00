// The inside of a vCPU: what its thread does.
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/kvm/guest_access_reader.h"
#include "hyperkernel/kvm/vcpu.h"

namespace hk {
namespace {

// Bits of IA32_APIC_BASE (SDM vol. 3, 11.4.4 and 11.12.1), for a VcpuInterrupts that does not say.
constexpr uint32_t kMsrApicBase = 0x1b;
constexpr uint64_t kDefaultApicBase = 0xfee00000 | 1 << 11 | 1 << 10;  // enabled, x2APIC
constexpr uint64_t kApicBaseBoot = 1 << 8;
constexpr uint64_t kRflagsIf = 1 << 9;
// Events taken before one entry; more wait for the next.
constexpr int kMostEvents = 16;
// An instruction can need many KVM_RUNs to finish (REP MOVS between devices: KVM re-enters the guest every 1024 rounds
// at the latest); none needs this many.
constexpr int kMostDrainRounds = 1 << 14;
constexpr std::chrono::hours kLongTime{1};
// The kernel's default lets a wake-up be 50 us late, which all timers of a halted guest would be.
constexpr unsigned long kTimerSlackNs = 1000;

void SetImmediateExit(const VcpuFd& fd, uint8_t value) {
  std::atomic_ref<uint8_t>(fd.run()->immediate_exit).store(value);
}

// One writer: no locked instruction needed.
void AddTime(std::atomic<uint64_t>* sum, Monotonic::duration time) {
  const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(time).count();
  sum->store(sum->load(std::memory_order_relaxed) + static_cast<uint64_t>(ns), std::memory_order_relaxed);
}

template <typename T>
absl::Status Call(const VcpuFd& fd, unsigned long request, T* argument, const char* name) {
  if (ioctl(fd.get(), request, argument) < 0) return ErrnoStatus(errno, name);
  return absl::OkStatus();
}

uint32_t CpuSignature(const std::vector<kvm_cpuid_entry2>& cpuid) {
  for (const kvm_cpuid_entry2& entry : cpuid) {
    if (entry.function == 1) return entry.eax;
  }
  return 0;
}

// Whether KVM would take an interrupt before the next instruction, as it says itself after a KVM_RUN. An interrupt that
// ends a HLT must not come an instruction later because the vCPU was moved meanwhile.
bool TakesInterrupt(const VcpuState& state) {
  const kvm_vcpu_events& events = state.events;
  const bool busy = events.exception.injected != 0 || events.exception.pending != 0 || events.interrupt.injected != 0 ||
                    events.interrupt.shadow != 0 || events.nmi.injected != 0 || events.nmi.pending != 0;
  return (state.regs.rflags & kRflagsIf) != 0 && !busy;
}

}  // namespace

void Vcpu::ThreadMain() {
  ::prctl(PR_SET_TIMERSLACK, kTimerSlackNs, 0, 0, 0);
  if (environment_.paced) stall_ = ThreadStall::OfThisThread();
  if (stall_ != nullptr) interrupts_.PaceTimer();
  const auto thread = static_cast<uint32_t>(::gettid());
  thread_id_ = thread;
  if (environment_.threads != nullptr) environment_.threads->OnThread(id_, thread);
  while (Idle()) {
    const bool going = RunGuest();
    {
      MutexLock lock(&mutex_);
      state_ = going ? State::kPaused : State::kFailed;
      failure_ = why_failed_;
      changed_.SignalAll();
    }
    if (!going) environment_.devices->OnGuestFailure(id_, why_failed_);
  }
  timer_.reset();
  stall_.reset();
  if (environment_.threads != nullptr) environment_.threads->OnThreadEnd(id_, thread);
}

// Executes commands until the guest is to run: true. False: the thread is to end.
bool Vcpu::Idle() {
  MutexLock lock(&mutex_);
  while (true) {
    if (wanted_ == Wanted::kFinished) {
      for (auto& command : std::exchange(commands_, {})) {
        command->result = absl::FailedPreconditionError(fmt::format("vCPU {} was stopped", id_.value()));
        command->done = true;
      }
      state_ = State::kFinished;
      changed_.SignalAll();
      return false;
    }
    if (!commands_.empty()) {
      std::shared_ptr<Command> command = std::move(commands_.front());
      commands_.pop_front();
      mutex_.Unlock();
      absl::Status result = command->action();
      mutex_.Lock();
      command->result = std::move(result);
      command->done = true;
      changed_.SignalAll();
      continue;
    }
    if (wanted_ == Wanted::kRunning && state_ == State::kPaused) {
      state_ = State::kRunning;
      return true;
    }
    news_.WaitUntil(&mutex_, std::chrono::steady_clock::now() + kLongTime);
  }
}

// True: a pause or stop was asked for (and before a pause the last exit is finished). False: the guest failed.
bool Vcpu::RunGuest() {
  while (true) {
    SetImmediateExit(fd_, 0);
    attention_ = false;
    switch (wanted_.load()) {
      case Wanted::kFinished:
        return true;
      case Wanted::kPaused:
        return HK_MUTANT(pause_leaves_exits_open) || Drain();
      case Wanted::kRunning:
        break;
    }
    RunTimer();
    if (!PrepareEntry()) return false;
    if (activity_ != VcpuActivity::kRunning || (!interrupts_.Settled() && !HK_MUTANT(vcpu_enters_unsettled))) {
      Sleep();
    } else if (!Enter()) {
      return false;
    }
  }
}

void Vcpu::RunTimer() {
  const Monotonic due = TimerDue();
  if (due == Monotonic::max()) return;
  const Monotonic now = RealClock().Now();
  if (due > now) return;
  if (const std::optional<ThreadWaits> waits = Waits(); waits.has_value()) {
    timer_waits_until_ = pace_.Next(now, *waits);
    if (timer_waits_until_ > now && !HK_MUTANT(timer_not_paced)) return;
    pace_.Interrupted(now, *waits);
  }
  interrupts_.RunTimer(now);
}

std::optional<ThreadWaits> Vcpu::Waits() const {
  std::optional<ThreadWaits> waits = stall_ == nullptr ? std::nullopt : stall_->Get();
  if (!waits.has_value()) return waits;
  return ThreadWaits{.stalled = waits->stalled - slept_.stalled, .ready = waits->ready - slept_.ready};
}

// Whether KVM, when it completes this exit, may find that the instruction faults: an MSR that we refused; a read whose
// value goes to memory (INS, MOVS). An interrupt injected before would be given up for the exception, its bit in
// service for good; the window comes after the completion.
bool MayEndInException(const kvm_run& run) {
  switch (run.exit_reason) {
    case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR:
      return run.msr.error != 0;
    case KVM_EXIT_IO:
      return run.io.direction == KVM_EXIT_IO_IN;
    case KVM_EXIT_MMIO:
      return run.mmio.is_write == 0;
    default:
      return false;
  }
}

// Acts on what the local APIC has for this vCPU.
bool Vcpu::PrepareEntry() {
  fd_.run()->request_interrupt_window = 0;
  for (int i = 0; i < kMostEvents; ++i) {
    const VcpuWork work = interrupts_.Peek();
    switch (work.kind) {
      case VcpuWork::Kind::kNone:
        return true;
      case VcpuWork::Kind::kInterrupt:
        // Without an interrupt that can be delivered now the vCPU goes on as it is.
        if (!DeliverInterrupt()) return why_failed_.empty();
        break;
      case VcpuWork::Kind::kNmi:
        interrupts_.Take(work);
        if (activity_ == VcpuActivity::kWaitForSipi) break;  // INIT has cleared it
        if (ioctl(fd_.get(), KVM_NMI, 0) < 0) return FailWith(ErrnoStatus(errno, "KVM_NMI"));
        exits_.CountNmi();
        activity_ = VcpuActivity::kRunning;
        break;
      case VcpuWork::Kind::kInit:
        if (!Drain()) return false;
        interrupts_.Take(work);
        if (absl::Status status = ApplyInit(); !status.ok()) return FailWith(status);
        break;
      case VcpuWork::Kind::kSipi:
        interrupts_.Take(work);
        if (activity_ != VcpuActivity::kWaitForSipi) break;  // SDM vol. 3, 9.4.4: ignored
        if (absl::Status status = ApplySipi(work.vector); !status.ok()) return FailWith(status);
        break;
    }
  }
  attention_ = true;
  return true;
}

// KVM API 4.16. False: not now (a window was asked for, if that helps), or failure.
bool Vcpu::DeliverInterrupt() {
  if (activity_ == VcpuActivity::kWaitForSipi) return false;
  if (activity_ == VcpuActivity::kHalted) {
    if (!if_flag_) return false;
    activity_ = VcpuActivity::kRunning;
  }
  if (!ready_ || !if_flag_) {
    fd_.run()->request_interrupt_window = 1;
    return false;
  }
  const std::optional<uint8_t> vector = interrupts_.Acknowledge();
  if (!vector.has_value()) return true;
  kvm_interrupt interrupt = {.irq = *vector};
  if (ioctl(fd_.get(), KVM_INTERRUPT, &interrupt) < 0) {
    FailWith(ErrnoStatus(errno, "KVM_INTERRUPT"));
    return false;
  }
  exits_.CountInterrupt();
  ready_ = false;  // a second one would overwrite it
  eoi_.Offer(&interrupts_);
  return true;
}

bool Vcpu::Enter() {
  kvm_run* run = fd_.run();
  const uint8_t cr8 = interrupts_.Cr8();
  run->cr8 = cr8;
  timer_->ArmFor(TimerDue());
  in_kvm_ = true;
  if (attention_) {
    in_kvm_ = false;
    eoi_.Settle(&interrupts_);
    return true;
  }
  const int result = ioctl(fd_.get(), KVM_RUN, 0);
  const int error = errno;
  ++entries_;
  in_kvm_ = false;
  eoi_.Settle(&interrupts_);
  if (wanted_.load(std::memory_order_relaxed) == Wanted::kFinished) return true;
  unfinished_exit_ = false;
  if (run->cr8 != cr8) interrupts_.SetCr8(static_cast<uint8_t>(run->cr8));
  return HandleExit(result, error);
}

bool Vcpu::HandleExit(int result, int error) {
  kvm_run* run = fd_.run();
  ready_ = run->ready_for_interrupt_injection != 0;
  if_flag_ = run->if_flag != 0;
  VcpuExits::Next next = VcpuExits::Next::kRun;
  if (result >= 0) {
    unfinished_exit_ = run->exit_reason == KVM_EXIT_IO || run->exit_reason == KVM_EXIT_MMIO ||
                       run->exit_reason == KVM_EXIT_X86_RDMSR || run->exit_reason == KVM_EXIT_X86_WRMSR;
    const bool devices = run->exit_reason == KVM_EXIT_IO || run->exit_reason == KVM_EXIT_MMIO;
    const bool timed = devices && environment_.paced;
    const Monotonic begin = timed ? RealClock().Now() : Monotonic();
    next = exits_.Handle(fd_);
    if (timed) AddTime(&exits_ns_, RealClock().Now() - begin);
    if (MayEndInException(*run)) ready_ = false;
  } else if (error == EINTR || error == EAGAIN) {
    exits_.Count(VcpuExit::kSignal);
    TellAccess();
  } else {
    next = exits_.HandleRunError(fd_, error);
  }
  switch (next) {
    case VcpuExits::Next::kRun:
      return true;
    case VcpuExits::Next::kHalt:
      activity_ = VcpuActivity::kHalted;
      return true;
    case VcpuExits::Next::kFail:
      why_failed_ = exits_.failure();
      return false;
  }
  HK_CHECK(false);
}

// The instruction whose page it has waited for is the next one still.
void Vcpu::TellAccess() {
  if (environment_.threads == nullptr) return;
  const std::optional<Gfn> page = environment_.threads->AskedFor(thread_id_);
  if (!page.has_value()) return;
  if (const std::optional<GuestAccess> access = ReadGuestAccess(fd_, id_, *page); access.has_value())
    environment_.threads->OnAccess(thread_id_, *access);
}

// Port, MMIO and MSR exits are finished by the next KVM_RUN (KVM API, "kvm_run: immediate_exit"). It finishes them
// without running the guest; an instruction that has more to do exits again.
bool Vcpu::Drain() {
  for (int i = 0; unfinished_exit_; ++i) {
    if (wanted_ == Wanted::kFinished) return true;
    if (i >= kMostDrainRounds) return FailWith(absl::InternalError("an exit does not come to its end"));
    kvm_run* run = fd_.run();
    const uint8_t cr8 = interrupts_.Cr8();
    run->cr8 = cr8;
    SetImmediateExit(fd_, 1);
    in_kvm_ = true;  // finishing can wait for a page: kicks must reach it
    const int result = ioctl(fd_.get(), KVM_RUN, 0);
    const int error = errno;
    in_kvm_ = false;
    unfinished_exit_ = false;
    if (run->cr8 != cr8) interrupts_.SetCr8(static_cast<uint8_t>(run->cr8));
    if (!HandleExit(result, error)) return false;
  }
  SetImmediateExit(fd_, 0);
  return true;
}

// Halted, waiting for SIPI, or for other nodes (Settled): until someone wakes us, or the timer is due.
void Vcpu::Sleep() {
  const std::optional<ThreadWaits> before = Waits();
  const Monotonic begin = RealClock().Now();
  const Monotonic end = std::min(TimerDue(), begin + kLongTime);
  // What waits for other nodes is short, and told of when it is over.
  const bool settling = activity_ == VcpuActivity::kRunning;
  if (!settling) asleep_since_ns_.store(begin.time_since_epoch().count(), std::memory_order_relaxed);
  if (!settling && environment_.threads != nullptr) environment_.threads->OnRest(thread_id_, true);
  MutexLock lock(&mutex_);
  asleep_ = true;
  while (!attention_ && news_.WaitUntil(&mutex_, end)) {
  }
  asleep_ = false;
  asleep_since_ns_.store(0, std::memory_order_relaxed);
  if (!settling && environment_.threads != nullptr) environment_.threads->OnRest(thread_id_, false);
  AddTime(settling ? &settling_ns_ : &halted_ns_, RealClock().Now() - begin);
  if (!before.has_value()) return;
  const std::optional<ThreadWaits> after = Waits();
  if (!after.has_value()) return;
  slept_.stalled += after->stalled - before->stalled;
  slept_.ready += after->ready - before->ready;
}

bool Vcpu::FailWith(const absl::Status& status) {
  why_failed_ = fmt::format("vCPU {}: {}", id_.value(), MessageOf(status));
  return false;
}

absl::Status Vcpu::MakeTimer() {
  if (timer_ != nullptr) return absl::OkStatus();
  HK_ASSIGN_OR_RETURN(timer_, VcpuTimer::Create(KickSignal()));
  return absl::OkStatus();
}

absl::Status Vcpu::SetUp() {
  HK_RETURN_IF_ERROR(MakeTimer());
  absl::StatusOr<VcpuFd> fd = vm_->TakeVcpu(id_);
  if (!fd.ok()) return fd.status();
  HK_RETURN_IF_ERROR(WriteCpuid(*fd, config_.cpuid));
  HK_RETURN_IF_ERROR(WriteTscKhz(*fd, config_.tsc_khz));
  HK_RETURN_IF_ERROR(WriteTscOffset(*fd, config_.tsc_offset));
  {
    MutexLock lock(&kick_mutex_);
    fd_ = *std::move(fd);
  }
  timer_->SetRunPage(fd_.run());
  kvm_sregs sregs = {};
  HK_RETURN_IF_ERROR(Call(fd_, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS"));
  sregs.apic_base =
      interrupts_.ReadMsr(kMsrApicBase).value_or(kDefaultApicBase | (id_ == VcpuId(0) ? kApicBaseBoot : uint64_t{0}));
  HK_RETURN_IF_ERROR(Call(fd_, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS"));
  return ApplyInit();
}

absl::Status Vcpu::SetRegisters(const InitialCpuState& state) {
  kvm_sregs sregs = {};
  kvm_regs regs = {};
  HK_RETURN_IF_ERROR(Call(fd_, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS"));
  SetBootState(state, &sregs, &regs);
  HK_RETURN_IF_ERROR(Call(fd_, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS"));
  HK_RETURN_IF_ERROR(Call(fd_, KVM_SET_REGS, &regs, "KVM_SET_REGS"));
  activity_ = VcpuActivity::kRunning;
  return absl::OkStatus();
}

absl::Status Vcpu::ApplyInit() {
  eoi_.Settle(&interrupts_);  // an interrupt given just before
  kvm_sregs sregs = {};
  kvm_regs regs = {};
  kvm_debugregs debug = {};
  kvm_vcpu_events events = {};
  HK_RETURN_IF_ERROR(Call(fd_, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS"));
  SetInitState(CpuSignature(config_.cpuid), &sregs, &regs, &debug, &events);
  HK_RETURN_IF_ERROR(Call(fd_, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS"));
  HK_RETURN_IF_ERROR(Call(fd_, KVM_SET_REGS, &regs, "KVM_SET_REGS"));
  HK_RETURN_IF_ERROR(Call(fd_, KVM_SET_DEBUGREGS, &debug, "KVM_SET_DEBUGREGS"));
  HK_RETURN_IF_ERROR(Call(fd_, KVM_SET_VCPU_EVENTS, &events, "KVM_SET_VCPU_EVENTS"));
  activity_ = VcpuActivity::kWaitForSipi;
  if_flag_ = ready_ = false;
  static_cast<void>(eoi_.WriteMsr(0));
  return absl::OkStatus();
}

absl::Status Vcpu::ApplySipi(uint8_t vector) {
  kvm_sregs sregs = {};
  kvm_regs regs = {};
  HK_RETURN_IF_ERROR(Call(fd_, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS"));
  HK_RETURN_IF_ERROR(Call(fd_, KVM_GET_REGS, &regs, "KVM_GET_REGS"));
  SetSipiState(vector, &sregs, &regs);
  HK_RETURN_IF_ERROR(Call(fd_, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS"));
  HK_RETURN_IF_ERROR(Call(fd_, KVM_SET_REGS, &regs, "KVM_SET_REGS"));
  activity_ = VcpuActivity::kRunning;
  return absl::OkStatus();
}

absl::Status Vcpu::Replace(Vm* vm, const VcpuState& state) {
  HK_RETURN_IF_ERROR(MakeTimer());
  absl::StatusOr<VcpuFd> fresh = vm->TakeVcpu(id_);
  if (!fresh.ok()) return fresh.status();
  if (absl::Status status = WriteVcpuState(*fresh, vm->facts(), state); !status.ok()) {
    vm->ParkVcpu(id_, *std::move(fresh));
    return status;
  }
  VcpuFd old;
  {
    MutexLock lock(&kick_mutex_);
    old = std::exchange(fd_, *std::move(fresh));
  }
  timer_->SetRunPage(fd_.run());
  if (old.valid()) vm_->ParkVcpu(id_, std::move(old));
  vm_ = vm;
  activity_ = HK_MUTANT(restore_forgets_halt) ? VcpuActivity::kRunning : state.activity;
  if_flag_ = (state.regs.rflags & kRflagsIf) != 0;
  ready_ = TakesInterrupt(state);
  if (environment_.clock != nullptr) environment_.clock->Restore(id_, state.clock);
  static_cast<void>(eoi_.WriteMsr(state.pv_eoi_msr));  // refused: the guest writes the register, as it always may
  return absl::OkStatus();
}

}  // namespace hk
