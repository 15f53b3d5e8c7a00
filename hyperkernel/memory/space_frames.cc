#include "hyperkernel/memory/space_frames.h"

#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mapping.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/fault_stripe.h"
#include "hyperkernel/memory/frame_file.h"

namespace hk {
namespace {

// Of a clockid_t: the time that one thread has had on a processor (CPUCLOCK_PERTHREAD, CPUCLOCK_SCHED).
constexpr uint32_t kThreadClock = 4 | 2;
constexpr uint64_t kStripePages = kStripeBytes / kPageSize;
alignas(kPageSize) constexpr std::array<std::byte, kPageSize> kZeroPage = {};

// What is here: a byte per page, in memory that is only taken where it was written. Thread-safe, page by page.
class AccessMap {
 public:
  static absl::StatusOr<AccessMap> Create(uint64_t pages) {
    AccessMap map;
    HK_ASSIGN_OR_RETURN(map.bytes_, Mapping::Create(pages, PROT_READ | PROT_WRITE,
                                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, "access map"));
    return map;
  }
  PageAccess Get(Gfn page) const { return static_cast<PageAccess>(At(page).load(std::memory_order_acquire)); }
  // Of the memory that is taken.
  size_t resident_bytes() const;
  void Set(Gfn page, PageAccess access) { At(page).store(static_cast<uint8_t>(access), std::memory_order_release); }

 private:
  std::atomic_ref<uint8_t> At(Gfn page) const { return std::atomic_ref<uint8_t>(bytes_.data()[page.value()]); }

  Mapping bytes_;
};

size_t AccessMap::resident_bytes() const {
  std::array<unsigned char, 4096> there;
  size_t sum = 0;
  for (size_t at = 0; at < bytes_.size(); at += there.size() * kPageSize) {
    const size_t bytes = std::min<size_t>(bytes_.size() - at, there.size() * kPageSize);
    if (::mincore(bytes_.data() + at, bytes, there.data()) != 0) continue;
    const size_t pages = (bytes + kPageSize - 1) / kPageSize;
    sum += kPageSize * static_cast<size_t>(std::count_if(there.begin(), there.begin() + static_cast<ptrdiff_t>(pages),
                                                         [](unsigned char flags) { return (flags & 1) != 0; }));
  }
  return sum;
}

class FileSpaceFrames final : public SpaceFrames {
 public:
  FileSpaceFrames(std::unique_ptr<FrameFile> file, ServiceView service, Mapping guest, AccessMap access)
      : file_(std::move(file)),
        pages_(file_->bytes() / kPageSize),
        service_view_(std::move(service)),
        guest_view_(std::move(guest)),
        access_(std::move(access)) {}
  ~FileSpaceFrames() override { StopServing(); }

  absl::Status Serve(OnFault on_fault) override;
  std::optional<std::chrono::nanoseconds> RunTime(uint32_t thread) const override;
  bool Waits(uint32_t thread) const override { return meter_.Waits(thread); }
  ThreadGather* GatherOf(uint32_t thread) const override { return meter_.GatherOf(thread); }
  void NoteHolder(Gfn first, size_t count, std::optional<NodeId> holder) override {
    meter_.NoteHolder(first, count, holder);
  }
  void StopServing() override;
  std::byte* view() const override { return reinterpret_cast<std::byte*>(guest_view_.data()); }
  std::byte* daemon_view() const override { return service_view_.data(); }
  uint64_t bytes() const override { return file_->bytes(); }
  uint64_t frame_bytes() const override { return frames_.load(std::memory_order_relaxed) * kPageSize; }
  FaultMeter* faults() override { return &meter_; }
  size_t table_bytes() const override { return access_.resident_bytes(); }

