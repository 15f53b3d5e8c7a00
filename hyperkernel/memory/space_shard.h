// The records of the fault engine: what a shard of a space keeps about extents at rest and about pages and entries of
// which something is under way. Private to space_engine*.cc.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/extent_table.h"
#include "hyperkernel/memory/hot_pages.h"
#include "hyperkernel/memory/owner_hints.h"
#include "hyperkernel/memory/page_batch.h"
#include "hyperkernel/memory/page_directory.h"
#include "hyperkernel/memory/page_protocol.h"
#include "hyperkernel/memory/page_swap.h"
#include "hyperkernel/memory/space_engine.h"
#include "hyperkernel/memory/space_outbox.h"
#include "rdma/transport.h"

namespace hk::space {

// The kinds of slots: what a page waits for.
inline constexpr size_t kSlotPools = 4;
inline constexpr size_t kFramePool = kSlotPools;  // waits for a frame
inline constexpr size_t kPools = kSlotPools + 1;
constexpr size_t PoolOf(MessageClass message_class, SlotUse use) {
  return (message_class == MessageClass::kBulk ? 2 : 0) + (use == SlotUse::kSend ? 1 : 0);
}

// Where a request is to be answered. Whoever has it must answer, or hand it on.
struct Duty {
  MessageClass message_class = MessageClass::kFault;
  NodeId node;   // whose slot it is
  SlotId slot;   // 0: a request of this node that nobody else will answer; or without_bytes
  LentSlot own;  // the same slot, while it is ours: our request has not left, or its answer is here
  // Of a batch whose answer has left: there is no slot for the page, and it is granted without its bytes.
  bool without_bytes = false;
};

// A message that came, from another node or from this one.
struct Incoming {
  Gfn gfn;
  PageMessage message;
  Duty duty;                           // Request, Forward; Answer and Nack: `own` is the slot
  std::span<const std::byte> payload;  // in `own`
  std::shared_ptr<PageBatch> batch;    // of several pages, `gfn` the first; `message` means nothing then
};

// What a page's step does as part of a batch: what it sends goes in the batch's message.
struct BatchStep {
  bool framed = false;      // what the step does to the frame has been done, with other pages'
  std::span<std::byte> to;  // where the page's bytes go
  bool sent = false;        // the page would have said something
};

// A batch under way at its requester. Plain value.
struct AskedBatch : PageBatch {
  uint64_t extent = 0;  // its first GFN
};

// A wish that is not fulfilled yet.
struct Waiter {
  PageAccess access = PageAccess::kNone;
  std::span<const std::byte> replacement;  // to be written by the engine; empty: none, or it is written
  SpaceEngine::Granted granted;
  bool pin = false;  // pinned when it is granted
};

using Buffer = std::unique_ptr<std::array<std::byte, kPageSize>>;

// The bytes of a page that is not mapped: in the send slot that takes them away, or in memory of their own.
struct KeptBytes {
  LentSlot slot;
  Buffer buffer;
  bool empty() const { return !slot && buffer == nullptr; }
  std::span<std::byte> bytes() const { return slot ? slot.bytes().first(kPageSize) : std::span<std::byte>(*buffer); }
};

// Where the bytes of a page are that this node owns. kFrame: in its frame, as any page's. kWriting: in memory of their
// own, on their way to the swap; the frame is gone but counted until they are there. kOut: in the swap. kReading:
// there, and on their way back. kIn: there and in memory. The page is mapped only in kFrame.
enum class SwapStage : uint8_t { kFrame, kWriting, kOut, kReading, kIn };

// What the swap has to do with an active page.
struct Swapping {
  SwapStage stage = SwapStage::kFrame;
  bool io = false;                  // a Write or Read is under way, maybe of a page that has left meanwhile
  bool claimed = false;             // kReading, kIn: a frame is taken for it
  std::shared_ptr<SwapPage> bytes;  // kWriting, kReading, kIn

