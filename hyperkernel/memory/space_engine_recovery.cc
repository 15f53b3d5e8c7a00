// Epochs of the fault engine: what a node does when another is lost, as the space's coordinator drives it (README.md,
// "Recovery"). What the nodes say to each other meanwhile: space_engine_reports.cc.
#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {
namespace {

std::vector<uint64_t> SortedKeys(const absl::flat_hash_map<uint64_t, std::unique_ptr<ActivePage>>& pages) {
  std::vector<uint64_t> keys;
  for (const auto& [gfn, page] : pages) keys.push_back(gfn);
  std::sort(keys.begin(), keys.end());  // the same order in each run
  return keys;
}

}  // namespace

void Engine::OnPeerFailed(NodeId peer, PeerFailure /*why*/, const std::string& detail) {
  if (!IsNode(peer) || peer == config_.self) return;
  const std::string what = fmt::format("node {} failed: {}", peer.value(), detail);
  bool fatal = true;
  {
    MutexLock lock(&change_mutex_);
    if (!live_.Contains(peer)) return;  // the space goes on without it already
    fatal = !config_.coordinator.has_value() || peer == *config_.coordinator;
    if (!fatal) {
      failed_.Add(peer);
      failure_ = what;
      if (running()) phase_.store(Phase::kSuspended, std::memory_order_release);
      ArmChangeLimit();
    }
  }
  if (fatal) {
    // If the coordinator has failed, all others lose it as well; if only this node has lost it, they go on without it.
    const bool alone = config_.coordinator.has_value() && !HK_MUTANT(engine_cut_off_stops_all);
    Fail(absl::UnavailableError(what), alone ? StopOf::kThisNode : StopOf::kAll);
    return Finish();
  }
  EndRebuild(absl::UnavailableError(what));
  if (on_suspended_) on_suspended_(peer);
}

void Engine::ArmChangeLimit() {
  timers_->After(config_.request_limit, [this, changes = changes_.fetch_add(1) + 1] {
    std::string why;
    {
      MutexLock lock(&change_mutex_);
      if (running() || changes != changes_.load()) return;
      why = failure_.empty() ? "the coordinator began an epoch" : failure_;
    }
    Fail(absl::UnavailableError(fmt::format("{}; no new epoch came within {} ms", why, config_.request_limit.count())));
    Finish();
  });
}

absl::Status Engine::StoppedHere() const {
  if (!stopped()) return absl::OkStatus();
  if (alone_.load() && !HK_MUTANT(engine_cut_off_spoils_steps)) return absl::UnavailableError(MessageOf(reason()));
  return absl::FailedPreconditionError(MessageOf(reason()));
}

// Not above the next epoch: it may come again by a later one.
void Engine::PassEpoch() {
  if (HK_MUTANT(engine_lost_node_keeps_epoch)) return;
  Epoch next;
  {
    MutexLock lock(&change_mutex_);
    next = Epoch(epoch_.value() + 1);
  }
  static_cast<void>(transport_->SetEpoch(config_.guest, config_.generation, next));
}

absl::Status Engine::FailedHere() const {
  if (failed_.empty()) return absl::OkStatus();
  return absl::UnavailableError(failure_);
}

absl::Status Engine::CheckEpoch(Epoch epoch) const {
  HK_RETURN_IF_ERROR(StoppedHere());
  if (epoch == epoch_) return absl::OkStatus();
  return absl::AbortedError(fmt::format("epoch {} is not this node's, which is {}", epoch.value(), epoch_.value()));
}

