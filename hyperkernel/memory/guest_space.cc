#include "hyperkernel/memory/guest_space.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/space_frames.h"
#include "hyperkernel/memory/timers.h"

namespace hk {
namespace {

// Pages that one Read or Write asks for ahead: their round trips overlap. A small part of the transport's slots.
constexpr size_t kPagesAhead = 16;

// One page of a Read or Write. The page may come after the caller has given up, so this outlives both. Thread-safe.
class PageCopy {
 public:
  PageCopy(PageFrames* frames, Gfn page, size_t offset, std::span<std::byte> to)
      : frames_(frames), page_(page), offset_(offset), to_(to) {}
  // Has a copy of what it writes: of a page that is replaced, the old bytes are not there any more when it comes.
  PageCopy(PageFrames* frames, Gfn page, size_t offset, std::span<const std::byte> from)
      : frames_(frames), page_(page), offset_(offset), from_(from.begin(), from.end()) {}

  Gfn page() const { return page_; }
  // The engine writes all of the page itself.
  bool replaces() const { return from_.size() == kPageSize; }
  std::span<const std::byte> from() const { return from_; }

  // The page is here, or will not be.
  void OnGranted(const absl::Status& granted) {
    MutexLock lock(&mutex_);
    status_ = granted;
    const bool writes = !from_.empty() && !replaces();
    if (granted.ok() && writes) status_ = frames_->Write(page_, offset_, from_);
    const bool reads = from_.empty() && (!given_up_ || HK_MUTANT(space_reads_after_giving_up));
    if (granted.ok() && reads) status_ = frames_->Read(page_, offset_, to_);
    done_ = true;
    changed_.Signal();
  }
  absl::Status Wait(Monotonic deadline) {
    MutexLock lock(&mutex_);
    while (!done_) {
      if (changed_.WaitUntil(&mutex_, deadline) || done_) continue;
      given_up_ = true;
      return absl::DeadlineExceededError(
          fmt::format("the page at GPA {:#x} did not come in time", GpaOf(page_).value()));
    }
    return status_;
  }
  // From now on the caller's memory is not touched.
  void GiveUp() {
    MutexLock lock(&mutex_);
    given_up_ = true;
  }

