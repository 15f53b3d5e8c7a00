// What a page's home does: the pure half of the page protocol that orders everything (README.md, "Page protocol"; the
// other half is page_protocol.h). (entry, event) -> (entry, actions): no descriptor, thread, clock or memory of its
// own.
//
// Invariants:
//  1. At most one transaction of a page is under way, from the first message to Done; others wait in order.
//  2. Exclusive names the one owner, Shared an owner that has the bytes; Dormant and Stored have no owner: their bytes
//     are zero, or storage has them. The copyset (which holds the owner too in Shared) holds every other reader.
//  3. Who is granted Exclusive is told the exact set of nodes that were sent Invalidate in the same transaction (and
//  not
//     the owner, if the request was forwarded to it: giving the page away is its acknowledgement).
//  4. Data is asked for only if the requester has no copy, or will overwrite none: home's copyset and the requester's
//  word
//     must both say that there is a copy; either alone means a full fetch.
//  5. Release follows Done. The owner of before has answered it before the next Release is sent and before an eviction
//     is granted: so of all retained copies the one with the highest serial came last (what Rebuild relies on).
//  6. No page is written before its ever-written bit is on a second node (Mirroring). So after a loss: never written
//  and
//     reported by nobody is Dormant; ever written and nowhere is Lost.
//  7. A page that a dead node may have written is Lost, never an older copy and never zero.
//  8. Serials grow for each page, over re-homing and epochs.
//  9. A reader is told to use what it has peeked only if the node that it asked owns the page, and no other owner and
//  no
//     writer was granted since the reader asked: its serial is not below that of the last such grant.
//
// Thread safety: values; one page's steps are serial.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/node_set.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/page_message.h"
#include "hyperkernel/memory/protocol_table.h"

namespace hk {

// Dormant: bytes are zero. Stored: storage has them. Shared, Exclusive: the owner has them. Lost: nobody. Mirroring:
// a first write waits for the second node's word. Busy: a transaction is under way. Settling: it is done, but an
// earlier Release is not yet answered. Elsewhere: the page's home is another node.
enum class DirectoryState : uint8_t { HK_DIRECTORY_STATES(HK_ENUMERATOR) };
inline constexpr size_t kDirectoryStates = 0 HK_DIRECTORY_STATES(HK_PLUS_ONE);

// Requests by kind, Evict, Done and Released are messages. Mirrored: the second node has the ever-written bit. Freeze,
// Thaw: the extent is to be moved (or not): nothing new begins. MoveOut: it has been. Rebuild: after an epoch change;
// of an Elsewhere entry it knows only ever_written.
enum class DirectoryEventType : uint8_t { HK_DIRECTORY_EVENTS(HK_ENUMERATOR) };
inline constexpr size_t kDirectoryEvents = 0 HK_DIRECTORY_EVENTS(HK_PLUS_ONE);

// Requests of one page that wait for its transaction. A node has one at most, so up to 17 nodes never meet the bound;
// beyond it: Nack(kBusy), and the requester tries again.
inline constexpr size_t kMaxWaitingRequests = 16;

// One event. Plain value. `message`: for messages. `serial`: above every serial of this page before, for the events
// that may begin a transaction (requests, Done, Released, Mirrored, Thaw); one at most is used; for these too `owned`:
// at least the serial of the last grant to a writer or a new owner of the page; the greatest number: not known.
// MoveOut: `home`. Rebuild: `reports`, one of each survivor, `survivors`, `lost`, the nodes that were lost ever, and
// `home_moved`: another node was home, lives or left, has handed over what is Lost, and nobody was lost since the last
// epoch: so what nobody has is as it was first, zeroes.
struct DirectoryEvent {
  DirectoryEventType type = DirectoryEventType::kRead;
  PageMessage message{};
  uint64_t serial = 0;
  uint64_t owned = ~uint64_t{0};
  NodeId home{};
  std::span<const PageReport> reports{};
  NodeSet survivors{};
  NodeSet lost{};
  bool home_moved = false;
};

// A page at its home. Plain value. At rest only state, owner, copyset, storage and ever_written matter, and the daemon
// keeps less than that (fused extents); the rest exists while something is under way.
struct DirectoryEntry {
  DirectoryState state = DirectoryState::kDormant;
  // Shared, Exclusive. Elsewhere: the home that it went to. Lost: the lost node that had the only copy; the home
  // itself: it is not known which.
  NodeId owner{};
  NodeSet copyset{};  // Dormant, Stored: who may have a copy. Shared: the same, with the owner
  uint64_t storage = 0;
  bool ever_written = false;  // and mirrored
  bool frozen = false;
  // Mirroring, Busy, Settling: the request, and what is true after it.
  PageMessage current{};
  uint64_t serial = 0;
  DirectoryState before = DirectoryState::kDormant;
  DirectoryState after = DirectoryState::kDormant;
  NodeId after_owner{};
  NodeSet after_copyset{};
  bool leaves = false;  // an owner gives the page away and retains it until Release
  NodeId leaver{};
  // A Release that is not yet answered.
  bool releasing = false;
  NodeId released_node{};
  uint64_t released_serial = 0;
  size_t waiting_count = 0;
  std::array<PageMessage, kMaxWaitingRequests> waiting{};
};

// What the shell does, in this order.
enum class DirectoryActionType : uint8_t {
  kSend,        // the message, to `message.to`
  kSendToEach,  // the message, to each of `nodes` (Invalidate)
  kMirror,      // tell the second node that the page is ever written; Mirrored follows
  kReconcile,   // tell each of `nodes` what it has now: RightAt(entry, node) (PageEventType::kReconciled there)
};

// One action. Plain value.
struct DirectoryAction {
  DirectoryActionType type = DirectoryActionType::kSend;
  NodeSet nodes{};
  PageMessage message{};
};

// How an event ended. Rejected events change nothing; the number is the rule's in README.md.
enum class DirectoryVerdict : uint8_t {
  kDone,
  kStale,       // R1: Done or Released of no transaction under way; drop it
  kImpossible,  // R2: no correct node sends this: coherence violation, stop the guest
  kNotNow,      // R3: local events out of place (Mirrored, Thaw, MoveOut): own error
};

// Nacks of all that waited, and the transaction that begins.
inline constexpr size_t kMaxDirectoryActions = kMaxWaitingRequests + 4;

// The outcome of one step. Plain value. `serials_used`: 1 if event.serial is taken; `owns`: by a grant to a writer or a
// new owner.
struct DirectoryResult {
  DirectoryVerdict verdict = DirectoryVerdict::kDone;
  DirectoryEntry entry;
  uint64_t serials_used = 0;
  bool owns = false;
  size_t action_count = 0;
  std::array<DirectoryAction, kMaxDirectoryActions> actions;

  void Add(const DirectoryAction& action) {
    HK_CHECK(action_count < actions.size());
    actions[action_count++] = action;
  }
};

// `self` is the home.
DirectoryResult Step(const DirectoryEntry& entry, const DirectoryEvent& event, NodeId self);

// What a node may do with the page by an entry at rest.
PageRight RightAt(const DirectoryEntry& entry, NodeId node);

// The event that a request is.
DirectoryEventType EventOf(RequestKind kind);

const char* Name(DirectoryState state);
const char* Name(DirectoryEventType event);

}  // namespace hk
