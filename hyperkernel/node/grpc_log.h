// gRPC's own log, as lines of ours. Thread-safe.
#pragma once

namespace hk {

// From now on gRPC's messages are printed by hk::log, component grpc: its errors as warnings (they are about one connection,
// not about this node), the rest as debug. GRPC_VERBOSITY chooses what gRPC says at all; errors unless set.
void RouteGrpcLog();

}  // namespace hk
