// Which regions of disks may differ from what the durable form says of them: the rules of the write-intent map
// (README.md, "The durable form"). Pure: no descriptor, thread, clock.
//
// Invariants:
//  1. A write of a region is in flight only while the region's mark is durable.
//  2. A mark goes only when no write of the region is in flight, all that ended are on stable storage, what they did to
//     the table is durable, and no write has begun since that was found.
//
// Thread safety: none; the owner serialises.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "storage-replica/disk_io.h"
#include "storage-replica/ssa.h"

namespace hk {

// 16 MiB: what one crash costs of a disk's entries for each place that is written to, against one synced write for each
// region that is written to anew.
inline constexpr uint64_t kRegionBlocks = 4096;
// A request of more regions marks its disk as a whole: 64 GiB. A guest may erase all of a disk of 4 PiB at once.
inline constexpr uint64_t kMaxRequestRegions = 4096;
// The number of the region that is all of a disk.
inline constexpr uint64_t kWholeDisk = kMaxBlocks / kRegionBlocks;
// A region that was written to is left marked so long after its last write: what is flushed every second is not marked
// every second.
inline constexpr int64_t kIntentIdleMs = 5000;

// A part of a disk. Plain value.
struct DiskRegion {
  DiskId disk{};
  uint64_t number = 0;  // of kRegionBlocks each; or kWholeDisk
  friend auto operator<=>(const DiskRegion&, const DiskRegion&) = default;
};

constexpr DiskRegion RegionOf(Ssa ssa) {
  return {.disk = ssa.disk, .number = ssa.block / kRegionBlocks};
}

// The marks.
class IntentMap {
 public:
  // A write or erase is about to be submitted. Empty: it may, and is in flight. Else: these are to be made durable
  // first, and then it is to be asked again; regions whose marking is under way are among them.
  std::vector<DiskRegion> Begin(DiskId disk, BlockRange blocks);
  // The region's mark is durable.
  void Marked(DiskRegion region);
  // It has ended; `flush` will cover it (ReplicaTable::End).
  void End(DiskId disk, BlockRange blocks, uint32_t flush, int64_t now_ms);
  // As found in the durable form: nothing is known of what was written there before.
  void Found(DiskRegion region, int64_t now_ms);

  // A region that may be unmarked once what was journalled until now is durable.
  struct Candidate {
    DiskRegion region;
    uint64_t begun = 0;
  };
  // `durable`: up to which flush the disk is stable.
  std::vector<Candidate> Idle(const std::function<uint32_t(DiskId)>& durable, int64_t now_ms) const;
  // It is durable: the regions that nobody has written to meanwhile. They are unmarked from now on, and that may be
  // made durable at any time, before any later mark.
  std::vector<DiskRegion> Unmark(const std::vector<Candidate>& candidates);

  size_t marked() const { return regions_.size(); }

 private:
  // A marked region, or one whose marking is under way.
  struct State {
    bool durable = false;
    uint32_t in_flight = 0;
    uint64_t begun = 0;  // writes so far
    uint32_t flush = 0;  // the last that covers a write of it
    int64_t last_ms = 0;
  };
  std::map<DiskRegion, State> regions_;
};

}  // namespace hk
