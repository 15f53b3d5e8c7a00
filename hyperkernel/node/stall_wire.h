// Waits of vCPUs for other nodes as a node tells them (MachineStalls), and as a trace has them. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/fault_meter.h"
#include "migration/stall_event.h"
#include "proto/trace.pb.h"

namespace hk {

// What this node has to tell; its threads' numbers (FaultMeter::Watch) are those of their vCPUs.
v1::MachineStalls TakeStalls(FaultMeter* meter, Monotonic now);

// What `from` told, on the clock of `now`, at which it came. What no node can have seen of a machine with so many
// vCPUs is left out: peers are not believed.
std::vector<StallEvent> StallsIn(const v1::MachineStalls& told, NodeId from, uint32_t vcpus, Monotonic now);

// Of a trace that began then. REQUIRES: not before that.
v1::Stall TracedStall(const StallEvent& stall, Monotonic began);

}  // namespace hk
