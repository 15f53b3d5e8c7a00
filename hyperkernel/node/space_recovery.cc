#include "hyperkernel/node/space_recovery.h"

#include <algorithm>
#include <set>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

using std::chrono::milliseconds;

// Spaces that are recovered at once: each takes a thread of every survivor's server for a while.
constexpr size_t kThreads = 4;
// How long changes that begin anew go on before the space is stopped: who waits in it is not to wait for ever.
constexpr std::chrono::seconds kChangesLimit(120);
// Who does not say that it has stopped may have heard of us until now: its lease (2 s) and two heartbeats (200 ms)
// later it has lost us too, and its part has stopped.
constexpr milliseconds kFenceLimit(2500);
// Within this a node that loses several others finds out about each.
constexpr milliseconds kOwnLossLimit(300);
constexpr milliseconds kMakingPause(100), kAgainPause(50);

const SpaceMemberId* MemberOf(const SpaceIdentity& space, NodeId number) {
  const auto found =
      std::find_if(space.members.begin(), space.members.end(), [number](const auto& m) { return m.number == number; });
  return found == space.members.end() ? nullptr : &*found;
}

std::string NamesOf(const SpaceIdentity& space, NodeSet nodes) {
  std::string names;
  for (const SpaceMemberId& member : space.members) {
    if (nodes.Contains(member.number)) names += (names.empty() ? "'" : ", '") + member.name + "'";
  }
  return names;
}

absl::StatusOr<NodeSet> NodesOf(const char* field, const google::protobuf::RepeatedField<uint32_t>& numbers) {
  NodeSet nodes;
  for (const uint32_t number : numbers) {
    if (number >= kMaxNodes) return absl::InvalidArgumentError(fmt::format("{}: {} is no node", field, number));
    nodes.Add(NodeId(static_cast<uint16_t>(number)));
  }
  return nodes;
}

