// How devices interrupt: a sink given at construction, and a line whose level is decided under the device's lock but
// delivered after unlocking.
#pragma once

#include <atomic>
#include <cstdint>

#include "hyperkernel/base/mutex.h"

namespace hk {

// Where interrupts go; the node puts the I/O APIC and the MSI router behind it. Thread-safe. Called without any lock of
// a device's registers held; it must not call back into the device.
class InterruptSink {
 public:
  virtual ~InterruptSink() = default;
  // Level of an I/O APIC pin. Whether a rise is an edge or a level is the pin's programming.
  virtual void SetLine(uint8_t pin, bool level) = 0;
  // A message-signalled interrupt, as written by the device (Intel SDM 3, 11.11).
  virtual void SendMsi(uint64_t address, uint32_t data) = 0;
};

// One wire to an I/O APIC pin. Set() under the device's lock records the level; Deliver() after unlocking tells the
// sink. Thread-safe. Whatever the order of deliveries, the sink ends with the newest level, and a fall between two
// deliveries is shown to it (an edge-triggered pin needs the rise that follows).
class InterruptLine {
 public:
  // `sink` outlives the line.
  InterruptLine(InterruptSink* sink, uint8_t pin) : sink_(sink), pin_(pin) {}

  // Calls are serialised by the device's lock.
  void Set(bool level) {
    const uint64_t old = wanted_.load(std::memory_order_relaxed);
    if (((old & 1) != 0) == level) return;
    wanted_.store(old + 1, std::memory_order_release);  // counts changes; the low bit is the level
  }
  void Deliver() {
    MutexLock lock(&mutex_);
    const uint64_t wanted = wanted_.load(std::memory_order_acquire);
    if (wanted == sent_) return;
    const bool had = (sent_ & 1) != 0;
    const bool has = (wanted & 1) != 0;
    if (had && has) sink_->SetLine(pin_, false);
    if (had || has) sink_->SetLine(pin_, has);
    sent_ = wanted;
  }

 private:
  InterruptSink* const sink_;
  const uint8_t pin_;
  std::atomic<uint64_t> wanted_ = 0;
  Mutex mutex_;  // orders deliveries
  uint64_t sent_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace hk
