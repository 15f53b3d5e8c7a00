// gRPC's own log, as lines of ours. Thread-safe.
#pragma once

#include "hyperkernel/base/log.h"

namespace hk {

// From now on gRPC's messages are printed by hk::log, component grpc: its errors at level `errors`, a few per 10 s with
// the number of those left out, the rest as debug. GRPC_VERBOSITY chooses what gRPC says at all; errors unless set.
void RouteGrpcLog(log::Level errors);

}  // namespace hk