absl::Status Engine::BeginEpoch(const SpaceEpoch& change) {
  absl::Status failure;
  {
    MutexLock lock(&change_mutex_);
    HK_RETURN_IF_ERROR(StoppedHere());
    if (change.epoch <= epoch_) {
      return absl::AbortedError(fmt::format("epoch {} is over: {} began", change.epoch.value(), epoch_.value()));
    }
    if ((change.survivors.bits() & ~live_.bits() & ~change.joined.bits()) != 0) {
      return absl::InvalidArgumentError("an epoch with nodes that were lost before");
    }
    if ((change.survivors.bits() & ~nodes_.bits()) != 0 || (change.joined.bits() & ~change.survivors.bits()) != 0) {
      return absl::InvalidArgumentError("an epoch with nodes that are not of the space");
    }
    if ((change.joined.bits() & members_.bits()) != 0) {
      return absl::InvalidArgumentError("an epoch that nodes join which take part already");
    }
    if ((change.survivors.bits() & change.left.bits()) != 0) {
      return absl::InvalidArgumentError("an epoch with nodes that have left");
    }
    if (change.left.Contains(config_.self) && !HK_MUTANT(engine_leaves_what_it_has)) {
      const SpaceLeaving state = LeavingState();
      if (!state.empty()) {
        return absl::FailedPreconditionError(
            state.leaving ? fmt::format("node {} has {} pages still, and knows of {} lost ones", config_.self.value(),
                                        state.pages_left, state.pages_lost)
                          : fmt::format("node {} is not leaving the space", config_.self.value()));
      }
    }
    if (!change.survivors.Contains(config_.self)) {
      takes_part_.store(false);
      failure = change.left.Contains(config_.self)
                    ? absl::CancelledError(fmt::format("node {} has left the space", config_.self.value()))
                    : absl::AbortedError(fmt::format("node {} was declared lost in epoch {}, and others have its place",
                                                     config_.self.value(), change.epoch.value()));
    } else if (!config_.coordinator.has_value() || !change.survivors.Contains(*config_.coordinator)) {
      return absl::InvalidArgumentError("an epoch without its coordinator");
    }
    failed_ = NodeSet(failed_.bits() & change.survivors.bits());
    if (failure.ok()) HK_RETURN_IF_ERROR(FailedHere());
    // Somebody holds for certain what this node has only been told.
    if (failure.ok() && change.committed > committed_) {
      if (change.committed == epoch_ && rebuilt_) {
        CommitLocked();
      } else {
        failure = absl::InternalError(fmt::format("epoch {} was committed, and node {} has not rebuilt it",
                                                  change.committed.value(), config_.self.value()));
      }
    }
    if (failure.ok()) {
      phase_.store(Phase::kChanging, std::memory_order_release);
      ArmChangeLimit();
      failure = transport_->SetEpoch(config_.guest, config_.generation, change.epoch);
    }
    if (failure.ok()) {
      outbox_.Clear();
      const NodeSet lost(live_.bits() & ~change.survivors.bits() & ~change.left.bits());
      NoteLosses(lost);
      lost_ = NodeSet(lost_.bits() | lost.bits());
      epoch_ = change.epoch;
      live_ = change.survivors;
      report_ends_ = reconcile_ends_ = NodeSet::Of(config_.self);
      rebuilt_ = false;
      for (Shard& shard : shards_) {
        MutexLock shard_lock(&shard.mutex);
        BeginShard(&shard, change, lost_);
      }
    }
  }
  EndRebuild(absl::AbortedError("another epoch began"));
  if (!failure.ok()) {
    Fail(failure, change.survivors.Contains(config_.self) ? StopOf::kAllTold : StopOf::kThisNode);
    Finish();
    return failure;
  }
  return StoppedHere();
}

// Requests are given up; what this node may read or write stays, and so do the bytes that it keeps for others.
void Engine::BeginShard(Shard* shard, const SpaceEpoch& change, NodeSet lost) {
  shard->epoch = change.epoch;
  shard->live = change.survivors;
  shard->change = std::make_unique<ShardChange>();
  shard->change->left = change.left;
  shard->change->lost_nodes = lost;
  shard->next_serial = FirstSerial(change.epoch);
  shard->owner_serials.Reset(shard->next_serial - 1);
  shard->hints.Clear();
  for (auto& [gfn, busy] : shard->busy) busy->duties.clear();
  prefetch_slots_.fetch_sub(shard->batches.size());
  shard->batches.clear();
  for (const uint64_t gfn : SortedKeys(shard->active)) {
    ActivePage* const active = shard->active.find(gfn)->second.get();
    active->parked.clear();
    StepPage(shard, active, {.type = PageEventType::kEpochChange, .message = {}}, Means());
    active->deferred = Duty();
    active->answer_slot.Release();
    active->answer_payload = {};
    Rest(shard, active);
  }
}

absl::Status Engine::Commit(Epoch epoch) {
  {
    MutexLock lock(&change_mutex_);
    HK_RETURN_IF_ERROR(CheckEpoch(epoch));
    if (committed_ == epoch) return absl::OkStatus();
    if (!rebuilt_) return absl::FailedPreconditionError(fmt::format("epoch {} is not rebuilt", epoch.value()));
    CommitLocked();
  }
  Finish();
  return StoppedHere();
}

void Engine::CommitLocked() {
  std::vector<Gfn> adopters;
  for (Shard& shard : shards_) {
    MutexLock lock(&shard.mutex);
    CommitShard(&shard, &adopters);
  }
  for (const Gfn page : adopters) {
    // Else above max_pages, by what is reserved for that (kMostReturningPages), until other pages have gone.
    static_cast<void>(MakeRoom());
    Shard& shard = ShardOf(page);
    MutexLock lock(&shard.mutex);
    ReconcilePage(&shard, page, PageRight::kExclusive);
  }
  committed_ = epoch_;
  members_ = live_;
  lost_ = NodeSet(lost_.bits() & ~live_.bits());
  takes_part_.store(true);
  phase_.store(Phase::kCommitted, std::memory_order_release);
  ArmChangeLimit();
}

