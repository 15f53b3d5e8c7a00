// The part of the space manager that has nodes join.

#include <algorithm>
#include <memory>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/space_manager.h"

namespace hk {
namespace {

// Longest change of epoch, with what it may wait for; then it is not known whether the node takes part.
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
  HK_ASSIGN_OR_RETURN(const View view, FindRunning(request.name()));
  SpaceIdentity space = view.identity;
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
  const std::vector<SpacePart::Loss> losses = view.part->losses();
  const bool gone =
      std::any_of(losses.begin(), losses.end(), [&](const auto& loss) { return loss.node == node.number; });
  if (space.Find(node.name) != nullptr && !gone) {
    return absl::AlreadyExistsError(fmt::format("node '{}' takes part in space '{}' already", node.name, space.name));
  }
  if (const auto drain = drains_.Of(space.id); drain.has_value()) {
    return absl::FailedPreconditionError(fmt::format("node '{}' is being drained; wait for that", drain->node));
  }
  HK_RETURN_IF_ERROR(peers_->CheckUp(node.name));
  {
    MutexLock lock(&mutex_);
    if (!joining_.emplace(space.id, node.name).second) {
      return absl::FailedPreconditionError(fmt::format("node '{}' is joining already", node.name));
    }
  }
  const absl::Status joined = JoinWith(view, node);
  {
    MutexLock lock(&mutex_);
    joining_.erase({space.id, node.name});
  }
  if (!joined.ok()) return joined;
  HK_ASSIGN_OR_RETURN(const View now, FindId(space.id));
  return SpaceOf(now);
}

absl::Status SpaceManager::JoinWith(const View& view, const SpaceMemberId& node) {
  SpaceIdentity space = view.identity;
  const SpaceRecovery::History history = recovery_.HistoryOf({space, view.part});
  space.epoch = history.epoch;
  space.committed = history.committed;
  if (space.Find(node.name) == nullptr) {
    space.members.push_back(node);
    std::sort(space.members.begin(), space.members.end(),
              [](const auto& a, const auto& b) { return a.number < b.number; });
  }
  HK_RETURN_IF_ERROR(At(node.name, peers_->Attach(node.name, AttachRequestOf(space))));
  const auto end = std::make_shared<JoinEnd>();
  recovery_.OnJoin({view.identity, view.part}, node, history.epoch, [end](const absl::Status& how) { end->Set(how); });
  const absl::Status joined = end->Wait(clock_.Now() + kJoinLimit);
  if (joined.ok()) {
    SetMembers(space.id, space.members);
    log::Info("space", "a node has joined", {{"guest", space.name}, {"peer", node.name}});
    return joined;
  }
  const absl::Status detached = peers_->Detach(node.name, space.id);
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
