#include "hyperkernel/node/disk_replica.h"

#include <algorithm>

#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

// Blocks found between two gaps, if they are fewer, are read with the gaps: one I/O instead of two.
constexpr uint64_t kLeastHitBlocks = 8;

DiskIoKind KindOf(BlockIoKind kind) {
  return kind == BlockIoKind::kRead    ? DiskIoKind::kRead
         : kind == BlockIoKind::kWrite ? DiskIoKind::kWrite
                                       : DiskIoKind::kErase;
}

// The bytes of the run that the request wants.
BlockExtent Wanted(const BlockExtent& io, const ReplicaRun& run) {
  const uint64_t begin = std::max(io.offset, run.first.block << kBlockShift);
  const uint64_t end = std::min(io.offset + io.bytes, (run.first.block + run.blocks) << kBlockShift);
  return {.offset = begin, .bytes = end - begin};
}

// Takes what is too short to be worth it, between two gaps, for gaps.
void MergeGaps(std::vector<ReplicaRun>* runs) {
  for (size_t i = 1; i < runs->size();) {
    size_t end = i;
    uint64_t blocks = 0;
    while (end < runs->size() && (*runs)[end].hit) blocks += (*runs)[end++].blocks;
    const bool between = end > i && end < runs->size() && !(*runs)[i - 1].hit;
    if (between && blocks < kLeastHitBlocks) {
      for (size_t at = i; at < end; ++at) (*runs)[at].hit = false;
    }
    i = end + 1;
  }
}

bool IsWhole(const BlockIo& io) {
  return io.extent.offset % kBlockSize == 0 && std::all_of(io.segments.begin(), io.segments.end(), [](const auto& s) {
           return s.gpa.value() % kPageSize == 0 && s.bytes.size() % kPageSize == 0;
         });
}

}  // namespace

DiskIo DiskReplica::Translate(const BlockIo& io) {
  segments_.clear();
  for (const BlockSegment& segment : io.segments) segments_.push_back({segment.gpa, segment.bytes.size()});
  return {.kind = KindOf(io.kind),
          .disk = disk_,
          .offset = io.extent.offset,
          .bytes = io.extent.bytes,
          .segments = segments_};
}

bool DiskReplica::MayChange(const BlockIo& io, std::function<void(const absl::Status&)> ready) {
  DurableReplica* const durable = guest_->durable_.get();
  return durable == nullptr || HK_MUTANT(replica_write_before_mark) || durable->BeginWrite(Translate(io), ready);
}

void DiskReplica::Begin(BlockIo* io, const DmaChain& chain) {
  guest_->open_requests_.fetch_add(1);
  const DiskIo request = Translate(*io);
  const IoTicket ticket = guest_->table_->Begin(request, guest_->WallNs());
  io->generation = ticket.generation;
  io->place = ticket.place;
  if (io->kind == BlockIoKind::kErase) return;
  // Who has a page pinned for writing since before Begin was told of then, and not again.
  chain.ForEachWrittenByOthers([this](Gfn page) { guest_->table_->Remove(page); });
  Protect(request);
}

void DiskReplica::Protect(const DiskIo& io) {
  Gfn first{};
  uint64_t pages = 0;
  ForEachPiece(io, [&](const IoPiece& piece) {
    if (!piece.whole || !guest_->table_->IsTracked(piece.gfn)) return;
    if (pages > 0 && piece.gfn.value() == first.value() + pages) {
      ++pages;
      return;
    }
    ProtectRun(first, pages);
    first = piece.gfn;
    pages = 1;
  });
  ProtectRun(first, pages);
}

void DiskReplica::ProtectRun(Gfn first, uint64_t pages) {
  if (pages == 0) return;
  const absl::Status status = memory_->ProtectForReplica(first, pages);
  if (status.ok()) return;
  for (uint64_t i = 0; i < pages; ++i) guest_->table_->Remove(Gfn(first.value() + i));
  log::Warning("replica", "pages cannot be write-protected, and are not tracked", {{"error", MessageOf(status)}});
}

