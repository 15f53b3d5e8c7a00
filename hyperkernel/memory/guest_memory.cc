#include "hyperkernel/memory/guest_memory.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <thread>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mapping.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/fault_stripe.h"
#include "hyperkernel/memory/frame_file.h"
#include "hyperkernel/memory/memory_meter.h"

namespace hk {
namespace {

// Filled around a touched page: a boot touches memory in runs, and a wake-up costs far more than the pages.
constexpr uint64_t kFaultAroundBytes = 64 << 10;

// Which pages have a frame. Bits are only ever set. Thread-safe.
class FrameBitmap {
 public:
  explicit FrameBitmap(uint64_t pages) : words_((pages + 63) / 64) {}
  bool AllSet(uint64_t first, uint64_t count) const {
    for (uint64_t page = first; page < first + count; page++) {
      if ((words_[page / 64].load(std::memory_order_acquire) >> (page % 64) & 1) == 0) return false;
    }
    return true;
  }
  // Returns how many were not set before.
  uint64_t Set(uint64_t first, uint64_t count) {
    uint64_t added = 0;
    for (uint64_t page = first; page < first + count; page++) {
      const uint64_t bit = uint64_t{1} << (page % 64);
      if ((words_[page / 64].fetch_or(bit, std::memory_order_acq_rel) & bit) == 0) added++;
    }
    count_.fetch_add(added, std::memory_order_relaxed);
    return added;
  }
  uint64_t count() const { return count_.load(std::memory_order_relaxed); }

 private:
  std::vector<std::atomic<uint64_t>> words_;
  std::atomic<uint64_t> count_{0};
};

// A RAM range and where it is in the file; the guest view is laid out as the file.
struct Range {
  RamRange ram;
  uint64_t offset = 0;
};

class FileGuestMemory final : public GuestMemory {
 public:
  FileGuestMemory(std::shared_ptr<FrameFile> file, std::vector<Range> ranges, FaultFailure on_failure)
      : file_(std::move(file)),
        ranges_(std::move(ranges)),
        frames_(file_->bytes() / kPageSize),
        pinned_for_good_(file_->bytes() / kPageSize),
        protection_((file_->bytes() + kStripeBytes - 1) / kStripeBytes),
        meter_((ranges_.back().ram.start.value() + ranges_.back().ram.bytes) / kPageSize),
        on_failure_(std::move(on_failure)) {}

  ~FileGuestMemory() override {
    stop_counting_ = true;
    if (counter_.joinable()) counter_.join();
  }

  // Makes both views. Called once, before anything else.
  absl::Status Map();
  // Finds out which pages of the file have frames already, on a thread of its own; until then they are not counted, and
  // filling one does nothing. REQUIRES: mapped; once.
  void CountFrames();

  const std::vector<Slot>& slots() const override { return slots_; }
  uint64_t bytes() const override { return file_->bytes(); }
  uint64_t frame_bytes() const override { return frames_.count() * kPageSize; }
  SpaceStatistics Statistics() const override { return meter_.Statistics(); }
  std::vector<ExtentUse> Uses(uint64_t first, size_t most) const override { return meter_.Uses(first, most); }
  absl::Status Read(Gpa from, std::span<std::byte> to) const override;
  absl::Status Write(Gpa to, std::span<const std::byte> from) override;
  absl::StatusOr<std::byte*> Pin(Gpa start, uint64_t bytes, PageAccess access, PinnedPages* pins) override;
  bool SetStoreListener(std::shared_ptr<StoreListener> listener) override {
    HK_CHECK(listener_ == nullptr);
    listener_ = std::move(listener);
    return true;
  }
  absl::Status ProtectForReplica(Gfn first, uint64_t pages) override;
  std::shared_ptr<FrameFile> frame_file() const override { return file_; }

 private:
  // Offset in the file of [start, start+bytes), which must lie in one range.
  absl::StatusOr<uint64_t> OffsetOf(Gpa start, uint64_t bytes) const;
  // A part of `from` that goes to file offset `offset`, in one stripe.
  absl::Status WritePart(uint64_t offset, std::span<const std::byte> from);
  // Gives every page of it a frame, and a pointer in the service view.
  absl::StatusOr<std::byte*> Populate(Gpa start, uint64_t bytes);
  // These pages of the file have frames now.
  void SetFilled(uint64_t first, uint64_t count);
  // Gives frames to all pages that [offset, offset+bytes) of the file touches.
  absl::Status Fill(uint64_t offset, uint64_t bytes);
  // A fault of the guest view at file offset `stripe` + `offset`. Returns what was filled.
  absl::StatusOr<ViewRange> OnFault(FaultStripe* view, uint64_t stripe, uint64_t stripe_bytes, uint64_t offset);

