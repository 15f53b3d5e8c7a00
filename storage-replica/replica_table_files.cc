// What an earlier process has left, frame files that become warm, and walks over the whole table.
#include <algorithm>
#include <array>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "storage-replica/replica_table.h"

namespace hk {
namespace {

// Slots ahead whose place in the index is fetched: recovery otherwise waits for memory at each entry.
constexpr uint32_t kPrefetchSlots = 16;

}  // namespace

void ReplicaTable::Recover() {
  std::array<uint32_t, kMaxReplicaDisks> last_flush{};
  for (uint64_t chunk = 0; chunk < file_->chunk_count(); ++chunk) {
    if (file_->HasMemory(chunk)) RecoverChunk(chunk, last_flush);
  }
  for (uint32_t disk = 0; disk < kMaxReplicaDisks; ++disk) {
    MutexLock lock(&disks_[disk].mutex);
    disks_[disk].flush = FlushClock(last_flush[disk]);
  }
}

void ReplicaTable::RecoverChunk(uint64_t chunk, std::span<uint32_t> last_flush) {
  const auto first = static_cast<uint32_t>(chunk * kChunkSlots);
  const bool counts = FrameOf(first).file_generation != 0;
  const uint64_t limit = generation_limit_.load(std::memory_order_relaxed);
  for (uint32_t slot = first; slot < first + kChunkSlots; ++slot) {
    if (slot + kPrefetchSlots < first + kChunkSlots) {
      const uint64_t ahead = file_->SlotAt(slot + kPrefetchSlots)->place.load(std::memory_order_relaxed);
      const Ssa ssa{.disk = DiskId(static_cast<uint8_t>(ahead >> 40)), .block = ahead & (kMaxBlocks - 1)};
      __builtin_prefetch(&HeadOf(BucketOf(ssa)), 1);
    }
    TableSlot* const at = file_->SlotAt(slot);
    // Never used. The sequence alone does not say so: it begins anew after 2^32.
    if (at->sequence.load(std::memory_order_relaxed) == 0 && at->place.load(std::memory_order_relaxed) == 0) continue;
    const std::optional<ReplicaEntry> entry = counts ? RecoverEntry(*at, slot, limit) : std::nullopt;
    if (!entry.has_value() || slot % file_->bank_slots() >= file_->pages()) {
      if (LoadState(*at) != EntryState::kNone) ++dropped_;
      StoreState(*at, EntryState::kNone, 0);
      continue;
    }
    uint32_t& flush = last_flush[entry->ssa.disk.value()];
    flush = std::max(flush, entry->flush);
    Insert(at, slot, *entry);
    ++recovered_;
  }
}

absl::StatusOr<uint64_t> ReplicaTable::Reset(uint64_t new_file_generation) {
  HK_CHECK(new_file_generation != 0 && new_file_generation != file_generation());
  for (uint32_t disk = 0; disk < kMaxReplicaDisks; ++disk) {
    MutexLock lock(&disks_[disk].mutex);
    HK_CHECK(disks_[disk].window.in_flight() == 0);
  }
  if (HK_MUTANT(replica_reset_keeps_pages)) {
    file_->NameBank(file_->current_bank(), new_file_generation);
    return uint64_t{0};
  }
  // Generations grow: the smallest is the oldest, 0 is unused. A process that died in here has left a bank of this
  // name: that one.
  uint32_t victim = file_->current_bank();
  uint64_t least = ~uint64_t{0};
  for (uint32_t bank = 0; bank < kTableBanks; ++bank) {
    uint64_t generation = file_->header().bank[bank].file_generation;
    if (generation == new_file_generation) generation = 0;
    if (bank != file_->current_bank() && generation < least) {
      victim = bank;
      least = generation;
    }
  }
  RemoveFrames(FrameOf(static_cast<uint32_t>(victim * file_->bank_slots())), file_->pages());
  file_->NameBank(victim, 0);
  HK_RETURN_IF_ERROR(file_->ClearBank(victim));
  file_->NameBank(victim, new_file_generation);
  file_->MakeCurrent(victim);
  if (journal_ != nullptr && least != 0) journal_->FilesChanged();
  return least;
}

void ReplicaTable::RenamePresent(uint64_t new_file_generation) {
  const uint32_t present = file_->current_bank();
  HK_CHECK(new_file_generation != 0 && !SlotOf({.file_generation = new_file_generation, .frame = 0}).has_value());
  RemoveFrames(FrameOf(static_cast<uint32_t>(present * file_->bank_slots())), file_->pages());
  file_->NameBank(present, new_file_generation);
}

absl::Status ReplicaTable::AddWarm(uint64_t file_generation) {
  HK_CHECK(file_generation != 0 && !SlotOf({.file_generation = file_generation}).has_value());
  for (uint32_t bank = 0; bank < kTableBanks; ++bank) {
    if (file_->header().bank[bank].file_generation != 0) continue;
    file_->NameBank(bank, file_generation);
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError("replica table: no more warm files");
}

void ReplicaTable::Restore(const FrameRef& frame, const ReplicaEntry& entry) {
  const std::optional<uint32_t> slot = SlotOf(frame);
  const bool counts = slot.has_value() && entry.checksum != kNoChecksum && entry.node.value() < kMaxNodes &&
                      entry.ssa.disk.value() < kMaxReplicaDisks && entry.ssa.block < kMaxBlocks;
  if (!counts) return;
  const ReplicaEntry before = Apply(*slot,
                                    {.type = EntryEventType::kRestored,
                                     .node = entry.node,
                                     .ssa = entry.ssa,
                                     .generation = entry.generation,
                                     .checksum = entry.checksum,
                                     .flush = 0},
                                    true);
  if (before.state == EntryState::kNone) ++recovered_;
}

void ReplicaTable::RemoveFrames(const FrameRef& first, uint64_t count) {
  const std::optional<uint32_t> begin = SlotOf(first);
  if (!begin.has_value()) return;
  const uint32_t end = *begin + static_cast<uint32_t>(std::min(count, file_->pages() - first.frame));
  for (uint32_t slot = *begin; slot < end; ++slot) {
    slot = SkipEmpty(slot);
    if (slot < end) Apply(slot, {.type = EntryEventType::kWritten}, false);
  }
}

void ReplicaTable::ForEachServed(uint64_t file_generation, const std::function<void(uint64_t frame)>& each) const {
  const std::optional<uint32_t> begin = SlotOf({.file_generation = file_generation, .frame = 0});
  if (!begin.has_value()) return;
  const uint32_t end = *begin + static_cast<uint32_t>(file_->pages());
  for (uint32_t slot = *begin; slot < end; ++slot) {
    slot = SkipEmpty(slot);
    if (slot < end && IsServed(LoadState(*file_->SlotAt(slot)))) each(slot - *begin);
  }
}

uint32_t ReplicaTable::SkipEmpty(uint32_t slot) const {
  while (slot < slot_count() && !file_->HasMemory(slot / kChunkSlots)) slot = (slot / kChunkSlots + 1) * kChunkSlots;
  return slot;
}

std::optional<ReplicaTable::Served> ReplicaTable::ServedAt(uint32_t slot) const {
  const TableSlot* const at = file_->Find(slot);
  if (at == nullptr || !IsServed(LoadState(*at))) return std::nullopt;
  const ReplicaEntry entry = LoadEntryWhole(*at);
  if (!IsServed(entry.state)) return std::nullopt;
  return Served{.frame = FrameOf(slot), .entry = entry};
}

}  // namespace hk
