#include "storage-replica/durable_replica.h"

#include <algorithm>
#include <utility>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

// A round is begun at once if so much waits, else so long after the first change: one write for many.
constexpr size_t kRoundChanges = 8192;
constexpr std::chrono::milliseconds kRoundDelay{5};
// Without changes the writer looks so often whether marks may go.
constexpr std::chrono::milliseconds kTick{1000};
constexpr int64_t kIdleLookMs = 1000;
// Of one write to the database.
constexpr size_t kBatchBytes = 1 << 20;
// Sorted and written together; the queue may hold far more.
constexpr size_t kSortedChanges = 1 << 16;

}  // namespace

DurableReplica::DurableReplica(std::unique_ptr<DurableStore> store, ReplicaTable* table, const Clock& clock,
                               Writer writer)
    : store_(std::move(store)), table_(table), clock_(clock) {
  const absl::StatusOr<std::vector<DiskRegion>> marked = store_->Intents();
  if (!marked.ok()) {
    GiveUp(marked.status());
  } else {
    MutexLock lock(&mutex_);
    for (const DiskRegion region : *marked) intents_.Found(region, NowMs());
  }
  table_->SetJournal(this);
  if (writer == Writer::kThread) writer_ = std::thread(&DurableReplica::Run, this);
}

DurableReplica::~DurableReplica() {
  table_->SetJournal(nullptr);
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    ++sync_asked_;
    work_.Signal();
  }
  if (writer_.joinable()) writer_.join();
}

int64_t DurableReplica::NowMs() const {
  return std::chrono::duration_cast<std::chrono::milliseconds>(clock_.Now().time_since_epoch()).count();
}

void DurableReplica::Changed(uint32_t slot, std::optional<Ssa> was) {
  MutexLock lock(&mutex_);
  ++statistics_.journalled;
  if (anew_ || state_ != State::kWorking) return;
  if (queue_.size() >= kQueueChanges) {
    anew_ = true;
    queue_.clear();
    return;
  }
  queue_.push_back({.slot = slot,
                    .disk = was.has_value() ? was->disk.value() : uint8_t{0},
                    .was = was.has_value(),
                    .block = was.has_value() ? was->block : 0});
  if (queue_.size() == 1 || queue_.size() == kRoundChanges) work_.Signal();
}

void DurableReplica::FilesChanged() {
  MutexLock lock(&mutex_);
  if (state_ != State::kWorking) return;
  anew_ = true;
  queue_.clear();
  work_.Signal();
}

bool DurableReplica::BeginWrite(const DiskIo& io, std::function<void(absl::Status)> ready) {
  const BlockRange blocks = BlocksOf(io);
  MutexLock lock(&mutex_);
  std::vector<DiskRegion> missing = intents_.Begin(io.disk, blocks);
  if (missing.empty()) return true;
  if (state_ == State::kAbandoned) {
    for (const DiskRegion region : missing) intents_.Marked(region);
    HK_CHECK(intents_.Begin(io.disk, blocks).empty());
    return true;
  }
  waiters_.push_back({.regions = std::move(missing), .ready = std::move(ready)});
  work_.Signal();
  return false;
}

void DurableReplica::EndWrite(const DiskIo& io, uint32_t flush) {
  const int64_t now_ms = NowMs();
  MutexLock lock(&mutex_);
  intents_.End(io.disk, BlocksOf(io), flush, now_ms);
}

void DurableReplica::NoteDisk(DiskId disk, const DiskImageIdentity& identity) {
  HK_CHECK(disk.value() < kMaxReplicaDisks);
  MutexLock lock(&mutex_);
  disks_[disk.value()] = {.image = identity.image, .bytes = identity.bytes, .last_change_ns = 0, .durable_flush = 0};
}

absl::Status DurableReplica::Sync(Monotonic deadline) {
  MutexLock lock(&mutex_);
  const uint64_t number = ++sync_asked_;
  work_.Signal();
  while (sync_done_ < number && state_ == State::kWorking) {
    if (!done_.WaitUntil(&mutex_, deadline) && sync_done_ < number && state_ == State::kWorking) {
      return absl::DeadlineExceededError("the replica database is behind");
    }
  }
  return state_ == State::kWorking ? absl::OkStatus() : statistics_.status;
}

