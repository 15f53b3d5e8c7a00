// The memory of a machine that is placed on several nodes: a space of its name, which this node coordinates. It is made
// when the machine starts, and deleted when it has ended.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/node/kvm_machine.h"
#include "hyperkernel/node/space_manager.h"
#include "proto/vm.pb.h"

namespace hk {

// True: the machine's memory is a space.
inline bool IsPlaced(const v1::VmSpec& spec) {
  return spec.placement_size() > 1;
}

// All nodes of the placement are the cluster's: `known` says so of each, or why not. A node that is down is known: it
// is needed when the machine starts. Errors: that of `known`, with the field.
absl::Status CheckPlacedNodes(const v1::VmSpec& spec, const std::function<absl::Status(const std::string&)>& known);

// REQUIRES: the specification is complete (CompleteVmSpec), and placed. `spaces` and `clock` outlive what it makes. A
// start fails, and leaves nothing behind, if any of the nodes is not up or has no room; a machine whose space stops
// ends as a crash, with the space's reason.
MachineMemory PlacedMemory(const v1::VmSpec& spec, SpaceManager* spaces, const Clock& clock);

}  // namespace hk
