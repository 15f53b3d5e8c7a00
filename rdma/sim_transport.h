// The simulated back end of transport.h: the same messages, handshakes and rules as over TCP and verbs, on virtual time
// in one thread. Addresses are SimNetwork::AddressOf's. Handlers run as events of the Simulation, so nothing happens
// but while its events run. To let a node crash: SimNetwork::Crash, then destroy its transport.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "rdma/sim_network.h"
#include "rdma/transport.h"

namespace hk {

// The network outlives the transport. kInvalidArgument: the settings (CheckSettings).
absl::StatusOr<std::unique_ptr<Transport>> MakeSimTransport(SimNetwork* network, const TransportSettings& settings,
                                                            TransportHandler* handler);

}  // namespace hk