 private:
  PageFrames* const frames_;
  const Gfn page_;
  const size_t offset_;
  const std::span<std::byte> to_;
  const std::vector<std::byte> from_;
  Mutex mutex_;
  CondVar changed_;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  bool given_up_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

// A Pin under way. It may end after the caller has given up, so this outlives both. Thread-safe.
class PinWait {
 public:
  // True: nobody waits any more.
  bool OnGranted(const absl::Status& granted) {
    MutexLock lock(&mutex_);
    status_ = granted;
    done_ = true;
    changed_.Signal();
    return given_up_;
  }
  absl::Status Wait(Monotonic deadline, Gpa from, uint64_t bytes) {
    MutexLock lock(&mutex_);
    while (!done_) {
      if (changed_.WaitUntil(&mutex_, deadline) || done_) continue;
      given_up_ = true;
      return absl::DeadlineExceededError(
          fmt::format("the pages of {} bytes at GPA {:#x} could not be pinned in time", bytes, from.value()));
    }
    return status_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  bool given_up_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

absl::Status CheckOptions(const GuestSpace::Options& options) {
  if (options.name.empty() || options.name.find('/') != std::string::npos) {
    return absl::InvalidArgumentError(fmt::format("space: name \"{}\" cannot be a file's", options.name));
  }
  if (options.config.pages == 0 || options.config.pages > kMaxSpacePages) {
    return absl::InvalidArgumentError(
        fmt::format("space: pages is {}, not 1 to {}", options.config.pages, kMaxSpacePages));
  }
  if (options.config.swap_pages != 0 && options.swap == nullptr) {
    return absl::InvalidArgumentError("space: swap_pages without a swap store");
  }
  return absl::OkStatus();
}

// What the engine may have here at a time. Where epochs never change no page comes back.
uint64_t MostFrames(const SpaceConfig& config) {
  if (config.max_pages == 0) return config.pages;
  const uint64_t returning = config.coordinator.has_value() ? kMostReturningPages : 0;
  return std::min(config.max_pages + returning, config.pages);
}

class AttachedSpace final : public GuestSpace {
 public:
  AttachedSpace(Options options, Transport* transport, SpaceRouter* router, std::unique_ptr<SpaceFrames> frames,
                std::unique_ptr<SpaceSwap> swap)
      : options_(std::move(options)),
        transport_(transport),
        router_(router),
        frames_(std::move(frames)),
        swap_(std::move(swap)) {}
  ~AttachedSpace() override;

  // Called once, before anything else.
  absl::Status Join(const Clock& clock);

  uint64_t bytes() const override { return frames_->bytes(); }
  uint64_t most_pinned_bytes() const override { return MostPinnedPages(options_.config.max_pages) * kPageSize; }
  std::byte* view() override { return frames_->view(); }
  absl::Status Read(Gpa from, std::span<std::byte> to, Monotonic deadline) override {
    return CopyPages(from, to.size(), PageAccess::kRead, deadline,
                     [&](Gfn page, size_t offset, size_t at, size_t size) {
                       return std::make_shared<PageCopy>(frames_.get(), page, offset, to.subspan(at, size));
                     });
  }
  absl::Status Write(Gpa to, std::span<const std::byte> from, Monotonic deadline) override {
    return CopyPages(to, from.size(), PageAccess::kWrite, deadline,
                     [&](Gfn page, size_t offset, size_t at, size_t size) {
                       return std::make_shared<PageCopy>(frames_.get(), page, offset, from.subspan(at, size));
                     });
  }
  absl::StatusOr<PinnedPages> Pin(Gpa from, uint64_t bytes, PageAccess access, Monotonic deadline) override;
  absl::Status state() const override {
    MutexLock lock(&mutex_);
    return state_;
  }
  SpaceStatistics Statistics() const override { return engine_->Statistics(); }
  std::vector<ExtentUse> Uses(uint64_t first, size_t most) const override { return engine_->Uses(first, most); }
  uint64_t frame_bytes() const override { return frames_->frame_bytes(); }
  SpaceEngine& engine() override { return *engine_; }
  FaultMeter* faults() override { return frames_->faults(); }

 private:
  void OnStopped(const absl::Status& why);
  // `make`: the copy of `size` bytes at `offset` of the page, which are those at `at` of the caller's.
  template <typename Make>
  absl::Status CopyPages(Gpa start, size_t bytes, PageAccess access, Monotonic deadline, const Make& make);

  const Options options_;
  Transport* const transport_;
  SpaceRouter* const router_;
  mutable Mutex mutex_;
  absl::Status state_ ABSL_GUARDED_BY(mutex_);
  bool joined_ = false;
  const std::shared_ptr<SpaceFrames> frames_;  // pins' too
  const std::unique_ptr<SpaceSwap> swap_;      // null: none
  std::unique_ptr<SpaceEngine> engine_;
  std::shared_ptr<PinKeeper> pins_;
  RealTimers timers_;
};

absl::Status AttachedSpace::Join(const Clock& clock) {
  HK_ASSIGN_OR_RETURN(engine_, SpaceEngine::Create(
                                   options_.config, transport_, frames_.get(), &timers_, clock,
                                   [this](const absl::Status& why) { OnStopped(why); }, swap_.get()));
  engine_->WatchLosses(options_.lost);
  pins_ = std::make_shared<PinKeeper>(frames_, engine_.get());
  HK_RETURN_IF_ERROR(
      frames_->Serve([this](Gfn page, bool write, uint32_t thread) { engine_->OnFault(page, write, thread); }));
  HK_RETURN_IF_ERROR(router_->Add(options_.config.guest, options_.config.generation, engine_.get()));
  joined_ = true;
  return absl::OkStatus();
}

// In this order: nothing calls the engine any more, from the network, from programs, from the swap, from time; then it
// goes.
AttachedSpace::~AttachedSpace() {
  if (joined_) router_->Remove(options_.config.guest, options_.config.generation);
  frames_->StopServing();
  if (swap_ != nullptr) swap_->Stop();
  timers_.Stop();
  if (pins_ != nullptr) pins_->Leave();
  if (joined_) {
    // Slots that others may still answer into come back as soon as those have left as well. Not above the next epoch:
    // the peers never forget it, and this node may come again by a later one, with the same guest and generation.
    static_cast<void>(transport_->SetEpoch(options_.config.guest, options_.config.generation,
                                           Epoch(engine_->EpochState().epoch.value() + 1)));
    transport_->ForgetGuest(options_.config.guest);
  }
  engine_.reset();
}

absl::StatusOr<PinnedPages> AttachedSpace::Pin(Gpa from, uint64_t bytes, PageAccess access, Monotonic deadline) {
  if (bytes == 0 || from.value() >= this->bytes() || bytes > this->bytes() - from.value()) {
    return absl::OutOfRangeError(
        fmt::format("{} bytes at GPA {:#x} are not in the space of {} MiB", bytes, from.value(), this->bytes() >> 20));
  }
  const Gfn first = GfnOf(from);
  const uint64_t count = GfnOf(Gpa(from.value() + bytes - 1)).value() - first.value() + 1;
  const auto wait = std::make_shared<PinWait>();
  // Maybe with a page's lock held.
  engine_->Pin(first, count, [this, wait, first, count](const absl::Status& granted) {
    const bool late = wait->OnGranted(granted);
    if (!late || !granted.ok() || HK_MUTANT(space_late_pin_stays)) return;
    timers_.After(Monotonic::duration(0), [pins = pins_, first, count] { pins->Unpin(first, count); });
  });
  HK_RETURN_IF_ERROR(wait->Wait(deadline, from, bytes));
  return PinnedPages(pins_, from, bytes, access);
}

// A page's lock is held here; whoever wants to know may ask the space anything: by a thread without locks.
void AttachedSpace::OnStopped(const absl::Status& why) {
  {
    MutexLock lock(&mutex_);
    state_ = why;
  }
  // Cancelled: by who uses it, or because the daemon ends.
  log::Write(absl::IsCancelled(why) ? log::Level::kInfo : log::Level::kError, "memory",
             "a space stopped: its programs end", {{"space", options_.name}, {"why", MessageOf(why)}});
  if (options_.stopped) timers_.After(Monotonic::duration(0), [this, why] { options_.stopped(why); });
}

template <typename Make>
absl::Status AttachedSpace::CopyPages(Gpa start, size_t bytes, PageAccess access, Monotonic deadline,
                                      const Make& make) {
  if (start.value() > this->bytes() || bytes > this->bytes() - start.value()) {
    return absl::OutOfRangeError(
        fmt::format("{} bytes at GPA {:#x} are not in the space of {} MiB", bytes, start.value(), this->bytes() >> 20));
  }
  std::deque<std::shared_ptr<PageCopy>> asked;
  absl::Status status;
  for (size_t at = 0; status.ok() && (at < bytes || !asked.empty());) {
    if (at < bytes && asked.size() < kPagesAhead) {
      const Gpa gpa(start.value() + at);
      const size_t offset = gpa.value() % kPageSize;
      const size_t size = std::min(bytes - at, static_cast<size_t>(kPageSize) - offset);
      const std::shared_ptr<PageCopy> copy = make(GfnOf(gpa), offset, at, size);
      asked.push_back(copy);
      const auto granted = [copy](const absl::Status& end) { copy->OnGranted(end); };
      if (copy->replaces()) {
        engine_->Replace(copy->page(), copy->from(), granted);
      } else {
        engine_->Want(copy->page(), access, granted);
      }
      at += size;
      continue;
    }
    status = asked.front()->Wait(deadline);
    asked.pop_front();
  }
  for (const std::shared_ptr<PageCopy>& copy : asked) copy->GiveUp();
  return status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<GuestSpace>> GuestSpace::Attach(Options options, const FrameStore& frames,
                                                               Transport* transport, SpaceRouter* router,
                                                               const Clock& clock) {
  HK_RETURN_IF_ERROR(CheckOptions(options));
  HK_ASSIGN_OR_RETURN(std::unique_ptr<SpaceFrames> made,
                      SpaceFrames::Create(frames, options.name, options.config.generation, options.config.pages,
                                          MostFrames(options.config)));
  std::unique_ptr<SpaceSwap> swap;
  if (options.config.swap_pages != 0) {
    HK_ASSIGN_OR_RETURN(
        swap, options.swap->Make(options.name, options.config.generation, options.config.swap_pages * kPageSize));
  }
  auto space = std::make_unique<AttachedSpace>(std::move(options), transport, router, std::move(made), std::move(swap));
  HK_RETURN_IF_ERROR(space->Join(clock));
  return space;
}

}  // namespace hk
