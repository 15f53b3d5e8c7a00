// The frame files of a guest's earlier runs: what of them still holds blocks of its disks is read from memory instead
// of the disk (storage-replica/README.md, "guest reset"). Their frames are spare: they go as soon as room is needed.
//
// Thread-safe.
//
// Invariants:
//  1. A frame is in the table only while it is in its file: it leaves the table before it is punched.
//  2. What of the budget a file holds is what frames it has, from Add on.
//  3. Walks over the table, and changes of which file is in it, exclude one another: both are under the lock here.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/memory/frame_file.h"
#include "hyperkernel/memory/frame_store.h"
#include "hyperkernel/memory/guest_memory.h"
#include "storage-replica/replica_table.h"

namespace hk {

// Those of one guest.
class WarmFiles final : public SpareFrames {
 public:
  explicit WarmFiles(std::shared_ptr<ReplicaTable> table) : table_(std::move(table)) {}

  // A run has ended, and another begins: its file, of RAM in `ranges`, whose frames the table has as its present ones,
  // becomes warm; all frames without an entry are given back at once, and of a run without any entry the file. `next`:
  // the generation of the next run's file. A file of a run that was never in use is null. REQUIRES: as
  // ReplicaTable::Reset. Errors: of that; the table is to be abandoned.
  absl::Status Add(std::shared_ptr<FrameFile> file, std::vector<RamRange> ranges, uint64_t next);

  // The same for the file NAME.`generation` of RAM in `ranges` that a killed daemon left: of a bank of the table, which
  // an earlier process made. Frames without an entry are given back; where there is none, nor any more are its entries.
  // `frames` outlives it. Errors: as FrameFile::Adopt; the bank has no entries then. Before AddSpare.
  absl::Status Adopt(const FrameStore& frames, const std::string& name, std::vector<RamRange> ranges,
                     uint64_t generation);

  // The file that has the frame, and where; null: it is gone. The frame may go at any time: ReplicaTable::Confirm.
  std::shared_ptr<FrameFile> Find(const FrameRef& frame, uint64_t* offset) const;
  // Frames whose blocks are elsewhere in memory now go.
  void MoveOut(const FrameRef& first, uint64_t count);
  void GiveBack(uint64_t bytes) override;
  // All go.
  void Drop();
  // Runs `body` while no bank of the table changes.
  void WithTable(const std::function<void(ReplicaTable& table)>& body);

  // Of the files that there are.
  std::vector<uint64_t> Generations() const;
  // Memory that they take, and the entries of the table that are theirs.
  uint64_t bytes() const;
  uint64_t entries() const;

 private:
  // A file, and which of its frames there are, by GFN.
  struct File {
    uint64_t generation = 0;
    std::shared_ptr<FrameFile> file;
    std::vector<RamRange> ranges;
    std::vector<bool> held;
    uint64_t count = 0;  // of those held
  };

  // The file's frames that the table serves.
  std::vector<bool> Served(uint64_t generation, size_t frames) const;
  // Gives back the frames of [first, first + count) that are there. False: the kernel failed.
  bool Punch(File* file, uint64_t first, uint64_t count) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Gives back frames that are not in `keep`, until `bytes` are; returns how many were.
  uint64_t PunchOthers(File* file, const std::vector<bool>& keep, uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::shared_ptr<ReplicaTable> table_;
  mutable Mutex mutex_;
  std::vector<File> files_ ABSL_GUARDED_BY(mutex_);  // the oldest first
};

}  // namespace hk