  // Tells the listener of the pages that [offset, offset+bytes) of the file touches.
  void TellOf(uint64_t offset, uint64_t bytes);
  // A store to a protected page of the guest view, at file offset `stripe` + `offset`. Returns the page.
  absl::StatusOr<ViewRange> OnProtected(FaultStripe* view, uint64_t stripe, uint64_t offset);
  Gfn GfnAt(uint64_t offset) const;
  Mutex& ProtectionOf(uint64_t offset) { return protection_[offset / kStripeBytes]; }

  const std::shared_ptr<FrameFile> file_;
  const std::vector<Range> ranges_;
  FrameBitmap frames_;
  FrameBitmap pinned_for_good_;  // for writing
  // One for each stripe: who tells of a store and permits it, or protects, holds it meanwhile.
  std::vector<Mutex> protection_;
  std::shared_ptr<StoreListener> listener_;  // null: nobody asks
  MemoryMeter meter_;
  const FaultFailure on_failure_;
  std::atomic<bool> failed_{false};
  Mapping guest_view_;
  ServiceView service_view_;
  std::vector<Slot> slots_;
  std::vector<std::unique_ptr<FaultStripe>> stripes_;  // after what their threads use
  std::atomic<bool> stop_counting_{false};
  std::thread counter_;
};

absl::Status FileGuestMemory::Map() {
  HK_ASSIGN_OR_RETURN(service_view_, ServiceView::Create(*file_));
  HK_ASSIGN_OR_RETURN(guest_view_, file_->MapGuestView());
  for (const Range& range : ranges_) {
    slots_.push_back(
        {range.ram.start, range.ram.bytes, reinterpret_cast<std::byte*>(guest_view_.data() + range.offset)});
  }
  for (uint64_t at = 0; at < bytes(); at += kStripeBytes) {
    const uint64_t size = std::min(kStripeBytes, bytes() - at);
    absl::StatusOr<std::unique_ptr<FaultStripe>> stripe =
        FaultStripe::Start(guest_view_.data() + at, size, [this, at, size](FaultStripe* view, ViewFault fault) {
          const ViewRange page{.start = fault.offset, .bytes = kPageSize};
          const Monotonic start = std::chrono::steady_clock::now();
          const absl::StatusOr<ViewRange> filled =
              fault.here ? OnProtected(view, at, fault.offset) : OnFault(view, at, size, fault.offset);
          if (!filled.ok()) view->MakeInaccessible(page);
          view->Wake(filled.ok() ? *filled : page);
          meter_.Waited(fault.write, std::chrono::steady_clock::now() - start);
        });
    if (!stripe.ok()) return stripe.status();
    stripes_.push_back(*std::move(stripe));
  }
  return absl::OkStatus();
}

void FileGuestMemory::CountFrames() {
  counter_ = std::thread([this] {
    const absl::Status status = file_->ForEachRun([this](uint64_t offset, uint64_t bytes) {
      for (uint64_t done = 0; done < bytes && !stop_counting_; done += kStripeBytes) {
        SetFilled((offset + done) / kPageSize, std::min(kStripeBytes, bytes - done) / kPageSize);
      }
      return !stop_counting_;
    });
    if (!status.ok()) log::Warning("guest", "its frames are not counted", {{"error", MessageOf(status)}});
  });
}

absl::StatusOr<uint64_t> FileGuestMemory::OffsetOf(Gpa start, uint64_t bytes) const {
  for (const Range& range : ranges_) {
    if (start < range.ram.start) break;
    const uint64_t inside = start.value() - range.ram.start.value();
    if (inside <= range.ram.bytes && bytes <= range.ram.bytes - inside) return range.offset + inside;
  }
  return absl::OutOfRangeError(fmt::format("{} bytes at guest-physical {:#x} are not RAM", bytes, start.value()));
}

void FileGuestMemory::SetFilled(uint64_t first, uint64_t count) {
  const Monotonic now = std::chrono::steady_clock::now();
  for (const Range& range : ranges_) {
    const uint64_t begin = range.offset / kPageSize, end = begin + range.ram.bytes / kPageSize;
    const uint64_t last = std::min(first + count, end);
    for (uint64_t page = std::max(first, begin); page < last;) {
      const uint64_t gfn = range.ram.start.value() / kPageSize + page - begin;
      const uint64_t pieces = std::min(last - page, kExtentPages - gfn % kExtentPages);
      meter_.Filled(Gfn(gfn), frames_.Set(page, pieces), now);
      page += pieces;
    }
  }
}

absl::Status FileGuestMemory::Fill(uint64_t offset, uint64_t bytes) {
  if (bytes == 0) return absl::OkStatus();
  const uint64_t first = offset / kPageSize, count = (offset + bytes - 1) / kPageSize - first + 1;
  if (frames_.AllSet(first, count)) return absl::OkStatus();
  HK_RETURN_IF_ERROR(file_->Allocate(first * kPageSize, count * kPageSize));
  SetFilled(first, count);
  return absl::OkStatus();
}

absl::StatusOr<ViewRange> FileGuestMemory::OnFault(FaultStripe* view, uint64_t stripe, uint64_t stripe_bytes,
                                                   uint64_t offset) {
  const uint64_t start = offset & ~(kFaultAroundBytes - 1);
  ViewRange around{.start = start, .bytes = std::min(kFaultAroundBytes, stripe_bytes - start)};
  if (view->FillHoles(around).ok()) {
    SetFilled((stripe + around.start) / kPageSize, around.bytes / kPageSize);
    return around;
  }
  // Memory or space is short: by fallocate, which says which.
  absl::Status filled = Fill(stripe + around.start, around.bytes);
  if (absl::IsResourceExhausted(filled)) {
    around = {.start = offset, .bytes = kPageSize};
    filled = Fill(stripe + offset, kPageSize);
  }
  if (filled.ok()) return around;
  if (!failed_.exchange(true)) on_failure_(filled);
  return filled;
}

absl::Status FileGuestMemory::Read(Gpa from, std::span<std::byte> to) const {
  HK_ASSIGN_OR_RETURN(const uint64_t offset, OffsetOf(from, to.size()));
  return file_->Read(offset, to);
}

Gfn FileGuestMemory::GfnAt(uint64_t offset) const {
  for (const Range& range : ranges_) {
    if (offset - range.offset < range.ram.bytes) return GfnOf(Gpa(range.ram.start.value() + (offset - range.offset)));
  }
  HK_CHECK(false);
}

void FileGuestMemory::TellOf(uint64_t offset, uint64_t bytes) {
  if (listener_ == nullptr || bytes == 0) return;
  for (uint64_t page = offset / kPageSize; page <= (offset + bytes - 1) / kPageSize; page++) {
    listener_->BeforeStore(GfnAt(page * kPageSize));
  }
}

absl::StatusOr<ViewRange> FileGuestMemory::OnProtected(FaultStripe* view, uint64_t stripe, uint64_t offset) {
  const ViewRange page{.start = offset, .bytes = kPageSize};
  absl::Status status;
  {
    MutexLock lock(&ProtectionOf(stripe));
    if (!HK_MUTANT(replica_guest_store_untold)) TellOf(stripe + offset, kPageSize);
    status = view->WriteProtect(page, false);
  }
  if (status.ok()) return page;
  if (!failed_.exchange(true)) on_failure_(WithContext(status, "a page cannot be made writable"));
  return status;
}

absl::Status FileGuestMemory::ProtectForReplica(Gfn first, uint64_t pages) {
  if (listener_ == nullptr) return absl::FailedPreconditionError("nobody listens to stores");
  if (pages == 0 || HK_MUTANT(replica_pages_unprotected)) return absl::OkStatus();
  HK_ASSIGN_OR_RETURN(const uint64_t start, OffsetOf(GpaOf(first), pages * kPageSize));
  const uint64_t end = start + pages * kPageSize;
  for (uint64_t at = start; at < end;) {
    const uint64_t stripe = at / kStripeBytes, part = std::min(end, (stripe + 1) * kStripeBytes) - at;
    MutexLock lock(&ProtectionOf(at));
    HK_RETURN_IF_ERROR(stripes_[stripe]->WriteProtect({.start = at - stripe * kStripeBytes, .bytes = part}, true));
    for (uint64_t page = at / kPageSize; page < (at + part) / kPageSize; page++) {
      if (pinned_for_good_.AllSet(page, 1)) TellOf(page * kPageSize, kPageSize);
    }
    at += part;
  }
  return absl::OkStatus();
}

absl::Status FileGuestMemory::Write(Gpa to, std::span<const std::byte> from) {
  HK_ASSIGN_OR_RETURN(const uint64_t offset, OffsetOf(to, from.size()));
  for (size_t done = 0; done < from.size();) {
    const uint64_t at = offset + done, in_stripe = kStripeBytes - at % kStripeBytes;
    const size_t part = std::min<uint64_t>(from.size() - done, in_stripe);
    MutexLock lock(&ProtectionOf(at));
    TellOf(at, part);
    HK_RETURN_IF_ERROR(WritePart(at, from.subspan(done, part)));
    done += part;
  }
  return absl::OkStatus();
}

absl::Status FileGuestMemory::WritePart(uint64_t offset, std::span<const std::byte> from) {
  if (from.size() < kPageSize) {
    HK_RETURN_IF_ERROR(Fill(offset, from.size()));
    std::memcpy(service_view_.data() + offset, from.data(), from.size());
    return absl::OkStatus();
  }
  // Much at once: a page that is new is filled where it is made, neither zeroed before nor faulted in by the copy.
  uint64_t done = 0;
  const absl::Status written = file_->Write(offset, from, &done);
  if (done > 0) SetFilled(offset / kPageSize, (offset + done - 1) / kPageSize - offset / kPageSize + 1);
  return written;
}

absl::StatusOr<std::byte*> FileGuestMemory::Populate(Gpa start, uint64_t bytes) {
  HK_ASSIGN_OR_RETURN(const uint64_t offset, OffsetOf(start, bytes));
  HK_RETURN_IF_ERROR(Fill(offset, bytes));
  return service_view_.data() + offset;
}

absl::StatusOr<std::byte*> FileGuestMemory::Pin(Gpa start, uint64_t bytes, PageAccess access, PinnedPages* pins) {
  HK_ASSIGN_OR_RETURN(std::byte* const at, Populate(start, bytes));
  if (access != PageAccess::kWrite || bytes == 0) return at;
  const auto offset = static_cast<uint64_t>(at - service_view_.data());
  // Before the listener is told: a protection that does not see it comes before that.
  if (pins == nullptr)
    pinned_for_good_.Set(offset / kPageSize, (offset + bytes - 1) / kPageSize - offset / kPageSize + 1);
  TellOf(offset, bytes);
  return at;
}

std::vector<Range> Place(const std::vector<RamRange>& ranges) {
  std::vector<Range> placed;
  uint64_t bytes = 0;
  for (const RamRange& ram : ranges) {
    HK_CHECK(ram.start.value() % kPageSize == 0 && ram.bytes % kPageSize == 0 && ram.bytes > 0);
    HK_CHECK(placed.empty() || placed.back().ram.start.value() + placed.back().ram.bytes <= ram.start.value());
    placed.push_back({ram, bytes});
    bytes += ram.bytes;
  }
  HK_CHECK(!placed.empty());
  return placed;
}

// Of the ranges, whose frames are one after another in a file of so many bytes.
absl::StatusOr<std::unique_ptr<FileGuestMemory>> MapPlaced(
    const std::vector<RamRange>& ranges,
    const std::function<absl::StatusOr<std::unique_ptr<FrameFile>>(uint64_t bytes)>& file_of,
    GuestMemory::FaultFailure on_failure) {
  std::vector<Range> placed = Place(ranges);
  const uint64_t bytes = placed.back().offset + placed.back().ram.bytes;
  HK_ASSIGN_OR_RETURN(std::unique_ptr<FrameFile> file, file_of(bytes));
  auto memory = std::make_unique<FileGuestMemory>(std::move(file), std::move(placed), std::move(on_failure));
  HK_RETURN_IF_ERROR(memory->Map());
  return memory;
}

}  // namespace

std::optional<uint64_t> FrameOffset(std::span<const RamRange> ranges, Gfn page) {
  uint64_t offset = 0;
  for (const RamRange& range : ranges) {
    const uint64_t inside = GpaOf(page).value() - range.start.value();
    if (inside < range.bytes) return offset + inside;
    offset += range.bytes;
  }
  return std::nullopt;
}

absl::StatusOr<std::unique_ptr<GuestMemory>> GuestMemory::Create(const FrameStore& frames, const std::string& name,
                                                                 uint64_t generation, std::vector<RamRange> ranges,
                                                                 FaultFailure on_failure) {
  return MapPlaced(
      ranges, [&](uint64_t bytes) { return FrameFile::Create(frames, name, generation, bytes, bytes); },
      std::move(on_failure));
}

absl::StatusOr<std::unique_ptr<GuestMemory>> GuestMemory::Reopen(const FrameStore& frames, const std::string& name,
                                                                 uint64_t generation, uint64_t inode,
                                                                 std::vector<RamRange> ranges,
                                                                 FaultFailure on_failure) {
  HK_ASSIGN_OR_RETURN(
      std::unique_ptr<FileGuestMemory> memory,
      MapPlaced(
          ranges, [&](uint64_t bytes) { return FrameFile::Reopen(frames, name, generation, bytes, inode); },
          std::move(on_failure)));
  memory->CountFrames();
  return memory;
}

}  // namespace hk
