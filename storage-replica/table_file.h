// The shared file that holds the replica table: mapped, checked, and given memory as entries come (README.md, "The
// memory form"; the bytes are in FORMAT.md).
//
// Invariants:
//  1. No place of the mapping is touched that the file system has not given memory to: on a full tmpfs a touch would be
//     SIGBUS.
//  2. One process at a time uses the file: it is locked, and the lock ends with the process.
//  3. Nothing that was read from the file is an address, a size or an index here before it is checked.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/mapping.h"
#include "hyperkernel/base/mutex.h"
#include "storage-replica/table_format.h"

namespace hk {

// Who counts the memory of a table's file where that is shared with others. Thread-safe.
class TableRoom {
 public:
  virtual ~TableRoom() = default;
  // So many bytes more are to be taken. False: there is no room for them.
  virtual bool Take(uint64_t bytes) = 0;
  // They are not in use any more.
  virtual void Give(uint64_t bytes) = 0;
};

// An open table file. Thread-safe for different slots; of one slot's bytes the table takes care.
class TableFile {
 public:
  // Takes a file, whatever was in it, makes it an empty table whose present bank is `file_generation` (not 0), and
  // whose requests count from `first_generation` (a multiple of kGenerationStep, not 0, below kMaxGeneration). Errors:
  // kInvalidArgument for the identity; kFailedPrecondition: another process uses it; errno of the failing call.
  static absl::StatusOr<std::unique_ptr<TableFile>> Create(OwnedFd file, const TableIdentity& identity,
                                                           uint64_t file_generation, uint64_t first_generation,
                                                           std::shared_ptr<TableRoom> room = nullptr);
  // Takes a file that Create made, maybe in another process. Errors, one line each: kFailedPrecondition: another
  // process uses it, or it is another guest's, node's, boot's or frame store's, or of another format version;
  // kDataLoss: damaged; kResourceExhausted: there is no room for what it has; errno.
  static absl::StatusOr<std::unique_ptr<TableFile>> Open(OwnedFd file, const TableIdentity& identity,
                                                         std::shared_ptr<TableRoom> room = nullptr);
  ~TableFile();

  const TableHeader& header() const { return *header_; }
  TableHeader& header() { return *header_; }
  uint64_t pages() const { return header_->pages; }
  // Of one bank, all of them chunks.
  uint64_t bank_slots() const { return bank_slots_; }
  uint32_t SlotOf(uint32_t bank, uint64_t frame) const { return static_cast<uint32_t>(bank * bank_slots_ + frame); }
  uint32_t current_bank() const { return header_->current_bank.load(std::memory_order_acquire); }

  // The slot, if it has memory; else nullptr: no entry is there. REQUIRES: a slot's number.
  TableSlot* Find(uint32_t slot) const {
    return chunks_[slot / kChunkSlots].load(std::memory_order_acquire) == kHere ? SlotAt(slot) : nullptr;
  }
  // REQUIRES: it has memory.
  TableSlot* SlotAt(uint32_t slot) const { return &slots_[slot]; }
  // The slot, given memory if need be. nullptr: there was none once; until the bank is cleared it has no entries.
  TableSlot* FindOrMake(uint32_t slot);
  // Takes all memory of a bank back. REQUIRES: nobody uses its slots. Errors: errno of fallocate.
  absl::Status ClearBank(uint32_t bank);
  // Stores what the bank is; 0: unused.
  void NameBank(uint32_t bank, uint64_t file_generation);
  void MakeCurrent(uint32_t bank) { header_->current_bank.store(bank, std::memory_order_release); }

  // Chunks of slots that have memory; each is at slot * kChunkSlots.
  uint64_t chunk_count() const { return kTableBanks * bank_slots_ / kChunkSlots; }
  bool HasMemory(uint64_t chunk) const { return chunks_[chunk].load(std::memory_order_acquire) == kHere; }
  // Bytes of the file that are memory now.
  uint64_t BytesInUse() const;

 private:
  static constexpr uint8_t kUntouched = 0, kHere = 1, kRefused = 2;

  TableFile(OwnedFd file, Mapping mapping, uint64_t pages, std::shared_ptr<TableRoom> room);
  // With room for the header.
  static absl::StatusOr<std::unique_ptr<TableFile>> Map(OwnedFd file, uint64_t pages, std::shared_ptr<TableRoom> room);
  bool TakeRoom(uint64_t bytes) { return room_ == nullptr || room_->Take(bytes); }
  void GiveRoom(uint64_t bytes) {
    if (room_ != nullptr) room_->Give(bytes);
  }
  // Which chunks an earlier process was given.
  absl::Status FindChunks();
  absl::Status CheckHeader(const TableIdentity& identity) const;
  bool BankHolds(uint32_t bank) const;

  const std::shared_ptr<TableRoom> room_;  // null: nobody counts. What is in use was taken there
  const OwnedFd file_;
  const Mapping mapping_;
  TableHeader* const header_;
  TableSlot* const slots_;
  const uint64_t bank_slots_;
  const std::unique_ptr<std::atomic<uint8_t>[]> chunks_;
  Mutex making_;  // one chunk at a time is given memory
};

}  // namespace hk