  // True if the page's frame is counted, if it is one that has a frame.
  bool counted() const { return stage == SwapStage::kFrame || stage == SwapStage::kWriting || claimed; }
  // True if the bytes can be had without the disk.
  bool at_hand() const { return stage != SwapStage::kOut && stage != SwapStage::kReading; }
};

inline bool IsResting(PageState state) {
  return state == PageState::kAbsent || state == PageState::kShared || state == PageState::kOwner ||
         state == PageState::kExclusive;
}

// Who wants a page that is held. Plain value.
struct Rival {
  uint64_t ticket = 0;
  NodeId node;
};

// How long a granted page stays: until the threads that waited for it have run with it, not before `least`, and not
// after `most`. Plain value.
struct PageHold {
  // A thread, and what time it had had when it got the page; 0: none.
  struct Thread {
    uint32_t id = 0;
    std::chrono::nanoseconds ran{};
  };
  Monotonic least, most;
  Monotonic rather;                 // not before: who waits for it with an older ticket
  bool gathers = false;             // any of the threads has a ticket
  std::array<Thread, 2> threads{};  // more than two wait for one page seldom, and take turns
};

// A page of which something is under way. Reused.
struct ActivePage {
  Gfn gfn;
  Page page;
  PageHold hold;
  std::array<uint32_t, 2> waiting_threads{};  // for which the next hold is; 0: none
  Monotonic since;                            // of the oldest wish; meaningless without one
  std::vector<Waiter> waiters;
  bool fault_read = false, fault_write = false;  // programs wait
  bool pausing = false;                          // until the retry's timer
  bool hold_timer = false;                       // one is on its way
  Monotonic hold_timer_at;                       // the last that was set
  bool prefetched = false;                       // the request under way is nobody's wish, or was not
  bool batched = false;                          // and it is one of several
  bool later = false;                            // of a batch: its answer said so, and another one comes
  bool hurried = false;                          // others wait for the request under way to be done
  bool peek_refused = false;                     // the wish asks the home alone
  uint32_t unpins = 0;                           // that wait for a send slot
  uint8_t starved = 0;                           // bits: in which of the shard's lists
  Duty deferred;                                 // of page.deferred
  SlotId request_slot;                           // of the request under way, wherever it is
  SlotId peek_slot;                              // of its Peek
  LentSlot answer_slot;                          // kKeepData
  std::span<const std::byte> answer_payload;     // in it
  KeptBytes unmapped, retained;
  Swapping swap;
  std::vector<Incoming> parked;  // messages that wait for a send slot, and those behind them

  bool wished() const { return fault_read || fault_write || !waiters.empty(); }
  void Reset() {
    std::vector<Waiter> kept = std::move(waiters);
    kept.clear();
    *this = ActivePage();
    waiters = std::move(kept);
  }
};

// A directory entry of which something is under way. Reused.
struct BusyEntry {
  DirectoryEntry entry;
  // Of the requests that wait and of the one under way, until it is answered or forwarded.
  std::vector<std::pair<NodeId, Duty>> duties;
  uint64_t hurried = 0;  // the transaction whose requester was told that others wait
};

// An answer of the home that waits, within one hold of the shard's lock, for the home's own acknowledgement.
struct HeldAnswer {
  Gfn gfn;
  PageMessage message;
  Duty duty;
};

// Pages at rest that are still held, in the order of their grants. A page may be there twice: its last entry counts.
class HoldList {
 public:
  void Add(Gfn page, const PageHold& hold) { holds_.push_back({page, hold}); }
  // One that was over at the beginning of time, if there is none.
  PageHold Of(Gfn page) const {
    for (auto hold = holds_.rbegin(); hold != holds_.rend(); ++hold) {
      if (hold->page == page) return hold->hold;
    }
    return PageHold();
  }
  // Takes out what is over, and tells of each page that is not held any more.
  template <typename Over>
  void Expire(Monotonic now, Over over) {
    while (!holds_.empty() && holds_.front().hold.most <= now) {
      const Gfn page = holds_.front().page;
      holds_.pop_front();
      if (Of(page).most == Monotonic()) over(page);
    }
  }

 private:
  // One grant.
  struct Hold {
    Gfn page;
    PageHold hold;
  };
  std::deque<Hold> holds_;
};

// Things that are used again, up to `kMost` of them.
template <typename T, size_t kMost>
class Pool {
 public:
  std::unique_ptr<T> Take() {
    if (free_.empty()) return std::make_unique<T>();
    std::unique_ptr<T> taken = std::move(free_.back());
    free_.pop_back();
    return taken;
  }
  void Give(std::unique_ptr<T> thing) {
    if (thing != nullptr && free_.size() < kMost) free_.push_back(std::move(thing));
  }

