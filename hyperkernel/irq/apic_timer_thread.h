// The host thread that runs a guest's APIC timers: sleeps until the earliest deadline of an InterruptController.
//
// Thread-safe. One thread for all vCPUs: an expiry is a wake-up of a vCPU, not work.
#pragma once

#include <atomic>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/irq/interrupt_controller.h"

namespace hk {

// The thread. Made before the controller that arms it, started after it, stopped before the controller goes.
class ApicTimerThread final : public TimerService {
 public:
  ApicTimerThread() = default;
  ~ApicTimerThread() override { Stop(); }
  ApicTimerThread(const ApicTimerThread&) = delete;
  ApicTimerThread& operator=(const ApicTimerThread&) = delete;

  // REQUIRES: not started. The controller's clock is RealClock().
  void Start(InterruptController* controller);
  // Timers do not expire any more until Start; deadlines set meanwhile are seen then. Idempotent.
  void Stop();
  void Arm(Monotonic deadline) override;

 private:
  void Run(InterruptController* controller);

  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool earlier_ ABSL_GUARDED_BY(mutex_) = false;  // a deadline before wake_at_ was set since it was chosen
  // When the thread will look again; the far future while it is choosing. Written under mutex_.
  std::atomic<Monotonic::rep> wake_at_{Monotonic::max().time_since_epoch().count()};
  std::thread thread_;
};

}  // namespace hk
