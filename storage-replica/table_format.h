// The bytes of the table file (FORMAT.md): what is in it, and what of it may be believed.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "storage-replica/replica_entry.h"
#include "storage-replica/ssa.h"

namespace hk {

static_assert(std::endian::native == std::endian::little, "the file's numbers are the host's");

inline constexpr uint64_t kTableMagic = 0x4c504552'4b484b48;  // "HKHKREPL"
inline constexpr uint32_t kTableVersion = 1;
inline constexpr size_t kTableHeaderBytes = 4096;
// A bank holds the entries of one frame file: one bank is the guest's present one, the others are warm files.
inline constexpr uint32_t kTableBanks = 4;
// Entries are taken from the file system so many at a time: 2 MiB of guest memory, 5 pages of the file.
inline constexpr uint32_t kChunkSlots = 512;
// An entry's number is stored in 32 bits: guests of at most 4 TiB (all banks together stay below 2^32).
inline constexpr uint64_t kMaxTablePages = (uint64_t{1} << 30) - kChunkSlots;

// 128 bits that name a boot of the host or a frame store. Plain value.
struct ReplicaUuid {
  std::array<uint8_t, 16> bytes{};
  friend bool operator==(const ReplicaUuid&, const ReplicaUuid&) = default;
};

// Whose table it is; all of it must be the same when a file is opened. Plain value.
struct TableIdentity {
  GuestId guest{};
  NodeId node{};
  uint64_t pages = 0;  // of guest memory; 1 to kMaxTablePages
  ReplicaUuid boot{};
  ReplicaUuid frame_store{};
};

// What is known of a disk's image. In the file as it is.
struct DiskRecord {
  std::atomic<uint64_t> image;           // its identity; 0: no disk, and no entry of it counts
  std::atomic<uint64_t> bytes;           // its size
  std::atomic<uint64_t> last_change_ns;  // wall clock: our own last change, submission or completion
  std::atomic<uint64_t> check;           // of image and bytes
};
static_assert(sizeof(DiskRecord) == 32);

// A bank's record. In the file as it is.
struct BankRecord {
  std::atomic<uint64_t> file_generation;  // of the frame file; 0: unused
  std::atomic<uint64_t> check;
};
static_assert(sizeof(BankRecord) == 16);

// The file's first page, as it is.
struct TableHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t header_bytes;
  uint64_t guest;
  uint64_t pages;
  uint32_t node;
  uint32_t banks;
  ReplicaUuid boot;
  ReplicaUuid frame_store;
  uint64_t check;                          // of all above
  std::atomic<uint64_t> generation_limit;  // every generation given out is below (GenerationWord)
  std::atomic<uint32_t> current_bank;
  uint32_t reserved;
  std::array<BankRecord, kTableBanks> bank;
  uint8_t unused[352];
  std::array<DiskRecord, kMaxReplicaDisks> disk;
  uint8_t rest[1536];
};
static_assert(sizeof(TableHeader) == kTableHeaderBytes);
static_assert(offsetof(TableHeader, generation_limit) == 80 && offsetof(TableHeader, bank) == 96);
static_assert(offsetof(TableHeader, disk) == 512);

// One entry's place in the file, as it is. `sequence` is odd while the rest is being changed; `next` is the index of
// blocks of the running process, and means nothing to another.
struct TableSlot {
  std::atomic<uint32_t> sequence;
  std::atomic<uint32_t> next;
  std::atomic<uint64_t> place;  // block (40 bits), disk (8), node (8), state (8)
  std::atomic<uint64_t> generation;
  std::atomic<uint64_t> checksum;  // Pending, Busy: requests
  std::atomic<uint32_t> flush;
  std::atomic<uint32_t> check;  // of the words before it, without sequence and next, and of the slot's number
};
static_assert(sizeof(TableSlot) == 40 && std::atomic<uint64_t>::is_always_lock_free);
// Slots are numbered from 0: bank * slots of a bank + frame.

// Changes the slot; a process that dies within leaves an odd sequence. REQUIRES: the caller is the only one that does.
void StoreEntry(TableSlot& slot, uint32_t number, const ReplicaEntry& entry);
// The same for an entry that names no block: what stands there is dead with the first word.
void StoreState(TableSlot& slot, EntryState state, uint64_t requests);
// REQUIRES: nobody changes it meanwhile.
ReplicaEntry LoadEntry(const TableSlot& slot);
// The same without that: nothing if somebody does.
std::optional<ReplicaEntry> TryLoadEntry(const TableSlot& slot);
// As it was at some instant of the call: waits for who changes it, some stores long.
inline ReplicaEntry LoadEntryWhole(const TableSlot& slot) {
  for (;;) {
    if (const std::optional<ReplicaEntry> entry = TryLoadEntry(slot); entry.has_value()) return *entry;
  }
}
// Only the state; of an instant.
inline EntryState LoadState(const TableSlot& slot) {
  return static_cast<EntryState>(slot.place.load(std::memory_order_acquire) >> 56);
}

// What an earlier process has left, as far as it may be believed: an entry to be served once checked, or nothing. It is
// refused if half-written, damaged, without checksum, or of a request that cannot have been.
std::optional<ReplicaEntry> RecoverEntry(const TableSlot& slot, uint32_t number, uint64_t generation_limit);

// Generations are taken so many at a time: their limit is a multiple, and its low bits in the file are its check.
inline constexpr uint64_t kGenerationStep = uint64_t{1} << 20;
// No request has it or a greater one: what says so is damaged.
inline constexpr uint64_t kMaxGeneration = uint64_t{1} << 63;
uint64_t GenerationWord(uint64_t limit);
// The limit of a word; nothing if it is damaged.
std::optional<uint64_t> GenerationLimit(uint64_t word);

uint64_t HeaderCheck(const TableHeader& header);
uint64_t DiskCheck(uint64_t image, uint64_t bytes, uint32_t disk);
uint64_t BankCheck(uint64_t file_generation, uint32_t bank);

}  // namespace hk
