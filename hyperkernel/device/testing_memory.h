// Guest memory for tests: plain memory of this process, no userfaultfd and no frame store.
#pragma once

#include <sys/mman.h>

#include <cstring>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mapping.h"
#include "hyperkernel/memory/guest_memory.h"

namespace hk {

// RAM in the given ranges. Read, Write and Pin are thread-safe.
class FakeGuestMemory final : public GuestMemory {
 public:
  explicit FakeGuestMemory(std::vector<RamRange> ranges) {
    for (const RamRange& range : ranges) {
      auto mapping = Mapping::Create(range.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, "test RAM");
      HK_CHECK(mapping.ok());
      mappings_.push_back(*std::move(mapping));
      slots_.push_back({.start = range.start, .bytes = range.bytes, .guest_view = nullptr});
    }
  }

  const std::vector<Slot>& slots() const override { return slots_; }
  uint64_t bytes() const override { return 0; }
  uint64_t frame_bytes() const override { return 0; }
  SpaceStatistics Statistics() const override { return {}; }
  std::vector<ExtentUse> Uses(uint64_t, size_t) const override { return {}; }
  absl::Status Read(Gpa from, std::span<std::byte> to) const override {
    std::byte* const start = Find(from, to.size());
    if (start == nullptr) return absl::OutOfRangeError("not RAM");
    std::memcpy(to.data(), start, to.size());
    return absl::OkStatus();
  }
  absl::Status Write(Gpa to, std::span<const std::byte> from) override {
    std::byte* const start = Find(to, from.size());
    if (start == nullptr) return absl::OutOfRangeError("not RAM");
    std::memcpy(start, from.data(), from.size());
    return absl::OkStatus();
  }
  absl::StatusOr<std::byte*> Pin(Gpa start, uint64_t bytes, PageAccess, PinnedPages*) override {
    if (exhausted) return absl::ResourceExhaustedError("no frame");
    std::byte* const found = Find(start, bytes);
    if (found == nullptr) return absl::OutOfRangeError("not RAM");
    return found;
  }
  // Where the guest sees `gpa`; nullptr if it is not RAM.
  std::byte* Find(Gpa gpa, uint64_t bytes) const {
    for (size_t i = 0; i < slots_.size(); ++i) {
      const uint64_t offset = gpa.value() - slots_[i].start.value();
      if (gpa >= slots_[i].start && offset < slots_[i].bytes && slots_[i].bytes - offset >= bytes) {
        return reinterpret_cast<std::byte*>(mappings_[i].data()) + offset;
      }
    }
    return nullptr;
  }

  bool exhausted = false;  // Pin fails

 private:
  std::vector<Mapping> mappings_;
  std::vector<Slot> slots_;
};

}  // namespace hk
