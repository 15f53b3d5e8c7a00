// Stable-storage addresses: which block of which disk. Plain values.
#pragma once

#include <cstdint>

#include "hyperkernel/base/types.h"

namespace hk {

// A disk of a guest, by its order in the guest's specification.
using DiskId = StrongNumber<struct DiskIdTag, uint8_t>;
// Disks of one guest that the replica tracks: their records fill the table file's first page. Those beyond are not
// tracked.
inline constexpr uint8_t kMaxReplicaDisks = 64;
// A disk is counted in blocks of a guest page, from its first byte.
inline constexpr uint64_t kBlockShift = kPageShift;
inline constexpr uint64_t kBlockSize = kPageSize;
// Block numbers are stored in 40 bits: 4 PiB.
inline constexpr uint64_t kMaxBlocks = uint64_t{1} << 40;

// One block. REQUIRES: disk below kMaxReplicaDisks, block below kMaxBlocks.
struct Ssa {
  DiskId disk;
  uint64_t block = 0;
  friend auto operator<=>(const Ssa&, const Ssa&) = default;
};

}  // namespace hk
