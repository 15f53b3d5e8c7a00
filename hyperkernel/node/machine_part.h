// A node's part of a machine whose I/O node is another: the vCPUs that run here, on the machine's memory. Devices are
// at the I/O node; what the vCPUs want of them goes there and back (machine_link.h).
//
// Invariants:
//  1. A part is made held: nothing of the guest runs before the first Run.
//  2. Its vCPUs have ended before anything that they use goes; whatever they wait for (a page, an exit's answer), they
//     end within kPartStopDeadline twice, or by their memory's end.
//  3. A part that cannot go on says so once (Ended), holds still, and is destroyed by whoever owns it, on another
//  thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/guest_memory.h"
#include "hyperkernel/memory/guest_space.h"
#include "hyperkernel/memory/space_router.h"
#include "hyperkernel/node/clock_follower.h"
#include "proto/machine.pb.h"
#include "rdma/transport.h"

namespace hk {

// One machine's vCPUs on this node; there may be none, if all have moved. Thread-safe; one of Run, Hold, Move,
// Renew, LookAtClock and the destructor at a time.
class MachinePart {
 public:
  // What a part is made of. All but `request` outlives it.
  struct Options {
    v1::AttachMachineRequest request;
    NodeId self, io_node;
    std::string boot_id;  // of this host's kernel
    Transport* transport = nullptr;
    SpaceRouter* router = nullptr;
    const Clock* clock = nullptr;
    // The machine's memory; `stopped` as SpacePart::Hold has it.
    std::function<absl::StatusOr<std::shared_ptr<GuestSpace>>(std::function<void(const absl::Status&)> stopped)> hold;
    // The part cannot go on, and why; told once, from any of its threads or in Make: must not block, nor destroy it.
    std::function<void(const std::string& reason)> ended;
  };

  // Makes the vCPUs of this node, held. Errors: kInvalidArgument for a request that no I/O node sends; the memory's,
  // KVM's and the link's.
  static absl::StatusOr<std::unique_ptr<MachinePart>> Make(Options options);
  virtual ~MachinePart() = default;

  virtual absl::Status Run() = 0;
  // Errors: kDeadlineExceeded if a vCPU does not stop; then all go on.
  virtual absl::Status Hold() = 0;
  // Its vCPUs go on in a VM made anew. Errors: VcpuGroup::Renew's; they are as they were.
  virtual absl::Status Renew() = 0;
  // A step of a vCPU's move to or from this node (machine_move.h).
  virtual v1::MoveMachineVcpuResponse Move(const v1::MoveMachineVcpuRequest& request) = 0;
  // As Machine::exits_by_kind.
  virtual std::map<std::string, uint64_t> exits_by_kind() const = 0;
  // What the time of each vCPU went to while it was here; without their node.
  virtual std::vector<v1::VcpuTimes> vcpu_times() const = 0;
  // What they have waited for on other nodes since the last call with `wanted`; without, that is not kept any more.
  virtual v1::MachineStalls Stalls(bool /*wanted*/) { return {}; }
  // By how much its TSC may have differed from the I/O node's at most when it was made.
  virtual uint64_t tsc_error_ns() const = 0;
  // Looks how its clock has gone on, and follows the I/O node's, whose offset is `machine` (clock_follower.h).
  virtual ClockWord LookAtClock(uint64_t /*machine*/) { return {}; }
};

}  // namespace hk
