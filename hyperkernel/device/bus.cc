#include "hyperkernel/device/bus.h"

#include <algorithm>

#include "fmt/format.h"

namespace hk {

size_t Bus::FirstAfter(uint64_t address) const {
  const auto end = ranges_.begin() + count_;
  return std::upper_bound(ranges_.begin(), end, address,
                          [](uint64_t value, const Range& range) { return value < range.start; }) -
         ranges_.begin();
}

absl::Status Bus::Add(uint64_t start, uint64_t bytes, IoHandler* handler) {
  if (bytes == 0 || start + (bytes - 1) < start) {
    return absl::InvalidArgumentError(fmt::format("bus range {:#x}+{:#x} is empty or wraps", start, bytes));
  }
  MutexLock lock(&mutex_);
  const size_t at = FirstAfter(start);
  const bool hits_previous = at > 0 && start - ranges_[at - 1].start < ranges_[at - 1].bytes;
  const bool hits_next = at < count_ && ranges_[at].start - start < bytes;
  if (hits_previous || hits_next) {
    return absl::AlreadyExistsError(fmt::format("bus range {:#x}+{:#x} overlaps another", start, bytes));
  }
  if (count_ == kMaxRanges) return absl::ResourceExhaustedError(fmt::format("bus has {} ranges", kMaxRanges));
  std::move_backward(ranges_.begin() + at, ranges_.begin() + count_, ranges_.begin() + count_ + 1);
  ranges_[at] = {.start = start, .bytes = bytes, .handler = handler};
  ++count_;
  return absl::OkStatus();
}

bool Bus::Remove(uint64_t start) {
  MutexLock lock(&mutex_);
  const size_t after = FirstAfter(start);
  if (after == 0 || ranges_[after - 1].start != start) return false;
  std::move(ranges_.begin() + after, ranges_.begin() + count_, ranges_.begin() + after - 1);
  --count_;
  return true;
}

Bus::Range Bus::Find(uint64_t address, uint64_t bytes) {
  MutexLock lock(&mutex_);
  const size_t after = FirstAfter(address);
  if (after == 0) return {};
  const Range& range = ranges_[after - 1];
  const uint64_t offset = address - range.start;
  if (offset >= range.bytes || range.bytes - offset < bytes) return {};
  return range;
}

void Bus::Read(uint64_t address, std::span<std::byte> data) {
  const Range range = Find(address, data.size());
  if (range.handler == nullptr) {
    FillOnes(data);
  } else {
    range.handler->Read(address - range.start, data);
  }
}

void Bus::Write(uint64_t address, std::span<const std::byte> data) {
  const Range range = Find(address, data.size());
  if (range.handler != nullptr) range.handler->Write(address - range.start, data);
}

}  // namespace hk
