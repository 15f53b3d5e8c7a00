#include "hyperkernel/irq/apic_timer_thread.h"

#include <pthread.h>
#include <sys/prctl.h>

#include <algorithm>
#include <chrono>

#include "hyperkernel/base/check.h"

namespace hk {

namespace {

constexpr Monotonic::rep kChoosing = Monotonic::max().time_since_epoch().count();
// Every wait has an end (base/mutex.h); with no timer running this one is of no consequence.
constexpr auto kLongestSleep = std::chrono::seconds(60);
// The kernel's default lets a wake-up be 50 us late, which a guest's timers would all be.
constexpr unsigned long kTimerSlackNs = 1000;

}  // namespace

void ApicTimerThread::Start(InterruptController* controller) {
  HK_CHECK(!thread_.joinable());
  {
    MutexLock lock(&mutex_);
    stopping_ = false;
  }
  thread_ = std::thread([this, controller] { Run(controller); });
}

void ApicTimerThread::Stop() {
  if (!thread_.joinable()) {
    return;
  }
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  changed_.SignalAll();
  thread_.join();
}

// The deadline was published before this call. Either the thread's choice saw it, or the choice is older and its
// wake_at_ is what is compared here: `kChoosing` is stored before the deadlines are read (all sequentially consistent),
// and makes every deadline an earlier one.
void ApicTimerThread::Arm(Monotonic deadline) {
  if (deadline.time_since_epoch().count() >= wake_at_.load()) {
    return;
  }
  {
    MutexLock lock(&mutex_);
    if (deadline.time_since_epoch().count() >= wake_at_.load()) {
      return;
    }
    earlier_ = true;
  }
  changed_.Signal();
}

void ApicTimerThread::Run(InterruptController* controller) {
  pthread_setname_np(pthread_self(), "apic-timer");
  prctl(PR_SET_TIMERSLACK, kTimerSlackNs, 0, 0, 0);
  for (;;) {
    const Monotonic now = RealClock().Now();
    controller->OnTime(now);
    MutexLock lock(&mutex_);
    if (stopping_) {
      return;
    }
    earlier_ = false;
    wake_at_.store(kChoosing);
    const Monotonic latest = now + kLongestSleep;
    const Monotonic wake_at = std::min(controller->NextDeadline().value_or(latest), latest);
    wake_at_.store(wake_at.time_since_epoch().count());
    while (!earlier_ && !stopping_ && RealClock().Now() < wake_at) {
      changed_.WaitUntil(&mutex_, wake_at);
    }
  }
}

}  // namespace hk
