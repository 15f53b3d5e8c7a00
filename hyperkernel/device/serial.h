// A 16550A UART (National Semiconductor PC16550D data sheet), as Linux's 8250 driver needs it: transmission takes no
// time, so the transmitter is always empty; line speed and modem wires are stored and mean nothing.
//
// Thread-safe. The output callback and the interrupt sink are called after unlocking.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/device/interrupt_line.h"
#include "hyperkernel/device/io_handler.h"

namespace hk {

// One serial port of 8 registers.
class Serial final : public IoHandler {
 public:
  static constexpr size_t kInputLimit = 4096;

  // Gets every byte the guest sends, from the vCPU's thread: it must not block. `room` is called when input was
  // refused earlier and there is room now; it may call Input.
  struct Callbacks {
    std::function<void(std::span<const std::byte>)> output;
    std::function<void()> room;
  };

  // `interrupts` outlives the port.
  Serial(InterruptSink* interrupts, uint8_t pin, Callbacks callbacks);

  // Queues input for the guest; returns how many bytes were taken (the rest is the caller's: back-pressure).
  size_t Input(std::span<const std::byte> data);
  // As after power-on: registers and queued input are gone.
  void Reset();
  // What a later object of the same kind goes on with (README.md, "Saved state"), and becoming that. REQUIRES: no other
  // call is under way. Errors: kInvalidArgument in one line; the object is good for nothing but its destructor then.
  std::vector<std::byte> SaveState();
  absl::Status RestoreState(std::span<const std::byte> bytes);

  void Read(uint64_t offset, std::span<std::byte> data) override;
  void Write(uint64_t offset, std::span<const std::byte> data) override;

 private:
  // Register offsets; two of them change with the divisor latch bit.
  enum Register : uint64_t { kData = 0, kIer = 1, kIirFcr = 2, kLcr = 3, kMcr = 4, kLsr = 5, kMsr = 6, kScratch = 7 };

  uint8_t ReadRegister(uint64_t offset) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // True if `value` is to be sent to the output.
  bool WriteRegister(uint64_t offset, uint8_t value) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // True once when input was refused and half of the queue is free: a writer of bytes is not woken for each one.
  bool TakeRoom() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  uint8_t InterruptIdentity() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  uint8_t ModemStatus() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  template <typename Archive>
  void Fields(Archive& a) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool PushInput(uint8_t value) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  uint8_t PopInput() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Callbacks callbacks_;
  InterruptLine line_;
  Mutex mutex_;
  uint8_t ier_ ABSL_GUARDED_BY(mutex_) = 0;
  uint8_t fcr_ ABSL_GUARDED_BY(mutex_) = 0;
  uint8_t lcr_ ABSL_GUARDED_BY(mutex_) = 0;
  uint8_t mcr_ ABSL_GUARDED_BY(mutex_) = 0;
  uint8_t scratch_ ABSL_GUARDED_BY(mutex_) = 0;
  uint16_t divisor_ ABSL_GUARDED_BY(mutex_) = 12;
  uint8_t msr_delta_ ABSL_GUARDED_BY(mutex_) = 0;
  bool transmit_interrupt_ ABSL_GUARDED_BY(mutex_) = false;
  bool overrun_ ABSL_GUARDED_BY(mutex_) = false;
  bool refused_ ABSL_GUARDED_BY(mutex_) = false;  // Input was refused since the last call of `room`
  std::array<uint8_t, kInputLimit> input_ ABSL_GUARDED_BY(mutex_);
  size_t input_first_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t input_count_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace hk
