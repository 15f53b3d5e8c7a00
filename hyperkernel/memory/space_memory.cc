#include "hyperkernel/memory/space_memory.h"

#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

class SpaceMemory final : public GuestMemory {
 public:
  SpaceMemory(std::shared_ptr<GuestSpace> space, uint64_t most_pinned_bytes, std::vector<Slot> slots, uint64_t bytes,
              const Clock& clock)
      : space_(std::move(space)),
        most_pinned_bytes_(most_pinned_bytes),
        slots_(std::move(slots)),
        bytes_(bytes),
        clock_(clock) {}

  const std::vector<Slot>& slots() const override { return slots_; }
  uint64_t bytes() const override { return bytes_; }
  uint64_t frame_bytes() const override { return space_->frame_bytes(); }
  SpaceStatistics Statistics() const override { return space_->Statistics(); }
  std::vector<ExtentUse> Uses(uint64_t first, size_t most) const override { return space_->Uses(first, most); }
  absl::Status Read(Gpa from, std::span<std::byte> to) const override {
    HK_RETURN_IF_ERROR(CheckRam(from, to.size()));
    return space_->Read(from, to, clock_.Now() + kSpaceMemoryWait);
  }
  absl::Status Write(Gpa to, std::span<const std::byte> from) override {
    HK_RETURN_IF_ERROR(CheckRam(to, from.size()));
    return space_->Write(to, from, clock_.Now() + kSpaceMemoryWait);
  }
  absl::StatusOr<std::byte*> Pin(Gpa start, uint64_t bytes, PageAccess access, PinnedPages* pins) override {
    HK_RETURN_IF_ERROR(CheckRam(start, bytes));
    if (bytes > most_pinned_bytes_) {
      return absl::InvalidArgumentError(
          fmt::format("{} bytes at once; at most {} of this node's memory may be pinned", bytes, most_pinned_bytes_));
    }
    absl::StatusOr<PinnedPages> pinned = space_->Pin(start, bytes, access, clock_.Now() + kSpaceMemoryWait);
    if (!pinned.ok()) return NotNow(pinned.status());
    *pins = *std::move(pinned);
    // Pins are those of writers, whatever the access (guest_space.h).
    return const_cast<std::byte*>(pins->bytes().data());
  }
  uint64_t most_pinned_bytes() const override { return most_pinned_bytes_; }
  absl::Status state() const override { return space_->state(); }
  FaultMeter* faults() override { return space_->faults(); }
  void Abandon() override { space_->engine().Stop(absl::CancelledError("the guest is stopped")); }

 private:
  // A Pin's error in the words of GuestMemory::Pin.
  absl::Status NotNow(const absl::Status& status) const {
    if (!space_->state().ok()) return absl::UnavailableError(MessageOf(status));
    const bool later = absl::IsResourceExhausted(status) || absl::IsDeadlineExceeded(status);
    return later ? absl::AbortedError(MessageOf(status)) : status;
  }
  // [start, start+bytes) lies within one RAM range.
  absl::Status CheckRam(Gpa start, uint64_t bytes) const {
    for (const Slot& slot : slots_) {
      const uint64_t inside = start.value() - slot.start.value();
      if (start >= slot.start && inside <= slot.bytes && bytes <= slot.bytes - inside) return absl::OkStatus();
    }
    return absl::OutOfRangeError(fmt::format("{} bytes at guest-physical {:#x} are not RAM", bytes, start.value()));
  }

  const std::shared_ptr<GuestSpace> space_;
  const uint64_t most_pinned_bytes_;
  const std::vector<Slot> slots_;
  const uint64_t bytes_;
  const Clock& clock_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GuestMemory>> MakeSpaceMemory(std::shared_ptr<GuestSpace> space,
                                                             const std::vector<RamRange>& ranges, const Clock& clock) {
  HK_CHECK(!ranges.empty());
  std::vector<GuestMemory::Slot> slots;
  uint64_t bytes = 0;
  for (const RamRange& range : ranges) {
    HK_CHECK(range.start.value() % kPageSize == 0 && range.bytes % kPageSize == 0 && range.bytes > 0);
    HK_CHECK(slots.empty() || slots.back().start.value() + slots.back().bytes <= range.start.value());
    if (range.start.value() >= space->bytes() || range.bytes > space->bytes() - range.start.value()) {
      return absl::InvalidArgumentError(fmt::format("{} bytes at guest-physical {:#x} are not in the space of {} bytes",
                                                    range.bytes, range.start.value(), space->bytes()));
    }
    slots.push_back({.start = range.start, .bytes = range.bytes, .guest_view = space->view() + range.start.value()});
    bytes += range.bytes;
  }
  const uint64_t most_pinned_bytes = space->most_pinned_bytes();
  return std::make_unique<SpaceMemory>(std::move(space), most_pinned_bytes, std::move(slots), bytes, clock);
}

}  // namespace hk
