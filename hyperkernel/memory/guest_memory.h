// One guest's memory, as its VM and its devices use it on this node (DESIGN: guest memory on one node). Made here: a
// sparse file in the frame store and two mappings of it, of which no other node knows. The guest view is for KVM alone;
// the daemon reads and writes through the service view or pread, and never allocates a frame by a stray touch. Memory
// that is a space over several nodes: space_memory.h.
//
// Thread-safe unless said otherwise. Addresses are guest-physical bytes, sizes bytes.
//
// Invariants of what Create makes:
//  1. Every way a frame comes to be is counted and within the guest's reservation: UFFDIO_COPY of zeros for a fault,
//  which also
//     maps it, so that KVM finds it without another fault; fallocate for the daemon's own writes, and where the copy
//     fails.
//  2. The guest view is registered MISSING|WP on userfaultfds, in stripes, each with a reader thread that fills what is
//  touched
//     and some pages around it. Nothing in the daemon touches the guest view.
//  3. The service view is registered MISSING with FEATURE_SIGBUS: the kernel refuses to fill a hole through it.
//  4. A page that cannot be filled is made inaccessible, never zero: its vCPU's KVM_RUN returns EFAULT.
//  5. With a store listener: no byte of a page changes after ProtectForReplica returned and before the listener was
//  told
//     of the page, but by who has it pinned since before (dma_space.h, DmaChain::ForEachWrittenByOthers). Telling of a
//     store and permitting it are one step to a protection of the same page: both are under the lock of its stripe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/fault_meter.h"
#include "hyperkernel/memory/frame_file.h"
#include "hyperkernel/memory/frame_store.h"
#include "hyperkernel/memory/page_frames.h"
#include "hyperkernel/memory/pinned_pages.h"
#include "hyperkernel/memory/space_engine.h"
#include "hyperkernel/memory/store_listener.h"

namespace hk {

// A piece of guest-physical space that is RAM. Plain value.
struct RamRange {
  Gpa start;
  uint64_t bytes = 0;
};

// Where in the file of its frames a page of RAM in these ranges is, in bytes; nothing: it is not RAM. Ranges follow one
// another in the file.
std::optional<uint64_t> FrameOffset(std::span<const RamRange> ranges, Gfn page);

// The RAM of one guest.
class GuestMemory {
 public:
  // A piece of RAM as KVM takes it: a memory slot.
  struct Slot {
    Gpa start;
    uint64_t bytes = 0;
    std::byte* guest_view = nullptr;  // for KVM_SET_USER_MEMORY_REGION only
  };
  // Called once, from a reader thread, if a page cannot be filled (budget used up, or the kernel failed): the guest
  // must be stopped with this reason. The faulting vCPU stays in KVM_RUN until the memory is destroyed.
  using FaultFailure = std::function<void(const absl::Status& reason)>;

  // Makes the file FRAME_STORE/NAME.GENERATION, sparse, of the ranges' total size. REQUIRES: ranges are page-aligned,
  // sorted, without overlap; `frames` outlives this object. Errors: kResourceExhausted if the ranges exceed the budget,
  // kAlreadyExists if the file is there, else errno.
  static absl::StatusOr<std::unique_ptr<GuestMemory>> Create(const FrameStore& frames, const std::string& name,
                                                             uint64_t generation, std::vector<RamRange> ranges,
                                                             FaultFailure on_failure);
  // The same of the file that such memory left behind (FrameFile::Keep), with all that was in it. Takes as long for
  // much memory as for little: which pages have frames is found out meanwhile. Errors: as FrameFile::Reopen, and errno.
  static absl::StatusOr<std::unique_ptr<GuestMemory>> Reopen(const FrameStore& frames, const std::string& name,
                                                             uint64_t generation, uint64_t inode,
                                                             std::vector<RamRange> ranges, FaultFailure on_failure);
  virtual ~GuestMemory() = default;

  virtual const std::vector<Slot>& slots() const = 0;
  virtual uint64_t bytes() const = 0;
  // Bytes of frames taken now.
  virtual uint64_t frame_bytes() const = 0;
  // For operators, as a space has it (memory_meter.h). A fault's time is that of its filling: what it waited for the
  // reader is not known.
  virtual SpaceStatistics Statistics() const = 0;
  virtual std::vector<ExtentUse> Uses(uint64_t first, size_t most) const = 0;

  // Copies out of guest memory; pages without a frame read as zeros and get none. Errors: kOutOfRange if any byte is
  // not RAM.
  virtual absl::Status Read(Gpa from, std::span<std::byte> to) const = 0;
  // Copies into guest memory, taking frames as needed. Errors: kOutOfRange (nothing written), kResourceExhausted.
  virtual absl::Status Write(Gpa to, std::span<const std::byte> from) = 0;
  // For a device's access: every page that [start, start+bytes) touches gets a frame, and stays here at one address,
  // the pointer to `start`, until `pins` is released. The range must lie within one RAM range. Where pages may be on
  // other nodes this waits for them, and what is held is held for the time of one access (guest_space.h, Pin). Errors:
  // kOutOfRange, kResourceExhausted; of a space also kAborted: not now, too much is pinned or a page is late; and
  // kUnavailable: it has stopped, and the guest with it.
  virtual absl::StatusOr<std::byte*> Pin(Gpa start, uint64_t bytes, PageAccess access, PinnedPages* pins) = 0;
  // `pins` null: for good; the page may be written to at any time from then on, and is never tracked by a listener.
  // Only where nothing is bound (most_pinned_bytes). Most that may be pinned at a time, all together; 0: there is no
  // bound, no page ever leaves this node, and what Pin gives is good for the life of this object.
  virtual uint64_t most_pinned_bytes() const { return 0; }
  // The guest is being taken apart: whoever waits for pages of other nodes, now or later, gets an error. Pins that are
  // held stay.
  virtual void Abandon() {}
  // OK, or why the guest cannot go on.
  virtual absl::Status state() const { return absl::OkStatus(); }
  // What vCPUs wait for; null: no page is ever on another node.
  virtual FaultMeter* faults() { return nullptr; }

  // `listener` is told of stores to pages that ProtectForReplica was called for, and of the daemon's own to all pages.
  // Once, before any vCPU or device runs; it is kept as long as the memory. False: this memory cannot tell (a space).
  virtual bool SetStoreListener(std::shared_ptr<StoreListener> listener) { return static_cast<void>(listener), false; }
  // To be called when the listener wishes to know of stores to the pages, which have frames: when it has returned,
  // every store is told. Pages pinned for good are told at once. Errors: errno; stores may go untold then.
  virtual absl::Status ProtectForReplica(Gfn first, uint64_t pages) {
    return static_cast<void>(first), static_cast<void>(pages),
           absl::UnimplementedError("stores to this memory are not told of");
  }
  // The file of its frames, which may be kept beyond the memory; where in it a page is says FrameOffset. Null: there is
  // none that is this guest's alone.
  virtual std::shared_ptr<FrameFile> frame_file() const { return nullptr; }
};

}  // namespace hk
