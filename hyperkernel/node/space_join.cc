// The part of the space manager that has nodes join.

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/space_manager.h"

namespace hk {
namespace {

// How long an operator waits: as long as the others may take to lose a node and go on without it, and then some. Then
// the join is withdrawn, unless it holds already.
constexpr std::chrono::seconds kJoinLimit(60);

// The end of a join, which comes on a thread of the recovery, maybe after nobody waits any more.
class JoinEnd {
 public:
  void Set(const absl::Status& status) {
    MutexLock lock(&mutex_);
    status_ = status;
    changed_.SignalAll();
  }
  absl::Status Wait(Monotonic deadline) {
    MutexLock lock(&mutex_);
    while (!status_.has_value()) {
      if (!changed_.WaitUntil(&mutex_, deadline) && !status_.has_value()) {
        return absl::DeadlineExceededError("not done in time; see hkctl space show");
      }
    }
    return *status_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::optional<absl::Status> status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<v1::Space> SpaceManager::Join(const v1::JoinSpaceRequest& request) {
  HK_ASSIGN_OR_RETURN(const View asked, FindRunning(request.name()));
  const SpaceIdentity& space = asked.identity;
  if (space.coordinator != self_) {
    return absl::FailedPreconditionError(fmt::format(
        "space '{}' is coordinated by node '{}': ask that one (--endpoint)", space.name, space.coordinator));
  }
  const auto found = std::find_if(space.cluster.begin(), space.cluster.end(),
                                  [&](const SpaceMemberId& node) { return node.name == request.node(); });
  if (found == space.cluster.end()) {
    return absl::InvalidArgumentError(
        fmt::format("node '{}' was no node of the cluster when space '{}' was made", request.node(), space.name));
  }
  const SpaceMemberId node = *found;
  {
    MutexLock lock(&mutex_);
    if (const auto drain = drains_.Of(space.id); drain.has_value()) {
      return absl::FailedPreconditionError(fmt::format("node '{}' is being drained; wait for that", drain->node));
    }
    const auto [joining, first] = joining_.emplace(space.id, node);
    if (!first) {
      return absl::FailedPreconditionError(
          fmt::format("node '{}' is joining the space; wait for that", joining->second.name));
    }
  }
  const absl::Status joined = JoinWith(space.id, node);
  {
    MutexLock lock(&mutex_);
    joining_.erase(space.id);
  }
  if (!joined.ok()) return joined;
  HK_ASSIGN_OR_RETURN(const View now, FindId(space.id));
  return SpaceOf(now);
}

absl::Status SpaceManager::JoinWith(uint64_t id, const SpaceMemberId& node) {
  HK_ASSIGN_OR_RETURN(const View view, FindId(id));
  if (view.part == nullptr) return absl::FailedPreconditionError("the space is being deleted");
  SpaceIdentity space = view.identity;
  if (space.Find(node.name) != nullptr) {
    const std::vector<SpacePart::Loss> losses = view.part->losses();
    const bool gone =
        std::any_of(losses.begin(), losses.end(), [&](const auto& loss) { return loss.node == node.number; });
    if (!gone) {
      return absl::AlreadyExistsError(fmt::format("node '{}' takes part in space '{}' already", node.name, space.name));
    }
  }
  HK_RETURN_IF_ERROR(peers_->CheckUp(node.name));
  HK_ASSIGN_OR_RETURN(const SpaceRecovery::History history, recovery_.HistoryOf({space, view.part}));
  space.epoch = history.epoch;
  space.committed = history.committed;
  space.members = history.members;
  if (space.Find(node.name) == nullptr) {
    space.members.push_back(node);
    std::sort(space.members.begin(), space.members.end(),
              [](const auto& a, const auto& b) { return a.number < b.number; });
  } else {
    // What it may have of the time before it was given up is of no use to anybody, and in the way.
    const absl::Status detached = peers_->Detach(node.name, id);
    if (!detached.ok()) return At(node.name, detached);
  }
  absl::Status joined = At(node.name, peers_->Attach(node.name, AttachRequestOf(space)));
  if (joined.ok()) {
    const auto end = std::make_shared<JoinEnd>();
    recovery_.OnJoin({view.identity, view.part}, node, history.epoch,
                     [end](const absl::Status& how) { end->Set(how); });
    joined = end->Wait(clock_.Now() + kJoinLimit);
    if (absl::IsDeadlineExceeded(joined)) {
      // It holds, or it does not: the recovery says which.
      recovery_.EndJoin(
          id, absl::DeadlineExceededError(fmt::format("node '{}' could not join within {} s; see hkctl space show",
                                                      node.name, kJoinLimit.count())));
      joined = end->Wait(clock_.Now() + kPeerAnswerLimit);
    }
  }
  if (joined.ok()) {
    log::Info("space", "a node has joined", {{"guest", space.name}, {"peer", node.name}});
    return joined;
  }
  // It may have attached, though it did not answer. What it does not hear it learns by its next hello.
  const absl::Status detached = peers_->Detach(node.name, id);
  log::Warning("space", "a node did not join",
               {{"guest", space.name},
                {"peer", node.name},
                {"reason", MessageOf(joined)},
                {"detached", detached.ok() ? "yes" : MessageOf(detached)}});
  return joined;
}

void SpaceManager::SetMembers(uint64_t id, std::vector<SpaceMemberId> members) {
  MutexLock lock(&mutex_);
  for (auto& [name, entry] : entries_) {
    if (entry.identity.id == id) entry.identity.members = std::move(members);
  }
}

}  // namespace hk
