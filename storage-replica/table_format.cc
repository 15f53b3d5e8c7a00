#include "storage-replica/table_format.h"

#include <xxhash.h>

#include "hyperkernel/base/mutant.h"

namespace hk {
namespace {

constexpr int kDiskShift = 40, kNodeShift = 48, kStateShift = 56;

uint64_t PlaceOf(const ReplicaEntry& entry) {
  return entry.ssa.block | uint64_t{entry.ssa.disk.value()} << kDiskShift | uint64_t{entry.node.value()} << kNodeShift |
         static_cast<uint64_t>(entry.state) << kStateShift;
}

template <size_t kWords>
uint64_t CheckOf(const std::array<uint64_t, kWords>& words) {
  return XXH3_64bits(words.data(), sizeof(words));
}

uint32_t SlotCheck(uint32_t number, uint64_t place, uint64_t generation, uint64_t checksum, uint32_t flush) {
  // The state may change without the rest; it is not covered.
  const uint64_t where = place & ~(uint64_t{0xff} << kStateShift);
  return static_cast<uint32_t>(CheckOf<4>({where, generation, checksum, uint64_t{number} << 32 | flush}));
}

// Every store between these two is a release, every load of a reader an acquire (on x86 both are plain moves): the odd
// number is seen, and is in the file, before any change; the even one after all.
void BeginChange(TableSlot& slot) {
  slot.sequence.store(slot.sequence.load(std::memory_order_relaxed) | 1, std::memory_order_relaxed);
}
void EndChange(TableSlot& slot) {
  slot.sequence.store(slot.sequence.load(std::memory_order_relaxed) + 1, std::memory_order_release);
}

}  // namespace

void StoreEntry(TableSlot& slot, uint32_t number, const ReplicaEntry& entry) {
  const uint64_t checksum = IsServed(entry.state) ? entry.checksum : entry.requests;
  const uint64_t place = PlaceOf(entry);
  BeginChange(slot);
  slot.place.store(place, std::memory_order_release);
  slot.generation.store(entry.generation, std::memory_order_release);
  slot.checksum.store(checksum, std::memory_order_release);
  slot.flush.store(entry.flush, std::memory_order_release);
  slot.check.store(SlotCheck(number, place, entry.generation, checksum, entry.flush), std::memory_order_release);
  EndChange(slot);
}

void StoreState(TableSlot& slot, EntryState state, uint64_t requests) {
  BeginChange(slot);
  slot.place.store(static_cast<uint64_t>(state) << kStateShift, std::memory_order_release);
  slot.checksum.store(requests, std::memory_order_release);
  EndChange(slot);
}

ReplicaEntry LoadEntry(const TableSlot& slot) {
  const uint64_t place = slot.place.load(std::memory_order_acquire);
  const uint64_t checksum = slot.checksum.load(std::memory_order_acquire);
  const auto state = static_cast<EntryState>(place >> kStateShift);
  if (state == EntryState::kNone) return {};
  if (state == EntryState::kBusy) return {.state = state, .requests = checksum};
  ReplicaEntry entry;
  entry.state = state;
  entry.node = NodeId(place >> kNodeShift & 0xff);
  entry.ssa = {.disk = DiskId(place >> kDiskShift & 0xff), .block = place & (kMaxBlocks - 1)};
  entry.generation = slot.generation.load(std::memory_order_acquire);
  if (IsServed(state)) {
    entry.checksum = checksum;
    entry.flush = slot.flush.load(std::memory_order_acquire);
  }
  return entry;
}

std::optional<ReplicaEntry> TryLoadEntry(const TableSlot& slot) {
  const uint32_t before = slot.sequence.load(std::memory_order_acquire);
  if (before % 2 != 0) return std::nullopt;
  const ReplicaEntry entry = LoadEntry(slot);
  if (slot.sequence.load(std::memory_order_relaxed) != before) return std::nullopt;
  return entry;
}

std::optional<ReplicaEntry> RecoverEntry(const TableSlot& slot, uint32_t number, uint64_t generation_limit) {
  const bool half_written = slot.sequence.load(std::memory_order_relaxed) % 2 != 0;
  if (half_written && !HK_MUTANT(replica_half_written_believed)) return std::nullopt;
  const uint64_t place = slot.place.load(std::memory_order_acquire);
  const uint64_t state = place >> kStateShift;
  if (state >= kEntryStates || (place >> kNodeShift & 0xff) >= kMaxNodes ||
      (place >> kDiskShift & 0xff) >= kMaxReplicaDisks) {
    return std::nullopt;
  }
  ReplicaEntry entry = LoadEntry(slot);
  if (HK_MUTANT(replica_pending_recovered) && entry.state == EntryState::kPending) entry.state = EntryState::kValid;
  if (!IsServed(entry.state)) return std::nullopt;
  if (entry.checksum == kNoChecksum && !HK_MUTANT(replica_pending_recovered)) return std::nullopt;
  if (entry.generation == 0 || entry.generation >= generation_limit) return std::nullopt;
  const uint32_t check =
      SlotCheck(number, place, entry.generation, slot.checksum.load(std::memory_order_acquire), entry.flush);
  if (check != slot.check.load(std::memory_order_acquire) && !half_written &&
      !HK_MUTANT(replica_damaged_entry_believed)) {
    return std::nullopt;
  }
  entry.state = EntryState::kUnchecked;
  return entry;
}

uint64_t GenerationWord(uint64_t limit) {
  return limit | (CheckOf<2>({kTableMagic, limit}) & (kGenerationStep - 1));
}
std::optional<uint64_t> GenerationLimit(uint64_t word) {
  const uint64_t limit = word & ~(kGenerationStep - 1);
  if (limit == 0 || limit > kMaxGeneration || GenerationWord(limit) != word) return std::nullopt;
  return limit;
}

uint64_t HeaderCheck(const TableHeader& header) {
  return XXH3_64bits(&header, offsetof(TableHeader, check));
}
uint64_t DiskCheck(uint64_t image, uint64_t bytes, uint32_t disk) {
  return CheckOf<4>({kTableMagic, image, bytes, disk});
}
uint64_t BankCheck(uint64_t file_generation, uint32_t bank) {
  return CheckOf<3>({kTableMagic, file_generation, bank});
}

}  // namespace hk
