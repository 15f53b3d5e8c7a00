// What every request goes through. Thread-safe.
#pragma once

#include <cstddef>

#include "grpcpp/server_context.h"
#include "grpcpp/support/status.h"
#include "hyperkernel/node/caller.h"
#include "hyperkernel/node/metrics.h"

namespace hk {

// Longest error told. gRPC replaces a status whose message, percent-encoded, does not fit its limit for metadata (8
// KiB), and messages quote names that the caller chose.
inline constexpr size_t kMaxMessageBytes = 2048;

// Runs `body` if the caller has the role, and counts the outcome.
template <typename Body>
grpc::Status Serve(Metrics* metrics, const char* method, const grpc::ServerContext& context, Role needed, Body body) {
  grpc::Status status = Authorize(context, needed);
  if (status.ok()) status = body();
  metrics->CountRequest(method, status.error_code());
  if (status.error_message().size() > kMaxMessageBytes) {
    return grpc::Status(status.error_code(), status.error_message().substr(0, kMaxMessageBytes) + "...");
  }
  return status;
}

}  // namespace hk