 private:
  std::vector<std::unique_ptr<T>> free_;
};

// What survivors say of one extent after a loss. Plain value.
struct ExtentReports {
  // A page that its node does not have any more, but keeps, or is evicting.
  struct Kept {
    uint16_t page = 0;
    PageReport report;
  };
  std::vector<std::pair<NodeId, std::array<PageRight, kExtentPages>>> rights;  // one for each node that has any
  std::vector<Kept> kept;
};

// What an epoch change has of a shard between its beginning and its commit.
struct ShardChange {
  absl::flat_hash_map<uint64_t, std::unique_ptr<ExtentReports>> reports;    // by extent
  absl::flat_hash_map<uint64_t, std::unique_ptr<ExtentDirectory>> rebuilt;  // by extent
  absl::flat_hash_map<uint64_t, PageRight> told;                            // what this node has now, by GFN
  uint64_t lost = 0;
  std::map<NodeId, uint64_t> lost_with;          // of these: with that node
  NodeSet left, lost_nodes;                      // no survivors, and not lost; lost
  absl::flat_hash_map<uint64_t, NodeId> handed;  // Lost pages of homes before, by GFN: who had them
  absl::flat_hash_set<uint64_t> handed_over;     // extents of which homes before have told all that they knew
};

// Kept per shard: a stream of prefetched pages has that many under way in an extent (0.4 MiB), and 64 KiB of buffers.
inline constexpr size_t kSpareRecords = 128, kSpareBuffers = 16;

// The part of a space that one lock guards: a share of its extents.
struct alignas(64) Shard {
  mutable Mutex mutex;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Extent>> extents ABSL_GUARDED_BY(mutex);     // by GFN / kExtentPages
  absl::flat_hash_map<uint64_t, std::unique_ptr<ActivePage>> active ABSL_GUARDED_BY(mutex);  // by GFN
  absl::flat_hash_map<uint64_t, std::unique_ptr<BusyEntry>> busy ABSL_GUARDED_BY(mutex);     // by GFN
  std::vector<Incoming> local ABSL_GUARDED_BY(mutex);  // what the node says to itself, from `local_next` on
  size_t local_next ABSL_GUARDED_BY(mutex) = 0;
  std::optional<HeldAnswer> answer ABSL_GUARDED_BY(mutex);
  HoldList holds ABSL_GUARDED_BY(mutex);
  // Pages that wait for a slot or a frame, by pool.
  std::array<std::deque<Gfn>, kPools> starved ABSL_GUARDED_BY(mutex);
  std::vector<uint64_t> touched ABSL_GUARDED_BY(mutex);  // extents in the order of their first touch
  // Where the search for a page to give up goes on: index in `touched`, page.
  size_t hand_extent ABSL_GUARDED_BY(mutex) = 0, hand_page ABSL_GUARDED_BY(mutex) = 0;
  Pool<ActivePage, kSpareRecords> spare_pages ABSL_GUARDED_BY(mutex);
  Pool<BusyEntry, kSpareRecords> spare_entries ABSL_GUARDED_BY(mutex);
  Pool<std::array<std::byte, kPageSize>, kSpareBuffers> spare_buffers ABSL_GUARDED_BY(mutex);
  uint64_t next_transaction ABSL_GUARDED_BY(mutex) = 0;
  uint64_t next_serial ABSL_GUARDED_BY(mutex) = 0;
  uint64_t random ABSL_GUARDED_BY(mutex) = 0;
  HotPages hot ABSL_GUARDED_BY(mutex);
  OwnerHints hints ABSL_GUARDED_BY(mutex);            // of this epoch
  OwnerSerials owner_serials ABSL_GUARDED_BY(mutex);  // of entries
  SpaceStatistics statistics ABSL_GUARDED_BY(mutex);
  Epoch epoch ABSL_GUARDED_BY(mutex);
  NodeSet live ABSL_GUARDED_BY(mutex);                                       // the nodes of `epoch`
  absl::flat_hash_map<uint64_t, AskedBatch> batches ABSL_GUARDED_BY(mutex);  // not answered, by slot
  std::vector<NodeSet> committed ABSL_GUARDED_BY(mutex);        // the nodes of each epoch that held, the last is now
  std::unique_ptr<ShardChange> change ABSL_GUARDED_BY(mutex);   // from BeginEpoch to Commit
  std::map<NodeId, uint64_t> lost_with ABSL_GUARDED_BY(mutex);  // of statistics.pages_lost, as far as it is known
};

// From 0 to `most`, by chance. Its numbers come again with the same shard of the same node: a simulated run can be
// repeated.
inline uint64_t RandomUpTo(Shard* shard, uint64_t most) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex) {
  uint64_t& random = shard->random;  // xorshift64
  random ^= random << 13;
  random ^= random >> 7;
  random ^= random << 17;
  return random % (most + 1);
}

}  // namespace hk::space
