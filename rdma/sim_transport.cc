#include "rdma/sim_transport.h"

#include "rdma/engine.h"
#include "rdma/sim_wire.h"

namespace hk {

absl::StatusOr<std::unique_ptr<Transport>> MakeSimTransport(SimNetwork* network, const TransportSettings& settings,
                                                            TransportHandler* handler) {
  return Engine::Create(settings, handler, std::make_unique<SimWire>(network, settings), 0, network->simulation());
}

}  // namespace hk
