// Dispatch of port and MMIO accesses to devices, by address.
//
// A Bus is thread-safe. An access finds its handler by binary search in a small sorted table under the bus' lock,
// copies (handler, offset) out, and calls the handler after unlocking: a slow device holds up nobody else, and a
// handler may itself change the bus (PCI BAR programming does). Hence a handler can be called once more shortly after
// its range was removed; handlers therefore outlive the vCPUs' use of the bus.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/device/io_handler.h"

namespace hk {

// One address space: ports, or MMIO.
class Bus {
 public:
  static constexpr size_t kMaxRanges = 256;

  // Gives [start, start + bytes) to `handler`, which is not owned and outlives the bus' use. Errors:
  // kInvalidArgument if the range is empty or wraps, kAlreadyExists if it overlaps another, kResourceExhausted.
  absl::Status Add(uint64_t start, uint64_t bytes, IoHandler* handler);
  // Takes the range that begins at `start` away. False if there is none.
  bool Remove(uint64_t start);

  // An access that no single range covers whole reads as all ones and is dropped when written.
  void Read(uint64_t address, std::span<std::byte> data);
  void Write(uint64_t address, std::span<const std::byte> data);

 private:
  struct Range {
    uint64_t start = 0;
    uint64_t bytes = 0;
    IoHandler* handler = nullptr;
  };

  // The range that covers the access, or one without handler.
  Range Find(uint64_t address, uint64_t bytes);
  // Index of the first range that starts after `address`.
  size_t FirstAfter(uint64_t address) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Mutex mutex_;
  std::array<Range, kMaxRanges> ranges_ ABSL_GUARDED_BY(mutex_);  // sorted by start, without overlap
  size_t count_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace hk
