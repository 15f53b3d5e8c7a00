// What a machine's I/O node asks of the nodes that have other vCPUs of it. Implementations are thread-safe.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/types.h"
#include "proto/machine.pb.h"

namespace hk {

class Cluster;

// Version of what the nodes of one machine say to one another: proto/machine.proto, and the link's messages. All of
// them have the same.
inline constexpr uint32_t kMachineProtocolVersion = 5;  // 5: a part takes its bound of frames from its space

// The seam to the cluster. Every call has a deadline; errors are for people and begin with the node.
class MachinePeers {
 public:
  virtual ~MachinePeers() = default;
  // A node's number, this one's too. Errors: kNotFound.
  virtual absl::StatusOr<NodeId> NumberOf(const std::string& node) const = 0;
  virtual absl::StatusOr<v1::DescribeMachineHostResponse> Describe(const std::string& node, const v1::CpuSpec& cpu) = 0;
  virtual absl::StatusOr<v1::AttachMachineResponse> Attach(const std::string& node,
                                                           const v1::AttachMachineRequest& request) = 0;
  virtual absl::StatusOr<v1::OrderMachineResponse> Order(const std::string& node, uint64_t id, v1::MachineOrder order,
                                                         uint64_t number, uint64_t tsc_offset) = 0;
  virtual absl::StatusOr<v1::MoveMachineVcpuResponse> Move(const std::string& node, uint64_t id,
                                                           const v1::MoveMachineVcpuRequest& request) = 0;
};

// The real one: PeerControl calls.
class ClusterMachinePeers final : public MachinePeers {
 public:
  // `cluster` outlives this object.
  explicit ClusterMachinePeers(const Cluster* cluster) : cluster_(cluster) {}
  absl::StatusOr<NodeId> NumberOf(const std::string& node) const override;
  absl::StatusOr<v1::DescribeMachineHostResponse> Describe(const std::string& node, const v1::CpuSpec& cpu) override;
  absl::StatusOr<v1::AttachMachineResponse> Attach(const std::string& node,
                                                   const v1::AttachMachineRequest& request) override;
  absl::StatusOr<v1::OrderMachineResponse> Order(const std::string& node, uint64_t id, v1::MachineOrder order,
                                                 uint64_t number, uint64_t tsc_offset) override;
  absl::StatusOr<v1::MoveMachineVcpuResponse> Move(const std::string& node, uint64_t id,
                                                   const v1::MoveMachineVcpuRequest& request) override;

 private:
  const Cluster* const cluster_;
};

// The other end speaks version `theirs`. Errors: kFailedPrecondition, if that is not this node's.
absl::Status CheckMachineProtocol(uint32_t theirs, const std::string& node);

}  // namespace hk
