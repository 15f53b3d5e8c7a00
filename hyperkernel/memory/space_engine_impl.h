// The fault engine itself (contract: space_engine.h). Private to space_engine*.cc: space_engine.cc is what others call
// and time, space_engine_pages.cc the page's half, space_engine_homes.cc the home's half and all messages.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <deque>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "hyperkernel/memory/latency_floor.h"
#include "hyperkernel/memory/prefetch.h"
#include "hyperkernel/memory/recovery_wire.h"
#include "hyperkernel/memory/space_engine.h"
#include "hyperkernel/memory/space_placement.h"
#include "hyperkernel/memory/space_shard.h"

namespace hk::space {

inline constexpr size_t kShards = 64;
// Messages of a page that wait for a send slot: a correct home sends a forward and what stands behind it.
inline constexpr size_t kMaxParked = 8;
// Pages that are offered at a time, and until they are offered again (or others are) if frames are still missing.
inline constexpr size_t kOffers = 8;
// The same of a node that leaves: as many as the others adopt in kOfferPause over a fast link.
inline constexpr size_t kLeaveOffers = 64;
// A node that had no room is not asked again until then. How often a node with room says so, to one other.
inline constexpr std::chrono::milliseconds kRoomPause{20}, kRoomInterval{1};
// Frames that a node keeps free, as shares of max_pages: when fewer than the first are, pages are given up until the
// second are. Below 256 frames: none, a wish waits.
inline constexpr uint64_t kLowShare = 64, kHighShare = 32, kLeastForShares = 256;
// While a node has fewer copies than this share of its frames, it offers pages that it owns rather than drop copies, as
// long as somebody adopts them; and takes others' pages only beside it, but those of who has less than FramesKept.
inline constexpr uint64_t kCopiesShare = 8;
// Most pages that are given up ahead of need at a time: it is done by whoever took a frame.
inline constexpr uint64_t kMostAhead = 16;
inline constexpr std::chrono::milliseconds kOfferPause{2};
// Until what could not be sent for want of a connection is sent again.
inline constexpr std::chrono::milliseconds kPumpPause{5};
// Writes to the swap under way. Each is a page's bytes in memory beside its frame that is counted.
inline constexpr size_t kSwapWrites = 32;
// After a write that failed: a full disk stays full for a while.
inline constexpr std::chrono::milliseconds kSwapPause{500};
// Slots and pages of one space that are fetched ahead and under way: half of the node's bulk slots (64) are left for
// other spaces.
inline constexpr uint64_t kMostPrefetchSlots = 32;
inline constexpr uint64_t kMostPrefetching = kMostPrefetchSlots * kMostBatchPages;
// So many batches leave together: one write takes them, and their home need not wait for the rest.
inline constexpr size_t kBatchesTogether = 4;

// Serials: (epoch, counter), so that those of a later epoch are above all of an earlier one.
constexpr uint64_t FirstSerial(Epoch epoch) {
  return (epoch.value() & 0xffffff) << 40 | 1;
}

// States that have a frame, or will (it is taken before the request leaves), unless the page is in the swap.
constexpr bool TakesFrame(PageState state) {
  return state != PageState::kAbsent && state != PageState::kEvictGone;
}

// See space_engine.h. Lock order: frames_mutex_, pump_mutex_, change_mutex_, a shard, then the outbox's lanes; never
// two shards.
class Engine final : public SpaceEngine {
 public:
  Engine(const SpaceConfig& config, Transport* transport, PageFrames* frames, Timers* timers, const Clock& clock,
         Stopped stopped, PageSwap* swap);

