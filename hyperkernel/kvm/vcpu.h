// One virtual CPU: a thread that runs it, and the commands that other threads give it.
//
//     Create -> Paused --Start/Resume--> Running --(guest fails)--> Failed --Stop--> Finished
//                 ^  <------Pause-------    |
//                 SaveState, RestoreState   +--Stop--> Finished
//
// Invariants:
//  1. The thread alone touches the vCPU's descriptor and run page, with one exception: kicks set immediate_exit, under
//     kick_mutex_, and the descriptor changes only under it.
//  2. Paused means: not in KVM_RUN, and no exit is half done: the registers are between two instructions.
//  3. No wake-up is lost: who has news sets attention_ and then looks where the thread is; the thread says where it
//  goes
//     and then looks at attention_.
//  4. Once a stop was asked for the guest runs no further instruction and no exit of it is acted on.
//  5. Pause, Kick, Stop and all commands end by their deadline, whatever KVM does.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/guest_access.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/irq/vcpu_interrupts.h"
#include "hyperkernel/kvm/boot_registers.h"
#include "hyperkernel/kvm/exit_handler.h"
#include "hyperkernel/kvm/kvm_api.h"
#include "hyperkernel/kvm/pv_clock.h"
#include "hyperkernel/kvm/pv_eoi.h"
#include "hyperkernel/kvm/thread_stall.h"
#include "hyperkernel/kvm/tick_pace.h"
#include "hyperkernel/kvm/vcpu_exits.h"
#include "hyperkernel/kvm/vcpu_state.h"
#include "hyperkernel/kvm/vcpu_timer.h"
#include "hyperkernel/kvm/vm.h"

namespace hk {

// How a vCPU is made. Plain value.
struct VcpuConfig {
  VcpuId id;
  std::vector<kvm_cpuid_entry2> cpuid;  // CpuModel::Cpuid
  uint32_t tsc_khz = 0;                 // 0: the host's rate
  uint64_t tsc_offset = 0;              // guest TSC - host TSC; equal for all vCPUs of the guest on this host
};

// Told of the threads that run vCPUs, by these threads, first and last. A vCPU that is renewed has two for a while.
class VcpuThreads {
 public:
  virtual ~VcpuThreads() = default;
  virtual void OnThread(VcpuId vcpu, uint32_t thread) = 0;
  virtual void OnThreadEnd(VcpuId vcpu, uint32_t thread) = 0;
  // By the thread itself: the guest has halted it, or it goes on.
  virtual void OnRest(uint32_t /*thread*/, bool /*rests*/) {}
  // By the thread itself, which was made to leave the guest (KickThread): the page for which it has just waited, if it
  // is to tell what the guest does with it. By OnAccess, then.
  virtual std::optional<Gfn> AskedFor(uint32_t /*thread*/) { return std::nullopt; }
  virtual void OnAccess(uint32_t /*thread*/, const GuestAccess& /*access*/) {}
};

// Makes the thread of a vCPU, which is in the guest or waits there for a page, leave it as soon as it can; it goes on
// at once. Never blocks. A thread that is elsewhere may miss it.
void KickThread(uint32_t thread);

// What a vCPU talks to. All outlive it.
struct VcpuEnvironment {
  ExitHandler* devices = nullptr;
  VcpuInterrupts* interrupts = nullptr;
  PvClock* clock = nullptr;            // may be null: no kvmclock
  PvEoi::WordAt guest_word = nullptr;  // may be null: no paravirtual EOI, and a guest that uses its MSR faults
  bool paced = false;                  // its pages may come from other nodes: tick_pace.h
  VcpuThreads* threads = nullptr;      // may be null
};

// One vCPU. Thread-safe. Who may call Wake() must be gone before the object: of a guest's vCPUs, stop all, then destroy
// the first. No method but Wake(), RequestPause() and RequestStop() may be called from a vCPU's thread,
// that is from ExitHandler or VcpuInterrupts.
class Vcpu {
 public:
  enum class State : uint8_t {
    kPaused,
    kRunning,   // or halted, or waiting for SIPI
    kFailed,    // the guest cannot go on; ExitHandler::OnGuestFailure was told
    kFinished,  // the thread is over, or about to be
  };

