// A guest's RAM that is a guest-physical space: its pages are on whichever node uses them, and come when a vCPU, a
// device or the loader here touches them.
//
// Thread-safe. Addresses are guest-physical, and the same in the space: what is between the RAM ranges is never
// touched, and costs nothing.
//
// Pins: devices of one node alone may use a space's memory at a time (the guest's I/O node). They pin the pieces of a
// request in the guest's order, not in ascending order; two nodes that did so could wait for each other in a ring.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/memory/guest_memory.h"
#include "hyperkernel/memory/guest_space.h"

namespace hk {

// Most that a loader's or a device's access waits for its pages: above what the space itself waits for a peer
// (SpaceConfig::request_limit, 30 s), which then says what failed.
inline constexpr std::chrono::seconds kSpaceMemoryWait(40);

// The RAM of a guest whose vCPUs and devices here use `space`. REQUIRES: ranges are page-aligned, sorted, without
// overlap; `clock` outlives it. Errors: kInvalidArgument, ranges beyond the space's end.
absl::StatusOr<std::unique_ptr<GuestMemory>> MakeSpaceMemory(std::shared_ptr<GuestSpace> space,
                                                             const std::vector<RamRange>& ranges, const Clock& clock);

}  // namespace hk
