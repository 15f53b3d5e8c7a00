// What the space manager asks of the other nodes, and of this node about them. Implementations are thread-safe.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/node/space_rules.h"
#include "proto/peer.pb.h"

namespace hk {

class Cluster;
class DataPlane;

// The seam to the cluster. Every call has a deadline (space_rules.h); errors are for people and begin with the node.
class SpacePeers {
 public:
  virtual ~SpacePeers() = default;
  // A node's number, this one's too. Errors: kNotFound.
  virtual absl::StatusOr<NodeId> NumberOf(const std::string& node) const = 0;
  // All nodes that this one knows, itself too, ascending by number.
  virtual std::vector<SpaceMemberId> Everyone() const { return {}; }
  // OK if the node (this one too) is a member that can be worked with; else kUnavailable, or kNotFound.
  virtual absl::Status CheckUp(const std::string& node) const = 0;
  // Waits until the data plane of this node is connected to all of these; kUnavailable.
  virtual absl::Status WaitDataUp(const std::vector<std::string>& nodes) = 0;

  virtual absl::Status Attach(const std::string& node, const v1::AttachSpaceRequest& request) = 0;
  virtual absl::Status Detach(const std::string& node, uint64_t id) = 0;
  virtual absl::StatusOr<v1::SpaceStatusResponse> Status(const std::string& node,
                                                         const v1::SpaceStatusRequest& request) = 0;
  virtual absl::StatusOr<v1::RemoveSpaceResponse> Remove(const std::string& node, uint64_t id) = 0;
  virtual absl::StatusOr<v1::ChangeSpaceEpochResponse> ChangeEpoch(const std::string& /*node*/,
                                                                   const v1::ChangeSpaceEpochRequest& /*request*/,
                                                                   std::chrono::milliseconds /*limit*/) {
    return absl::UnimplementedError("no epochs");
  }
  virtual absl::Status TellLost(const std::string& /*coordinator*/, uint64_t /*id*/, NodeId /*lost*/) {
    return absl::UnimplementedError("no epochs");
  }
  virtual absl::StatusOr<v1::LeaveSpaceResponse> Leave(const std::string& /*node*/,
                                                       const v1::LeaveSpaceRequest& /*request*/) {
    return absl::UnimplementedError("no drains");
  }
  // Resets the data plane's connections to the node, if there are any.
  virtual void Fence(const std::string& /*node*/) {}
};

// The real one: PeerControl calls.
class ClusterSpacePeers final : public SpacePeers {
 public:
  // Both outlive this object.
  ClusterSpacePeers(const Cluster* cluster, DataPlane* data_plane) : cluster_(cluster), data_plane_(data_plane) {}
  absl::StatusOr<NodeId> NumberOf(const std::string& node) const override;
  std::vector<SpaceMemberId> Everyone() const override;
  absl::Status CheckUp(const std::string& node) const override;
  absl::Status WaitDataUp(const std::vector<std::string>& nodes) override;
  absl::Status Attach(const std::string& node, const v1::AttachSpaceRequest& request) override;
  absl::Status Detach(const std::string& node, uint64_t id) override;
  absl::StatusOr<v1::SpaceStatusResponse> Status(const std::string& node,
                                                 const v1::SpaceStatusRequest& request) override;
  absl::StatusOr<v1::RemoveSpaceResponse> Remove(const std::string& node, uint64_t id) override;
  absl::StatusOr<v1::ChangeSpaceEpochResponse> ChangeEpoch(const std::string& node,
                                                           const v1::ChangeSpaceEpochRequest& request,
                                                           std::chrono::milliseconds limit) override;
  absl::Status TellLost(const std::string& coordinator, uint64_t id, NodeId lost) override;
  absl::StatusOr<v1::LeaveSpaceResponse> Leave(const std::string& node, const v1::LeaveSpaceRequest& request) override;
  void Fence(const std::string& node) override;

 private:
  const Cluster* const cluster_;
  DataPlane* const data_plane_;
};

}  // namespace hk