  // A vCPU in the INIT state that waits for SIPI, paused. Errors: what of it could not be made, with errno.
  static absl::StatusOr<std::unique_ptr<Vcpu>> Create(Vm* vm, VcpuConfig config, const VcpuEnvironment& environment);
  // One that has no state yet, and takes one by RestoreState alone: what of it takes time, its thread first of all, is
  // there. Errors: as Create.
  static absl::StatusOr<std::unique_ptr<Vcpu>> CreateEmpty(Vm* vm, VcpuConfig config,
                                                           const VcpuEnvironment& environment);
  // A vCPU that goes on from `state`, paused. Errors: as Create, and those of WriteVcpuState; kDeadlineExceeded.
  static absl::StatusOr<std::unique_ptr<Vcpu>> CreateFrom(Vm* vm, VcpuId id, VcpuState state,
                                                          const VcpuEnvironment& environment, Monotonic deadline);
  // Stops it; blocks until KVM_RUN has returned. Where that needs help (a page that never comes), Stop() first.
  ~Vcpu();
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;

  // Sets the registers and runs: the boot processor. Others are resumed and wait for SIPI. Errors: kFailedPrecondition
  // unless paused; kDeadlineExceeded; errno.
  absl::Status Start(const InitialCpuState& state, Monotonic deadline);
  // Runs on, at once or as soon as a pause still under way is done. Errors: kFailedPrecondition if failed or finished.
  absl::Status Resume();
  // Asks for a pause and returns at once; Pause() waits for it. A pause that missed its deadline is still asked for.
  void RequestPause();
  // Returns once the vCPU does not run (paused or failed). Errors: kDeadlineExceeded, kFailedPrecondition if finished,
  // kAborted if someone resumed it in between.
  absl::Status Pause(Monotonic deadline);

  // The whole state but the local APIC's. Errors: kFailedPrecondition unless paused; kDeadlineExceeded; errno.
  absl::StatusOr<VcpuState> SaveState(Monotonic deadline);
  // Becomes this state, in a KVM vCPU of `vm` that is not the present one (`vm` may be the present VM or another, which
  // must outlive this object from now on; the former VM is let go). On failure it is what it was. Errors: as SaveState,
  // and those of WriteVcpuState and Vm::TakeVcpu.
  absl::Status RestoreState(Vm* vm, VcpuState state, Monotonic deadline);
  // Its TSC is `ticks` further from now on. Errors: as SaveState.
  absl::Status StepTsc(uint64_t ticks, Monotonic deadline);
  // Parks its KVM vCPU with the VM, in the INIT state, for whoever has this id there next: the guest may change its
  // page tables meanwhile, and nothing here may remember them. Only RequestStop, Stop and Wake may follow. Errors: as
  // SaveState; it has it still.
  absl::Status Release(Monotonic deadline);

  // Asks for the end and returns at once; Stop() waits for it.
  void RequestStop();
  // Ends the thread. Errors: kDeadlineExceeded: KVM_RUN has not returned; may be called again.
  absl::Status Stop(Monotonic deadline);

  // Something changed for VcpuInterrupts::Peek: look at it soon. Never blocks for long; a system call only if the vCPU
  // is in KVM_RUN or asleep.
  void Wake();
  // Returns once the vCPU has been out of the guest at some moment after the call. Errors: kDeadlineExceeded.
  absl::Status Kick(Monotonic deadline);

  VcpuId id() const { return id_; }
  State state() const;
  // Why it failed; "" if it did not.
  std::string failure() const;
  VcpuCounters counters() const;

 private:
  // What other threads want of the vCPU.
  enum class Wanted : uint8_t { kPaused, kRunning, kFinished };
  // Work for the paused vCPU's thread.
  struct Command {
    std::function<absl::Status()> action;
    absl::Status result;
    bool done = false;  // guarded by mutex_
  };

