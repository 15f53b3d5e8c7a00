// Who is calling a gRPC service, and whether it may. Thread-safe.
#pragma once

#include "absl/status/status.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/status.h"
#include "hyperkernel/node/tls.h"

namespace hk {

// The caller behind a request. Without TLS (unix sockets, loopback, or insecure: true) the address is the protection
// and every caller is a node. With TLS it is what the verified certificate says.
Caller CallerOf(const grpc::ServerContext& context);

// OK if the caller has at least `needed`; else PERMISSION_DENIED naming both.
grpc::Status Authorize(const grpc::ServerContext& context, Role needed);

// Between absl and gRPC; codes are the same numbers.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace hk
