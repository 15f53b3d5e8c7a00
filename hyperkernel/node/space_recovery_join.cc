// The part of the space recovery that is about a node that joins: what it is to know, and whether it does.

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/space_placement.h"
#include "hyperkernel/node/space_recovery.h"

namespace hk {

SpaceRecovery::Record& SpaceRecovery::RecordOf(const Space& space) {
  Record& record = records_[space.identity.id];
  if (record.members.empty()) record.members = space.identity.members;
  if (record.committed_sets.empty()) record.committed_sets = {NumbersOf(record.members)};
  return record;
}

absl::StatusOr<SpaceRecovery::History> SpaceRecovery::HistoryOf(const Space& space) {
  MutexLock lock(&mutex_);
  const Record& record = RecordOf(space);
  // An epoch that has begun and does not hold is in one of the two, and not in the other.
  if ((record.queued || record.unfinished || stopping_) && !HK_MUTANT(space_history_torn)) {
    return absl::AbortedError("the space is changing just now; try again");
  }
  return History{.epoch = record.epoch, .committed = record.committed_sets, .members = record.members};
}

void SpaceRecovery::OnJoin(const Space& space, const SpaceMemberId& node, uint64_t epoch,
                           std::function<void(absl::Status)> end) {
  {
    MutexLock lock(&mutex_);
    Record& record = RecordOf(space);
    if (!stopping_ && record.epoch == epoch && !record.queued && !record.unfinished && !record.joining.has_value()) {
      record.joining = node;
      record.join_end = std::move(end);
      record.join_failure = absl::OkStatus();
      return QueueLocked(space.identity.id, &record);
    }
  }
  end(absl::AbortedError("another change of the space came first; try again"));
}

void SpaceRecovery::EndJoin(uint64_t id, const absl::Status& why) {
  std::function<void(absl::Status)> end;
  {
    MutexLock lock(&mutex_);
    const auto found = records_.find(id);
    if (found == records_.end() || !found->second.joining.has_value()) return;
    found->second.joining.reset();
    end = std::exchange(found->second.join_end, nullptr);
  }
  end(why);
}

bool SpaceRecovery::JoinGoesOn(const Space& space, const Answers& answers) {
  absl::Status why;
  for (const auto& [node, answer] : answers) {
    absl::Status status = answer.status();
    if (answer.ok() && (!answer->reason().empty() || !answer->lost().empty())) {
      status = absl::AbortedError(answer->reason());
    }
    if (status.ok() || !why.ok()) continue;
    for (const SpaceMemberId& member : space.identity.members) {
      if (member.number == node) why = absl::AbortedError(MessageOf(At(member.name, status)));
    }
  }
  {
    MutexLock lock(&mutex_);
    const Record& record = records_[space.identity.id];
    if (why.ok()) why = record.join_failure;
    if (why.ok() && (stopping_ || !Without(record.pending, record.lost).empty())) {
      why = absl::AbortedError("another change of the space came between; try again");
    }
    if (why.ok() && record.joining.has_value()) return true;
  }
  EndJoin(space.identity.id, why);
  return false;
}

bool SpaceRecovery::Hold(const Space& space, const v1::ChangeSpaceEpochRequest& request, NodeSet survivors,
                         NodeSet left, NodeSet joined) {
  const uint64_t id = space.identity.id;
  // What has come since the last step ended.
  if (!joined.empty() && !HK_MUTANT(space_joiner_is_believed) && !JoinGoesOn(space, {})) return false;
  std::function<void(absl::Status)> end;
  {
    MutexLock lock(&mutex_);
    Record& record = records_[id];
    if (!joined.empty() && !record.joining.has_value()) return false;  // withdrawn
    record.committed = request.epoch();
    AddSet(&record.committed_sets, survivors);
    record.members = space.identity.members;
    record.left = left;
    record.begun = NodeSet();
    record.lost = Without(record.lost, joined);
    if (!joined.empty()) {
      record.joining.reset();
      end = std::exchange(record.join_end, nullptr);
    }
  }
  if (end == nullptr) return true;
  if (joined_) joined_(id, space.identity.members);
  end(absl::OkStatus());
  return true;
}

absl::Status SpaceRecovery::Prepare(const Space& space, const v1::ChangeSpaceEpochRequest& request) {
  if (const auto stop = space.part->stop(); stop.has_value()) {
    return absl::FailedPreconditionError(MessageOf(stop->why));
  }
  std::vector<std::string> names;
  for (const v1::SpaceMember& member : request.members()) {
    const auto is = [&member](uint32_t number) { return number == member.number(); };
    const bool takes_part = std::any_of(request.survivors().begin(), request.survivors().end(), is);
    if (takes_part && member.name() != self_) names.push_back(member.name());
  }
  return peers_->WaitDataUp(names);
}

}  // namespace hk