// The end of a Rebuild, which comes on a thread of the memory, maybe after nobody waits any more.
class Ending {
 public:
  void End(const absl::Status& status) {
    MutexLock lock(&mutex_);
    status_ = status;
    done_ = true;
    changed_.SignalAll();
  }
  absl::Status Wait(Monotonic deadline) {
    MutexLock lock(&mutex_);
    while (!done_) {
      if (!changed_.WaitUntil(&mutex_, deadline) && !done_) {
        return absl::AbortedError("not all nodes of the space told what they have in time");
      }
    }
    return status_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

SpaceRecovery::SpaceRecovery(std::string self, Find find, SpacePeers* peers, const Clock& clock, Joined joined,
                             Keep keep)
    : self_(std::move(self)),
      find_(std::move(find)),
      peers_(peers),
      clock_(clock),
      joined_(std::move(joined)),
      keep_(std::move(keep)) {
  for (size_t i = 0; i < kThreads; ++i) threads_.emplace_back(&SpaceRecovery::Work, this);
}

SpaceRecovery::~SpaceRecovery() {
  Stop();
}

void SpaceRecovery::Stop() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.SignalAll();
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  std::vector<uint64_t> ids;
  {
    MutexLock lock(&mutex_);
    for (const auto& [id, record] : records_) ids.push_back(id);
  }
  for (const uint64_t id : ids) EndJoin(id, absl::CancelledError("the daemon stops"));
}

void SpaceRecovery::OnLost(uint64_t id, NodeId lost) {
  MutexLock lock(&mutex_);
  AddLocked(id, lost);
}

void SpaceRecovery::OnTold(uint64_t id, NodeId member, NodeId lost) {
  MutexLock lock(&mutex_);
  const auto found = records_.find(id);
  const bool given_up =
      found != records_.end() && NodeSet(found->second.lost.bits() | found->second.pending.bits()).Contains(member);
  if (!given_up || HK_MUTANT(space_lost_node_has_a_say)) AddLocked(id, lost);
}

void SpaceRecovery::AddLocked(uint64_t id, NodeId lost) {
  if (stopping_) return;
  Record& record = records_[id];
  if (record.joining.has_value() && record.joining->number == lost) {
    record.join_failure = absl::UnavailableError(fmt::format("node '{}' was lost", record.joining->name));
    return;
  }
  if (record.lost.Contains(lost)) return;
  // One that did not join is none of the space.
  if (!record.members.empty() && !NumbersOf(record.members).Contains(lost)) return;
  record.pending.Add(lost);
  QueueLocked(id, &record);
}

void SpaceRecovery::QueueLocked(uint64_t id, Record* record) {
  if (std::exchange(record->queued, true)) return;
  queue_.push_back(id);
  changed_.SignalAll();
}

void SpaceRecovery::OnEmpty(uint64_t id, NodeId node) {
  MutexLock lock(&mutex_);
  if (stopping_) return;
  Record& record = records_[id];
  if (record.lost.Contains(node) || record.pending.Contains(node)) return;
  record.leaving.Add(node);
  QueueLocked(id, &record);
}

void SpaceRecovery::Withdraw(uint64_t id, NodeId node) {
  MutexLock lock(&mutex_);
  const auto found = records_.find(id);
  if (found != records_.end()) found->second.leaving.Remove(node);
}

bool SpaceRecovery::IsBusy(uint64_t id) const {
  MutexLock lock(&mutex_);
  const auto found = records_.find(id);
  return found != records_.end() && found->second.queued;
}

void SpaceRecovery::Pause(milliseconds time) {
  const Monotonic until = std::chrono::steady_clock::now() + time;
  MutexLock lock(&mutex_);
  while (!stopping_ && std::chrono::steady_clock::now() < until) changed_.WaitUntil(&mutex_, until);
}

void SpaceRecovery::Work() {
  while (true) {
    uint64_t id = 0;
    {
      MutexLock lock(&mutex_);
      constexpr std::chrono::seconds kIdle(60);  // a wait has a deadline
      while (!stopping_ && queue_.empty()) changed_.WaitUntil(&mutex_, std::chrono::steady_clock::now() + kIdle);
      if (stopping_) return;
      id = queue_.front();
      queue_.pop_front();
    }
    Drive(id);
  }
}

void SpaceRecovery::Drive(uint64_t id) {
  Monotonic limit = std::chrono::steady_clock::now() + kChangesLimit;
  while (true) {
    const std::optional<Space> space = find_(id);
    {
      MutexLock lock(&mutex_);
      Record& record = records_[id];
      if (stopping_) return;  // Stop ends joins
      const bool idle = record.pending.empty() && record.leaving.empty() && !record.joining.has_value();
      if (space.has_value() && idle && !record.unfinished) {
        record.queued = false;
        return;
      }
    }
    if (!space.has_value()) {
      EndJoin(id, absl::CancelledError("the space is deleted"));
      MutexLock lock(&mutex_);
      records_.erase(id);
      return;
    }
    if (space->part == nullptr) {
      Pause(kMakingPause);  // who makes it finds out as well
      continue;
    }
    if (space->part->stop().has_value()) {
      EndJoin(id, absl::FailedPreconditionError("the space has stopped"));
      MutexLock lock(&mutex_);
      records_[id].pending = records_[id].leaving = NodeSet();
      records_[id].unfinished = false;
      continue;
    }
    if (space->identity.coordinator != self_) {
      NodeSet lost;
      {
        MutexLock lock(&mutex_);
        lost = std::exchange(records_[id].pending, NodeSet());
      }
      TellCoordinator(*space, lost);
      continue;
    }
    if (std::chrono::steady_clock::now() > limit) {
      space->part->StopNow(absl::UnavailableError(
          fmt::format("it could not go on without its lost nodes within {} s", kChangesLimit.count())));
      Pause(kAgainPause);  // it is told by a thread of the memory
      continue;
    }
    if (Try(*space)) {
      limit = std::chrono::steady_clock::now() + kChangesLimit;
    } else {
      Pause(kAgainPause);
    }
  }
}

void SpaceRecovery::TellCoordinator(const Space& space, NodeSet lost) {
  // Who was away for a while loses all others at once, and its part stops with the coordinator: then it is the lost
  // one.
  Pause(kOwnLossLimit);
  if (space.part->stop().has_value()) return;
  for (const SpaceMemberId& member : space.identity.members) {
    if (!lost.Contains(member.number)) continue;
    const absl::Status told = peers_->TellLost(space.identity.coordinator, space.identity.id, member.number);
    if (told.ok()) continue;
    // It may have found out itself; else the memory stops by its own limit.
    log::Warning("space", "the coordinator could not be told of a lost node",
                 {{"guest", space.identity.name}, {"peer", member.name}, {"reason", MessageOf(told)}});
  }
}

void SpaceRecovery::Fence(const Space& space, NodeSet lost, uint64_t epoch) {
  v1::ChangeSpaceEpochRequest request;
  request.set_from(self_);
  request.set_id(space.identity.id);
  request.set_epoch(epoch);
  request.set_step(v1::SPACE_EPOCH_STEP_BEGIN);  // without survivors: it is told that it is none
  bool silent = false;
  for (const SpaceMemberId& member : space.identity.members) {
    if (!lost.Contains(member.number)) continue;
    absl::Status told = peers_->CheckUp(member.name);
    if (told.ok()) told = peers_->ChangeEpoch(member.name, request, kPeerAnswerLimit).status();
    const bool answered = told.ok() || absl::IsFailedPrecondition(told) || absl::IsNotFound(told);
    if (answered) continue;
    silent = true;
    peers_->Fence(member.name);  // so that it hears no more of us
  }
  if (silent && !HK_MUTANT(space_lost_node_unfenced)) Pause(kFenceLimit);
}

SpaceRecovery::Parting SpaceRecovery::Part(const Space& space, NodeSet leaving, uint64_t epoch) {
  v1::ChangeSpaceEpochRequest request;
  request.set_from(self_);
  request.set_id(space.identity.id);
  request.set_epoch(epoch);
  request.set_step(v1::SPACE_EPOCH_STEP_BEGIN);
  for (const SpaceMemberId& member : space.identity.members) {
    if (leaving.Contains(member.number)) request.add_gone(member.number.value());
  }
  Parting parting;
  for (const SpaceMemberId& member : space.identity.members) {
    if (!leaving.Contains(member.number)) continue;
    // Who cannot be asked is not lost for that.
    absl::Status stays = peers_->CheckUp(member.name);
    if (stays.ok()) {
      const absl::StatusOr<v1::ChangeSpaceEpochResponse> told =
          peers_->ChangeEpoch(member.name, request, kPeerAnswerLimit);
      if (told.ok() && told->reason().empty()) {
        parting.left.Add(member.number);
        continue;
      }
      if (absl::IsFailedPrecondition(told.status())) stays = told.status();
      if (stays.ok()) {
        parting.lost.Add(member.number);
        log::Warning("space", "a node that was to leave did not say that it has left: it is taken for lost",
                     {{"guest", space.identity.name},
                      {"peer", member.name},
                      {"reason", told.ok() ? told->reason() : MessageOf(told.status())}});
        continue;
      }
    }
    log::Info("space", "a node does not leave yet",
              {{"guest", space.identity.name}, {"peer", member.name}, {"reason", MessageOf(stays)}});
  }
  return parting;
}

bool SpaceRecovery::Try(const Space& known) {
  const uint64_t id = known.identity.id;
  Space space = known;
  NodeSet fresh, leaving, survivors, left, begun;
  std::optional<SpaceMemberId> joining;
  v1::ChangeSpaceEpochRequest request;
  {
    MutexLock lock(&mutex_);
    Record& record = RecordOf(space);
    request.set_epoch(++record.epoch);
  }
  if (keep_) {
    if (const absl::Status kept = keep_(space.identity, request.epoch()); !kept.ok()) {
      log::Error(
          "space", "an epoch cannot be kept on disk; it is not used",
          {{"guest", space.identity.name}, {"epoch", fmt::to_string(request.epoch())}, {"reason", MessageOf(kept)}});
      return false;
    }
  }
  {
    MutexLock lock(&mutex_);
    Record& record = RecordOf(space);
    request.set_committed(record.committed);
    space.identity.members = record.members;
    // What others are lost with may be on nodes that leave: they are asked afterwards.
    if (record.pending.empty() && !record.unfinished) {
      leaving = Without(std::exchange(record.leaving, NodeSet()), record.lost);
    }
  }
  Parting parting;
  if (!leaving.empty()) parting = Part(space, leaving, request.epoch());
  std::vector<SpaceMemberId>& members = space.identity.members;
  bool nothing = false;
  {
    MutexLock lock(&mutex_);
    Record& record = records_[id];
    record.pending = NodeSet(record.pending.bits() | parting.lost.bits());
    fresh = Without(record.pending, record.lost);
    record.left = NodeSet(record.left.bits() | parting.left.bits());
    record.pending = NodeSet(record.pending.bits() | parting.left.bits());
    // Nobody joins with a loss, or while another leaves.
    if (record.pending.empty() && leaving.empty() && !record.unfinished) joining = record.joining;
    nothing = record.pending.empty() && !joining.has_value() && !record.unfinished;
    if (!nothing && !joining.has_value()) record.unfinished = true;
    record.lost = NodeSet(record.lost.bits() | record.pending.bits());
    left = record.left;
    begun = record.begun;
    survivors = Without(NumbersOf(members), record.lost);
  }
  if (!joining.has_value()) EndJoin(id, absl::AbortedError("another change of the space came first; try again"));
  if (nothing) return true;
  NodeSet joined;
  if (joining.has_value()) {
    joined.Add(joining->number);
    survivors.Add(joining->number);
    left.Remove(joining->number);
    if (space.identity.Find(joining->name) == nullptr) {
      members.push_back(*joining);
      std::sort(members.begin(), members.end(), [](const auto& a, const auto& b) { return a.number < b.number; });
    }
  }
  const NodeSet all = NumbersOf(members);
  log::Write(fresh.empty() ? log::Level::kInfo : log::Level::kWarning, "space",
             !joined.empty()  ? "a node joins"
             : !fresh.empty() ? "nodes were lost; the others go on without"
                              : "the others go on without nodes that left",
             {{"guest", space.identity.name},
              {"epoch", fmt::to_string(request.epoch())},
              {"peers", NamesOf(space.identity, joined.empty() ? Without(all, survivors) : joined)}});
  Fence(space, fresh, request.epoch());
  request.set_from(self_);
  request.set_id(id);
  for (const SpaceMemberId& member : members) {
    *request.add_members() = ToProto(member);
    if (survivors.Contains(member.number)) request.add_survivors(member.number.value());
    if (joined.Contains(member.number)) request.add_joined(member.number.value());
  }
  const NodeSet gone_before = Without(NodeSet(left.bits() | begun.bits()), joined);
  for (uint16_t number = 0; number < kMaxNodes; ++number) {
    if (gone_before.Contains(NodeId(number))) request.add_gone(number);
  }
  bool joins = !joined.empty();  // and its epoch does not hold yet
  for (const auto step : {v1::SPACE_EPOCH_STEP_PREPARE, v1::SPACE_EPOCH_STEP_BEGIN, v1::SPACE_EPOCH_STEP_REBUILD,
                          v1::SPACE_EPOCH_STEP_COMMIT, v1::SPACE_EPOCH_STEP_RUN}) {
    if (step == v1::SPACE_EPOCH_STEP_PREPARE && joined.empty()) continue;
    request.set_step(step);
    if (step == v1::SPACE_EPOCH_STEP_BEGIN && joins) {
      MutexLock lock(&mutex_);
      records_[id].unfinished = true;
      records_[id].begun = NodeSet(records_[id].begun.bits() | joined.bits());
    }
    if (step == v1::SPACE_EPOCH_STEP_COMMIT) {
      if (!Hold(space, request, survivors, left, joined)) return false;
      joins = false;
    }
    const Answers answers = AskAll(space, request);
    if (joins && !HK_MUTANT(space_joiner_is_believed)) {
      if (JoinGoesOn(space, answers)) continue;
      return step == v1::SPACE_EPOCH_STEP_PREPARE;  // then nothing has begun
    }
    NodeSet gone;
    bool again = false;
    for (const auto& [node, answer] : answers) {
      if (answer.ok()) {
        for (const uint32_t lost : answer->lost()) {
          if (lost < kMaxNodes) gone.Add(NodeId(static_cast<uint16_t>(lost)));
        }
        again = again || !answer->reason().empty();
        continue;
      }
      const absl::Status& status = answer.status();
      if (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) || absl::IsNotFound(status)) {
        gone.Add(node);
        continue;
      }
      // It has stopped, and its word to the others may be of an epoch that is over.
      space.part->StopNow(absl::AbortedError(MessageOf(status)));
      return true;
    }
    const SpaceMemberId* const self = space.identity.Find(self_);
    MutexLock lock(&mutex_);
    Record& record = records_[id];
    gone = Without(gone, NodeSet(record.lost.bits() | NodeSet::Of(self->number).bits()));
    gone = NodeSet(gone.bits() & all.bits());
    record.pending = NodeSet(record.pending.bits() | gone.bits());
    if (again || !gone.empty() || !Without(record.pending, record.lost).empty() || stopping_) return false;
  }
  MutexLock lock(&mutex_);
  Record& record = records_[id];
  record.unfinished = false;
  record.pending = Without(record.pending, record.lost);
  log::Info("space", "it goes on", {{"guest", space.identity.name}, {"epoch", fmt::to_string(request.epoch())}});
  return true;
}

