// The thread that fires the local APICs' timers.
#pragma once

#include <thread>

#include "hyperkernel/base/mutex.h"
#include "hyperkernel/irq/interrupt_controller.h"

namespace hk {

// Runs from construction to destruction. Timers are as exact as the host's scheduler.
class ApicTimerThread {
 public:
  // `controller` and `clock` outlive it; `clock` is the one that the controller was given.
  ApicTimerThread(InterruptController* controller, const Clock& clock);
  ~ApicTimerThread();

 private:
  void Run();

  InterruptController* const controller_;
  const Clock& clock_;
  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool earlier_ ABSL_GUARDED_BY(mutex_) = false;  // a timer was set since the deadlines were looked at
  std::thread thread_;
};

}  // namespace hk
