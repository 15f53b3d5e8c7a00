// MSI-X table and pending bits of one function (PCI 3.0, 6.8.2).
//
// Thread-safe. Messages are sent after unlocking.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/device/interrupt_line.h"

namespace hk {

// The vectors of one function.
class MsixTable {
 public:
  static constexpr size_t kEntryBytes = 16;
  static constexpr uint16_t kMaxVectors = 128;

  // `sink` outlives the table. REQUIRES: 1 <= vectors <= kMaxVectors.
  MsixTable(InterruptSink* sink, uint16_t vectors);

  // As the capability's message control and the command register say. Bus mastering off holds messages back like the
  // function mask: a message is a memory write.
  void SetControl(bool enabled, bool function_masked, bool bus_master);
  bool enabled();
  // Sends the vector's message, or marks it pending. Vectors that do not exist are ignored. REQUIRES: enabled, else
  // nothing is sent.
  void Notify(uint16_t vector);
  // As after power-on: all masked, nothing pending, disabled.
  void Reset();
  // As Serial's. What of it is in the function's registers (SetControl) is not in it, and must be set after it.
  std::vector<std::byte> SaveState();
  absl::Status RestoreState(std::span<const std::byte> bytes);

  uint16_t vectors() const { return static_cast<uint16_t>(count_); }
  size_t table_bytes() const { return count_ * kEntryBytes; }
  size_t pending_bytes() const { return (count_ + 63) / 64 * 8; }
  void ReadTable(uint64_t offset, std::span<std::byte> data);
  void WriteTable(uint64_t offset, std::span<const std::byte> data);
  void ReadPending(uint64_t offset, std::span<std::byte> data);

 private:
  struct Entry {
    uint64_t address = 0;
    uint32_t data = 0;
    uint32_t control = 1;  // bit 0: masked
  };
  // Sends pending messages that are held back no more, each after unlocking.
  void SendPending();
  bool MaySend(const Entry& entry) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  InterruptSink* const sink_;
  const size_t count_;
  Mutex mutex_;
  bool enabled_ ABSL_GUARDED_BY(mutex_) = false;
  bool masked_ ABSL_GUARDED_BY(mutex_) = false;
  bool bus_master_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<Entry> entries_ ABSL_GUARDED_BY(mutex_);
  std::vector<bool> pending_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hk
