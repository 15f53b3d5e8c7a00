// The alarm of a vCPU's thread: gets it out of KVM_RUN when its local APIC's timer is due, without another thread in
// between. A POSIX timer sends the kick signal to the thread; its handler sets immediate_exit, so that an alarm which
// comes just before KVM_RUN is no loss (KVM API, "immediate_exit").
//
// It may go off early (it is not set back when the guest moves its timer later: most guests do so at every idle, and a
// rare look in vain is cheaper than a system call each time), never late.
#pragma once

#include <signal.h>

#include <atomic>
#include <ctime>
#include <memory>

#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/kvm/kvm_api.h"

namespace hk {

// Interrupts KVM_RUN: kicks (immediate_exit is set first, so one that comes just before KVM_RUN is no loss) and alarms.
inline int KickSignal() {
  return SIGRTMIN + 6;
}

// One thread's alarm. Made, used and destroyed by that thread, which has one at a time.
class VcpuTimer {
 public:
  // `signal` must have OnSignal as its handler (SA_SIGINFO) and be open in the calling thread. Errors: errno of
  // timer_create; EAGAIN means that the user's RLIMIT_SIGPENDING is used up.
  static absl::StatusOr<std::unique_ptr<VcpuTimer>> Create(int signal);
  ~VcpuTimer();
  VcpuTimer(const VcpuTimer&) = delete;
  VcpuTimer& operator=(const VcpuTimer&) = delete;

  // Handler of the signal. Signals that are not the alarm do nothing: whoever kicks a vCPU has set immediate_exit.
  static void OnSignal(int signal, siginfo_t* info, void* context);

  // Whose immediate_exit is set from now on; null: nobody's.
  void SetRunPage(kvm_run* run) { run_ = run; }
  // To be called before KVM_RUN, after immediate_exit was cleared: it will be set at `deadline` or before.
  // Monotonic::max(): need not be.
  void ArmFor(Monotonic deadline);

 private:
  VcpuTimer() = default;

  timer_t timer_ = {};
  Monotonic armed_ = Monotonic::max();
  std::atomic<bool> fired_ = false;
  std::atomic<kvm_run*> run_ = nullptr;
};

}  // namespace hk