bool DiskReplica::Copy(const BlockIo& io, const ReplicaRun& run) {
  uint64_t from = 0, last = 0;
  const std::shared_ptr<FrameFile> file = guest_->FileOf(run.frame, &from);
  const FrameRef end{.file_generation = run.frame.file_generation, .frame = run.frame.frame + run.blocks - 1};
  // A run may go over a hole between two pieces of RAM; nothing has frames there, so this is rare.
  if (file == nullptr || guest_->FileOf(end, &last) != file || last != from + (run.blocks - 1) * kPageSize)
    return false;
  if (run.check && !Check(run, *file, from)) return false;
  const BlockExtent wanted = Wanted(io.extent, run);
  from += wanted.offset - (run.first.block << kBlockShift);
  uint64_t skip = wanted.offset - io.extent.offset, left = wanted.bytes;
  for (const BlockSegment& segment : io.segments) {
    const uint64_t skipped = std::min<uint64_t>(skip, segment.bytes.size());
    skip -= skipped;
    const uint64_t take = std::min<uint64_t>(left, segment.bytes.size() - skipped);
    if (take == 0) continue;
    if (!file->Read(from, segment.bytes.subspan(skipped, take)).ok()) return false;
    from += take;
    left -= take;
  }
  OnCopied();
  if (!guest_->table_->Confirm(run, {}) && !HK_MUTANT(replica_hit_not_confirmed)) return false;
  // The guest's page is to be the block's from now on: a second copy is not worth its memory.
  if (IsWhole(io) && run.frame.file_generation != guest_->table_->file_generation()) {
    guest_->warm_->MoveOut(run.frame, run.blocks);
  }
  return true;
}

bool DiskReplica::Check(const ReplicaRun& run, const FrameFile& file, uint64_t from) {
  page_.resize(kPageSize);
  checksums_.clear();
  for (uint64_t i = 0; i < run.blocks; ++i) {
    // Into memory that no guest has: what is looked at is what is in the frame.
    if (!file.Read(from + i * kPageSize, page_).ok()) return false;
    checksums_.push_back(ChecksumOf(page_));
  }
  if (guest_->table_->Confirm(run, checksums_)) return true;
  guest_->NoteMismatch();
  return false;
}

std::span<const uint64_t> DiskReplica::Checksums(const BlockIo& io, const DiskIo& request) {
  checksums_.clear();
  size_t segment = 0;
  uint64_t begin = 0;  // of the segment, in the request
  ForEachPiece(request, [&](const IoPiece& piece) {
    if (!piece.whole) return;
    const uint64_t at = (piece.block << kBlockShift) - io.extent.offset;
    while (at - begin >= io.segments[segment].bytes.size()) begin += io.segments[segment++].bytes.size();
    // Another store or request has it already, or it is not tracked.
    const bool may = guest_->table_->IsTracked(piece.gfn) && !HK_MUTANT(replica_checksums_not_taken);
    checksums_.push_back(may ? ChecksumOf(io.segments[segment].bytes.subspan(at - begin, kPageSize)) : kNoChecksum);
  });
  return checksums_;
}

void DiskReplica::Serve(BlockIo* io, std::vector<BlockExtent>* gaps) {
  gaps->clear();
  guest_->table_->Lookup(disk_, BlocksOf(Translate(*io)), &runs_);
  MergeGaps(&runs_);
  uint64_t hits = 0, misses = 0;
  uint64_t next = io->extent.offset;  // up to here it is decided
  const auto add_gap = [gaps](const BlockExtent& gap) {
    if (gap.bytes == 0) return;
    if (!gaps->empty() && gaps->back().offset + gaps->back().bytes == gap.offset) {
      gaps->back().bytes += gap.bytes;
    } else {
      gaps->push_back(gap);
    }
  };
  for (const ReplicaRun& run : runs_) {
    const BlockExtent wanted = Wanted(io->extent, run);
    next = wanted.offset + wanted.bytes;
    if (run.hit && Copy(*io, run)) {
      hits += run.blocks;
      guest_->saved_bytes_.fetch_add(wanted.bytes, std::memory_order_relaxed);
    } else {
      misses += run.blocks;
      add_gap(wanted);
    }
  }
  // Beyond what has block numbers.
  add_gap({.offset = next, .bytes = io->extent.offset + io->extent.bytes - next});
  guest_->hits_.fetch_add(hits, std::memory_order_relaxed);
  guest_->misses_.fetch_add(misses, std::memory_order_relaxed);
}

void DiskReplica::End(BlockIo* io, bool ok) {
  const DiskIo request = Translate(*io);
  const bool sums = ok && io->kind != BlockIoKind::kErase;
  const uint32_t flush =
      guest_->table_->End({.generation = io->generation, .place = io->place}, request, ok,
                          sums ? Checksums(*io, request) : std::span<const uint64_t>(), guest_->WallNs());
  if (io->kind != BlockIoKind::kRead && guest_->durable_ != nullptr && !HK_MUTANT(replica_write_before_mark)) {
    guest_->durable_->EndWrite(request, flush);
  }
  guest_->open_requests_.fetch_sub(1);
}

}  // namespace hk
