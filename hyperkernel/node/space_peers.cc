#include "hyperkernel/node/space_peers.h"

#include <algorithm>
#include <chrono>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/space_version.h"
#include "hyperkernel/node/cluster.h"
#include "hyperkernel/node/data_plane.h"
#include "hyperkernel/node/peer_ask.h"
#include "hyperkernel/node/space_rules.h"

namespace hk {

absl::StatusOr<NodeId> ClusterSpacePeers::NumberOf(const std::string& node) const {
  return cluster_->NumberOf(node);
}

std::vector<SpaceMemberId> ClusterSpacePeers::Everyone() const {
  std::vector<SpaceMemberId> everyone;
  for (const v1::Member& member : cluster_->Members()) {
    const absl::StatusOr<NodeId> number = cluster_->NumberOf(member.name());
    if (number.ok()) everyone.push_back({member.name(), *number});
  }
  std::sort(everyone.begin(), everyone.end(), [](const auto& a, const auto& b) { return a.number < b.number; });
  return everyone;
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
  HK_ASSIGN_OR_RETURN(const v1::AttachSpaceResponse response,
                      Ask(cluster_, node, kAttachLimit, &v1::PeerControl::Stub::AttachSpace, versioned));
  // One of a release that did not look at the request's has attached, and is told to leave.
  return CheckSpaceProtocol(response.space_protocol(), fmt::format("node '{}'", node));
}

absl::Status ClusterSpacePeers::Detach(const std::string& node, uint64_t id) {
  v1::DetachSpaceRequest request;
  request.set_from(cluster_->name());
  request.set_id(id);
  return Ask(cluster_, node, kPeerAnswerLimit, &v1::PeerControl::Stub::DetachSpace, request).status();
}

absl::StatusOr<v1::SpaceStatusResponse> ClusterSpacePeers::Status(const std::string& node,
                                                                  const v1::SpaceStatusRequest& request) {
  return Ask(cluster_, node, kPeerAnswerLimit, &v1::PeerControl::Stub::SpaceStatus, request);
}

absl::StatusOr<v1::RemoveSpaceResponse> ClusterSpacePeers::Remove(const std::string& node, uint64_t id) {
  v1::RemoveSpaceRequest request;
  request.set_from(cluster_->name());
  request.set_id(id);
  return Ask(cluster_, node, kAttachLimit, &v1::PeerControl::Stub::RemoveSpace, request);
}

absl::StatusOr<v1::ChangeSpaceEpochResponse> ClusterSpacePeers::ChangeEpoch(const std::string& node,
                                                                            const v1::ChangeSpaceEpochRequest& request,
                                                                            std::chrono::milliseconds limit) {
  return Ask(cluster_, node, limit, &v1::PeerControl::Stub::ChangeSpaceEpoch, request);
}

absl::Status ClusterSpacePeers::TellLost(const std::string& coordinator, uint64_t id, NodeId lost) {
  v1::SpaceNodeLostRequest request;
  request.set_from(cluster_->name());
  request.set_id(id);
  request.set_lost(lost.value());
  return Ask(cluster_, coordinator, kPeerAnswerLimit, &v1::PeerControl::Stub::SpaceNodeLost, request).status();
}

absl::StatusOr<v1::LeaveSpaceResponse> ClusterSpacePeers::Leave(const std::string& node,
                                                                const v1::LeaveSpaceRequest& request) {
  return Ask(cluster_, node, kPeerAnswerLimit, &v1::PeerControl::Stub::LeaveSpace, request);
}

void ClusterSpacePeers::Fence(const std::string& node) {
  const absl::StatusOr<NodeId> number = cluster_->NumberOf(node);
  // It may come back for other spaces.
  if (number.ok()) data_plane_->transport()->ResetPeer(*number, Epoch());
}

}  // namespace hk