  Vcpu(Vm* vm, VcpuConfig config, const VcpuEnvironment& environment);
  // A vCPU with a thread and nothing else.
  static absl::StatusOr<std::unique_ptr<Vcpu>> Spawn(Vm* vm, VcpuConfig config, const VcpuEnvironment& environment);

  // Any thread.
  absl::Status Execute(std::function<absl::Status()> action, Monotonic deadline) ABSL_LOCKS_EXCLUDED(mutex_);
  void Want(Wanted wanted) ABSL_LOCKS_EXCLUDED(mutex_);
  template <typename Reached>
  bool WaitFor(Reached reached, Monotonic deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void KickOutOfKvm(bool always) ABSL_LOCKS_EXCLUDED(kick_mutex_);

  // The vCPU's thread.
  void ThreadMain() ABSL_LOCKS_EXCLUDED(mutex_);
  bool Idle() ABSL_LOCKS_EXCLUDED(mutex_);
  bool RunGuest();
  // When the local APIC's timer is to be looked at.
  Monotonic TimerDue() const { return std::max(interrupts_.TimerDeadline(), timer_waits_until_); }
  void RunTimer();
  // But in the guest's halts. Nullopt: its timer is not paced.
  std::optional<ThreadWaits> Waits() const;
  bool PrepareEntry();
  bool DeliverInterrupt();
  bool Enter();
  bool Drain();
  bool HandleExit(int result, int error);
  void TellAccess();
  void Sleep() ABSL_LOCKS_EXCLUDED(mutex_);
  bool FailWith(const absl::Status& status);
  absl::Status SetUp();
  absl::Status MakeTimer();
  absl::Status SetRegisters(const InitialCpuState& state);
  absl::Status ApplyInit();
  absl::Status ApplySipi(uint8_t vector);
  absl::Status Replace(Vm* vm, const VcpuState& state);

  const VcpuId id_;
  const VcpuConfig config_;
  const VcpuEnvironment environment_;
  VcpuInterrupts& interrupts_;

  // Of the vCPU's thread.
  PvEoi eoi_;
  Vm* vm_;
  uint32_t thread_id_ = 0;
  VcpuActivity activity_ = VcpuActivity::kWaitForSipi;
  bool unfinished_exit_ = false;  // the exit is completed by the next KVM_RUN
  bool if_flag_ = false;          // RFLAGS.IF, as of the last KVM_RUN
  bool ready_ = false;            // KVM takes an interrupt now
  std::string why_failed_;
  std::unique_ptr<VcpuTimer> timer_;
  std::unique_ptr<ThreadStall> stall_;  // null: its timer is not paced
  ThreadWaits slept_;                   // of what it has waited: in the guest's halts
  TickPace pace_;
  Monotonic timer_waits_until_;
  VcpuExits exits_;

  // Where the thread is and whether it must look up. Sequentially consistent, see invariant 3.
  std::atomic<bool> attention_ = false;
  std::atomic<bool> in_kvm_ = false;
  std::atomic<bool> asleep_ = false;
  std::atomic<Wanted> wanted_ = Wanted::kPaused;  // changed under mutex_
  std::atomic<uint64_t> entries_ = 0;             // returns from KVM_RUN
  std::atomic<uint64_t> halted_ns_ = 0;           // or before SIPI; written by the thread alone
  std::atomic<int64_t> asleep_since_ns_ = 0;      // 0: it is not asleep; not yet in halted_ns_
  std::atomic<uint64_t> settling_ns_ = 0;         // the same
  std::atomic<uint64_t> exits_ns_ = 0;            // of a paced one: in exits that devices handle; the same

  Mutex kick_mutex_ ABSL_ACQUIRED_AFTER(mutex_);
  VcpuFd fd_;  // changed by the vCPU's thread under kick_mutex_; kicks read it under it

  mutable Mutex mutex_;
  CondVar news_;     // for the vCPU's thread
  CondVar changed_;  // for those who wait for it
  State state_ ABSL_GUARDED_BY(mutex_) = State::kPaused;
  std::string failure_ ABSL_GUARDED_BY(mutex_);
  std::deque<std::shared_ptr<Command>> commands_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace hk