  absl::Status Install(Gfn page, std::span<const std::byte> bytes, PageAccess access) override {
    return Install(page, bytes, access, false);
  }
  absl::Status SetAccess(Gfn page, PageAccess access) override { return SetAccess(page, access, false); }
  absl::Status InstallAndWake(Gfn page, std::span<const std::byte> bytes, PageAccess access) override {
    return Install(page, bytes, access, true);
  }
  absl::Status SetAccessAndWake(Gfn page, PageAccess access) override { return SetAccess(page, access, true); }
  absl::Status InstallPages(Gfn first, std::span<const std::byte> bytes, bool wake) override;
  absl::Status ProtectPages(Gfn first, size_t count) override;
  absl::Status ReadPages(Gfn first, std::span<std::byte> to) override;
  absl::Status Remove(Gfn page, std::span<std::byte> keep) override;
  absl::Status Read(Gfn page, size_t offset, std::span<std::byte> to) override;
  absl::Status Write(Gfn page, size_t offset, std::span<const std::byte> from) override;
  void Wake(Gfn page) override;
  void Fail(Gfn page) override;

 private:
  absl::Status Install(Gfn page, std::span<const std::byte> bytes, PageAccess access, bool wake);
  absl::Status SetAccess(Gfn page, PageAccess access, bool wake);

  // Where a page is: its stripe, and its offset there.
  struct Place {
    FaultStripe* stripe;
    uint64_t offset;
  };
  Place PlaceOf(Gfn page) const {
    return {.stripe = stripes_[page.value() / kStripePages].get(), .offset = page.value() % kStripePages * kPageSize};
  }
  // To be called before those who wait for these pages are woken.
  void NoteWoken(Gfn first, uint64_t count) { meter_.Woken(first, count, RealClock().Now()); }
  // Of the space, and here with at least `least`.
  absl::Status Check(Gfn page, PageAccess least) const;
  absl::Status Check(Gfn first, size_t count, PageAccess least) const;
  absl::Status WithPage(const absl::Status& status, Gfn page) const {
    return status.ok() ? status : WithContext(status, fmt::format("{}, GFN {:#x}", file_->path(), page.value()));
  }

