// An interrupt sink for tests: remembers what it was told.
#pragma once

#include <map>
#include <utility>
#include <vector>

#include "hyperkernel/base/mutex.h"
#include "hyperkernel/device/interrupt_line.h"

namespace hk {

// Records lines and messages. Thread-safe.
class RecordingInterrupts final : public InterruptSink {
 public:
  // A message as it was sent.
  using Msi = std::pair<uint64_t, uint32_t>;

  void SetLine(uint8_t pin, bool level) override {
    MutexLock lock(&mutex_);
    if (level && !levels_[pin]) ++rises_[pin];
    levels_[pin] = level;
  }
  void SendMsi(uint64_t address, uint32_t data) override {
    MutexLock lock(&mutex_);
    messages_.emplace_back(address, data);
  }
  bool level(uint8_t pin) {
    MutexLock lock(&mutex_);
    return levels_[pin];
  }
  int rises(uint8_t pin) {
    MutexLock lock(&mutex_);
    return rises_[pin];
  }
  std::vector<Msi> TakeMessages() {
    MutexLock lock(&mutex_);
    return std::exchange(messages_, {});
  }

 private:
  Mutex mutex_;
  std::map<uint8_t, bool> levels_ ABSL_GUARDED_BY(mutex_);
  std::map<uint8_t, int> rises_ ABSL_GUARDED_BY(mutex_);
  std::vector<Msi> messages_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hk
