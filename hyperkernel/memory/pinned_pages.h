// Pages of a space that stay on this node, at one address, as long as somebody holds them: what GuestSpace::Pin gives
// to devices, tools and tests (README.md, "The space").
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/page_frames.h"
#include "hyperkernel/memory/space_engine.h"
#include "hyperkernel/memory/space_frames.h"

namespace hk {

// What pins and their space have of each other, whichever ends first. Thread-safe.
class PinKeeper {
 public:
  // `engine`: until Leave.
  PinKeeper(std::shared_ptr<SpaceFrames> frames, SpaceEngine* engine) : frames_(std::move(frames)), engine_(engine) {}
  // The daemon's view of the space: pinned pages may be touched there, others not.
  std::byte* view() const { return frames_->daemon_view(); }
  // Nothing once the space has left.
  void Unpin(Gfn first, uint64_t count);
  // The engine goes: when it returned, nobody uses it from here.
  void Leave();

 private:
  const std::shared_ptr<SpaceFrames> frames_;
  Mutex mutex_;
  CondVar unused_;
  SpaceEngine* engine_ ABSL_GUARDED_BY(mutex_);
  int users_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Bytes of a space whose pages are pinned; unpins them when it goes. Movable; any thread, one at a time. It may outlive
// the space: its memory stays until it goes (and the frames' file and room with it), but belongs to nobody any more.
class PinnedPages {
 public:
  PinnedPages() = default;  // of nothing
  // `bytes` at `from`, whose pages are pinned.
  PinnedPages(std::shared_ptr<PinKeeper> keeper, Gpa from, uint64_t bytes, PageAccess access)
      : keeper_(std::move(keeper)), from_(from), bytes_(bytes), access_(access) {}
  PinnedPages(PinnedPages&& other) noexcept { *this = std::move(other); }
  PinnedPages& operator=(PinnedPages&& other) noexcept;
  ~PinnedPages() { Release(); }

  // The bytes, at an address that stays until Release. What programs of this node store there meanwhile is seen.
  std::span<const std::byte> bytes() const;
  // REQUIRES: pinned with kWrite.
  std::span<std::byte> writable() const;
  // Unpins: what bytes() and writable() gave must not be touched any more. Never blocks. Twice is once.
  void Release();

 private:
  std::shared_ptr<PinKeeper> keeper_;  // null: of nothing
  Gpa from_;
  uint64_t bytes_ = 0;
  PageAccess access_ = PageAccess::kNone;
};

}  // namespace hk
