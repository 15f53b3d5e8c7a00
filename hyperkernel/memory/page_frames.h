// What the fault engine (space_engine.h) does to the frames of one space on this node. The daemon's are a sparse file
// under userfaultfd (space_frames.h); tests and the simulator have them in ordinary memory.
//
// Thread safety: calls for one page are serial (the engine's lock), for different pages they may run at once. None of
// them waits for another page, a message or a fault.
// Errors mean that this node can no longer keep the page right: the engine then stops the space's users with the
// reason.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/thread_gather.h"

namespace hk {

// What programs may do with a page that is here. Ordered: more is greater.
enum class PageAccess : uint8_t { kNone, kRead, kWrite };

// Frames of one space. A page is here (it has a frame and can be read) or not (a touch of it is a fault).
class PageFrames {
 public:
  virtual ~PageFrames() = default;

  // Gives a page that is not here a frame with these bytes (kPageSize, or none: zeroes), accessible from now on with
  // `access` (kRead or kWrite). A page that turns out to be here already is an error: somebody else filled it.
  virtual absl::Status Install(Gfn page, std::span<const std::byte> bytes, PageAccess access) = 0;
  // Changes what programs may do with a page that is here: kRead or kWrite. After SetAccess(kRead) no program writes to
  // it any more, on any CPU.
  virtual absl::Status SetAccess(Gfn page, PageAccess access) = 0;
  // The same, and then Wake, if it was done: by one call of the kernel where there is one.
  virtual absl::Status InstallAndWake(Gfn page, std::span<const std::byte> bytes, PageAccess access) {
    const absl::Status status = Install(page, bytes, access);
    if (status.ok()) Wake(page);
    return status;
  }
  virtual absl::Status SetAccessAndWake(Gfn page, PageAccess access) {
    const absl::Status status = SetAccess(page, access);
    if (status.ok()) Wake(page);
    return status;
  }
  // Pages from `first` on, of one extent. Install with kRead, of as many pages as `bytes` are; with `wake` who waits
  // for any of them is woken.
  virtual absl::Status InstallPages(Gfn first, std::span<const std::byte> bytes, bool wake) {
    for (size_t at = 0; at < bytes.size(); at += kPageSize) {
      const Gfn page(first.value() + at / kPageSize);
      const std::span<const std::byte> one = bytes.subspan(at, kPageSize);
      const absl::Status status =
          wake ? InstallAndWake(page, one, PageAccess::kRead) : Install(page, one, PageAccess::kRead);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }
  // SetAccess(kRead) of pages that are kWrite.
  virtual absl::Status ProtectPages(Gfn first, size_t count) {
    absl::Status status;
    for (size_t i = 0; i < count && status.ok(); ++i) status = SetAccess(Gfn(first.value() + i), PageAccess::kRead);
    return status;
  }
  // Copies whole pages.
  virtual absl::Status ReadPages(Gfn first, std::span<std::byte> to) {
    absl::Status status;
    for (size_t at = 0; at < to.size() && status.ok(); at += kPageSize) {
      status = Read(Gfn(first.value() + at / kPageSize), 0, to.subspan(at, kPageSize));
    }
    return status;
  }

  // Takes the page away and its frame back. With `keep` (kPageSize): what its bytes were, with every store that any
  // program has made.
  virtual absl::Status Remove(Gfn page, std::span<std::byte> keep) = 0;

  // Copies from and to a page that is here, at `offset`, within the page. Write: REQUIRES access kWrite.
  virtual absl::Status Read(Gfn page, size_t offset, std::span<std::byte> to) = 0;
  virtual absl::Status Write(Gfn page, size_t offset, std::span<const std::byte> from) = 0;

  // The processor's time that a program's thread (as faults name it) has had; nullopt: it is not known, or gone.
  virtual std::optional<std::chrono::nanoseconds> RunTime(uint32_t /*thread*/) const { return std::nullopt; }

  // True if that thread is known to wait for a page now; of some threads it is not known (FaultMeter).
  virtual bool Waits(uint32_t /*thread*/) const { return false; }

  // What that thread gathers; null: it is not known. Valid while the thread is.
  virtual ThreadGather* GatherOf(uint32_t /*thread*/) const { return nullptr; }

  // Programs that wait for one of these pages, which are about to be here, have waited for another node: `holder`,
  // which had it; nothing: its home alone. For who watches them.
  virtual void NoteHolder(Gfn /*first*/, size_t /*count*/, std::optional<NodeId> /*holder*/) {}

  // Memory that is taken for pages beside their frames.
  virtual size_t table_bytes() const { return 0; }

  // Programs that wait for the page look again.
  virtual void Wake(Gfn page) = 0;
  // The page cannot be had: programs that touch it must end (KVM_RUN with EFAULT, a thread with SIGSEGV); never zeroes.
  virtual void Fail(Gfn page) = 0;
};

}  // namespace hk
