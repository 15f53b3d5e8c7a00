// What the table holds of one page, and what each event does to it: the pure half of the replica table (README.md, "The
// event table"). (entry, event) -> (entry, verdict): no descriptor, thread, clock or memory of its own.
//
// Invariants:
//  1. Valid, Unchecked: the bytes of the page equal the bytes that a read of the block would return. Unchecked: if the
//     page's checksum is the entry's.
//  2. Pending: exactly one disk request uses the page, it transfers the whole page to or from the whole block, and
//  since
//     it began nobody has written the page and no other request has changed the block.
//  3. Busy: requests use the page, and none of them can make it Valid. `requests` is how many.
//  4. Only Pending becomes Valid by a request, and only that request can do it.
//
// Thread safety: values; one entry's steps are serial.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hyperkernel/base/types.h"
#include "storage-replica/ssa.h"

namespace hk {

// Where a page stands. The numbers are those of FORMAT.md.
enum class EntryState : uint8_t { kNone = 0, kPending = 1, kBusy = 2, kValid = 3, kUnchecked = 4 };
inline constexpr uint8_t kEntryStates = 5;

// No checksum is known: such an entry does not outlive the process.
inline constexpr uint64_t kNoChecksum = 0;
// The flush generation of blocks that no flush will cover: the count has run out.
inline constexpr uint32_t kNeverFlushed = ~uint32_t{0};

// What is known of one page. Plain value. Which fields count: None: none; Pending: node, ssa, generation; Busy:
// requests; Valid and Unchecked: all but requests.
struct ReplicaEntry {
  EntryState state = EntryState::kNone;
  NodeId node{};            // who has the frame
  Ssa ssa{};                // the block
  uint64_t generation = 0;  // the request that made it: no two requests of a guest have the same
  uint64_t checksum = kNoChecksum;
  uint32_t flush = 0;  // the flush of the disk that covers the block; 0: it was stable already
  uint64_t requests = 0;
  friend bool operator==(const ReplicaEntry&, const ReplicaEntry&) = default;
};

// Requests: WholeBegins (page and block correspond), PartBegins (a device writes some of the page), Ends (of either).
// The page: Written (by a vCPU, a device, the daemon; or its contents are no longer known), Moved (its only or owning
// copy is at `node` now), MovedIf (the same, of the page with this entry), Returned (MovedIf, and what else stands here
// is false), Came (from another node, with an entry), Checked (its bytes have the entry's checksum), Restored (the
// durable form has an entry of it). The block: Overwritten (a write, discard or write-zeroes of it begins, or the image
// was changed outside).
enum class EntryEventType : uint8_t {
  kWholeBegins,
  kPartBegins,
  kEnds,
  kWritten,
  kMoved,
  kMovedIf,
  kReturned,
  kCame,
  kChecked,
  kRestored,
  kOverwritten,
};
inline constexpr size_t kEntryEvents = 11;

// One event. Plain value. WholeBegins: node, ssa, generation. Ends: ssa, generation of the request, good (it succeeded,
// was whole, and nothing overlapped it), checksum and flush if good. Moved: node; MovedIf, Returned: also ssa,
// generation. Came, Restored: node, ssa, generation, checksum, flush. Checked: generation.
struct EntryEvent {
  EntryEventType type = EntryEventType::kWritten;
  NodeId node{};
  Ssa ssa{};
  uint64_t generation = 0;
  bool good = false;
  uint64_t checksum = kNoChecksum;
  uint32_t flush = 0;
};

// How an event ended.
enum class EntryVerdict : uint8_t {
  kDone,
  kNothing,     // it changes nothing here
  kImpossible,  // Ends without begin: own error; nothing changes
};

// The outcome of one step. Plain value.
struct EntryResult {
  EntryVerdict verdict = EntryVerdict::kNothing;
  ReplicaEntry entry;
};

EntryResult Step(const ReplicaEntry& entry, const EntryEvent& event);

// True if the entry names a block: those are in the index of blocks.
constexpr bool NamesBlock(EntryState state) {
  return state == EntryState::kPending || state == EntryState::kValid || state == EntryState::kUnchecked;
}
// True if the page may be read instead of the block.
constexpr bool IsServed(EntryState state) {
  return state == EntryState::kValid || state == EntryState::kUnchecked;
}

const char* Name(EntryState state);

}  // namespace hk