  // SpaceEngine.
  void OnFault(Gfn page, bool write, uint32_t thread) override;
  void Want(Gfn page, PageAccess access, Granted granted) override {
    Enqueue(page, {.access = access, .replacement = {}, .granted = std::move(granted)});
  }
  void Replace(Gfn page, std::span<const std::byte> bytes, Granted granted) override;
  void Pin(Gfn first, uint64_t count, Granted granted) override;
  void Unpin(Gfn first, uint64_t count) override;
  void OnMessage(NodeId from, const Message& message, std::span<const std::byte> payload, bool late) override;
  void OnWritable(NodeId peer, MessageClass message_class) override;
  void OnSlotsFree(MessageClass message_class, SlotUse use) override;
  void OnRequestExpired(NodeId asked, MessageClass message_class, uint64_t transaction, SlotId slot,
                        RequestFailure why) override;
  void OnPeerFailed(NodeId peer, PeerFailure why, const std::string& detail) override;
  void Stop(const absl::Status& why) override;
  SpaceStatistics Statistics() const override;
  std::vector<ExtentUse> Uses(uint64_t first, size_t most) const override;
  std::vector<HotPage> MostLost(size_t most) const override;
  PageRight RightOf(Gfn page) const override;
  NodeId HomeOf(Gfn page) const override;
  SpaceResidue Residue() const override;
  void WatchLosses(Suspended suspended) override { on_suspended_ = std::move(suspended); }
  absl::Status BeginEpoch(const SpaceEpoch& change) override;
  void Rebuild(Epoch epoch, std::function<void(const absl::Status&)> done) override;
  absl::Status Commit(Epoch epoch) override;
  absl::Status Run(Epoch epoch) override;
  SpaceEpochState EpochState() const override;
  void Leave(bool leave) override;
  SpaceLeaving LeavingState() const override;
  bool IsLost(Gfn page) const override;

 private:
  // Suspended: a node was lost, wishes wait. Changing: an epoch has begun, nothing of a page changes. Committed:
  // served, but nobody asks yet.
  enum class Phase : uint8_t { kRunning, kSuspended, kChanging, kCommitted };
  bool running() const { return phase_.load(std::memory_order_acquire) == Phase::kRunning; }
  static size_t ShardIndexOf(uint64_t extent) { return (extent * 0x9e3779b97f4a7c15U) >> 58; }
  Shard& ShardOf(Gfn page) { return shards_[ShardIndexOf(page.value() / kExtentPages)]; }
  const Shard& ShardOf(Gfn page) const { return shards_[ShardIndexOf(page.value() / kExtentPages)]; }
  bool InSpace(Gfn page) const { return page.value() < config_.pages; }
  bool IsNode(NodeId node) const { return node.value() < kMaxNodes && nodes_.Contains(node); }
  bool stopped() const { return stopped_.load(std::memory_order_acquire); }
  absl::Status reason() const;

  // space_engine.cc.
  // Whose stop it is: everybody's, whom this node tells; everybody's, and whoever found out tells; this node's alone.
  enum class StopOf : uint8_t { kAll, kAllTold, kThisNode };
  // Stops the space; the waiting wishes are ended by Finish, which whoever called this comes to without a lock.
  void Fail(const absl::Status& why, StopOf whose = StopOf::kAll);
  void TellOthers();
  void FailPage(Gfn page, absl::StatusCode code, const std::string& why);
  // The same in a while, if no better reason has come by then.
  void FailSoon(const std::string& why);
  // What whoever had a shard's lock does after it: ends what waits in a stopped space, finds frames that are missing.
  void Finish();
  void Sweep(Shard* shard) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void ArmWatch();
  void Watch();
  void OnTimer(Gfn page, bool retry);
  void Starved(Shard* shard, size_t pool, bool* more) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);

