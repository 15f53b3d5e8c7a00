// What answers a range of ports or MMIO, and the little-endian arithmetic of register accesses (x86 buses are
// little-endian; an access is 1 to 8 bytes).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace hk {

// The registers behind one range of a bus. Implementations are thread-safe: every vCPU thread calls them, without any
// lock of the bus held. `offset` is from the range's start, and offset + data.size() is within the range. A call may
// arrive a little after the range was moved.
class IoHandler {
 public:
  virtual ~IoHandler() = default;
  virtual void Read(uint64_t offset, std::span<std::byte> data) = 0;
  virtual void Write(uint64_t offset, std::span<const std::byte> data) = 0;
};

// The first 8 bytes of `data` as a number.
inline uint64_t LoadLe(std::span<const std::byte> data) {
  uint64_t value = 0;
  std::memcpy(&value, data.data(), std::min<size_t>(data.size(), sizeof(value)));
  return value;
}

// `value` into `data`; bytes beyond the eighth are zero.
inline void StoreLe(std::span<std::byte> data, uint64_t value) {
  std::fill(data.begin(), data.end(), std::byte{0});
  std::memcpy(data.data(), &value, std::min<size_t>(data.size(), sizeof(value)));
}

// What nobody answers: an undriven bus.
inline void FillOnes(std::span<std::byte> data) {
  std::fill(data.begin(), data.end(), std::byte{0xff});
}

// Copies the bytes of a register block that an access covers; beyond its end there are zeros.
inline void ReadBlock(std::span<const std::byte> block, uint64_t offset, std::span<std::byte> data) {
  for (size_t i = 0; i < data.size(); ++i) {
    const uint64_t at = offset + i;
    data[i] = at < block.size() ? block[at] : std::byte{0};
  }
}

}  // namespace hk