SpaceRecovery::Answers SpaceRecovery::AskAll(const Space& space, const v1::ChangeSpaceEpochRequest& request) {
  Answers answers;
  std::set<uint16_t> survivors;
  for (const uint32_t number : request.survivors()) survivors.insert(static_cast<uint16_t>(number));
  for (const uint16_t number : survivors) answers.emplace(NodeId(number), absl::UnknownError("not asked"));
  // All at once: none ends its Rebuild before all have begun.
  std::vector<std::thread> threads;
  for (auto& [node, answer] : answers) {
    threads.emplace_back([this, &space, &request, number = node, to = &answer] { *to = Ask(space, number, request); });
  }
  for (std::thread& thread : threads) thread.join();
  return answers;
}

absl::StatusOr<v1::ChangeSpaceEpochResponse> SpaceRecovery::Ask(const Space& space, NodeId node,
                                                                const v1::ChangeSpaceEpochRequest& request) {
  const SpaceMemberId* const member = MemberOf(space.identity, node);
  if (member->name == self_) return DoStep(space, request);
  return peers_->ChangeEpoch(
      member->name, request,
      request.step() == v1::SPACE_EPOCH_STEP_REBUILD ? kRebuildLimit + kPeerAnswerLimit : kEpochStepLimit);
}

absl::StatusOr<v1::ChangeSpaceEpochResponse> SpaceRecovery::DoStep(const Space& space,
                                                                   const v1::ChangeSpaceEpochRequest& request) {
  HK_ASSIGN_OR_RETURN(const NodeSet survivors, NodesOf("survivors", request.survivors()));
  HK_ASSIGN_OR_RETURN(const NodeSet left, NodesOf("gone", request.gone()));
  HK_ASSIGN_OR_RETURN(const NodeSet joined, NodesOf("joined", request.joined()));
  const SpaceMemberId* const self = space.identity.Find(self_);
  if (self == nullptr) return absl::FailedPreconditionError("this node takes no part in the space");
  NodeSet members = NumbersOf(space.identity.members);
  if (request.members_size() > 0) {
    google::protobuf::RepeatedField<uint32_t> numbers;
    for (const v1::SpaceMember& member : request.members()) numbers.Add(member.number());
    HK_ASSIGN_OR_RETURN(members, NodesOf("members", numbers));
  }
  if (request.step() == v1::SPACE_EPOCH_STEP_PREPARE) {
    HK_RETURN_IF_ERROR(Prepare(space, request));
    return v1::ChangeSpaceEpochResponse();
  }
  const Epoch epoch(request.epoch());
  absl::Status status;
  NodeSet failed;
  std::shared_ptr<Ending> rebuilt;
  const auto call = [&](GuestSpace* memory) {
    SpaceEngine& engine = memory->engine();
    switch (request.step()) {
      case v1::SPACE_EPOCH_STEP_BEGIN:
        status = engine.BeginEpoch({.epoch = epoch,
                                    .survivors = survivors,
                                    .committed = Epoch(request.committed()),
                                    .left = left,
                                    .joined = joined});
        break;
      case v1::SPACE_EPOCH_STEP_REBUILD:
        rebuilt = std::make_shared<Ending>();
        engine.Rebuild(epoch, [rebuilt](const absl::Status& end) { rebuilt->End(end); });
        break;
      case v1::SPACE_EPOCH_STEP_COMMIT:
        status = engine.Commit(epoch);
        break;
      case v1::SPACE_EPOCH_STEP_RUN:
        status = engine.Run(epoch);
        break;
      default:
        status = absl::InvalidArgumentError("step: not set");
    }
    return absl::OkStatus();
  };
  HK_RETURN_IF_ERROR(space.part->Use(call));
  // It has left, as it was asked to.
  if (absl::IsCancelled(status) && left.Contains(self->number)) status = absl::OkStatus();
  // Not in Use: whoever deletes the space does not wait for this.
  if (rebuilt != nullptr) status = rebuilt->Wait(std::chrono::steady_clock::now() + kRebuildLimit);
  HK_RETURN_IF_ERROR(space.part->Use([&failed](GuestSpace* memory) {
    failed = memory->engine().EpochState().failed;
    return absl::OkStatus();
  }));
  const bool begins = request.step() == v1::SPACE_EPOCH_STEP_BEGIN;
  if (status.ok() && survivors.Contains(self->number) && (begins || request.step() == v1::SPACE_EPOCH_STEP_COMMIT)) {
    // Who joins was lost until the epoch holds.
    space.part->NoteEpoch(request.epoch(), Without(members, survivors), left, begins ? joined : NodeSet(),
                          clock_.Wall());
  }
  v1::ChangeSpaceEpochResponse response;
  // A connection that was lost since Prepare; of those that are lost from now on the memory is told.
  if (status.ok() && begins && !joined.empty()) {
    if (const absl::Status up = Prepare(space, request); !up.ok()) response.set_reason(MessageOf(up));
  }
  if (status.ok()) return response;
  if (!absl::IsUnavailable(status) && !absl::IsAborted(status)) return status;
  response.set_reason(MessageOf(status));
  for (uint16_t number = 0; number < kMaxNodes; ++number) {
    if (failed.Contains(NodeId(number))) response.add_lost(number);
  }
  return response;
}

}  // namespace hk
