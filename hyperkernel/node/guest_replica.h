// The storage replica of one guest whose memory is on this node alone: the table, what it hears of stores and disks,
// and the frames of the runs before (storage-replica/README.md; DESIGN: storage replica, R2). It outlives the guest's
// resets, and goes with its end.
//
// | step of a run                | here                                                                      |
// |------------------------------|---------------------------------------------------------------------------|
// | a run begins                 | BeginRun: the frames of the last one become warm                           |
// | its memory was made          | Attach: from here on stores are told                                       |
// | each of its disks            | AttachDisk: from here on its requests are told                             |
// | its disks, then memory, ended | nothing is told any more; the file of its frames is kept for BeginRun      |
// | the daemon is killed         | table and frames stay in the frame store; the next daemon takes them over: Recover |
//
// Thread-safe. Disks' own accounts belong to their workers.
//
// Invariants:
//  1. A frame file is kept from Attach until the run after the next, and every one that is kept counts in the budget.
//  2. Nothing here fails a guest: what cannot be tracked is not, and is read from its disk; if there can be no durable
//  form, the replica does without. But a write of a disk is refused that a database, which can neither be written nor
//  be given up, would not know of.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/device/block_replica.h"
#include "hyperkernel/device/disk_image.h"
#include "hyperkernel/memory/guest_memory.h"
#include "hyperkernel/node/replica_site.h"
#include "hyperkernel/node/warm_files.h"
#include "proto/replica.pb.h"
#include "storage-replica/durable_replica.h"
#include "storage-replica/replica_table.h"

namespace hk {

// Whether nobody else may write to an image that was opened so. A device that is only read from, and not claimed, is
// anybody's, whatever locks others look at.
inline bool IsLockedAgainstWriters(const DiskImage& image, bool exclusive) {
  return !image.block_device || !image.read_only || exclusive;
}

// One guest's. See above.
class GuestReplica : public std::enable_shared_from_this<GuestReplica> {
 public:
  // For a guest whose first run has frames of `generation` (not 0; those of later runs are greater). Errors:
  // kInvalidArgument: the guest is too large; kResourceExhausted: no room for the table; errno.
  static absl::StatusOr<std::shared_ptr<GuestReplica>> Create(const ReplicaSite& site, ReplicaOwner owner,
                                                              uint64_t generation);
  // Its frames, its table and its database go.
  ~GuestReplica();
  // What a daemon that was killed left of the guest's: the table that began with `table`, and all frame files that it
  // tells of, with RAM in `ranges`; they are warm. `last`: the generation of the last run that was begun. What is not
  // taken over is removed, or is the caller's to remove. Errors: as ReplicaTable::Open; kFailedPrecondition: it does
  // not fit; kNotFound: it knows of no page.
  static absl::StatusOr<std::shared_ptr<GuestReplica>> Recover(const ReplicaSite& site, ReplicaOwner owner,
                                                               uint64_t table, const std::vector<RamRange>& ranges,
                                                               uint64_t last);

  // A run begins, after another. Errors: kFailedPrecondition: the run before has not ended (its I/O does not); errno.
  // After an error it is to be abandoned.
  absl::Status BeginRun(uint64_t generation);
  // The run's memory: is told who listens. `memory` goes after all disks that were attached. False: it cannot tell of
  // stores, and nothing is tracked.
  bool Attach(GuestMemory* memory);
  // The account of a disk, for its device; its image is `image`, which nobody else may write to. `number`: its place in
  // the specification. Null: it is not tracked. REQUIRES: Attach returned true.
  std::unique_ptr<BlockReplica> AttachDisk(size_t number, const DiskImage& image);

  // Of the frame files that are kept of runs that have ended.
  std::vector<uint64_t> WarmGenerations() const { return warm_->Generations(); }
  // Forgets all, and gives up the warm frames. What is read from then on is known again.
  void Drop();
  // Waits until the durable form has all that happened before. Errors: why not, or that there is none.
  absl::Status SyncDurable(Monotonic deadline);
  // `all`: what takes time to count, too.
  v1::Replica Describe(bool all = true) const;

  // Compares all entries with the disks, reading at most so fast. `progress` is called now and then, and at the end;
  // false from it ends all. Entries that are wrong are dropped. Errors: kAborted: ended so, or by a reset; errno
  // of a disk that cannot be read.
  absl::Status Verify(uint32_t mib_per_second, const std::function<bool(const v1::ReplicaVerification&)>& progress);

 private:
  friend class DiskReplica;
  class Watch;
  using OpenedStore = absl::StatusOr<std::unique_ptr<DurableStore>>;
  // A disk of the present run. Immutable.
  struct Disk {
    OwnedFd image;  // to read from, without locks
  };
  // What verification has to compare. Plain value.
  struct Claim {
    FrameRef frame;
    ReplicaEntry entry;
  };

  GuestReplica(const ReplicaSite& site, ReplicaOwner owner, ReplicaTablePath path, std::shared_ptr<ReplicaTable> table)
      : owner_(std::move(owner)),
        path_(std::move(path)),
        table_(std::move(table)),
        warm_(std::make_shared<WarmFiles>(table_)),
        database_(DatabaseOf(site, owner_)),
        clock_(*site.clock),
        since_(clock_.Wall()) {}
  // The database, whose generations are above this one. Errors: why there is none.
  static OpenedStore OpenStore(const ReplicaSite& site, const ReplicaOwner& owner, uint64_t above);
  // From here on it is written. Before the guest runs.
  void KeepDurable(OpenedStore store);
  void MemoryGone();
  // A run of an earlier daemon's entries was not confirmed; says so once, if it was for its bytes.
  void NoteMismatch();
  uint64_t WallNs() const;
  // The file that has a frame, the present one included.
  std::shared_ptr<FrameFile> FileOf(const FrameRef& frame, uint64_t* offset) const;
  // Gone: it is not claimed any more.
  enum class Verdict { kRight, kGone, kWrong };
  absl::StatusOr<Verdict> Compare(const Claim& claim, std::span<std::byte> page, std::span<std::byte> block);

  const ReplicaOwner owner_;
  const ReplicaTablePath path_;
  const std::shared_ptr<ReplicaTable> table_;
  const std::shared_ptr<WarmFiles> warm_;
  const std::string database_;  // its directory
  const Clock& clock_;
  std::unique_ptr<DurableReplica> durable_;  // null: there is none. Set before the replica is anybody's
  std::atomic<uint64_t> hits_{0}, misses_{0}, saved_bytes_{0};
  std::atomic<bool> mismatch_told_{false};
  std::atomic<uint64_t> open_requests_{0};  // between Begin and End
  mutable Mutex mutex_;
  GuestMemory* memory_ ABSL_GUARDED_BY(mutex_) = nullptr;    // of the present run
  std::shared_ptr<FrameFile> file_ ABSL_GUARDED_BY(mutex_);  // of the present or last run
  std::vector<RamRange> ranges_ ABSL_GUARDED_BY(mutex_);
  std::array<std::shared_ptr<Disk>, kMaxReplicaDisks> disks_ ABSL_GUARDED_BY(mutex_);
  std::string not_durable_because_ ABSL_GUARDED_BY(mutex_);
  uint64_t resets_ ABSL_GUARDED_BY(mutex_) = 0;
  WallTime since_ ABSL_GUARDED_BY(mutex_);
  // What was counted before the last Drop.
  uint64_t hits_before_ ABSL_GUARDED_BY(mutex_) = 0, misses_before_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t saved_before_ ABSL_GUARDED_BY(mutex_) = 0, removed_before_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace hk
