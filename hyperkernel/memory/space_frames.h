// The frames of one space on this node: a sparse file in the frame store, a view for programs whose pages come and go
// (userfaultfd), and the daemon's own view. README.md, "Frames of a space".
//
// Invariants:
//  1. A page has a frame if and only if `access` says so (kRead or kWrite), but within a call for that page.
//  2. The view is registered MISSING|WP: a touch of a page that is not here, and a store to one that is kRead, waits
//     for a Wake. Frames come from Install alone, never from a touch: the daemon's view refuses holes.
//  3. Nobody writes to a page through the view between its write protection and its removal; so what Remove keeps has
//     every store.
//  4. A page that cannot be had is made inaccessible. When the frames go, the whole view is, before its faults end:
//     no program ever sees zeroes that are not the page's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/fault_meter.h"
#include "hyperkernel/memory/frame_store.h"
#include "hyperkernel/memory/page_frames.h"

namespace hk {

// See PageFrames for the operations and their thread safety. A GFN beyond the space is kOutOfRange.
class SpaceFrames : public PageFrames {
 public:
  // A program touched the page and waits (for Wake). On a thread of the page's stripe.
  using OnFault = std::function<void(Gfn page, bool write, uint32_t thread)>;

  // Makes the file FRAME_STORE/NAME.GENERATION for GFNs 0 to pages - 1, all holes, and its views. At most `most`
  // of the pages are here at a time: that room is reserved (the engine's bound; not looked at). `frames` outlives this
  // object. Errors: kResourceExhausted (budget), kAlreadyExists, errno of what failed.
  static absl::StatusOr<std::unique_ptr<SpaceFrames>> Create(const FrameStore& frames, const std::string& name,
                                                             uint32_t generation, uint64_t pages, uint64_t most);

  // Takes faults from now on. Once, before any operation and before a program runs on the view. Errors: errno, naming
  // the call.
  virtual absl::Status Serve(OnFault on_fault) = 0;
  // When it returned, no OnFault is under way or comes, and programs that touch the view end as if every page had
  // failed. Afterwards only Read, Write, Wake and Fail do anything but fail. Not inside OnFault. The destructor does it
  // too.
  virtual void StopServing() = 0;

  // For programs. Constant.
  virtual std::byte* view() const = 0;
  // The daemon's own view of the same bytes: a touch of a page that is not here ends the process. Constant.
  virtual std::byte* daemon_view() const = 0;
  virtual uint64_t bytes() const = 0;
  // Bytes of frames taken now.
  virtual uint64_t frame_bytes() const = 0;
  // What threads on the view wait for.
  virtual FaultMeter* faults() = 0;
};

}  // namespace hk