void Engine::CommitShard(Shard* shard, std::vector<Gfn>* adopters) {
  const std::unique_ptr<ShardChange> change = std::move(shard->change);
  if (change == nullptr || stopped()) return;
  AddSet(&shard->committed, shard->live);
  for (auto& [number, rebuilt] : change->rebuilt) {
    ExtentOf(shard, Gfn(number * kExtentPages))->home = std::move(*rebuilt);
  }
  shard->busy.clear();
  shard->statistics.pages_lost = change->lost;
  shard->lost_with = std::move(change->lost_with);
  std::vector<uint64_t> pages = SortedKeys(shard->active);
  for (const auto& [gfn, right] : change->told) pages.push_back(gfn);
  std::sort(pages.begin(), pages.end());
  pages.erase(std::unique(pages.begin(), pages.end()), pages.end());
  for (const uint64_t gfn : pages) {
    ActivePage* const active = Activate(shard, Gfn(gfn));
    const auto told = change->told.find(gfn);
    const PageRight right = told != change->told.end() ? told->second : hk::RightOf(active->page.state);
    if (active->page.state == PageState::kAbsent && right == PageRight::kExclusive && config_.max_pages != 0) {
      adopters->push_back(Gfn(gfn));
      continue;
    }
    ReconcilePage(shard, Gfn(gfn), right);
    if (stopped()) return;
  }
}

void Engine::ReconcilePage(Shard* shard, Gfn page, PageRight right) {
  ActivePage* const active = Activate(shard, page);
  PageEvent event{.type = PageEventType::kReconciled, .message = {}};
  event.message.right = right;
  event.message.from = HomeIn(*shard, page);
  StepPage(shard, active, event, Means());
  Rest(shard, active);
}

bool Engine::MakeRoom() {
  for (size_t i = 0; i < 2 * kShards && !HasFreeFrame(); ++i) {  // the first round may only take the marks away
    MutexLock lock(&shards_[i % kShards].mutex);
    DropOne(&shards_[i % kShards]);
  }
  return HasFreeFrame();
}

absl::Status Engine::Run(Epoch epoch) {
  {
    MutexLock lock(&change_mutex_);
    HK_RETURN_IF_ERROR(CheckEpoch(epoch));
    HK_RETURN_IF_ERROR(FailedHere());
    if (committed_ != epoch) return absl::FailedPreconditionError(fmt::format("epoch {} does not hold", epoch.value()));
    if (running()) return absl::OkStatus();
    phase_.store(Phase::kRunning, std::memory_order_release);
    changes_.fetch_add(1);
  }
  for (Shard& shard : shards_) {
    MutexLock lock(&shard.mutex);
    if (HK_MUTANT(engine_wishes_forgotten)) break;
    for (const uint64_t gfn : SortedKeys(shard.active)) {
      const auto found = shard.active.find(gfn);
      if (found == shard.active.end() || stopped()) continue;
      ActivePage* const active = found->second.get();
      if (active->wished()) active->since = clock_.Now();
      Advance(&shard, active);
      Rest(&shard, active);
      Drain(&shard);
    }
  }
  frames_due_.store(true, std::memory_order_release);
  Finish();
  return StoppedHere();
}

SpaceEpochState Engine::EpochState() const {
  SpaceEpochState state;
  {
    MutexLock lock(&change_mutex_);
    state = {.epoch = epoch_, .nodes = live_, .running = running(), .failed = failed_};
    if (alone_.load()) state.failed.Add(config_.self);
  }
  for (const Shard& shard : shards_) {
    MutexLock lock(&shard.mutex);
    state.pages_lost += shard.statistics.pages_lost;
    for (const auto& [node, pages] : shard.lost_with) state.pages_lost_with[node] += pages;
  }
  return state;
}

bool Engine::IsLost(Gfn page) const {
  if (!InSpace(page)) return false;
  const Shard& shard = ShardOf(page);
  MutexLock lock(&shard.mutex);
  if (HomeIn(shard, page) != config_.self) return false;
  const uint64_t number = page.value() / kExtentPages;
  const auto extent = shard.extents.find(number);
  if (extent == shard.extents.end()) return placement_.IsForgotten(number, shard.committed);
  return extent->second->home.Get(page.value() % kExtentPages).state == DirectoryState::kLost;
}

}  // namespace hk::space
