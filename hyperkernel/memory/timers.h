// Timers of the host's clock, for a fault engine (space_engine.h).
#pragma once

#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/memory/space_engine.h"

namespace hk {

// One thread that runs what is due, in the order of the times, those of one time in the order of the calls. Runs come
// late, by a wake-up, never early. Thread-safe. What runs must not block: it delays the others.
class RealTimers final : public Timers {
 public:
  RealTimers();
  ~RealTimers() override { Stop(); }

  // Also inside a run. After Stop nothing happens.
  void After(Monotonic::duration delay, std::function<void()> run) override;
  // When it returned, nothing runs and nothing will; what was not due is dropped. Not inside a run.
  void Stop();

 private:
  // Plain value. A heap of them has the first on top.
  struct Timer {
    Monotonic at;
    uint64_t number = 0;  // of the call
    std::function<void()> run;
    bool operator<(const Timer& other) const { return at != other.at ? at > other.at : number > other.number; }
  };
  void Run();

  Mutex mutex_;
  CondVar changed_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t next_number_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<Timer> heap_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;  // last: it uses everything above
};

}  // namespace hk