  // space_engine_pages.cc.
  Extent* ExtentOf(Shard* shard, Gfn page) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  ActivePage* Activate(Shard* shard, Gfn page) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // The record goes, if nothing of the page is under way. It is not to be used after.
  void Rest(Shard* shard, ActivePage* active) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // Asks for what is wished, if it can be asked for now.
  void Wish(Shard* shard, ActivePage* active) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // Everything that may wait for a slot or for time, as far as it can go on.
  void Advance(Shard* shard, ActivePage* active) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void Grant(Shard* shard, ActivePage* active) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void Enqueue(Gfn page, Waiter waiter);
  // The page is here: does what is to be done, and tells.
  void End(Gfn page, Waiter* waiter);
  void HoldOver(Shard* shard, ActivePage* active) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void HandlePage(Shard* shard, Incoming incoming) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // False: it needs a send slot and there is none; `incoming` is unchanged.
  bool TryPage(Shard* shard, ActivePage* active, Incoming* incoming) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  bool Acquire(Shard* shard, ActivePage* active, MessageClass message_class, SlotUse use, LentSlot* slot)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // What a step needs beside its event.
  struct Means {
    Incoming* incoming = nullptr;  // the message, if it is one
    LentSlot send;                 // for the page's bytes
    Duty request;                  // of the request that leaves
    Duty peek;                     // and of its Peek
    bool has_frame = false;        // it is counted already
    BatchStep* batch = nullptr;    // the step is part of one
    Duty answered;                 // of the request that is answered: the message's, or what was deferred
  };
  void StepPage(Shard* shard, ActivePage* active, const PageEvent& event, Means means)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // False: the frames failed, and the space is stopped.
  bool Do(Shard* shard, ActivePage* active, PageState before, const PageResult& result, size_t index, Means* means)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  bool Install(Shard* shard, ActivePage* active, PageState before, const PageAction& action, Means* means)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  bool Unmap(Shard* shard, ActivePage* active, const PageResult& result, size_t index, Means* means)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  bool SendPage(Shard* shard, ActivePage* active, const PageMessage& message, Means* means)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void Retry(Shard* shard, ActivePage* active, NackReason reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void Drop(Shard* shard, KeptBytes* kept) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void ArmHold(ActivePage* active, Monotonic now);
  bool FramesDid(Gfn page, const absl::Status& status);

  // space_engine_peeks.cc.
  void LearnOwner(Shard* shard, Gfn page, const PageEvent& event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void AddPeek(Shard* shard, ActivePage* active, PageMessage* wish, Duty* duty)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void HandlePeek(Shard* shard, Incoming incoming) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void HandlePeeked(Shard* shard, Incoming incoming) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);

  // space_engine_heat.cc.
  void NoteHolder(const ActivePage& active, const PageEvent& event);
  // A page's right has changed by a step. `deferred_for`: who had waited for that, or null.
  void NoteChange(Shard* shard, ActivePage* active, PageRight before, const PageEvent& event,
                  const NodeId* deferred_for) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);

