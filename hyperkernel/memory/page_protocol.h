// What one node does about one page: the pure half of the page protocol (README.md, "Page protocol"; the other half is
// page_directory.h). (page, event) -> (page, actions): no descriptor, thread, clock or memory of its own. The daemon,
// the simulator and the explorer of tests/sim run this code; protocol_table.h lists its transitions.
//
// Invariants, over all nodes of a guest (H: the page's home, L: the bytes after the last store). The explorer checks
// them in every state:
//  1. If one node is Exclusive, no other may read or write.
//  2. Every copy that may be read equals L. So a store is never acknowledged to its vCPU while a stale copy can be
//  read.
//  3. A node is Exclusive only if H's entry says so, Owner only if that says so or Exclusive (a Peek has taken its
//  right to
//     write), or if H is busy with that node's request.
//  4. Whoever may read, or holds bytes for H (Evict*), is in H's entry as owner or in its copyset. The copyset may name
//     nodes that have none: a Shared copy is dropped without telling.
//  5. A node has at most one request or eviction of a page under way. Nothing is evicted meanwhile.
//  6. A page that left its owner is kept there (retained) until H says Release, which it does after Done.
//  7. A pinned page is Exclusive, and stays so until unpinned. A held page keeps its right until HoldOver, unless this
//     node itself asks for more. What must wait for either is deferred; there is at most one such thing.
//  8. A request runs (its page is installed) only after the answer and every Ack that the answer names.
//  9. Nothing of an earlier request is taken: answers and acks carry its transaction, releases the home's serial.
// 10. Bytes of a Peek become readable only by an Answer that says so (kPeeked), and who gave them cannot write since.
//
// Thread safety: values; one page's steps are serial (its transaction lock), with the actions of each done in order
// before the next begins.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/node_set.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/page_message.h"
#include "hyperkernel/memory/protocol_table.h"

namespace hk {

// What the page is on this node. Absent: no frame. Shared, Owner: readable, and Owner answers others' requests.
// Exclusive: readable and writable. Fetch*: nothing readable, request under way. Upgrade, OwnerUpgrade: readable,
// request for Exclusive under way. Evict*: eviction under way, bytes kept for others, not accessible here; EvictGone:
// without.
enum class PageState : uint8_t { HK_PAGE_STATES(HK_ENUMERATOR) };
inline constexpr size_t kPageStates = 0 HK_PAGE_STATES(HK_PLUS_ONE);

// Local wishes: Read and Write (faults), Overwrite (a device will write all of it), Adopt (an offer taken), Drop and
// Evict (pressure), Pin, Unpin, HoldOver (the minimum hold has passed). From the home: Reconciled, after an EpochChange
// (the rest of what follows it in the table are messages).
enum class PageEventType : uint8_t { HK_PAGE_EVENTS(HK_ENUMERATOR) };
inline constexpr size_t kPageEvents = 0 HK_PAGE_EVENTS(HK_PLUS_ONE);

// One event. Plain value. `message` is valid for messages; Evict takes source and storage from it; Read, Write,
// Overwrite and Adopt take its `transaction`, a number this node never used before; Read also `peeks`, `asked` (neither
// this node nor the home) and `serial`, as a Request has them; Reconciled its `right`.
struct PageEvent {
  PageEventType type = PageEventType::kRead;
  PageMessage message;
};

// A revocation that waits for HoldOver or the last Unpin. Plain value.
struct DeferredRevoke {
  bool active = false;
  PageEventType type = PageEventType::kInvalidate;  // Invalidate or Forward*
  PageMessage message;
};

// What has become of the Peek of the request under way. kHere: its bytes are kept.
enum class PeekStage : uint8_t { kNone, kAsked, kHere, kRefused };

// A page on a node. Plain value. The daemon keeps only `state` for pages at rest, and one of these for the others.
struct Page {
  PageState state = PageState::kAbsent;
  bool held = false;
  uint16_t pins = 0;  // write pins; readers' pins do not stop a revocation
  DeferredRevoke deferred;
  // The request under way (Fetch*, Upgrade, OwnerUpgrade).
  uint64_t transaction = 0;
  RequestKind kind = RequestKind::kRead;
  bool answered = false;
  PageMessage answer;  // if answered
  PeekStage peek = PeekStage::kNone;
  NodeSet acked;
  // The bytes of an ownership that left, kept for Release.
  bool retained = false;
  uint64_t retained_serial = 0;
  NodeId retained_for;
};

// What the shell does, in this order.
enum class PageActionType : uint8_t {
  kSend,           // the message
  kSendPage,       // the message, with the page's bytes as payload
  kKeepData,       // keep the slot of the answer, whose acks are missing, or of the Peeked
  kDropData,       // it is of no use any more
  kInstall,        // make the page readable, with `right` kExclusive writable, bytes from `source`; kNone: those here,
                   // or zeroes if there are none (an Overwrite); kPeeked: those kept, or of this Peeked
  kProtect,        // take write access away
  kUnmap,          // make inaccessible, keep the bytes
  kMap,            // make accessible again with `right`
  kDropFrame,      // the bytes are needed no more; REQUIRES: unmapped
  kDropRetained,   // the same of the retained bytes
  kAdoptRetained,  // the retained bytes are the page again, accessible with `right`
  kStartHold,      // HoldOver comes after the minimum hold
  kWake,           // whoever waits for the page tries again
  kRetry,          // the request was not granted for now (`reason`): wake after a random pause; kMoved: at once,
                   // `message.home` is the page's home
  kStopGuest,      // the page is Lost and somebody needs it
};

// One action. Plain value.
struct PageAction {
  PageActionType type = PageActionType::kWake;
  PageRight right = PageRight::kNone;
  PageSource source = PageSource::kNone;
  NackReason reason = NackReason::kBusy;
  PageMessage message;
};

// How an event ended. Rejected events change nothing; the number is the rule's in README.md.
enum class PageVerdict : uint8_t {
  kDone,
  kWait,         // nothing to do now; Wake follows when it changes
  kRefused,      // a local wish that cannot be had now (Drop, Evict, Pin, Adopt); choose another page or fetch first
  kStale,        // R1: an answer, Nack or Ack of no request under way; an Evict answer without eviction; drop it
  kImpossible,   // R2: no correct home sends this: coherence violation, stop the guest
  kNothingToDo,  // R3: Unpin without pin, HoldOver without hold, Reconciled without epoch change: own error
};

// At most this many actions follow one event (asserted).
inline constexpr size_t kMaxPageActions = 8;

// The outcome of one step. Plain value.
struct PageResult {
  PageVerdict verdict = PageVerdict::kDone;
  Page page;
  size_t action_count = 0;
  std::array<PageAction, kMaxPageActions> actions;

  void Add(const PageAction& action) {
    HK_CHECK(action_count < kMaxPageActions);
    actions[action_count++] = action;
  }
};

// `self` is this node, `home` the page's home as this node knows it.
PageResult Step(const Page& page, const PageEvent& event, NodeId self, NodeId home);

// What this node says about the page after EpochChange.
PageReport ReportOf(const Page& page, NodeId self);
// What the node may do with the page in this state.
PageRight RightOf(PageState state);
// True if the node has the page's current bytes, readable or not.
bool HasBytes(PageState state);

const char* Name(PageState state);
const char* Name(PageEventType event);

}  // namespace hk