  const std::unique_ptr<FrameFile> file_;
  const uint64_t pages_;
  const ServiceView service_view_;
  const Mapping guest_view_;
  AccessMap access_;
  std::atomic<uint64_t> frames_{0};
  std::vector<std::unique_ptr<FaultStripe>> stripes_;
  std::atomic<bool> serving_{false};
  mutable FaultMeter meter_;
};

std::optional<std::chrono::nanoseconds> FileSpaceFrames::RunTime(uint32_t thread) const {
  // The clock of a thread of this process, as the kernel's and C library's clockid_t have it (clock_getcpuclockid(3)).
  const auto clock = static_cast<clockid_t>(~thread << 3 | kThreadClock);
  timespec time{};
  if (::clock_gettime(clock, &time) != 0) return std::nullopt;
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

absl::Status FileSpaceFrames::Serve(OnFault on_fault) {
  HK_CHECK(stripes_.empty());
  for (uint64_t at = 0; at < bytes(); at += kStripeBytes) {
    absl::StatusOr<std::unique_ptr<FaultStripe>> stripe =
        FaultStripe::Start(guest_view_.data() + at, std::min(kStripeBytes, bytes() - at),
                           [first = at / kPageSize, on_fault, this](FaultStripe*, ViewFault fault) {
                             if (!serving_.load(std::memory_order_acquire)) return;
                             const Gfn page(first + fault.offset / kPageSize);
                             meter_.Began(fault.thread, page,
                                          fault.here    ? FaultCause::kUpgrade
                                          : fault.write ? FaultCause::kWrite
                                                        : FaultCause::kRead,
                                          RealClock().Now());
                             on_fault(page, fault.write, fault.thread);
                           });
    if (!stripe.ok()) {
      stripes_.clear();
      return stripe.status();
    }
    stripes_.push_back(*std::move(stripe));
  }
  serving_ = true;
  return absl::OkStatus();
}

void FileSpaceFrames::StopServing() {
  if (!serving_.exchange(false)) return;
  for (size_t i = 0; i < stripes_.size(); i++) {
    const ViewRange all{.start = 0, .bytes = std::min(kStripeBytes, bytes() - i * kStripeBytes)};
    stripes_[i]->StopFaults();
    stripes_[i]->MakeInaccessible(all);
    stripes_[i]->Wake(all);
  }
}

absl::Status FileSpaceFrames::Check(Gfn page, PageAccess least) const {
  if (page.value() >= pages_) {
    return absl::OutOfRangeError(
        fmt::format("{}, GFN {:#x}: beyond its {:#x} pages", file_->path(), page.value(), pages_));
  }
  if (access_.Get(page) >= least) return absl::OkStatus();
  return absl::FailedPreconditionError(fmt::format(
      "{}, GFN {:#x}: {}", file_->path(), page.value(),
      access_.Get(page) == PageAccess::kNone ? "is not here" : "is write-protected and must not be written"));
}

absl::Status FileSpaceFrames::Install(Gfn page, std::span<const std::byte> bytes, PageAccess access, bool wake) {
  HK_CHECK(access != PageAccess::kNone && (bytes.empty() || bytes.size() == kPageSize));
  HK_RETURN_IF_ERROR(Check(page, PageAccess::kNone));
  const Place at = PlaceOf(page);
  const bool write_protected = access == PageAccess::kRead && !HK_MUTANT(frames_readers_unprotected);
  if (wake) NoteWoken(page, 1);
  HK_RETURN_IF_ERROR(
      WithPage(at.stripe->Install(at.offset, bytes.empty() ? kZeroPage : bytes, write_protected, wake), page));
  access_.Set(page, access);
  frames_.fetch_add(1, std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::Status FileSpaceFrames::Check(Gfn first, size_t count, PageAccess least) const {
  // An extent is in one stripe.
  HK_CHECK(count > 0 && first.value() / kStripePages == (first.value() + count - 1) / kStripePages);
  absl::Status status;
  for (size_t i = 0; i < count && status.ok(); ++i) status = Check(Gfn(first.value() + i), least);
  return status;
}

absl::Status FileSpaceFrames::InstallPages(Gfn first, std::span<const std::byte> bytes, bool wake) {
  const size_t count = bytes.size() / kPageSize;
  HK_RETURN_IF_ERROR(Check(first, count, PageAccess::kNone));
  const Place at = PlaceOf(first);
  const bool write_protected = !HK_MUTANT(frames_readers_unprotected);
  if (wake) NoteWoken(first, count);
  HK_RETURN_IF_ERROR(WithPage(at.stripe->Install(at.offset, bytes, write_protected, wake), first));
  for (size_t i = 0; i < count; ++i) access_.Set(Gfn(first.value() + i), PageAccess::kRead);
  frames_.fetch_add(count, std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::Status FileSpaceFrames::ProtectPages(Gfn first, size_t count) {
  HK_RETURN_IF_ERROR(Check(first, count, PageAccess::kWrite));
  const Place at = PlaceOf(first);
  HK_RETURN_IF_ERROR(
      WithPage(at.stripe->WriteProtect({.start = at.offset, .bytes = count * kPageSize}, true, false), first));
  for (size_t i = 0; i < count; ++i) access_.Set(Gfn(first.value() + i), PageAccess::kRead);
  return absl::OkStatus();
}

absl::Status FileSpaceFrames::ReadPages(Gfn first, std::span<std::byte> to) {
  HK_RETURN_IF_ERROR(Check(first, to.size() / kPageSize, PageAccess::kRead));
  return WithPage(file_->Read(first.value() * kPageSize, to), first);
}

absl::Status FileSpaceFrames::SetAccess(Gfn page, PageAccess access, bool wake) {
  HK_CHECK(access != PageAccess::kNone);
  HK_RETURN_IF_ERROR(Check(page, PageAccess::kRead));
  const bool changes = access_.Get(page) != access;
  const Place at = PlaceOf(page);
  if (changes) {
    const bool protects = access == PageAccess::kRead;
    if (!protects) NoteWoken(page, 1);  // it wakes
    HK_RETURN_IF_ERROR(
        WithPage(at.stripe->WriteProtect({.start = at.offset, .bytes = kPageSize}, protects, wake), page));
    access_.Set(page, access);
    wake = wake && protects;  // else they were woken with it
  }
  if (wake) Wake(page);
  return absl::OkStatus();
}

absl::Status FileSpaceFrames::Remove(Gfn page, std::span<std::byte> keep) {
  HK_CHECK(keep.empty() || keep.size() == kPageSize);
  HK_RETURN_IF_ERROR(Check(page, PageAccess::kRead));
  const uint64_t offset = page.value() * kPageSize;
  if (!keep.empty()) {
    if (!HK_MUTANT(frames_removed_while_written)) HK_RETURN_IF_ERROR(SetAccess(page, PageAccess::kRead));
    HK_RETURN_IF_ERROR(WithPage(file_->Read(offset, keep), page));
  }
  HK_RETURN_IF_ERROR(WithPage(file_->Punch(offset, kPageSize), page));
  access_.Set(page, PageAccess::kNone);
  frames_.fetch_sub(1, std::memory_order_relaxed);
  return absl::OkStatus();
}

// A whole page goes by a system call: it needs no entry in the daemon's page table, which a first touch would make (a
// fault) and the page's removal take down again. A part goes by the daemon's view: loads and stores, so that a device's
// aligned word is one access to the program that looks at it; the kernel's copy may go by bytes.
absl::Status FileSpaceFrames::Read(Gfn page, size_t offset, std::span<std::byte> to) {
  HK_CHECK(offset <= kPageSize && to.size() <= kPageSize - offset);
  HK_RETURN_IF_ERROR(Check(page, PageAccess::kRead));
  const uint64_t at = page.value() * kPageSize + offset;
  if (to.size() == kPageSize) return WithPage(file_->Read(at, to), page);
  if (!to.empty()) std::memcpy(to.data(), service_view_.data() + at, to.size());
  return absl::OkStatus();
}

absl::Status FileSpaceFrames::Write(Gfn page, size_t offset, std::span<const std::byte> from) {
  HK_CHECK(offset <= kPageSize && from.size() <= kPageSize - offset);
  HK_RETURN_IF_ERROR(Check(page, PageAccess::kWrite));
  const uint64_t at = page.value() * kPageSize + offset;
  if (from.size() == kPageSize) return WithPage(file_->Write(at, from), page);
  if (!from.empty()) std::memcpy(service_view_.data() + at, from.data(), from.size());
  return absl::OkStatus();
}

void FileSpaceFrames::Wake(Gfn page) {
  if (!Check(page, PageAccess::kNone).ok()) return;
  const Place at = PlaceOf(page);
  NoteWoken(page, 1);
  at.stripe->Wake({.start = at.offset, .bytes = kPageSize});
}

void FileSpaceFrames::Fail(Gfn page) {
  if (!Check(page, PageAccess::kNone).ok()) return;
  const Place at = PlaceOf(page);
  at.stripe->MakeInaccessible({.start = at.offset, .bytes = kPageSize});
  at.stripe->Wake({.start = at.offset, .bytes = kPageSize});
}

}  // namespace

absl::StatusOr<std::unique_ptr<SpaceFrames>> SpaceFrames::Create(const FrameStore& frames, const std::string& name,
                                                                 uint32_t generation, uint64_t pages, uint64_t most) {
  HK_CHECK(pages > 0 && pages <= UINT64_MAX / kPageSize && most <= pages);
  HK_ASSIGN_OR_RETURN(std::unique_ptr<FrameFile> file,
                      FrameFile::Create(frames, name, generation, pages * kPageSize, most * kPageSize));
  HK_ASSIGN_OR_RETURN(ServiceView service, ServiceView::Create(*file));
  HK_ASSIGN_OR_RETURN(Mapping guest, file->MapGuestView());
  HK_ASSIGN_OR_RETURN(AccessMap access, AccessMap::Create(pages));
  return std::make_unique<FileSpaceFrames>(std::move(file), std::move(service), std::move(guest), std::move(access));
}

}  // namespace hk