DurableReplica::Statistics DurableReplica::statistics() {
  MutexLock lock(&mutex_);
  statistics_.queued = queue_.size();
  statistics_.marked = intents_.marked();
  return statistics_;
}

bool DurableReplica::HasWork() const {
  return anew_ || !queue_.empty() || !waiters_.empty() || sync_asked_ > sync_done_;
}

bool DurableReplica::WaitForWork() {
  MutexLock lock(&mutex_);
  const auto tick = std::chrono::steady_clock::now() + kTick;
  while (!stop_ && !HasWork()) {
    if (!work_.WaitUntil(&mutex_, tick)) return true;
  }
  const auto round = std::chrono::steady_clock::now() + kRoundDelay;
  while (!stop_ && !anew_ && waiters_.empty() && sync_asked_ == sync_done_ && queue_.size() < kRoundChanges) {
    if (!work_.WaitUntil(&mutex_, round)) break;
  }
  return !stop_ || (HasWork() && state_ == State::kWorking);
}

void DurableReplica::Run() {
  while (WaitForWork()) DoRound();
}

void DurableReplica::Work() {
  DoRound();
}

void DurableReplica::DoRound() {
  Round round = Take();
  const absl::Status written = Write(&round);
  if (!written.ok()) GiveUp(written);
  Finish(&round, written);
}

DurableReplica::Round DurableReplica::Take() {
  Round round;
  const int64_t now_ms = NowMs();
  // Before the changes are taken: of flushes and of marks no more is said than what these cover.
  std::array<uint32_t, kMaxReplicaDisks> durable{};
  std::array<uint64_t, kMaxReplicaDisks> changed_ns{};
  for (uint8_t disk = 0; disk < kMaxReplicaDisks; ++disk) {
    durable[disk] = table_->DurableFlush(DiskId(disk));
    changed_ns[disk] = table_->LastChangeNs(DiskId(disk));
  }
  MutexLock lock(&mutex_);
  if (state_ == State::kWorking && now_ms - looked_for_idle_ms_ >= kIdleLookMs) {
    looked_for_idle_ms_ = now_ms;
    round.candidates = intents_.Idle([&](DiskId disk) { return durable[disk.value()]; }, now_ms);
  }
  round.changes.swap(queue_);
  round.waiters.swap(waiters_);
  round.anew = std::exchange(anew_, false);
  round.sync_asked = sync_asked_;
  round.sync = sync_asked_ > sync_done_ || !round.waiters.empty() || !round.candidates.empty();
  for (uint8_t disk = 0; disk < kMaxReplicaDisks; ++disk) {
    if (disks_[disk].has_value()) known_disks_[disk] = std::exchange(disks_[disk], std::nullopt);
    if (!known_disks_[disk].has_value()) continue;
    known_disks_[disk]->durable_flush = durable[disk];
    known_disks_[disk]->last_change_ns = changed_ns[disk];
    round.disks[disk] = known_disks_[disk];
  }
  return round;
}

absl::Status DurableReplica::Write(Round* round) {
  {
    MutexLock lock(&mutex_);
    if (state_ != State::kWorking) return statistics_.status;
  }
  for (const DiskRegion region : unmarked_) store_->RemoveIntent(&batch_, region);
  unmarked_.clear();
  for (const Waiter& waiter : round->waiters) {
    for (const DiskRegion region : waiter.regions) store_->PutIntent(&batch_, region);
  }
  if (round->anew) HK_RETURN_IF_ERROR(WriteAnew());
  HK_RETURN_IF_ERROR(WriteChanges(&round->changes));
  for (uint8_t disk = 0; disk < kMaxReplicaDisks; ++disk) {
    const std::optional<DurableDisk>& row = round->disks[disk];
    if (!row.has_value() || written_disks_[disk] == row) continue;
    store_->PutDisk(&batch_, DiskId(disk), *row);
    written_disks_[disk] = row;
  }
  if (batch_.empty() && !round->sync) return absl::OkStatus();
  ++batches_;
  const bool sync = round->sync && !HK_MUTANT(replica_intent_not_synced);
  if (sync) ++syncs_;
  return store_->Write(&batch_, sync);
}

