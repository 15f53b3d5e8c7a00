#include "hyperkernel/memory/guest_memory.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/mapping.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/fault_stripe.h"
#include "hyperkernel/memory/userfaultfd_trial.h"

namespace hk {
namespace {

// Filled around a touched page: a boot touches memory in runs, and a wake-up costs far more than the pages.
constexpr uint64_t kFaultAroundBytes = 64 << 10;
// Address space of one userfaultfd and its reader.
constexpr uint64_t kStripeBytes = uint64_t{1} << 30;

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
  void Set(uint64_t first, uint64_t count) {
    uint64_t added = 0;
    for (uint64_t page = first; page < first + count; page++) {
      const uint64_t bit = uint64_t{1} << (page % 64);
      if ((words_[page / 64].fetch_or(bit, std::memory_order_acq_rel) & bit) == 0) added++;
    }
    count_.fetch_add(added, std::memory_order_relaxed);
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
  FileGuestMemory(std::string path, OwnedFd file, FrameReservation reservation, std::vector<Range> ranges,
                  uint64_t bytes, FaultFailure on_failure)
      : path_(std::move(path)),
        file_(std::move(file)),
        reservation_(std::move(reservation)),
        ranges_(std::move(ranges)),
        bytes_(bytes),
        frames_(bytes / kPageSize),
        on_failure_(std::move(on_failure)) {}
  ~FileGuestMemory() override {
    stripes_.clear();
    ::unlink(path_.c_str());
  }

  // Makes both views. Called once, before anything else.
  absl::Status Map();

  const std::vector<Slot>& slots() const override { return slots_; }
  uint64_t bytes() const override { return bytes_; }
  uint64_t frame_bytes() const override { return frames_.count() * kPageSize; }
  absl::Status Read(Gpa from, std::span<std::byte> to) const override;
  absl::Status Write(Gpa to, std::span<const std::byte> from) override;
  absl::StatusOr<std::byte*> Populate(Gpa start, uint64_t bytes) override;

 private:
  absl::Status MapServiceView();
  // Offset in the file of [start, start+bytes), which must lie in one range.
  absl::StatusOr<uint64_t> OffsetOf(Gpa start, uint64_t bytes) const;
  absl::Status WriteToFile(Gpa to, std::span<const std::byte> from);
  // Gives frames to all pages that [offset, offset+bytes) of the file touches.
  absl::Status Fill(uint64_t offset, uint64_t bytes);
  // A fault of the guest view at file offset `stripe` + `offset`.
  absl::StatusOr<ViewRange> OnFault(FaultStripe* view, uint64_t stripe, uint64_t stripe_bytes, uint64_t offset);

  const std::string path_;
  const OwnedFd file_;
  const FrameReservation reservation_;
  const std::vector<Range> ranges_;
  const uint64_t bytes_;
  FrameBitmap frames_;
  const FaultFailure on_failure_;
  std::atomic<bool> failed_{false};
  Mapping guest_view_;
  OwnedFd service_faults_;
  Mapping service_view_;
  std::vector<Slot> slots_;
  std::vector<std::unique_ptr<FaultStripe>> stripes_;  // last: their threads use everything above
};

absl::Status FileGuestMemory::MapServiceView() {
  HK_ASSIGN_OR_RETURN(service_view_,
                      Mapping::Create(bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file_.get(), path_));
  ::madvise(service_view_.data(), bytes_, MADV_DONTFORK);
  HK_ASSIGN_OR_RETURN(KernelModeUserfaultfd opened, OpenKernelModeUserfaultfd());
  service_faults_ = std::move(opened.fd);
  HK_RETURN_IF_ERROR(
      UserfaultfdHandshake(service_faults_.get(), UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_SIGBUS).status());
  uffdio_register request = {};
  request.range = {.start = reinterpret_cast<uint64_t>(service_view_.data()), .len = bytes_};
  request.mode = UFFDIO_REGISTER_MODE_MISSING;
  if (::ioctl(service_faults_.get(), UFFDIO_REGISTER, &request) < 0) return ErrnoStatus(errno, "UFFDIO_REGISTER");
  return absl::OkStatus();
}

absl::Status FileGuestMemory::Map() {
  HK_RETURN_IF_ERROR(MapServiceView());
  HK_ASSIGN_OR_RETURN(guest_view_,
                      Mapping::Create(bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file_.get(), path_));
  // Either may be refused by a kernel without the option, which does not matter then.
  ::madvise(guest_view_.data(), bytes_, MADV_NOHUGEPAGE);
  ::madvise(guest_view_.data(), bytes_, MADV_DONTFORK);
  for (const Range& range : ranges_) {
    slots_.push_back(
        {range.ram.start, range.ram.bytes, reinterpret_cast<std::byte*>(guest_view_.data() + range.offset)});
  }
  for (uint64_t at = 0; at < bytes_; at += kStripeBytes) {
    const uint64_t size = std::min(kStripeBytes, bytes_ - at);
    absl::StatusOr<std::unique_ptr<FaultStripe>> stripe = FaultStripe::Start(
        guest_view_.data() + at, size,
        [this, at, size](FaultStripe* view, uint64_t offset) { return OnFault(view, at, size, offset); });
    if (!stripe.ok()) return stripe.status();
    stripes_.push_back(*std::move(stripe));
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> FileGuestMemory::OffsetOf(Gpa start, uint64_t bytes) const {
  for (const Range& range : ranges_) {
    if (start < range.ram.start) break;
    const uint64_t inside = start.value() - range.ram.start.value();
    if (inside <= range.ram.bytes && bytes <= range.ram.bytes - inside) return range.offset + inside;
  }
  return absl::OutOfRangeError(fmt::format("{} bytes at guest-physical {:#x} are not RAM", bytes, start.value()));
}

absl::Status FileGuestMemory::Fill(uint64_t offset, uint64_t bytes) {
  if (bytes == 0) return absl::OkStatus();
  const uint64_t first = offset / kPageSize, count = (offset + bytes - 1) / kPageSize - first + 1;
  if (frames_.AllSet(first, count)) return absl::OkStatus();
  // Pages that are there stay as they are; the others become zero pages, or, if there is no space, none does
  // (shmem_fallocate).
  int error = 0;
  do {
    error =
        ::fallocate(file_.get(), 0, static_cast<off_t>(first * kPageSize), static_cast<off_t>(count * kPageSize)) == 0
            ? 0
            : errno;
  } while (error == EINTR);
  if (error == ENOSPC) return absl::ResourceExhaustedError(fmt::format("{}: the frame store is full", path_));
  if (error != 0) return ErrnoStatus(error, fmt::format("fallocate {}", path_));
  frames_.Set(first, count);
  return absl::OkStatus();
}

absl::StatusOr<ViewRange> FileGuestMemory::OnFault(FaultStripe* view, uint64_t stripe, uint64_t stripe_bytes,
                                                   uint64_t offset) {
  const uint64_t start = offset & ~(kFaultAroundBytes - 1);
  ViewRange around{.start = start, .bytes = std::min(kFaultAroundBytes, stripe_bytes - start)};
  if (view->FillHoles(around).ok()) {
    frames_.Set((stripe + around.start) / kPageSize, around.bytes / kPageSize);
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
  size_t done = 0;
  while (done < to.size()) {
    // pread of a hole gives zeros and takes no frame.
    const ssize_t n = ::pread(file_.get(), to.data() + done, to.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return ErrnoStatus(n < 0 ? errno : EIO, fmt::format("read {}", path_));
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status FileGuestMemory::Write(Gpa to, std::span<const std::byte> from) {
  if (from.size() >= kPageSize) return WriteToFile(to, from);
  HK_ASSIGN_OR_RETURN(std::byte* const at, Populate(to, from.size()));
  if (!from.empty()) std::memcpy(at, from.data(), from.size());
  return absl::OkStatus();
}

// Much at once: a page that is new is filled where it is made, neither zeroed before nor faulted in by the copy.
absl::Status FileGuestMemory::WriteToFile(Gpa to, std::span<const std::byte> from) {
  HK_ASSIGN_OR_RETURN(const uint64_t offset, OffsetOf(to, from.size()));
  size_t done = 0;
  while (done < from.size()) {
    const ssize_t n = ::pwrite(file_.get(), from.data() + done, from.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == ENOSPC)
      return absl::ResourceExhaustedError(fmt::format("{}: the frame store is full", path_));
    if (n <= 0) return ErrnoStatus(n < 0 ? errno : EIO, fmt::format("write {}", path_));
    const uint64_t first = (offset + done) / kPageSize;
    done += static_cast<size_t>(n);
    frames_.Set(first, (offset + done - 1) / kPageSize - first + 1);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::byte*> FileGuestMemory::Populate(Gpa start, uint64_t bytes) {
  HK_ASSIGN_OR_RETURN(const uint64_t offset, OffsetOf(start, bytes));
  HK_RETURN_IF_ERROR(Fill(offset, bytes));
  return reinterpret_cast<std::byte*>(service_view_.data() + offset);
}

}  // namespace

absl::StatusOr<std::unique_ptr<GuestMemory>> GuestMemory::Create(const FrameStore& frames, const std::string& name,
                                                                 uint64_t generation, std::vector<RamRange> ranges,
                                                                 FaultFailure on_failure) {
  std::vector<Range> placed;
  uint64_t bytes = 0;
  for (const RamRange& ram : ranges) {
    HK_CHECK(ram.start.value() % kPageSize == 0 && ram.bytes % kPageSize == 0 && ram.bytes > 0);
    HK_CHECK(placed.empty() || placed.back().ram.start.value() + placed.back().ram.bytes <= ram.start.value());
    placed.push_back({ram, bytes});
    bytes += ram.bytes;
  }
  HK_ASSIGN_OR_RETURN(FrameReservation reservation, frames.Reserve(bytes));
  const std::string path = frames.PathOf(name, generation);
  OwnedFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file.valid()) return ErrnoStatus(errno, path);
  if (::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) {
    const int error = errno;
    ::unlink(path.c_str());
    return ErrnoStatus(error, fmt::format("ftruncate {}", path));
  }
  auto memory = std::make_unique<FileGuestMemory>(path, std::move(file), std::move(reservation), std::move(placed),
                                                  bytes, std::move(on_failure));
  HK_RETURN_IF_ERROR(memory->Map());
  return memory;
}

}  // namespace hk
