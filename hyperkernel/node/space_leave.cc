// The part of the space manager that empties nodes: what operators ask of the coordinator, and it of the node.

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/space_manager.h"

namespace hk {

absl::Status SpaceManager::Drain(const v1::DrainSpaceRequest& request) {
  HK_ASSIGN_OR_RETURN(const View view, FindRunning(request.name()));
  const SpaceIdentity& space = view.identity;
  if (space.coordinator != self_) {
    return absl::FailedPreconditionError(fmt::format(
        "space '{}' is coordinated by node '{}': ask that one (--endpoint)", space.name, space.coordinator));
  }
  const SpaceMemberId* const member = space.Find(request.node());
  if (member == nullptr) {
    return absl::InvalidArgumentError(
        fmt::format("node '{}' does not take part in space '{}'; see hkctl space show", request.node(), space.name));
  }
  if (request.cancel()) {
    HK_RETURN_IF_ERROR(drains_.Cancel(space.id, member->name));
    log::Info("space", "a node is to stay after all", {{"guest", space.name}, {"peer", member->name}});
    return absl::OkStatus();
  }
  if (member->name == self_) {
    return absl::FailedPreconditionError(fmt::format(
        "node '{}' coordinates space '{}', which ends with it: delete the space instead", self_, space.name));
  }
  NodeSet gone;
  for (const SpacePart::Loss& loss : view.part->losses()) {
    gone.Add(loss.node);
    if (loss.node != member->number) continue;
    return absl::FailedPreconditionError(
        fmt::format("node '{}' {} already", member->name, loss.left ? "has left the space" : "is lost to the space"));
  }
  gone.Add(member->number);
  std::vector<SpaceMemberId> staying;
  for (const SpaceMemberId& other : space.members) {
    if (!gone.Contains(other.number)) staying.push_back(other);
  }
  HK_RETURN_IF_ERROR(CheckLeaves(space, staying));
  HK_RETURN_IF_ERROR(peers_->CheckUp(member->name));
  v1::SpaceStatusRequest status;
  status.set_from(self_);
  status.set_id(space.id);
  // One that does not answer is found to be lost, or says so itself when it is told to leave.
  const absl::StatusOr<v1::SpaceStatusResponse> answer = peers_->Status(member->name, status);
  if (answer.ok() && answer->part().machine()) {
    return absl::FailedPreconditionError(
        fmt::format("vCPUs of vm '{}' run on node '{}', and would stand still (hkctl vm show {})", space.name,
                    member->name, space.name));
  }
  {
    MutexLock lock(&mutex_);
    if (const auto joining = joining_.find(space.id); joining != joining_.end()) {
      return absl::FailedPreconditionError(
          fmt::format("node '{}' is joining the space; wait for that", joining->second.name));
    }
    HK_RETURN_IF_ERROR(drains_.Begin(space.id, *member));
  }
  log::Info("space", "a node is drained", {{"guest", space.name}, {"peer", member->name}});
  return absl::OkStatus();
}

absl::StatusOr<v1::LeaveSpaceResponse> SpaceManager::Leave(const v1::LeaveSpaceRequest& request) {
  HK_ASSIGN_OR_RETURN(const SpaceRecovery::Space space, FindOf(request.from(), request.id()));
  if (const auto stop = space.part->stop(); stop.has_value())
    return absl::FailedPreconditionError(MessageOf(stop->why));
  if (request.leave() && space.part->held() && !HK_MUTANT(space_leaves_under_vcpus)) {
    return absl::FailedPreconditionError("vCPUs of the machine run on this node, and would stand still");
  }
  HK_ASSIGN_OR_RETURN(const SpaceLeaving state, space.part->Leave(request.number(), request.leave()));
  v1::LeaveSpaceResponse response;
  response.set_pages_left(state.pages_left);
  response.set_pages_pinned(state.pages_pinned);
  response.set_pages_lost(state.pages_lost);
  response.set_empty(state.empty());
  return response;
}

}  // namespace hk
