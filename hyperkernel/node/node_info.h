// Facts of this node and host, as told to peers and operators. Thread-safe.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/memory/frame_store.h"
#include "hyperkernel/memory/swap_store.h"
#include "hyperkernel/node/config.h"
#include "proto/node.pb.h"
#include "proto/state.pb.h"

namespace hk {

// Reads the host's name and memory size.
HostFacts ReadHostFacts();

// The id of this boot of the host's kernel; "" if it has none.
std::string ReadBootId();

// Everything about this node that does not change while the daemon runs. `transport` is the data plane in use.
v1::NodeInfo StaticNodeInfo(const NodeSettings& settings, const v1::NodeIdentity& identity,
                            const std::string& transport, WallTime started);

// Fills in what changes: available memory, and frames and swap in use and reserved.
void RefreshNodeInfo(const FrameStore& frames, const SwapStore& swap, v1::NodeInfo* info);

// The data plane that a choice means on this host: "tcp" or "verbs(DEVICE)". A device counts if its port is active and
// its network interface has the address `data`; with the wildcard none does. Errors: kFailedPrecondition if verbs are
// asked for and there is none.
absl::StatusOr<std::string> ResolveTransport(TransportChoice choice, const Address& data);

}  // namespace hk
