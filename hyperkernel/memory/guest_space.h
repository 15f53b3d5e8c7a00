// A guest-physical space on this node: its frames in the frame store, the view that programs run on, and the fault
// engine, as one thing. The host-side face of DESIGN 4 and 5: a VM's memory, a space without a guest, a test's threads.
//
// Thread-safe. Addresses are guest-physical bytes from 0.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/fault_meter.h"
#include "hyperkernel/memory/frame_store.h"
#include "hyperkernel/memory/pinned_pages.h"
#include "hyperkernel/memory/space_engine.h"
#include "hyperkernel/memory/space_router.h"
#include "hyperkernel/memory/swap_store.h"
#include "rdma/transport.h"

namespace hk {

// A space, attached to this node.
class GuestSpace {
 public:
  struct Options {
    SpaceConfig config;
    std::string name;                 // of the frame file: FRAME_STORE/NAME.GENERATION
    const SwapStore* swap = nullptr;  // REQUIRED with config.swap_pages; the file is called as that of the frames
    // Called once, on a thread of the space: it is stopped, and why (node, GPA). Programs on its view that wait for
    // pages get SIGSEGV, or EFAULT from KVM_RUN.
    std::function<void(const absl::Status&)> stopped;
    // SpaceEngine::WatchLosses: a node is gone that the space may go on without. May be empty.
    std::function<void(NodeId)> lost;
  };
  // Makes the file, the views and the engine, and joins the router. All arguments outlive the space. Errors:
  // kInvalidArgument, kResourceExhausted (budget of frames or swap, room on the swap's disk), kAlreadyExists, errno of
  // what failed, in words for operators.
  static absl::StatusOr<std::unique_ptr<GuestSpace>> Attach(Options options, const FrameStore& frames,
                                                            Transport* transport, SpaceRouter* router,
                                                            const Clock& clock);
  // Leaves: no program may run on the view any more. What other nodes want from this one is lost.
  virtual ~GuestSpace() = default;

  virtual uint64_t bytes() const = 0;
  // Most that Pin gives at once, by all who have pins.
  virtual uint64_t most_pinned_bytes() const = 0;
  // For programs (vCPUs, threads of tests): ordinary memory whose pages come when they are touched. The daemon's own
  // threads use Read and Write instead.
  virtual std::byte* view() = 0;

  // Copies, page by page, each as if one instruction did it; all pages of a call together are not one. Errors:
  // kOutOfRange (nothing done), kDeadlineExceeded naming the page, or why the space stopped. After another error than
  // kOutOfRange any of the pages may be written, each wholly or not at all, also later; `to` of Read is not touched any
  // more.
  virtual absl::Status Read(Gpa from, std::span<std::byte> to, Monotonic deadline) = 0;
  virtual absl::Status Write(Gpa to, std::span<const std::byte> from, Monotonic deadline) = 0;

  // Pins the pages of `bytes` bytes at `from`: they are here, writable, at one address, until the result goes, whatever
  // other nodes want of them and however few frames there are. For kRead they are had like that too: the protocol has
  // pins of writers only, so other nodes' readers wait as well; Read makes a copy instead. To be held for the time of
  // one access: a node that has waited for a pinned page for SpaceConfig::request_limit stops the space. Who holds pins
  // pins nothing below them, or lets go of them when it gets an error: so nobody waits in a ring.
  //
  // An epoch change leaves pins as they are; a Pin that waits goes on waiting. When the space stops, Pins that wait end
  // with the reason, and the memory of those that are held stays, though nobody else sees what is written to it then.
  // Errors: kOutOfRange, also for no bytes; kResourceExhausted (kMostPinnedPages, or half of max_pages), at once;
  // kDeadlineExceeded naming the address: pages that come later are unpinned at once; why the space stopped.
  virtual absl::StatusOr<PinnedPages> Pin(Gpa /*from*/, uint64_t /*bytes*/, PageAccess /*access*/,
                                          Monotonic /*deadline*/) {
    return absl::UnimplementedError("no pins");
  }

  // OK, or why it stopped.
  virtual absl::Status state() const = 0;
  virtual SpaceStatistics Statistics() const = 0;
  virtual std::vector<ExtentUse> Uses(uint64_t first, size_t most) const = 0;
  // Bytes of frames taken on this node.
  virtual uint64_t frame_bytes() const = 0;
  virtual SpaceEngine& engine() = 0;
  // What programs on the view wait for; null: it is not known.
  virtual FaultMeter* faults() { return nullptr; }
};

}  // namespace hk
