// A bounded first-in-first-out queue of bytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

namespace hk {

// Holds at most `limit` bytes, allocated once. Not thread-safe.
class ByteQueue {
 public:
  explicit ByteQueue(size_t limit) : bytes_(limit) {}

  size_t size() const { return count_; }
  size_t room() const { return bytes_.size() - count_; }
  // Returns how many bytes were taken.
  size_t Push(std::span<const std::byte> data) {
    const size_t take = std::min(data.size(), room());
    for (size_t i = 0; i < take; ++i) bytes_[(first_ + count_ + i) % bytes_.size()] = data[i];
    count_ += take;
    return take;
  }
  // Returns how many bytes there were.
  size_t Pop(std::span<std::byte> data) {
    const size_t take = std::min(data.size(), count_);
    for (size_t i = 0; i < take; ++i) data[i] = bytes_[(first_ + i) % bytes_.size()];
    first_ = (first_ + take) % bytes_.size();
    count_ -= take;
    return take;
  }
  // What is in it, which stays.
  std::vector<std::byte> Copy() const {
    std::vector<std::byte> copy(count_);
    for (size_t i = 0; i < count_; ++i) copy[i] = bytes_[(first_ + i) % bytes_.size()];
    return copy;
  }
  void Clear() { first_ = count_ = 0; }

 private:
  std::vector<std::byte> bytes_;
  size_t first_ = 0;
  size_t count_ = 0;
};

}  // namespace hk
