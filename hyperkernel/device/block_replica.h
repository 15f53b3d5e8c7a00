// What keeps account of which pages of guest memory hold which blocks of a disk, as the disk sees it: told of each
// request, it may answer reads. What the account is made of is not the disk's to know.
//
// A request goes: of a write or erase MayChange, until it may; Begin; for a read perhaps Serve; the I/O of what is
// left; End. Stores to a request's pages are told to the account from Begin on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/device/dma_space.h"

namespace hk {

// What a request does to the disk. Erase: what was there is gone, by discard or write-zeroes.
enum class BlockIoKind : uint8_t { kRead, kWrite, kErase };

// A piece of guest memory of a request. Plain value; in this process as long as the request's chain is open.
struct BlockSegment {
  Gpa gpa;
  std::span<std::byte> bytes;
};

// A part of a disk, in bytes. Plain value.
struct BlockExtent {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

// A request. Reusable: `segments` keeps its memory.
struct BlockIo {
  BlockIoKind kind = BlockIoKind::kRead;
  BlockExtent extent;
  std::vector<BlockSegment> segments;  // of reads and writes, in the disk's order; as many bytes as the extent
  // The account's own, from Begin to End.
  uint64_t generation = 0;
  uint32_t place = 0;
};

// The account of one disk. Belongs to the disk's worker.
class BlockReplica {
 public:
  virtual ~BlockReplica() = default;
  // Of a write or erase: whether it may begin, and then it does. False: first it is written down that it may; then
  // `ready` is called, once, by another thread, perhaps before this returns, perhaps after this object is gone, and
  // this is to be asked again. With an error: it must not begin.
  virtual bool MayChange(const BlockIo& io, std::function<void(const absl::Status&)> ready) = 0;
  // The request is about to be submitted. `chain`: has its memory pinned.
  virtual void Begin(BlockIo* io, const DmaChain& chain) = 0;
  // Of a read: copies into its segments what need not be read from the disk, and says what must, in order, in `gaps`.
  // Bytes in a gap may be anything. REQUIRES: between Begin and End.
  virtual void Serve(BlockIo* io, std::vector<BlockExtent>* gaps) = 0;
  // All of the request has ended; `ok`: with all of its bytes. Once for each Begin, before the guest is told.
  virtual void End(BlockIo* io, bool ok) = 0;
  // A flush is about to be submitted; its number, for FlushEnds.
  virtual uint32_t FlushBegins() = 0;
  virtual void FlushEnds(uint32_t flush, bool ok) = 0;
};

}  // namespace hk
