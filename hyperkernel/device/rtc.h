// The CMOS real-time clock (Motorola MC146818A): the host's wall time in UTC, read-only to the guest, and 128 bytes of
// storage that last as long as the guest runs. No alarm and no periodic interrupt.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/device/io_handler.h"

namespace hk {

// Two ports: index and data. Thread-safe.
class Rtc final : public IoHandler {
 public:
  static constexpr uint64_t kPorts = 2;

  // `clock` outlives it.
  explicit Rtc(const Clock* clock) : clock_(clock) {}

  // As Serial's.
  std::vector<std::byte> SaveState();
  absl::Status RestoreState(std::span<const std::byte> bytes);

  void Read(uint64_t offset, std::span<std::byte> data) override;
  void Write(uint64_t offset, std::span<const std::byte> data) override;

 private:
  uint8_t Register(uint8_t index) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Clock* const clock_;
  Mutex mutex_;
  uint8_t index_ ABSL_GUARDED_BY(mutex_) = 0;
  std::array<uint8_t, 128> stored_ ABSL_GUARDED_BY(mutex_) = {};
};

}  // namespace hk
