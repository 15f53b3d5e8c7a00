#include "hyperkernel/irq/apic_timer_thread.h"

namespace hk {
namespace {

// Looks up at least this often; a timer that is set wakes it earlier.
constexpr std::chrono::seconds kIdleWait(60);

}  // namespace

ApicTimerThread::ApicTimerThread(InterruptController* controller, const Clock& clock)
    : controller_(controller), clock_(clock) {
  controller_->SetTimerHook([this] {
    {
      MutexLock lock(&mutex_);
      earlier_ = true;
    }
    changed_.Signal();
  });
  thread_ = std::thread(&ApicTimerThread::Run, this);
}

ApicTimerThread::~ApicTimerThread() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  changed_.Signal();
  thread_.join();
  controller_->SetTimerHook(nullptr);
}

void ApicTimerThread::Run() {
  while (true) {
    {
      MutexLock lock(&mutex_);
      earlier_ = false;
    }
    const Monotonic next = controller_->NextDeadline().value_or(clock_.Now() + kIdleWait);
    {
      MutexLock lock(&mutex_);
      while (!stopping_ && !earlier_ && changed_.WaitUntil(&mutex_, next)) {
      }
      if (stopping_) return;
    }
    controller_->OnTime(clock_.Now());
  }
}

}  // namespace hk
