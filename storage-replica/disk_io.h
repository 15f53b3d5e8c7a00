// A disk request as the replica sees it, and its cut into pieces of one page and one block. Plain values, no state.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "hyperkernel/base/types.h"
#include "storage-replica/ssa.h"

namespace hk {

// Read: the device writes guest memory. Write: the guest's pages go to the disk. Erase: discard and write-zeroes.
enum class DiskIoKind : uint8_t { kRead, kWrite, kErase };

// Guest memory of a request, in the disk's order. Plain value.
struct IoSegment {
  Gpa gpa{};
  uint64_t bytes = 0;
};

// One request. Plain value; `segments` belong to the caller. Any numbers are permitted: the guest chose them.
struct DiskIo {
  DiskIoKind kind = DiskIoKind::kRead;
  DiskId disk{};
  uint64_t offset = 0;                       // bytes, on the disk
  uint64_t bytes = 0;                        // Erase; of others: the sum over the segments
  std::span<const IoSegment> segments = {};  // Read, Write
};

// What lies in one page and one block. Plain value. `whole`: all of both.
struct IoPiece {
  uint64_t block = 0;
  Gfn gfn{};
  bool whole = false;
};

// Blocks that a request touches, be it in part. Plain value.
struct BlockRange {
  uint64_t first = 0;
  uint64_t count = 0;
};

// Bytes that the request moves or erases; at most what fits behind its offset.
inline uint64_t BytesOf(const DiskIo& io) {
  uint64_t bytes = io.bytes;
  if (io.kind != DiskIoKind::kErase) {
    bytes = 0;
    for (const IoSegment& segment : io.segments) bytes += std::min(segment.bytes, ~bytes);
  }
  return std::min(bytes, ~io.offset);
}

// Cut at kMaxBlocks: no entry names a block beyond.
inline BlockRange BlocksOf(const DiskIo& io) {
  const uint64_t bytes = BytesOf(io);
  const uint64_t first = io.offset >> kBlockShift;
  if (bytes == 0 || first >= kMaxBlocks) return {};
  const uint64_t last = std::min((io.offset + (bytes - 1)) >> kBlockShift, kMaxBlocks - 1);
  return {.first = first, .count = last - first + 1};
}

// Calls each(IoPiece) for all pieces of a Read or Write, in the disk's order.
template <typename Each>
void ForEachPiece(const DiskIo& io, const Each& each) {
  uint64_t left = BytesOf(io);
  uint64_t at = io.offset;
  for (const IoSegment& segment : io.segments) {
    uint64_t gpa = segment.gpa.value();
    uint64_t in_segment = std::min({segment.bytes, left, ~gpa});
    while (in_segment > 0) {
      const uint64_t to_page = kPageSize - (gpa & (kPageSize - 1));
      const uint64_t to_block = kBlockSize - (at & (kBlockSize - 1));
      const uint64_t bytes = std::min({to_page, to_block, in_segment});
      const uint64_t block = at >> kBlockShift;
      each(IoPiece{.block = block, .gfn = GfnOf(Gpa(gpa)), .whole = bytes == kPageSize && block < kMaxBlocks});
      gpa += bytes;
      at += bytes;
      in_segment -= bytes;
      left -= bytes;
    }
  }
}

}  // namespace hk
