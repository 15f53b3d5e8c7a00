#include "hyperkernel/node/space_manager.h"

#include <algorithm>
#include <random>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/membership.h"

namespace hk {
namespace {

// How long the thread sleeps when nobody wakes it: a wait has a deadline.
constexpr std::chrono::seconds kIdle(60);

uint64_t RandomId() {
  std::random_device random;
  uint64_t id = 0;
  while (id == 0) id = ((uint64_t{random()} << 32) | random()) >> 1;  // 63 bits: signed in whatever reads JSON
  return id;
}

// A peer's word for a time; one that this host's clock does not know (beyond the year 2262) is none.
WallTime ToWall(const google::protobuf::Timestamp& time) {
  constexpr int64_t kEnd = std::chrono::duration_cast<std::chrono::seconds>(WallTime::duration::max()).count();
  if (time.seconds() < 0 || time.seconds() >= kEnd) return WallTime();
  return WallTime(std::chrono::seconds(time.seconds()));
}

absl::Status CheckTakesPart(const SpaceIdentity& space, const std::string& node) {
  if (space.Find(node) != nullptr) return absl::OkStatus();
  return absl::PermissionDeniedError(fmt::format("node '{}' does not take part in space '{}'", node, space.name));
}

}  // namespace

SpaceManager::SpaceManager(std::string self, SpaceFactory factory, SpacePeers* peers, const Clock& clock,
                           SpaceRecords* records)
    : self_(std::move(self)),
      factory_(std::move(factory)),
      peers_(peers),
      clock_(clock),
      records_(records),
      recovery_(
          self_, [this](uint64_t id) { return FindForRecovery(id); }, peers, clock,
          [this](uint64_t id, const std::vector<SpaceMemberId>& members) { SetMembers(id, members); },
          [this](const SpaceIdentity& space, uint64_t epoch) {
            return records_ == nullptr ? absl::OkStatus() : records_->Put(space, epoch);
          }),
      drains_(
          self_, [this](uint64_t id) { return FindForRecovery(id); }, &recovery_, peers, clock),
      thread_(&SpaceManager::Run, this) {}

SpaceManager::~SpaceManager() {
  StopAll();
  {
    MutexLock lock(&mutex_);
    ending_ = true;
    changed_.SignalAll();
  }
  thread_.join();
  MutexLock lock(&mutex_);
  entries_.clear();  // before what they tell of their losses
}

absl::StatusOr<SpaceIdentity> SpaceManager::Identify(const v1::CreateSpaceRequest& request) const {
  HK_RETURN_IF_ERROR(CheckCreateSpace(request, self_));
  SpaceIdentity identity{.name = request.name(),
                         .id = RandomId(),
                         .bytes = request.memory_bytes(),
                         .node_frame_bytes = request.node_frames_bytes(),
                         .node_swap_bytes = request.node_swap_bytes(),
                         .node_vcpus = request.node_vcpus(),
                         .homes_at_coordinator = request.homes_at_coordinator(),
                         .members = {},
                         .coordinator = self_,
                         .created = clock_.Wall()};
  HK_ASSIGN_OR_RETURN(const auto own, OwnFrames(request));
  for (const std::string& node : request.nodes()) {
    const absl::StatusOr<NodeId> number = peers_->NumberOf(node);
    if (!number.ok()) return WithContext(number.status(), "nodes");
    const auto found = own.find(node);
    identity.members.push_back({node, *number, found == own.end() ? 0 : found->second});
  }
  std::sort(identity.members.begin(), identity.members.end(),
            [](const auto& a, const auto& b) { return a.number < b.number; });
  for (const std::string& node : request.nodes()) HK_RETURN_IF_ERROR(peers_->CheckUp(node));
  identity.cluster = peers_->Everyone();
  return identity;
}

absl::Status SpaceManager::Begin(const SpaceIdentity& identity) {
  MutexLock lock(&mutex_);
  if (stopping_) return absl::CancelledError("the daemon stops");
  const auto found = entries_.find(identity.name);
  if (found != entries_.end()) {
    return absl::AlreadyExistsError(
        fmt::format("a space '{}' is there already (coordinated by node '{}'); see hkctl "
                    "space list",
                    identity.name, found->second.identity.coordinator));
  }
  for (const auto& [name, entry] : entries_) {
    if (entry.identity.id == identity.id)
      return absl::AlreadyExistsError(fmt::format("space '{}' has this id already; try again", name));
  }
  if (entries_.size() >= kMaxSpaces)
    return absl::ResourceExhaustedError(fmt::format("{} spaces are there; no more are possible", kMaxSpaces));
  Entry& entry = entries_[identity.name];
  entry.identity = identity;
  entry.since = clock_.Wall();
  return absl::OkStatus();
}

absl::Status SpaceManager::AttachHere(const SpaceIdentity& identity) {
  std::vector<std::string> names;
  for (const SpaceMemberId& member : identity.members) {
    const bool gone = !identity.committed.empty() && !identity.committed.back().Contains(member.number);
    if (!gone) names.push_back(member.name);
  }
  absl::Status status = peers_->WaitDataUp(names);
  std::shared_ptr<SpacePart> part;
  if (status.ok()) {
    absl::StatusOr<std::unique_ptr<SpacePart>> made =
        SpacePart::Attach(identity, identity.Find(self_)->number, factory_, clock_,
                          [this, id = identity.id](NodeId lost) { recovery_.OnLost(id, lost); });
    status = made.status();
    if (made.ok()) part = *std::move(made);
  }
  if (status.ok() && identity.coordinator == self_ && records_ != nullptr)
    status = records_->Put(identity, identity.epoch);
  {
    MutexLock lock(&mutex_);
    Entry& entry = entries_[identity.name];
    if (status.ok() && (entry.cancelled || stopping_)) status = absl::CancelledError("it was deleted meanwhile");
    if (status.ok()) {
      entry.part = part;
      if (identity.coordinator != self_) entry.phase = Phase::kAttached;
      return status;
    }
  }
  part = nullptr;  // before the name is free again
  MutexLock lock(&mutex_);
  entries_.erase(identity.name);
  return status;
}

v1::AttachSpaceRequest SpaceManager::AttachRequestOf(const SpaceIdentity& identity) const {
  v1::AttachSpaceRequest request;
  request.set_from(self_);
  request.set_name(identity.name);
  request.set_id(identity.id);
  request.set_memory_bytes(identity.bytes);
  request.set_node_frames_bytes(identity.node_frame_bytes);
  request.set_node_swap_bytes(identity.node_swap_bytes);
  request.set_node_vcpus(identity.node_vcpus);
  request.set_homes_at_coordinator(identity.homes_at_coordinator);
  request.set_epoch(identity.epoch);
  *request.mutable_created() = ToTimestamp(identity.created);
  for (const SpaceMemberId& member : identity.members) *request.add_members() = ToProto(member);
  for (const SpaceMemberId& member : identity.cluster) *request.add_cluster() = ToProto(member);
  for (const NodeSet nodes : identity.committed) request.add_committed(nodes.bits());
  return request;
}

absl::Status SpaceManager::AttachOthers(const SpaceIdentity& identity) {
  const v1::AttachSpaceRequest request = AttachRequestOf(identity);
  std::vector<std::string> asked;
  for (const SpaceMemberId& member : identity.members) {
    if (member.name == self_) continue;
    // One that does not answer may have attached.
    asked.push_back(member.name);
    const absl::Status status = At(member.name, peers_->Attach(member.name, request));
    if (status.ok()) continue;
    for (const std::string& node : asked) {
      if (HK_MUTANT(space_create_leaves_parts)) break;
      const absl::Status detached = peers_->Detach(node, identity.id);
      if (!detached.ok())
        log::Warning("space", "a node that was to leave a space did not answer; it leaves at its next hello",
                     {{"guest", identity.name}, {"peer", node}, {"reason", MessageOf(detached)}});
    }
    return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::Space> SpaceManager::Create(const v1::CreateSpaceRequest& request) {
  HK_ASSIGN_OR_RETURN(const SpaceIdentity identity, Identify(request));
  HK_RETURN_IF_ERROR(Begin(identity));
  if (const absl::Status here = AttachHere(identity); !here.ok()) return At(self_, here);
  const absl::Status others = AttachOthers(identity);
  View view;
  {
    MutexLock lock(&mutex_);
    Entry& entry = entries_[identity.name];
    entry.phase = others.ok() ? Phase::kAttached : Phase::kDeleting;
    entry.since = clock_.Wall();
    view = {entry.identity, entry.phase, entry.since, entry.part};
  }
  if (!others.ok()) {
    const absl::Status ended = EndHere(view, others);
    if (!ended.ok()) log::Warning("space", "not removed", {{"guest", identity.name}, {"reason", MessageOf(ended)}});
    return others;
  }
  log::Info("space", "created",
            {{"guest", identity.name},
             {"id", fmt::format("{:#x}", identity.id)},
             {"bytes", fmt::to_string(identity.bytes)},
             {"nodes", fmt::to_string(identity.members.size())}});
  return SpaceOf(view);
}

absl::StatusOr<std::vector<SpaceMemberId>> SpaceManager::MembersOf(
    const google::protobuf::RepeatedPtrField<v1::SpaceMember>& members) const {
  std::vector<SpaceMemberId> result;
  for (const v1::SpaceMember& member : members) {
    const absl::StatusOr<NodeId> number = peers_->NumberOf(member.name());
    if (!number.ok()) return number.status();
    if (number->value() != member.number()) {
      return absl::FailedPreconditionError(
          fmt::format("'{}' has number {} here, not {}: give all nodes the same list "
                      "of peers",
                      member.name(), number->value(), member.number()));
    }
    result.push_back({member.name(), *number, member.frame_bytes()});
  }
  return result;
}

absl::Status SpaceManager::Attach(const v1::AttachSpaceRequest& request) {
  SpaceIdentity identity{.name = request.name(),
                         .id = request.id(),
                         .bytes = request.memory_bytes(),
                         .node_frame_bytes = request.node_frames_bytes(),
                         .node_swap_bytes = request.node_swap_bytes(),
                         .node_vcpus = request.node_vcpus(),
                         .homes_at_coordinator = request.homes_at_coordinator(),
                         .members = {},
                         .coordinator = request.from(),
                         .created = ToWall(request.created())};
  HK_ASSIGN_OR_RETURN(identity.members, MembersOf(request.members()));
  for (const v1::SpaceMember& member : request.cluster()) {
    if (member.number() >= kMaxNodes) return absl::InvalidArgumentError("cluster: a number that is no node's");
    identity.cluster.push_back({member.name(), NodeId(static_cast<uint16_t>(member.number()))});
  }
  for (const uint64_t nodes : request.committed()) identity.committed.push_back(NodeSet(nodes));
  identity.epoch = request.epoch();
  HK_RETURN_IF_ERROR(CheckSpaceIdentity(identity, request.from(), self_));
  HK_RETURN_IF_ERROR(Begin(identity));
  HK_RETURN_IF_ERROR(AttachHere(identity));
  log::Info("space", "attached", {{"guest", identity.name}, {"coordinator", identity.coordinator}});
  return absl::OkStatus();
}

absl::StatusOr<SpaceManager::View> SpaceManager::BeginDelete(uint64_t id) {
  MutexLock lock(&mutex_);
  for (auto& [name, entry] : entries_) {
    if (entry.identity.id != id) continue;
    if (entry.phase != Phase::kAttached) {
      entry.cancelled = entry.phase == Phase::kCreating && entry.identity.coordinator != self_;
      return absl::FailedPreconditionError(fmt::format("space '{}' is being {}; try again", name,
                                                       entry.phase == Phase::kCreating ? "made" : "deleted already"));
    }
    entry.phase = Phase::kDeleting;
    entry.since = clock_.Wall();
    return View{entry.identity, entry.phase, entry.since, entry.part};
  }
  return absl::NotFoundError("no such space");
}

absl::Status SpaceManager::EndHere(const View& space, const absl::Status& why) {
  space.part->StopNow(why);
  const bool closed = space.part->Close(clock_.Now() + kCloseLimit);
  if (closed && space.identity.coordinator == self_ && records_ != nullptr) {
    // Then it is taken for one that ended with this daemon: only said in vain.
    if (const absl::Status forgotten = records_->Forget(space.identity.id); !forgotten.ok())
      log::Warning("space", "its record stays", {{"guest", space.identity.name}, {"reason", MessageOf(forgotten)}});
  }
  MutexLock lock(&mutex_);
  const auto found = entries_.find(space.identity.name);
  if (closed) {
    entries_.erase(found);
    return absl::OkStatus();
  }
  found->second.phase = Phase::kAttached;  // stopped: to be deleted again
  // Not kDeadlineExceeded: that is a node that does not answer.
  return absl::AbortedError(fmt::format("space '{}' is in use still; try again", space.identity.name));
}

absl::StatusOr<std::vector<std::string>> SpaceManager::DeleteAt(const View& space, const std::string& skip) {
  const absl::Status why = absl::CancelledError(fmt::format("space '{}' is deleted", space.identity.name));
  space.part->StopNow(why);
  std::vector<std::string> notes;
  NodeSet gone;  // they had a part that was of no use
  for (const SpacePart::Loss& loss : space.part->losses()) {
    if (loss.left) gone.Add(loss.node);
  }
  for (const SpaceMemberId& member : space.identity.members) {
    if (member.name == self_ || member.name == skip) continue;
    absl::Status left = peers_->CheckUp(member.name);
    if (left.ok()) left = peers_->Detach(member.name, space.identity.id);
    if (left.ok() || absl::IsNotFound(left) || gone.Contains(member.number)) continue;
    notes.push_back(fmt::format("{}; it drops its part when it is heard of again", MessageOf(At(member.name, left))));
  }
  const absl::Status ended = EndHere(space, why);
  if (!ended.ok()) return At(self_, ended);
  log::Info("space", "deleted", {{"guest", space.identity.name}, {"not_told", fmt::to_string(notes.size())}});
  return notes;
}

absl::Status SpaceManager::CheckNotHeld(const View& space) {
  if (space.part == nullptr || !space.part->held() || HK_MUTANT(space_of_vm_deleted)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      fmt::format("space '{0}' is the memory of vm '{0}' on node '{1}'; stop that "
                  "first (hkctl vm stop {0} --force)",
                  space.identity.name, space.identity.coordinator));
}

absl::StatusOr<std::shared_ptr<GuestSpace>> SpaceManager::Hold(const std::string& name,
                                                               std::function<void(const absl::Status&)> stopped) {
  HK_ASSIGN_OR_RETURN(const View space, FindRunning(name));
  return SpacePart::Hold(space.part, std::move(stopped));
}

absl::StatusOr<std::shared_ptr<GuestSpace>> SpaceManager::HoldOf(const std::string& coordinator, uint64_t id,
                                                                 std::function<void(const absl::Status&)> stopped) {
  HK_ASSIGN_OR_RETURN(const SpaceRecovery::Space space, FindOf(coordinator, id));
  return SpacePart::Hold(space.part, std::move(stopped));
}

absl::StatusOr<std::vector<std::string>> SpaceManager::Delete(const std::string& name) {
  HK_ASSIGN_OR_RETURN(const View found, FindName(name));
  HK_RETURN_IF_ERROR(CheckNotHeld(found));
  const std::string& coordinator = found.identity.coordinator;
  std::string gone;
  if (coordinator != self_) {
    absl::Status status = peers_->CheckUp(coordinator);
    if (status.ok()) {
      const absl::StatusOr<v1::RemoveSpaceResponse> removed = peers_->Remove(coordinator, found.identity.id);
      if (removed.ok()) return std::vector<std::string>(removed->notes().begin(), removed->notes().end());
      status = removed.status();
    }
    // It is gone, or has forgotten: then a stopped space is deleted without it.
    const bool lost = absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) || absl::IsNotFound(status);
    if (!lost || found.part == nullptr || !found.part->stop().has_value())
      return WithContext(At(coordinator, status), "it coordinates the space and must delete it");
    gone = coordinator;
  }
  absl::StatusOr<View> space = BeginDelete(found.identity.id);
  if (!space.ok()) return space.status();
  absl::StatusOr<std::vector<std::string>> notes = DeleteAt(*space, gone);
  if (notes.ok() && !gone.empty()) {
    notes->push_back(
        fmt::format("node '{}', which coordinates it, does not answer; if it has the space still, delete "
                    "it there as well",
                    gone));
  }
  return notes;
}

absl::StatusOr<std::vector<std::string>> SpaceManager::Remove(const v1::RemoveSpaceRequest& request) {
  HK_ASSIGN_OR_RETURN(const View space, FindId(request.id()));
  HK_RETURN_IF_ERROR(CheckTakesPart(space.identity, request.from()));
  if (space.identity.coordinator != self_) {
    return absl::FailedPreconditionError(
        fmt::format("space '{}' is coordinated by node '{}'", space.identity.name, space.identity.coordinator));
  }
  HK_RETURN_IF_ERROR(CheckNotHeld(space));
  HK_ASSIGN_OR_RETURN(const View taken, BeginDelete(request.id()));
  return DeleteAt(taken, "");
}

std::optional<SpaceRecovery::Space> SpaceManager::FindForRecovery(uint64_t id) const {
  MutexLock lock(&mutex_);
  for (const auto& [name, entry] : entries_) {
    if (entry.identity.id != id || entry.phase == Phase::kDeleting) continue;
    return SpaceRecovery::Space{entry.identity, entry.phase == Phase::kAttached ? entry.part : nullptr};
  }
  return std::nullopt;
}

absl::StatusOr<SpaceRecovery::Space> SpaceManager::FindOf(const std::string& coordinator, uint64_t id) const {
  HK_ASSIGN_OR_RETURN(const View space, FindId(id));
  if (coordinator != space.identity.coordinator) {
    return absl::PermissionDeniedError(fmt::format("space '{}' is coordinated by node '{}', not '{}'",
                                                   space.identity.name, space.identity.coordinator, coordinator));
  }
  if (space.part == nullptr) return absl::AbortedError(fmt::format("space '{}' is being made", space.identity.name));
  return SpaceRecovery::Space{space.identity, space.part};
}

absl::StatusOr<v1::ChangeSpaceEpochResponse> SpaceManager::ChangeEpoch(const v1::ChangeSpaceEpochRequest& request) {
  HK_ASSIGN_OR_RETURN(const SpaceRecovery::Space space, FindOf(request.from(), request.id()));
  HK_ASSIGN_OR_RETURN(std::vector<SpaceMemberId> members, MembersOf(request.members()));
  if (!members.empty()) HK_RETURN_IF_ERROR(CheckSpaceMembers(members, request.from(), self_));
  HK_ASSIGN_OR_RETURN(v1::ChangeSpaceEpochResponse response, recovery_.DoStep(space, request));
  if (!members.empty() && request.step() == v1::SPACE_EPOCH_STEP_BEGIN) SetMembers(request.id(), std::move(members));
  return response;
}

absl::Status SpaceManager::NodeLost(const v1::SpaceNodeLostRequest& request) {
  HK_ASSIGN_OR_RETURN(const View space, FindId(request.id()));
  HK_RETURN_IF_ERROR(CheckTakesPart(space.identity, request.from()));
  std::vector<SpaceMemberId> members = space.identity.members;
  {
    MutexLock lock(&mutex_);
    if (const auto joining = joining_.find(request.id()); joining != joining_.end()) members.push_back(joining->second);
  }
  for (const SpaceMemberId& member : members) {
    if (member.number.value() != request.lost() || member.name == self_ || member.name == request.from()) continue;
    if (space.identity.coordinator != self_) break;
    recovery_.OnTold(request.id(), space.identity.Find(request.from())->number, member.number);
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(fmt::format("lost: {} is no node that this one could give up", request.lost()));
}

absl::Status SpaceManager::Detach(const v1::DetachSpaceRequest& request) {
  const absl::StatusOr<View> space = FindId(request.id());
  if (!space.ok()) return absl::OkStatus();  // it is not here: that is what was wanted
  HK_RETURN_IF_ERROR(CheckTakesPart(space->identity, request.from()));
  const absl::StatusOr<View> taken = BeginDelete(request.id());
  if (!taken.ok()) return taken.status();
  log::Info("space", "leaving", {{"guest", taken->identity.name}, {"peer", request.from()}});
  return EndHere(*taken, absl::CancelledError(fmt::format("space '{}' is deleted", taken->identity.name)));
}

std::vector<uint64_t> SpaceManager::IdsOf(const std::string& coordinator) const {
  std::vector<uint64_t> ids;
  MutexLock lock(&mutex_);
  for (const auto& [name, entry] : entries_) {
    if (entry.phase == Phase::kAttached && entry.identity.coordinator == coordinator) ids.push_back(entry.identity.id);
  }
  return ids;
}

std::vector<uint64_t> SpaceManager::UnknownOf(const std::string& peer, const std::vector<uint64_t>& ids) const {
  const auto has_left = [&](const Entry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (const auto joining = joining_.find(entry.identity.id);
        joining != joining_.end() && joining->second.name == peer)
      return false;
    const SpaceMemberId* const member = entry.identity.Find(peer);
    if (member == nullptr) return true;  // it was to join, and did not
    if (entry.part == nullptr) return false;
    for (const SpacePart::Loss& loss : entry.part->losses()) {
      if (loss.node == member->number && loss.left) return true;
    }
    return false;
  };
  std::vector<uint64_t> unknown;
  MutexLock lock(&mutex_);
  for (const uint64_t id : ids) {
    bool known = false;
    for (const auto& [name, entry] : entries_) {
      known = known || (entry.identity.id == id && entry.identity.coordinator == self_ && !has_left(entry));
    }
    if (!known) unknown.push_back(id);
  }
  return unknown;
}

void SpaceManager::Drop(const std::string& coordinator, const std::vector<uint64_t>& ids) {
  MutexLock lock(&mutex_);
  for (const uint64_t id : ids) {
    if (dropped_.size() < kMaxSpaces) dropped_.push_back({coordinator, id});  // else at a later hello
  }
  changed_.SignalAll();
}

void SpaceManager::Run() {
  while (true) {
    Dropped dropped;
    {
      MutexLock lock(&mutex_);
      while (!ending_ && dropped_.empty()) changed_.WaitUntil(&mutex_, std::chrono::steady_clock::now() + kIdle);
      if (ending_) return;
      dropped = std::move(dropped_.front());
      dropped_.pop_front();
    }
    const absl::StatusOr<View> space = FindId(dropped.id);
    if (!space.ok() || space->identity.coordinator != dropped.coordinator) continue;
    const absl::StatusOr<View> taken = BeginDelete(dropped.id);
    if (!taken.ok()) continue;
    log::Warning("space", "dropped: the node that coordinates it does not know it any more",
                 {{"guest", taken->identity.name}, {"peer", dropped.coordinator}});
    // What does not end now is tried again after the next hello.
    static_cast<void>(
        EndHere(*taken, absl::AbortedError(fmt::format("node '{}', which coordinates it, does not know it any more",
                                                       dropped.coordinator))));
  }
}

void SpaceManager::StopAll() {
  std::vector<std::shared_ptr<SpacePart>> parts;
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    for (const auto& [name, entry] : entries_) {
      if (entry.part != nullptr) parts.push_back(entry.part);
    }
  }
  for (const auto& part : parts) part->StopNow(absl::CancelledError("the daemon stops"));
  // They ask peers, by links that go before this object does.
  drains_.Stop();
  recovery_.Stop();
}

}  // namespace hk