absl::Status DurableReplica::WriteIfLarge() {
  if (batch_.bytes() < kBatchBytes) return absl::OkStatus();
  ++batches_;
  return store_->Write(&batch_, false);
}

absl::Status DurableReplica::WriteAnew() {
  ++written_anew_;
  written_disks_.fill(std::nullopt);
  HK_RETURN_IF_ERROR(store_->RemoveAllEntries());
  for (uint32_t slot = 0; slot < table_->slot_count(); ++slot) {
    slot = table_->SkipEmpty(slot);
    if (slot >= table_->slot_count()) break;
    const std::optional<ReplicaTable::Served> served = table_->ServedAt(slot);
    if (served.has_value()) store_->PutEntry(&batch_, served->frame, served->entry);
    HK_RETURN_IF_ERROR(WriteIfLarge());
  }
  return absl::OkStatus();
}

absl::Status DurableReplica::WriteChanges(std::vector<Change>* changes) {
  taken_ += changes->size();
  for (size_t begin = 0; begin < changes->size(); begin += kSortedChanges) {
    // In the order of keys, and each slot once: as it is now is as it was after its last change, or later.
    const auto first = changes->begin() + static_cast<ptrdiff_t>(begin);
    const auto last = changes->begin() + static_cast<ptrdiff_t>(std::min(begin + kSortedChanges, changes->size()));
    std::stable_sort(first, last, [](const Change& a, const Change& b) { return a.slot < b.slot; });
    for (auto at = first; at != last;) {
      const uint32_t slot = at->slot;
      const FrameRef frame = table_->FrameOf(slot);
      const std::optional<ReplicaTable::Served> now = table_->ServedAt(slot);
      for (; at != last && at->slot == slot; ++at) {
        const Ssa was{.disk = DiskId(at->disk), .block = at->block};
        if (at->was && !(now.has_value() && now->entry.ssa == was)) store_->RemoveBlock(&batch_, was, frame);
      }
      if (now.has_value()) {
        store_->PutEntry(&batch_, frame, now->entry);
      } else if (!HK_MUTANT(replica_removal_not_journalled)) {
        store_->RemoveEntry(&batch_, frame);
      }
      HK_RETURN_IF_ERROR(WriteIfLarge());
    }
  }
  return absl::OkStatus();
}

void DurableReplica::Finish(Round* round, const absl::Status& written) {
  absl::Status answer;
  {
    MutexLock lock(&mutex_);
    if (written.ok()) unmarked_ = intents_.Unmark(round->candidates);
    if (state_ == State::kBroken) {
      answer = statistics_.status;
    } else {
      for (const Waiter& waiter : round->waiters) {
        for (const DiskRegion region : waiter.regions) intents_.Marked(region);
      }
    }
    sync_done_ = round->sync_asked;
    statistics_.batches = batches_;
    statistics_.syncs = syncs_;
    statistics_.anew = written_anew_;
    statistics_.taken = taken_;
    done_.SignalAll();
  }
  for (const Waiter& waiter : round->waiters) waiter.ready(answer);
}

void DurableReplica::GiveUp(const absl::Status& why) {
  const absl::Status abandoned = store_->Abandon();
  MutexLock lock(&mutex_);
  if (state_ == State::kWorking) {
    statistics_.status = why;
    log::Error("replica", "the database is given up; what it says does not count any more",
               {{"error", std::string(why.message())}, {"writes", abandoned.ok() ? "go on" : "are refused"}});
  }
  state_ = abandoned.ok() ? State::kAbandoned : State::kBroken;
  queue_.clear();
}

}  // namespace hk
