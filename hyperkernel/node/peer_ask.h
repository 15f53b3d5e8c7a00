// One call of a node's PeerControl.
#pragma once

#include <chrono>
#include <string>

#include "absl/status/statusor.h"
#include "hyperkernel/node/cluster.h"
#include "proto/peer.grpc.pb.h"

namespace hk {

// Errors are for people and begin with the node; kDeadlineExceeded after `limit`. `kept`: PeerLinks::CallKept.
template <typename Request, typename Response>
absl::StatusOr<Response> Ask(const Cluster* cluster, const std::string& node, std::chrono::milliseconds limit,
                             grpc::Status (v1::PeerControl::Stub::*call)(grpc::ClientContext*, const Request&,
                                                                         Response*),
                             const Request& request, bool kept = false) {
  Response response;
  const auto deadline = std::chrono::system_clock::now() + limit;
  const auto body = [&](v1::PeerControl::Stub* stub, grpc::ClientContext* context) {
    return (stub->*call)(context, request, &response);
  };
  const absl::Status status = kept ? cluster->CallKept(node, deadline, body) : cluster->Call(node, deadline, body);
  if (!status.ok()) return status;
  return response;
}

}  // namespace hk
