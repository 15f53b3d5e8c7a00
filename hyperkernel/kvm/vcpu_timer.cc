#include "hyperkernel/kvm/vcpu_timer.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

// The thread's own, for the signal's handler.
thread_local VcpuTimer* current = nullptr;

static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<kvm_run*>::is_always_lock_free);

}  // namespace

absl::StatusOr<std::unique_ptr<VcpuTimer>> VcpuTimer::Create(int signal) {
  HK_CHECK(current == nullptr);
  std::unique_ptr<VcpuTimer> timer(new VcpuTimer());
  sigevent event = {};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = signal;
  event._sigev_un._tid = ::gettid();  // sigev_notify_thread_id, which glibc names only from 2.38 on
  if (::timer_create(CLOCK_MONOTONIC, &event, &timer->timer_) != 0) {
    return ErrnoStatus(errno, "timer_create");
  }
  current = timer.get();
  return timer;
}

VcpuTimer::~VcpuTimer() {
  if (current != this) return;  // was never made
  current = nullptr;
  HK_CHECK(::timer_delete(timer_) == 0);
}

void VcpuTimer::OnSignal(int, siginfo_t* info, void*) {
  VcpuTimer* const timer = current;
  if (info->si_code != SI_TIMER || timer == nullptr) return;
  timer->fired_ = true;
  if (kvm_run* const run = timer->run_; run != nullptr && !HK_MUTANT(alarm_before_entry_lost)) {
    std::atomic_ref<uint8_t>(run->immediate_exit).store(1);
  }
}

void VcpuTimer::ArmFor(Monotonic deadline) {
  if (fired_.exchange(false)) armed_ = Monotonic::max();
  if (deadline >= armed_) return;
  // A deadline in the past goes off at once; 0 would mean never.
  const auto at = std::max(deadline.time_since_epoch(), Monotonic::duration(1));
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(at);
  itimerspec when = {};
  when.it_value.tv_sec = static_cast<time_t>(seconds.count());
  when.it_value.tv_nsec = static_cast<long>(std::chrono::nanoseconds(at - seconds).count());
  HK_CHECK(::timer_settime(timer_, TIMER_ABSTIME, &when, nullptr) == 0);
  armed_ = deadline;
}

}  // namespace hk
