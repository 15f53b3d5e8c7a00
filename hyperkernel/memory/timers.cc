#include "hyperkernel/memory/timers.h"

#include <pthread.h>
#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "hyperkernel/base/service_thread.h"

namespace hk {
namespace {

// Nothing is due for so long: the thread looks again, for no reason.
constexpr std::chrono::hours kIdle{1};
// The kernel's own tolerance is 50 us, a quarter of a page's hold.
constexpr unsigned long kTimerSlackNs = 1000;

}  // namespace

RealTimers::RealTimers() : thread_(&RealTimers::Run, this) {}

void RealTimers::After(Monotonic::duration delay, std::function<void()> run) {
  const Monotonic at = std::chrono::steady_clock::now() + delay;
  MutexLock lock(&mutex_);
  if (stopped_) return;
  const bool first = heap_.empty() || at < heap_.front().at;
  heap_.push_back({.at = at, .number = next_number_++, .run = std::move(run)});
  std::push_heap(heap_.begin(), heap_.end());
  if (first) changed_.Signal();
}

void RealTimers::Stop() {
  {
    MutexLock lock(&mutex_);
    stopped_ = true;
    changed_.Signal();
  }
  if (thread_.joinable()) thread_.join();
  // What was captured is destroyed here, where nothing runs any more.
  std::vector<Timer> dropped;
  MutexLock lock(&mutex_);
  dropped.swap(heap_);
}

void RealTimers::Run() {
  ::pthread_setname_np(::pthread_self(), "hk-timers");
  ::prctl(PR_SET_TIMERSLACK, kTimerSlackNs);
  ServeFirst();
  mutex_.Lock();
  while (!stopped_) {
    const Monotonic now = std::chrono::steady_clock::now();
    if (heap_.empty() || heap_.front().at > now) {
      changed_.WaitUntil(&mutex_, heap_.empty() ? now + kIdle : heap_.front().at);
      continue;
    }
    std::pop_heap(heap_.begin(), heap_.end());
    {
      const std::function<void()> run = std::move(heap_.back().run);
      heap_.pop_back();
      mutex_.Unlock();
      run();
    }
    mutex_.Lock();
  }
  mutex_.Unlock();
}

}  // namespace hk
