// Disks, their requests, and reads from frames.
#include <algorithm>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "storage-replica/replica_table.h"

namespace hk {
namespace {

// From a write's submission, whose time we store, to the time that the kernel gives the file: io_uring submits at once,
// and the kernel's clock for files is coarser than ours.
constexpr uint64_t kSubmitToChangeNs = 20'000'000;

void RaiseTo(std::atomic<uint64_t>& word, uint64_t value) {
  if (word.load(std::memory_order_relaxed) < value) word.store(value, std::memory_order_release);
}

}  // namespace

bool IsUnchanged(const DiskImageIdentity& now, const DiskImageIdentity& then) {
  if (HK_MUTANT(replica_changed_image_believed)) return true;
  return now.image == then.image && now.bytes == then.bytes &&
         now.changed_ns <= then.changed_ns + std::min(kSubmitToChangeNs, ~then.changed_ns);
}

bool ReplicaTable::AttachDisk(DiskId disk, const DiskImageIdentity& identity, bool read_only) {
  HK_CHECK(disk.value() < kMaxReplicaDisks && identity.image != 0);
  DiskRecord& record = file_->header().disk[disk.value()];
  const bool counts =
      IsUnchanged(identity, {.image = record.image, .bytes = record.bytes, .changed_ns = record.last_change_ns}) &&
      record.check == DiskCheck(record.image, record.bytes, disk.value());
  if (!counts) {
    DropDisk(disk);
    record.image.store(0, std::memory_order_release);
    record.bytes.store(identity.bytes, std::memory_order_release);
    record.last_change_ns.store(identity.changed_ns, std::memory_order_release);
    record.check.store(DiskCheck(identity.image, identity.bytes, disk.value()), std::memory_order_release);
    record.image.store(identity.image, std::memory_order_release);
  }
  Disk& attached = disks_[disk.value()];
  MutexLock lock(&attached.mutex);
  HK_CHECK(attached.window.in_flight() == 0);
  attached.attached = true;
  attached.read_only = read_only;
  return counts;
}

void ReplicaTable::DropDisk(DiskId disk) {
  OverwriteTracked(disk, {.first = 0, .count = kMaxBlocks});
}

IoTicket ReplicaTable::Begin(const DiskIo& io, uint64_t now_ns) {
  HK_CHECK(io.disk.value() < kMaxReplicaDisks);
  Disk& disk = disks_[io.disk.value()];
  const BlockRange blocks = BlocksOf(io);
  IoTicket ticket{.generation = NextGeneration()};
  bool attached = false;
  {
    MutexLock lock(&disk.mutex);
    ticket.place = disk.window.Begin(io.kind, blocks);
    attached = disk.attached;
    if (io.kind != DiskIoKind::kRead) RaiseTo(file_->header().disk[io.disk.value()].last_change_ns, now_ns);
  }
  if (io.kind != DiskIoKind::kRead) OverwriteBlocks(io.disk, blocks);
  ForEachPiece(io, [&](const IoPiece& piece) {
    if (piece.gfn.value() >= file_->pages() || (io.kind != DiskIoKind::kRead && !piece.whole)) return;
    const bool whole = piece.whole && attached;
    Apply(file_->SlotOf(file_->current_bank(), piece.gfn.value()),
          {.type = whole ? EntryEventType::kWholeBegins : EntryEventType::kPartBegins,
           .node = self_,
           .ssa = {.disk = io.disk, .block = piece.block},
           .generation = ticket.generation},
          true);
  });
  return ticket;
}

uint32_t ReplicaTable::End(const IoTicket& ticket, const DiskIo& io, bool ok, std::span<const uint64_t> checksums,
                           uint64_t now_ns) {
  Disk& disk = disks_[io.disk.value()];
  EntryEvent event{.type = EntryEventType::kEnds, .generation = ticket.generation};
  {
    MutexLock lock(&disk.mutex);
    const bool clean = disk.window.End(ticket.place);
    event.good = clean && (ok || HK_MUTANT(replica_failed_request_believed));
    event.flush = disk.read_only ? 0 : disk.flush.current();
    if (io.kind != DiskIoKind::kRead) RaiseTo(file_->header().disk[io.disk.value()].last_change_ns, now_ns);
  }
  size_t wholes = 0;
  ForEachPiece(io, [&](const IoPiece& piece) {
    event.checksum = piece.whole && wholes < checksums.size() ? checksums[wholes] : kNoChecksum;
    if (piece.whole) ++wholes;
    if (piece.gfn.value() >= file_->pages() || (io.kind != DiskIoKind::kRead && !piece.whole)) return;
    event.ssa = {.disk = io.disk, .block = piece.block};
    Apply(file_->SlotOf(file_->current_bank(), piece.gfn.value()), event, false);
  });
  return event.flush;
}

uint32_t ReplicaTable::FlushBegins(DiskId disk) {
  HK_CHECK(disk.value() < kMaxReplicaDisks);
  MutexLock lock(&disks_[disk.value()].mutex);
  return disks_[disk.value()].flush.Begin();
}

void ReplicaTable::FlushEnds(DiskId disk, uint32_t flush, bool ok) {
  HK_CHECK(disk.value() < kMaxReplicaDisks);
  if (!ok) DropDisk(disk);
  MutexLock lock(&disks_[disk.value()].mutex);
  disks_[disk.value()].flush.End(flush);
}

uint32_t ReplicaTable::DurableFlush(DiskId disk) {
  HK_CHECK(disk.value() < kMaxReplicaDisks);
  MutexLock lock(&disks_[disk.value()].mutex);
  return disks_[disk.value()].flush.durable();
}

uint64_t ReplicaTable::LastChangeNs(DiskId disk) const {
  HK_CHECK(disk.value() < kMaxReplicaDisks);
  return file_->header().disk[disk.value()].last_change_ns.load(std::memory_order_acquire);
}

void ReplicaTable::OverwriteTracked(DiskId disk, BlockRange blocks) {
  // What becomes Pending behind the walk is of a request that the overlap rule knows.
  for (uint32_t slot = 0; slot < slot_count(); ++slot) {
    slot = SkipEmpty(slot);
    if (slot >= slot_count()) return;
    const ReplicaEntry entry = LoadEntryWhole(*file_->SlotAt(slot));
    const bool within = NamesBlock(entry.state) && entry.ssa.disk == disk && entry.ssa.block >= blocks.first &&
                        entry.ssa.block - blocks.first < blocks.count;
    if (within) OverwriteBlocks(disk, {.first = entry.ssa.block, .count = 1});
  }
}

void ReplicaTable::OverwriteBlocks(DiskId disk, BlockRange blocks) {
  // The guest chooses how much it erases at once: what is tracked is the bound of the work.
  if (blocks.count > slot_count()) return OverwriteTracked(disk, blocks);
  for (uint64_t i = 0; i < blocks.count;) {
    Stripe& stripe = StripeOf(BucketOf({disk, blocks.first + i}));
    MutexLock lock(&stripe.mutex);
    // Those that follow mostly have the same lock.
    for (; i < blocks.count; ++i) {
      const Ssa ssa{disk, blocks.first + i};
      const uint32_t bucket = BucketOf(ssa);
      if (&StripeOf(bucket) != &stripe) break;
      for (uint32_t link = HeadOf(bucket); link != 0;) {
        const uint32_t slot = link - 1;
        TableSlot* const at = file_->SlotAt(slot);
        link = at->next.load(std::memory_order_relaxed);
        const ReplicaEntry entry = LoadEntry(*at);
        if (entry.ssa != ssa) continue;
        const EntryResult result = Step(entry, {.type = EntryEventType::kOverwritten});
        if (result.verdict == EntryVerdict::kDone) Change(stripe, bucket, at, slot, entry, result.entry);
      }
    }
  }
}

std::optional<ReplicaTable::Served> ReplicaTable::Find(uint32_t bucket, Ssa ssa) const {
  std::optional<Served> best;
  for (uint32_t link = HeadOf(bucket); link != 0;) {
    const uint32_t slot = link - 1;
    const TableSlot* const at = file_->SlotAt(slot);
    link = at->next.load(std::memory_order_relaxed);
    const ReplicaEntry entry = LoadEntry(*at);
    if (entry.ssa != ssa) continue;
    if (!IsServed(entry.state) && !(HK_MUTANT(replica_pending_served) && entry.state == EntryState::kPending)) continue;
    // A frame of this node costs a copy; one of another a message.
    if (best.has_value() && (best->entry.node == self_ || entry.node != self_)) continue;
    best = Served{.frame = FrameOf(slot), .entry = entry};
  }
  return best;
}

void ReplicaTable::Lookup(DiskId disk, BlockRange blocks, std::vector<ReplicaRun>* runs) {
  runs->clear();
  bool attached = false;
  if (disk.value() < kMaxReplicaDisks) {
    MutexLock lock(&disks_[disk.value()].mutex);
    attached = disks_[disk.value()].attached;
  }
  uint64_t found = 0;
  for (uint64_t i = 0; i < blocks.count; ++i) {
    const Ssa ssa{disk, blocks.first + i};
    std::optional<Served> served;
    if (attached && ssa.block < kMaxBlocks) {
      const uint32_t bucket = BucketOf(ssa);
      MutexLock lock(&StripeOf(bucket).mutex);
      served = Find(bucket, ssa);
    }
    ReplicaRun run;
    run.hit = served.has_value();
    run.first = ssa;
    run.blocks = 1;
    if (served.has_value()) {
      ++found;
      run.node = served->entry.node;
      run.frame = served->frame;
      run.generation = served->entry.generation;
      run.check = served->entry.state == EntryState::kUnchecked;
    }
    if (!runs->empty()) {
      ReplicaRun& last = runs->back();
      const FrameRef next{.file_generation = last.frame.file_generation, .frame = last.frame.frame + last.blocks};
      if (last.hit == run.hit && (!run.hit || (last.node == run.node && next == run.frame &&
                                               last.generation == run.generation && last.check == run.check))) {
        ++last.blocks;
        continue;
      }
    }
    runs->push_back(run);
  }
  found_.fetch_add(found, std::memory_order_relaxed);
  not_found_.fetch_add(blocks.count - found, std::memory_order_relaxed);
}

bool ReplicaTable::Confirm(const ReplicaRun& run, std::span<const uint64_t> checksums) {
  // The bytes were copied before the entries are looked at again.
  std::atomic_signal_fence(std::memory_order_seq_cst);
  bool all = true;
  for (uint64_t i = 0; i < run.blocks; ++i) {
    const std::optional<uint32_t> slot =
        SlotOf({.file_generation = run.frame.file_generation, .frame = run.frame.frame + i});
    const TableSlot* const at = slot.has_value() ? file_->Find(*slot) : nullptr;
    const ReplicaEntry entry = at == nullptr ? ReplicaEntry() : LoadEntryWhole(*at);
    const bool same = IsServed(entry.state) && entry.node == run.node &&
                      entry.ssa == Ssa{run.first.disk, run.first.block + i} &&
                      (entry.generation == run.generation || HK_MUTANT(replica_any_generation_confirmed));
    if (!same && !HK_MUTANT(replica_copy_not_confirmed)) {
      all = false;
      continue;
    }
    if (!same || entry.state != EntryState::kUnchecked) continue;
    const bool right = i < checksums.size() && checksums[i] == entry.checksum;
    if (right || HK_MUTANT(replica_checksum_ignored)) {
      Apply(*slot, {.type = EntryEventType::kChecked, .generation = entry.generation}, false);
    } else {
      all = false;
      if (i >= checksums.size()) continue;
      mismatched_.fetch_add(1, std::memory_order_relaxed);
      Apply(*slot, {.type = EntryEventType::kWritten}, false);
    }
  }
  return all;
}

}  // namespace hk
