#include "hyperkernel/node/space_peers.h"

#include <chrono>

#include "fmt/format.h"
#include "hyperkernel/memory/space_version.h"
#include "hyperkernel/node/cluster.h"
#include "hyperkernel/node/data_plane.h"
#include "hyperkernel/node/space_rules.h"

namespace hk {
namespace {

std::chrono::system_clock::time_point Within(std::chrono::milliseconds limit) {
  return std::chrono::system_clock::now() + limit;
}

}  // namespace

absl::StatusOr<NodeId> ClusterSpacePeers::NumberOf(const std::string& node) const {
  return cluster_->NumberOf(node);
}

absl::Status ClusterSpacePeers::CheckUp(const std::string& node) const {
  const absl::StatusOr<v1::Member> member = cluster_->Find(node);
  if (!member.ok()) return member.status();
  if (member->state() == v1::MEMBER_STATE_SELF || member->state() == v1::MEMBER_STATE_UP) return absl::OkStatus();
  return absl::UnavailableError(fmt::format("node '{}' is {}{}{}", node, StateName(member->state()),
                                            member->reason().empty() ? "" : ": ", member->reason()));
}

absl::Status ClusterSpacePeers::WaitDataUp(const std::vector<std::string>& nodes) {
  return data_plane_->WaitUp(nodes, std::chrono::steady_clock::now() + kDataPlaneLimit);
}

absl::Status ClusterSpacePeers::Attach(const std::string& node, const v1::AttachSpaceRequest& request) {
  v1::AttachSpaceRequest versioned = request;
  versioned.set_space_protocol(kSpaceProtocolVersion);
  v1::AttachSpaceResponse response;
  const absl::Status status =
      cluster_->Call(node, Within(kAttachLimit), [&](v1::PeerControl::Stub* stub, grpc::ClientContext* context) {
        return stub->AttachSpace(context, versioned, &response);
      });
  if (!status.ok()) return status;
  // One of a release that did not look at the request's has attached, and is told to leave.
  return CheckSpaceProtocol(response.space_protocol(), fmt::format("node '{}'", node));
}

absl::Status ClusterSpacePeers::Detach(const std::string& node, uint64_t id) {
  v1::DetachSpaceRequest request;
  request.set_from(cluster_->name());
  request.set_id(id);
  v1::DetachSpaceResponse response;
  return cluster_->Call(node, Within(kPeerAnswerLimit), [&](v1::PeerControl::Stub* stub, grpc::ClientContext* context) {
    return stub->DetachSpace(context, request, &response);
  });
}

absl::StatusOr<v1::SpaceStatusResponse> ClusterSpacePeers::Status(const std::string& node,
                                                                  const v1::SpaceStatusRequest& request) {
  v1::SpaceStatusResponse response;
  const absl::Status status =
      cluster_->Call(node, Within(kPeerAnswerLimit), [&](v1::PeerControl::Stub* stub, grpc::ClientContext* context) {
        return stub->SpaceStatus(context, request, &response);
      });
  if (!status.ok()) return status;
  return response;
}

absl::StatusOr<v1::RemoveSpaceResponse> ClusterSpacePeers::Remove(const std::string& node, uint64_t id) {
  v1::RemoveSpaceRequest request;
  request.set_from(cluster_->name());
  request.set_id(id);
  v1::RemoveSpaceResponse response;
  const absl::Status status =
      cluster_->Call(node, Within(kAttachLimit), [&](v1::PeerControl::Stub* stub, grpc::ClientContext* context) {
        return stub->RemoveSpace(context, request, &response);
      });
  if (!status.ok()) return status;
  return response;
}

absl::StatusOr<v1::ChangeSpaceEpochResponse> ClusterSpacePeers::ChangeEpoch(const std::string& node,
                                                                            const v1::ChangeSpaceEpochRequest& request,
                                                                            std::chrono::milliseconds limit) {
  v1::ChangeSpaceEpochResponse response;
  const absl::Status status =
      cluster_->Call(node, Within(limit), [&](v1::PeerControl::Stub* stub, grpc::ClientContext* context) {
        return stub->ChangeSpaceEpoch(context, request, &response);
      });
  if (!status.ok()) return status;
  return response;
}

absl::Status ClusterSpacePeers::TellLost(const std::string& coordinator, uint64_t id, NodeId lost) {
  v1::SpaceNodeLostRequest request;
  request.set_from(cluster_->name());
  request.set_id(id);
  request.set_lost(lost.value());
  v1::SpaceNodeLostResponse response;
  return cluster_->Call(coordinator, Within(kPeerAnswerLimit),
                        [&](v1::PeerControl::Stub* stub, grpc::ClientContext* context) {
                          return stub->SpaceNodeLost(context, request, &response);
                        });
}

absl::StatusOr<v1::LeaveSpaceResponse> ClusterSpacePeers::Leave(const std::string& node,
                                                                const v1::LeaveSpaceRequest& request) {
  v1::LeaveSpaceResponse response;
  const absl::Status status =
      cluster_->Call(node, Within(kPeerAnswerLimit), [&](v1::PeerControl::Stub* stub, grpc::ClientContext* context) {
        return stub->LeaveSpace(context, request, &response);
      });
  if (!status.ok()) return status;
  return response;
}

void ClusterSpacePeers::Fence(const std::string& node) {
  const absl::StatusOr<NodeId> number = cluster_->NumberOf(node);
  // It may come back for other spaces.
  if (number.ok()) data_plane_->transport()->ResetPeer(*number, Epoch());
}

}  // namespace hk
