// The ports by which a guest ends or resets itself, tells of a panic, and hears the power button; and the ACPI timer.
// All are thread-safe; callbacks run in the vCPU's thread without a lock and must not block.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/device/interrupt_line.h"
#include "hyperkernel/device/io_handler.h"

namespace hk {

// What a guest asks of its machine.
enum class GuestRequest : uint8_t {
  kReset,        // reset register
  kPowerOff,     // S5
  kPanicked,     // pvpanic: the guest's kernel panicked
  kCrashLoaded,  // pvpanic: it panicked and runs its crash kernel
};
// Told of each request; the vCPU goes on until the node stops it.
using GuestRequestSink = std::function<void(GuestRequest)>;

// The reset register (ACPI 4.8.3.6; the PC's port 0xcf9): a write with bit 2 resets.
class ResetPort final : public IoHandler {
 public:
  explicit ResetPort(GuestRequestSink sink) : sink_(std::move(sink)) {}
  void Read(uint64_t offset, std::span<std::byte> data) override;
  void Write(uint64_t offset, std::span<const std::byte> data) override;

 private:
  const GuestRequestSink sink_;
};

// Sleep control and status registers of reduced-hardware ACPI (ACPI 4.8.3.7), and the power button's status, from
// kPortPowerManagement on. Offsets: 0 sleep control, 1 sleep status, 2 events (bit 0: power button; write 1 to clear).
// The line to kPinAcpiEvents is high while an event is set: the DSDT's generic event device reads and clears it.
class PowerPorts final : public IoHandler {
 public:
  static constexpr uint64_t kPorts = 3;

  PowerPorts(InterruptSink* interrupts, uint8_t pin, GuestRequestSink sink)
      : sink_(std::move(sink)), line_(interrupts, pin) {}
  // As if a person pressed it.
  void PressPowerButton();
  void Reset();
  // As Serial's.
  std::vector<std::byte> SaveState();
  absl::Status RestoreState(std::span<const std::byte> bytes);
  void Read(uint64_t offset, std::span<std::byte> data) override;
  void Write(uint64_t offset, std::span<const std::byte> data) override;

 private:
  const GuestRequestSink sink_;
  InterruptLine line_;
  Mutex mutex_;
  uint8_t events_ ABSL_GUARDED_BY(mutex_) = 0;
};

// The ACPI power management timer (ACPI 4.8.2.1): 3.579545 MHz, 32 bits, read-only.
class PmTimer final : public IoHandler {
 public:
  static constexpr uint64_t kPorts = 4;

  // `clock` outlives it.
  explicit PmTimer(const Clock* clock) : clock_(clock), start_(clock->Now()) {}
  // As Serial's; `missed`: since it was saved. It has run on meanwhile.
  std::vector<std::byte> SaveState();
  absl::Status RestoreState(std::span<const std::byte> bytes, std::chrono::nanoseconds missed);
  void Read(uint64_t offset, std::span<std::byte> data) override;
  void Write(uint64_t offset, std::span<const std::byte> data) override;

 private:
  const Clock* const clock_;
  std::atomic<Monotonic> start_;
};

// The pvpanic port (QEMU docs/specs/pvpanic): reads as the events it knows, a write tells of one.
class Pvpanic final : public IoHandler {
 public:
  explicit Pvpanic(GuestRequestSink sink) : sink_(std::move(sink)) {}
  void Read(uint64_t offset, std::span<std::byte> data) override;
  void Write(uint64_t offset, std::span<const std::byte> data) override;

 private:
  const GuestRequestSink sink_;
};

}  // namespace hk
