// What a machine says to whom it belongs. Its own object, shared by all parts that say something, since some of them
// (memory and devices with I/O that does not end) may outlive the machine.
//
// Thread-safe. The events are called with the lock held, so that Silence waits for a call under way: they must not call
// back.
#pragma once

#include <string>
#include <string_view>

#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/node/machine.h"

namespace hk {

// A machine's way to its MachineEvents.
class MachineVoice {
 public:
  // `events` lives until Silence.
  explicit MachineVoice(MachineEvents* events) : events_(events) {}

  void Output(Channel channel, std::string_view bytes) {
    MutexLock lock(&mutex_);
    if (events_ != nullptr) events_->OnOutput(channel, bytes);
  }
  // The first end is told, no other.
  void End(MachineEnd end, const std::string& reason) {
    MutexLock lock(&mutex_);
    if (!end_is_news_) return;
    end_is_news_ = false;
    events_->OnEnd(end, reason);
  }
  // An end was told.
  bool HasEnded() {
    MutexLock lock(&mutex_);
    return !end_is_news_;
  }
  // The machine is being taken apart: its end is no news any more, its output still is.
  void ForgetEnd() {
    MutexLock lock(&mutex_);
    end_is_news_ = false;
  }
  // On return nothing calls the events, and nothing will.
  void Silence() {
    MutexLock lock(&mutex_);
    end_is_news_ = false;
    if (!HK_MUTANT(remains_speak)) events_ = nullptr;
  }

 private:
  Mutex mutex_;
  MachineEvents* events_ ABSL_GUARDED_BY(mutex_);
  bool end_is_news_ ABSL_GUARDED_BY(mutex_) = true;  // then there are events
};

}  // namespace hk