  // space_engine_frames.cc.
  // Takes one of the frames that the node may have for a page that is to come. False: there is none.
  bool ClaimFrame();
  bool HasFreeFrame() const { return config_.max_pages == 0 || frames_taken_.load() < config_.max_pages; }
  // The last ones are for this node's own wishes.
  bool HasRoomForOthers() const { return RoomForOthers() > 0; }
  // How many frames fewer are free than a share of all.
  size_t ShortOf(uint64_t share) const {
    if (config_.max_pages < kLeastForShares) return 0;
    const uint64_t taken = frames_taken_.load() + config_.max_pages / share;
    return taken > config_.max_pages ? std::min(taken - config_.max_pages, kMostAhead) : 0;
  }
  bool IsShort(uint64_t share) const { return ShortOf(share) > 0; }
  void CountFrame(bool had, bool has);
  void WaitForFrame(Shard* shard, ActivePage* active) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void FindFrames();
  // Gives up that many copies, if there are; how many.
  size_t DropCopies(size_t first, size_t most) ABSL_EXCLUSIVE_LOCKS_REQUIRED(frames_mutex_);
  // Gives up one copy of this shard. False: there is none that was not granted since the hand came by.
  bool DropOne(Shard* shard) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // Offers up to `most` pages of this shard; how many.
  size_t Offer(Shard* shard, size_t most) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex, frames_mutex_);
  // Offers pages, and looks again in a while.
  void OfferPages(size_t first) ABSL_EXCLUSIVE_LOCKS_REQUIRED(frames_mutex_);
  void SwapPages(size_t first, size_t most) ABSL_EXCLUSIVE_LOCKS_REQUIRED(frames_mutex_);
  // The next copy, or owned page, of the shard that is at rest and was not granted since the hand came by; false: there
  // is none. Takes the marks away, so after two calls for nothing there is none at all.
  // `all`: for who gives everything away, pages in the swap too, which have no frame to give, and those of which
  // something is under way: a program may wait for more of it than this node will ever have.
  bool FindPage(Shard* shard, bool copies, Gfn* page, bool all = false) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // Evicts the page if all its bytes are zero; `active` is at rest, and not held. False: it is not, or it cannot be.
  bool EvictIfZero(Shard* shard, ActivePage* active) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // True if all bytes of the page were zero just now.
  bool IsZero(Gfn page);
  void HandleOffer(Shard* shard, Gfn page, const PageMessage& offer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // False: there is no room.
  bool Adopt(Shard* shard, ActivePage* active, bool urgent) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);

  // space_engine_hold.cc.
  void BeginHold(Shard* shard, ActivePage* active) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // Also says when to look again, if it is not.
  bool HoldIsOver(PageHold* hold, const Rival& rival) const;
  // Ends the hold of a page that is not active for it, if it is over.
  void SettleHold(ActivePage* active, const Rival& rival = {});
  bool RestingHoldIsOver(Shard* shard, Gfn page) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // space_engine_gather.cc. What a thread that has run for so long has executed.
  std::chrono::nanoseconds RunEnough() const;
  Monotonic::duration UntilNextLook() const;
  // The rival's ticket is older than this thread's of this node.
  bool GivesWay(const ThreadGather& gather, const Rival& rival) const;
  // `ran`: the thread's time of a processor.
  bool TurnIsOver(const ThreadGather& gather, std::chrono::nanoseconds ran, Monotonic now) const;
  // A thread begins to wait for a page: a new turn, if its last is over.
  void BeginWait(uint32_t thread);
  void EndWait(ThreadGather* gather);
  // The oldest ticket of the threads that wait for the page; 0: none has one.
  uint64_t TicketOf(const ActivePage& active) const;
  // The next ticket here is younger than those that others have.
  void HearTicket(uint64_t ticket);
  // Soon, how long the peers take to answer is measured anew.
  void PingSoon();
  void Ping();
  void PostPing(NodeId to, Epoch epoch, bool pong, uint64_t number);
  void OnPong(NodeId from, uint64_t number);

  // space_engine_join.cc.
  // It is in the epoch that has begun, and in none that held.
  bool IsJoining(NodeId node) const;
  // Tells an extent's new home what only this one, the home before, knows.
  void HandOver(Shard* shard, uint64_t number) ABSL_EXCLUSIVE_LOCKS_REQUIRED(pump_mutex_, shard->mutex);
  absl::Status TakeOver(Shard* shard, NodeId from, const Message& message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);

  // space_engine_leave.cc.
  bool leaving() const { return leaving_.load(std::memory_order_acquire); }
  absl::Status LeavesHere() const;
  // Wishes count as just begun, and are looked at again.
  void RenewWishes(bool advance);
  // All but those of programs. REQUIRES: no request is under way: one that replaces a page has it without its old
  // bytes, and the new ones are the wish's.
  void EndWishes(ActivePage* active);

  // space_engine_room.cc.
  // How many pages of others this node would take; `urgent`: of who has no other way; `without` so many of its own.
  uint64_t RoomForOthers(bool urgent = false, uint64_t without = 0) const;
  // Frames that are not for others' pages.
  uint64_t KeptFrames(bool urgent) const;
  // An offer was refused: room for the next one is looked for.
  void WantRoom(bool urgent);
  void TellRoom(Shard* shard, NodeId to, bool urgent) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void OnRoom(NodeId from, uint64_t pages);
  // As far as known; who is to be asked again has some.
  bool SomebodyHasRoom() ABSL_LOCKS_EXCLUDED(rooms_mutex_);
  // Of these nodes the one with most room, as far as known. False: none has any, or can be asked now.
  bool NextToOffer(NodeSet among, NodeId* node);

  // space_engine_pins.cc.
  // A Pin under way.
  struct PinOrder {
    Gfn first;
    uint64_t count = 0, next = 0;
    Granted granted;
  };
  void PinNext(const std::shared_ptr<PinOrder>& order);
  void EndPin(const std::shared_ptr<PinOrder>& order, const absl::Status& why);
  bool TakePin(Shard* shard, ActivePage* active) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // Does what was unpinned. False: it waits for a send slot.
  bool UnpinPage(Shard* shard, ActivePage* active) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);

  // space_engine_swap.cc.
  // True if nothing more can be written to the swap for now.
  bool IsSwapFull() const;
  void SetStage(Shard* shard, ActivePage* active, SwapStage stage) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // True if there may be room in the swap, and another page may be on its way to it.
  bool MaySwap() const;
  // Sends up to `most` pages of this shard to the swap; how many.
  size_t SwapOut(Shard* shard, size_t most) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void ReadBack(Shard* shard, ActivePage* active) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // For a wish. True: the page is in a frame again. False: it will be looked at again when there is a frame, or when it
  // is read.
  bool BringBack(Shard* shard, ActivePage* active) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  bool PutIntoFrame(Shard* shard, ActivePage* active) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // The bytes are wanted no more where the swap has them.
  void EndSwap(Shard* shard, ActivePage* active) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // What is not needed of a page that stays in the swap.
  void SettleSwap(Shard* shard, ActivePage* active) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void OnSwapped(Gfn page, bool written, const absl::Status& status);
  void OnWritten(Shard* shard, ActivePage* active, const absl::Status& status)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  std::string WhyNotSwapped() const;

  // space_engine_recovery.cc: what the coordinator drives.
  // The part of BeginEpoch and Commit in one shard.
  void BeginShard(Shard* shard, const SpaceEpoch& change, NodeSet lost) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // `adopters`: pages that come back, for which a frame must be found.
  void CommitShard(Shard* shard, std::vector<Gfn>* adopters) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void CommitLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(change_mutex_);
  void ReconcilePage(Shard* shard, Gfn page, PageRight right) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  bool MakeRoom();
  absl::Status CheckEpoch(Epoch epoch) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(change_mutex_);
  absl::Status StoppedHere() const;
  // Others' slots that this node could still answer into come back to them.
  void PassEpoch();
  absl::Status FailedHere() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(change_mutex_);
  // The space stops if nothing changes by then.
  void ArmChangeLimit() ABSL_EXCLUSIVE_LOCKS_REQUIRED(change_mutex_);

  // space_engine_losses.cc: what is told of nodes that were lost.
  void NoteLosses(NodeSet lost);
  // Why a Lost page cannot be had. `had_it`: the node that had its only copy; one that was not lost: not known which.
  std::string WhyLost(NodeId had_it) const;

  // space_engine_reports.cc: what the nodes say to each other meanwhile, and mirroring.
  enum class PumpStage : uint8_t { kIdle, kReport, kAwaitReports, kRebuild, kAwaitReconciles };
  // What this node has still to say. One step at a time, as far as the queues to the peers take it.
  struct PumpState {
    PumpStage stage = PumpStage::kIdle;
    Epoch epoch;
    NodeSet live;
    size_t shard = 0, extent = 0;  // the next: index, index in `touched`
    std::deque<std::pair<NodeId, std::pair<Message, std::string>>> unsent;
  };
  void SchedulePump();
  void Pump();
  bool PumpStep() ABSL_EXCLUSIVE_LOCKS_REQUIRED(pump_mutex_);
  bool FlushPump() ABSL_EXCLUSIVE_LOCKS_REQUIRED(pump_mutex_);
  // One extent, then the next; false after the last.
  bool NextExtent(bool rebuild) ABSL_EXCLUSIVE_LOCKS_REQUIRED(pump_mutex_);
  void PumpEach(uint16_t type) ABSL_EXCLUSIVE_LOCKS_REQUIRED(pump_mutex_);
  void PumpOne(NodeId to, uint16_t type, uint64_t extent, std::string body) ABSL_EXCLUSIVE_LOCKS_REQUIRED(pump_mutex_);
  void ReportExtent(Shard* shard, uint64_t number) ABSL_EXCLUSIVE_LOCKS_REQUIRED(pump_mutex_, shard->mutex);
  void RebuildExtent(Shard* shard, uint64_t number) ABSL_EXCLUSIVE_LOCKS_REQUIRED(pump_mutex_, shard->mutex);
  void AddReport(Shard* shard, uint64_t number, NodeId node, const std::vector<PageRun>& runs)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void EndRebuild(const absl::Status& status);
  void OnRecoveryMessage(NodeId from, const Message& message);
  // Of a shard's extent, with its lock. Not OK: no correct node sends this.
  absl::Status HandleRecovery(Shard* shard, NodeId from, const Message& message)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // True if the second node knows, or there is none.
  bool Mirror(Shard* shard, Gfn page) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void PostMirror(Shard* shard, NodeId to, uint16_t type, Gfn page, uint64_t mask)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);

  // space_engine_prefetch.cc.
  // A program waits for a page of another node. Without a lock.
  void Foresee(Gfn page);
  // `pages`: of one extent, as many as go in kBatchesTogether.
  void Prefetch(std::span<const Gfn> pages);
  bool CanPrefetch(Shard* shard, Gfn page) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void AskAhead(Shard* shard, Gfn page, LentSlot slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // Of one request; empty: there is none.
  LentSlot TakePrefetchSlot();
  void Decline(Gfn page);
  // Its request has ended.
  void NotePrefetched(ActivePage* active);
  // The page is not here any more.
  void NoteGone(Gfn page);

  // space_engine_batch.cc.
  // `pages`: of one extent, ascending, their frames taken.
  void AskBatch(Shard* shard, std::span<const Gfn> pages, LentSlot slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // `extent`: its first page. `batch.from` is this node.
  void PostBatch(Shard* shard, Gfn extent, PageBatch batch, Duty duty, LentSlot payload = {},
                 SendWhen when = SendWhen::kNow) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void HandleBatch(Shard* shard, Incoming incoming) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void HandleBatchRequest(Shard* shard, Incoming incoming) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void HandleBatchForward(Shard* shard, Incoming incoming) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void HandleBatchAnswer(Shard* shard, Incoming incoming) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  bool CanGive(Shard* shard, Gfn page) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void PostEmpty(Shard* shard, Gfn page, const PageMessage& answer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void HandleEmpty(Shard* shard, NodeId from, Gfn gfn, uint64_t transaction, uint64_t serial)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // It was fetched ahead, and its request ends without it.
  void EndDeclined(ActivePage* active);
  void OnBatchMessage(NodeId from, const Message& message, Incoming incoming);
  void OnEmpty(NodeId from, const Message& message);
  std::string WhyImpossible(const Shard& shard, NodeId from, Gfn page, const PageBatch& batch) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mutex);

  // space_engine_homes.cc.
  NodeId HomeIn(const Shard& shard, Gfn page) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mutex) {
    return placement_.HomeOf(page.value() / kExtentPages, shard.live);
  }
  // The entry rests, if nothing of it is under way. It is not to be used after.
  void RestHome(Shard* shard, Gfn page, BusyEntry* busy) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void FillAround(Shard* shard, Gfn page) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  bool IsDormantHere(Shard* shard, Gfn page) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void HandleHome(Shard* shard, Incoming incoming) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  bool StepHome(Shard* shard, Gfn page, BusyEntry* busy, DirectoryEvent event)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void Handle(Shard* shard, Incoming incoming) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // What the node has said to itself meanwhile.
  void Drain(Shard* shard) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // Sends the message to another node or to this one. `duty`: of a Request, Forward, Answer or Nack. `payload`: the
  // send slot with the page, `give` the same if it is to be released afterwards.
  void Post(Shard* shard, Gfn page, const PageMessage& message, Duty duty, SlotId payload = {}, LentSlot give = {},
            SendWhen when = SendWhen::kNow) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // True: the acknowledgement is this node's own, for the answer that waits for it, and is in it now.
  bool TakeOwnAck(Shard* shard, Gfn page, const PageMessage& ack) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void PostAnswer(Shard* shard) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  // Others wait for the transaction's Done: its requester is told, once, not to take its time.
  void Hurry(Shard* shard, Gfn page, BusyEntry* busy) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void HandleHurry(Shard* shard, const Message& message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void OnSendFailed(NodeId to, const absl::Status& status);
  // Empty, or why no correct node sends this.
  std::string WhyImpossible(const Shard& shard, const Incoming& incoming) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mutex);

  const SpaceConfig config_;
  const NodeSet nodes_;
  const SpacePlacement placement_;
  Transport* const transport_;
  PageFrames* const frames_;
  Timers* const timers_;
  const Clock& clock_;
  const Stopped on_stopped_;
  PageSwap* const swap_;  // null: none
  std::array<Shard, kShards> shards_;
  SpaceOutbox outbox_;
  std::atomic<bool> stopped_{false};
  std::atomic<bool> untold_{false};  // the others are to be told why
  std::atomic<bool> alone_{false};   // it is stopped, and they may go on without it
  std::atomic<bool> sweep_due_{false};
  std::atomic<bool> watching_{false};
  std::atomic<size_t> first_shard_{0};     // who is served first when slots are free
  std::atomic<uint64_t> frames_taken_{0};  // pages that have a frame or will
  std::atomic<bool> frames_due_{false};    // somebody waits for a frame, and there may be one or one can be made
  std::atomic<bool> low_{false};           // whoever took a frame found few left
  std::atomic<bool> scarce_{false};        // fewer copies than FramesKept, when frames were looked for last
  std::atomic<bool> room_wanted_{false};   // an offer was refused
  std::atomic<bool> offering_{false};      // until offers are looked at again
  std::atomic<bool> offers_idle_{false};   // of those of last time none was taken
  Mutex leave_mutex_;                      // before any other
  std::atomic<bool> leaving_{false};
  std::atomic<bool> takes_part_{true};    // in an epoch that held; until then its end is nobody else's
  std::atomic<bool> pump_pauses_{false};  // a timer is on its way
  std::atomic<bool> pinging_{false};      // a timer is on its way
  std::atomic<uint64_t> last_ticket_{0};
  std::atomic<Monotonic::rep> stretched_hold_{0}, round_trip_{0};
  Mutex pings_mutex_;  // the last
  uint64_t last_ping_ ABSL_GUARDED_BY(pings_mutex_) = 0;
  Monotonic ping_sent_ ABSL_GUARDED_BY(pings_mutex_);
  NodeSet ping_live_ ABSL_GUARDED_BY(pings_mutex_);  // whom the last one went to
  NodeSet pinged_ ABSL_GUARDED_BY(pings_mutex_);     // that have not answered it
  std::array<LatencyFloor, kMaxNodes> peers_ ABSL_GUARDED_BY(pings_mutex_);
  int fruitless_offers_ = 0;             // rounds of them, one after another; of the timer of offers
  std::atomic<uint64_t> given_away_{0};  // pages that others have adopted
  Mutex frames_mutex_;                   // one looks for frames at a time; before the shards' locks
  // What a node has said of its room, and was told of ours. Plain value.
  struct Room {
    uint64_t pages = kMaxSpacePages;  // until it has said something
    Monotonic unasked_until, told_until;
  };
  Mutex rooms_mutex_;  // after the shards' locks
  std::array<Room, kMaxNodes> rooms_ ABSL_GUARDED_BY(rooms_mutex_);
  size_t next_offer_ ABSL_GUARDED_BY(rooms_mutex_) = 0;
  std::atomic<uint64_t> pinned_{0};                  // or to be
  std::atomic<bool> pressed_{false};                 // an offer was refused whose sender has no other way
  std::atomic<size_t> swap_writes_{0};               // under way
  std::atomic<uint64_t> swap_taken_{0};              // pages in the swap, or on their way
  std::atomic<Monotonic::rep> swap_pause_until_{0};  // after a write that failed
  Suspended on_suspended_;
  std::atomic<Phase> phase_{Phase::kRunning};
  std::atomic<uint64_t> changes_{0};  // of the phase: whoever waits for a change knows one by it
  mutable Mutex change_mutex_;
  Epoch epoch_ ABSL_GUARDED_BY(change_mutex_);
  Epoch committed_ ABSL_GUARDED_BY(change_mutex_);
  NodeSet lost_ ABSL_GUARDED_BY(change_mutex_);  // ever, but for those that have come again
  NodeSet members_
      ABSL_GUARDED_BY(change_mutex_);  // of the last epoch that held: those of live_ that are not are to join
  NodeSet live_ ABSL_GUARDED_BY(change_mutex_), failed_ ABSL_GUARDED_BY(change_mutex_);
  NodeSet report_ends_ ABSL_GUARDED_BY(change_mutex_), reconcile_ends_ ABSL_GUARDED_BY(change_mutex_);
  bool rebuilt_ ABSL_GUARDED_BY(change_mutex_) = false;
  std::string failure_ ABSL_GUARDED_BY(change_mutex_);  // of the last peer
  std::function<void(const absl::Status&)> rebuild_done_ ABSL_GUARDED_BY(change_mutex_);
  Mutex pump_mutex_ ABSL_ACQUIRED_BEFORE(change_mutex_);
  PumpState pump_ ABSL_GUARDED_BY(pump_mutex_);
  std::atomic<bool> pumping_{false};  // a Rebuild is under way
  mutable Mutex prefetch_mutex_;      // after a shard's
  PrefetchStreams streams_ ABSL_GUARDED_BY(prefetch_mutex_);
  std::atomic<bool> foresees_{false};                         // pages were named
  std::atomic<uint64_t> prefetching_{0}, prefetch_slots_{0};  // pages and requests
  // When the space began to go on without a node, Unix time; 0: it does not. By number.
  std::array<std::atomic<int64_t>, kMaxNodes> lost_at_s_{};
  mutable Mutex reason_mutex_;
  absl::Status swap_failure_ ABSL_GUARDED_BY(reason_mutex_);  // the last one
  absl::Status reason_ ABSL_GUARDED_BY(reason_mutex_);
};

}  // namespace hk::space
