// The replica table's durable form, kept by one thread: what changes in the table is written to the database in
// batches, off the path of I/O; and the marks of regions that are written to (README.md, "The durable form").
//
// Invariants:
//  1. What is journalled is written in order. Queued are at most kQueueChanges; if more come, all is written anew from
//     the table, and until that is done no mark goes and no flush is noted.
//  2. A write of a disk begins only in marked regions; the mark is synced.
//  3. If the database cannot be written, it is abandoned before any write goes on that it does not know of; if that
//     fails too, writes are refused.
//
// Thread safety: thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "storage-replica/durable_store.h"
#include "storage-replica/intent_map.h"
#include "storage-replica/replica_table.h"

namespace hk {

// The durable form of one table.
class DurableReplica final : public ReplicaJournal {
 public:
  // Changes that wait for the writer: 16 MiB, some seconds of a fast disk. What is beyond costs a writing anew.
  static constexpr size_t kQueueChanges = 1 << 20;

  // Counts. Plain value.
  struct Statistics {
    uint64_t journalled = 0;  // changes that the table told of
    uint64_t queued = 0;      // changes that wait now
    uint64_t taken = 0;       // changes written
    uint64_t batches = 0;     // writes to the database
    uint64_t syncs = 0;       // of them, synced
    uint64_t anew = 0;        // times that all was written anew
    uint64_t marked = 0;      // regions marked now
    absl::Status status{};    // why it was abandoned, if it was
  };

  // Who writes: a thread of its own; or whoever calls Work, for tests.
  enum class Writer { kThread, kByHand };

  // Becomes the table's journal and begins to write: first all of the table. `table` outlives it.
  DurableReplica(std::unique_ptr<DurableStore> store, ReplicaTable* table, const Clock& clock,
                 Writer writer = Writer::kThread);
  // Writes what is queued, synced, and leaves the table without journal. REQUIRES: nobody uses the table or this.
  ~DurableReplica() override;

  void Changed(uint32_t slot, std::optional<Ssa> was) override;
  void FilesChanged() override;

  // A write or erase is about to begin (before ReplicaTable::Begin). True: it may. False: its regions are to be marked
  // first: `ready` is called then, from the writer's thread, and BeginWrite is to be called again; with an error: the
  // write must not be submitted. Must not call this object from within `ready`.
  bool BeginWrite(const DiskIo& io, std::function<void(absl::Status)> ready);
  // It has ended, well or not (after ReplicaTable::End, which returns `flush`).
  void EndWrite(const DiskIo& io, uint32_t flush);
  // A disk that was attached to the table; written with the next batch. Its flushes and its last change are the
  // table's.
  void NoteDisk(DiskId disk, const DiskImageIdentity& identity);
  // Waits until all that was journalled before is on disk. Errors: why it was abandoned; kDeadlineExceeded.
  absl::Status Sync(Monotonic deadline);

  // Writes what there is to write. REQUIRES: Writer::kByHand.
  void Work();

  Statistics statistics();

 private:
  // A change of the table: the slot, and the block that it does not serve any more, or kNoBlock.
  struct Change {
    uint32_t slot = 0;
    uint8_t disk = 0;
    bool was = false;
    uint64_t block = 0;
  };
  // Who waits for marks.
  struct Waiter {
    std::vector<DiskRegion> regions;
    std::function<void(absl::Status)> ready;
  };
  // What the writer has taken of all this for one round.
  struct Round {
    std::vector<Change> changes;
    std::vector<Waiter> waiters;
    std::vector<IntentMap::Candidate> candidates;
    std::array<std::optional<DurableDisk>, kMaxReplicaDisks> disks;
    bool anew = false;
    uint64_t sync_asked = 0;
    bool sync = false;
  };
  // Working; abandoned: nothing is written any more; broken: nor could it be abandoned, and writes are refused.
  enum class State { kWorking, kAbandoned, kBroken };

  void Run();
  // False: it is to stop, and nothing is left to write.
  bool WaitForWork() ABSL_LOCKS_EXCLUDED(mutex_);
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DoRound() ABSL_LOCKS_EXCLUDED(mutex_);
  Round Take() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Write(Round* round);
  absl::Status WriteAnew();
  absl::Status WriteChanges(std::vector<Change>* changes);
  // Writes the batch if it is large.
  absl::Status WriteIfLarge();
  void Finish(Round* round, const absl::Status& written) ABSL_LOCKS_EXCLUDED(mutex_);
  // After a failure of the database.
  void GiveUp(const absl::Status& why) ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t NowMs() const;

  const std::unique_ptr<DurableStore> store_;
  ReplicaTable* const table_;
  const Clock& clock_;
  Mutex mutex_;
  CondVar work_, done_;
  std::vector<Change> queue_ ABSL_GUARDED_BY(mutex_);
  bool anew_ ABSL_GUARDED_BY(mutex_) = true;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t sync_asked_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t sync_done_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<Waiter> waiters_ ABSL_GUARDED_BY(mutex_);
  IntentMap intents_ ABSL_GUARDED_BY(mutex_);
  std::array<std::optional<DurableDisk>, kMaxReplicaDisks> disks_ ABSL_GUARDED_BY(mutex_);
  Statistics statistics_ ABSL_GUARDED_BY(mutex_);
  State state_ ABSL_GUARDED_BY(mutex_) = State::kWorking;
  // The writer's own.
  DurableBatch batch_;
  std::vector<DiskRegion> unmarked_;
  std::array<std::optional<DurableDisk>, kMaxReplicaDisks> known_disks_, written_disks_;
  int64_t looked_for_idle_ms_ = 0;
  uint64_t batches_ = 0, syncs_ = 0, written_anew_ = 0, taken_ = 0;
  std::thread writer_;
};

}  // namespace hk
