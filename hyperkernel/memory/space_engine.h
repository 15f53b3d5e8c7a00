// The fault engine: one space on one node. Joins the pure machines (page_protocol.h, page_directory.h) with the
// transport, the frames and time: takes faults, wishes of devices and tools, and messages; looks the page up, takes a
// step, and does the actions.
//
// Invariants:
//  1. A page's steps, and the actions of each, are serial: a page belongs to one of kShards shards by its extent, each
//     with one lock. No lock is held over a wait; the transport's Send does not block.
//  2. What a node says to itself goes through its shard's own queue, emptied before the lock is given back.
//  3. Every request that leaves has a receive slot, and every answer with payload a send slot. Where there is none, the
//     wish (or the message that needs it) waits in the engine until the transport says that there are some again.
//  4. What Send refuses for a full queue waits in the engine's outbox of that peer and class, in order, and nothing
//     overtakes it. Bounded by the pages under transaction.
//  5. Nothing waits for ever: a request that is not answered within `request_limit`, a peer that failed, a coherence
//     violation and frames that fail stop the space on this node with one reason (Stopped); from then on every wish
//     ends with it. A peer that may be lost only suspends it: until a new epoch runs, or `request_limit`.
//
// Thread-safe. Callbacks run on the thread that found out, inside the page's lock: they must not call the engine and
// not block.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/node_set.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/guest_receiver.h"
#include "hyperkernel/memory/hot_pages.h"
#include "hyperkernel/memory/page_frames.h"
#include "hyperkernel/memory/page_protocol.h"
#include "hyperkernel/memory/page_swap.h"
#include "rdma/transport.h"

namespace hk {

// Pages of an extent: 2 MiB. Extents are what has a home.
inline constexpr uint64_t kExtentPages = 512;
// Most pages of a space: 4 PiB (Debian 12's CPUs have 52 bits of physical address).
inline constexpr uint64_t kMaxSpacePages = uint64_t{1} << 40;

// Fewest frames of a node: an instruction may need as many pages at once (code and data over page ends, four levels of
// page tables), or it never ends.
inline constexpr uint64_t kLeastFrames = 8;

// Of a node's frames, those that it keeps for copies, whoever else is in need: what a program reads together must find
// frames beside the pages that the node owns, or each page drops the next for ever. A thirty-second is half of what
// nodes must have to spare when a space is made (space_rules): where all frames are needed, some node has room for a
// page still. Of few frames an eighth, as far as one instruction may need so many.
constexpr uint64_t FramesKept(uint64_t max_pages) {
  return std::max(max_pages / 32, std::min(max_pages / 8, kLeastFrames));
}

// Most pages of a space that are pinned on one node at a time; with a bound of frames, half of them. 128 MiB: what a
// machine's disks may have in flight together (kMaxDisks times kMostPinnedByDisk), and as much again for its rings and
// network cards. A pinned page costs about 0.5 KiB.
inline constexpr uint64_t kMostPinnedPages = 32768;
// The same of a node whose bound of frames is `max_pages` (0: none).
inline constexpr uint64_t MostPinnedPages(uint64_t max_pages) {
  return max_pages == 0 || max_pages / 2 > kMostPinnedPages ? kMostPinnedPages : max_pages / 2;
}

// Most pages that may come back to a node at a change of epoch, on their way to others then: each has a send slot, and
// a transport has that many (TransportSettings). A node may have so many frames more than max_pages then, for a while.
inline constexpr uint64_t kMostReturningPages = 1088;

// Runs something later. Thread-safe; what is under way when the engine ends is dropped by its owner.
class Timers {
 public:
  virtual ~Timers() = default;
  virtual void After(Monotonic::duration delay, std::function<void()> run) = 0;
};

// What a space is, the same on every node but for `self`. Plain value.
struct SpaceConfig {
  GuestId guest;
  uint32_t generation = 1;
  Epoch epoch = Epoch(1);
  NodeId self;
  std::vector<NodeId> nodes;  // that may ever take part: ascending, without repetition; `self` is one of them
  // Those that take part. Empty: all nodes. Without `self`: this one is to join, and waits for an epoch that it is in.
  NodeSet live{};
  // For a node that joins: who took part in the epochs that were committed (AddSet), the last one in `epoch`.
  std::vector<NodeSet> committed{};
  uint64_t pages = 0;  // GFNs 0 to pages - 1
  // Most frames of the space on this node, at least kLeastFrames; 0: no bound. Beyond it Shared copies are dropped,
  // then pages are offered to the other nodes; if none takes any in request_limit, the space stops.
  uint64_t max_pages = 0;
  // Most pages of this node in its swap: beside max_pages, when neither dropping nor offering finds a frame; 0: none.
  uint64_t swap_pages = 0;
  // Virtual CPUs of this node on the space: max_pages is at least kLeastFrames for each.
  uint32_t vcpus = 0;
  // A granted page is kept for at least that long (DESIGN 4): an instruction that needs several pages at once comes to
  // its end. Longer where pages take longer to come, and by chance (README, "The engine", 6). 0: not at all.
  std::chrono::microseconds hold{200};
  // Between a Nack(busy) and the next try: up to this, by chance.
  std::chrono::microseconds retry{500};
  // A request not answered by then stops the space. Far above holds, retries and the transport's lease (2 s): only a
  // peer that is alive and broken can make it.
  std::chrono::milliseconds request_limit{30'000};
  // The node that changes epochs. Nothing: nobody does, and the loss of any node stops the space.
  std::optional<NodeId> coordinator;
  // The coordinator is the home of all extents: for a space that it alone uses most. REQUIRES: coordinator.
  bool homes_at_coordinator = false;
  // With that, at the coordinator: a first write to a page that no node ever wrote gets that many pages
  // around it a frame of zeroes too, while there are frames to spare; 0: none. At most kExtentPages, a power of two.
  uint32_t fill_around = 0;
};

// What a space that lost nodes goes on with. Plain value.
struct SpaceEpoch {
  Epoch epoch;        // above every one before
  NodeSet survivors;  // with the coordinator
  Epoch committed;    // the last epoch that any node was told to commit; the space's first one if none was
  // Of those that are no survivors: had given all they had away (Leave), or were to join and did not. Not called lost.
  NodeSet left{};
  NodeSet joined{};  // of the survivors: are new. With them nobody is lost, or they are left out next time
};

// How far a node is with leaving its space. Plain value.
struct SpaceLeaving {
  bool leaving = false;
  uint64_t pages_left = 0;    // that this node still owns, or that are on their way
  uint64_t pages_pinned = 0;  // of those: stay until devices are done
  uint64_t pages_lost = 0;    // this node is the home of, and nobody else would know that they are lost
  bool running = false;       // no epoch changes
  // Nothing of the space is lost with this node. It stays so while it is leaving and no epoch begins.
  bool empty() const { return leaving && running && pages_left == 0 && pages_lost == 0; }
};

// How far a space is with its epochs on this node. Plain value.
struct SpaceEpochState {
  Epoch epoch;              // the last that began
  NodeSet nodes;            // its survivors
  bool running = true;      // false: wishes wait for an epoch
  NodeSet failed;           // of `nodes`: whose connection this node has lost; itself, if it has stopped alone
  uint64_t pages_lost = 0;  // whose home this node is
  // Of these, by the lost node that had the only copy, where it is known which one that was.
  std::map<NodeId, uint64_t> pages_lost_with{};
};

// Counters since the space was made; a value that was true at some moment of the call. Plain value.
struct SpaceStatistics {
  static constexpr size_t kLatencyBuckets = 32;                     // [i]: 2^i ns to 2^(i+1) ns
  uint64_t pages_shared = 0, pages_owned = 0, pages_exclusive = 0;  // here, by right, now
  uint64_t read_faults = 0, write_faults = 0;                       // wishes that had to ask the home
  uint64_t upgrades = 0;                                            // of write_faults: the page was readable here
  uint64_t served = 0;                                              // pages given to others with their bytes
  uint64_t revoked = 0;                                             // pages taken away for others
  uint64_t dropped = 0, adopted = 0;                                // for frames: copies; pages of others
  uint64_t zeroed = 0;                                              // for frames: owned pages, all zero
  uint64_t pages_pinned = 0;                                        // now; as often as they are
  uint64_t pages_swapped = 0;                                       // of those owned and exclusive, now
  uint64_t swap_writes = 0, swap_reads = 0, swap_failures = 0;      // failures: writes; the page stayed
  uint64_t retries = 0;                                             // Nack(busy)
  uint64_t stale_messages = 0;                                      // README, R1
  uint64_t pages_lost = 0;                                          // with the home here, now
  // Asked for ahead of a stream of read faults; as far as it is known: used, or gone before that.
  uint64_t prefetched = 0, prefetch_useful = 0, prefetch_wasted = 0;
  uint64_t peeks = 0;                 // reads that asked an owner beside the home
  uint64_t peeks_used = 0;            // of these: granted by the home alone
  uint64_t peeks_refused = 0;         // of these: in vain
  uint64_t filled_around = 0;         // pages that got a frame for a first write to one beside them
  uint64_t batches = 0, empties = 0;  // requests for several of them; pages of these that came without their bytes
  uint64_t fetched = 0;               // wishes of those below that got their page's bytes from another node
  std::array<uint64_t, kLatencyBuckets> read_latency{}, write_latency{};  // from the wish to the installation
};

// Who holds the pages of an extent on this node, by count. Plain value.
struct ExtentUse {
  uint64_t extent = 0;  // GFN / kExtentPages
  uint32_t shared = 0, owned = 0, exclusive = 0;
  float heat = 0;  // rights granted and taken, with the decay of DecayedCount
};

// What is under way, for tests and whoever looks for leaks: all of it is 0 when nobody wishes and nothing is on its
// way. Plain value.
struct SpaceResidue {
  size_t active_pages = 0, busy_entries = 0, unsent_messages = 0, waiting_for_slots = 0;
  size_t prefetches = 0;  // pages that are fetched ahead, requests for such, batches that are not answered
  uint64_t frames = 0;    // that are counted as taken: as many as pages are here and not in the swap
  // These stay: tables of all extents that were touched, of frames and swap, and what hints take whatever is touched.
  size_t table_bytes = 0;
};

// One space on this node.
class SpaceEngine : public GuestReceiver {
 public:
  // Called once, with the page's lock held: why this node can no longer keep the space. `page` as far as it is one's
  // fault.
  using Stopped = std::function<void(const absl::Status& why)>;
  // Called once, with the page's lock held: OK means that the page is here now and stays so during the call.
  using Granted = std::function<void(const absl::Status& status)>;

  // All of them outlive the engine. The transport's handler gives it what belongs to its guest and generation.
  // `swap`: REQUIRED with config.swap_pages, and it holds as many. kInvalidArgument, naming the field.
  static absl::StatusOr<std::unique_ptr<SpaceEngine>> Create(const SpaceConfig& config, Transport* transport,
                                                             PageFrames* frames, Timers* timers, const Clock& clock,
                                                             Stopped stopped, PageSwap* swap = nullptr);
  // REQUIRES: no call is under way or comes, of the swap too; the guest is forgotten by the transport (ForgetGuest) or
  // it has stopped.
  ~SpaceEngine() override = default;

  // A program touched the page and waits (userfaultfd). Wake of the frames follows when it is worth to look again.
  virtual void OnFault(Gfn page, bool write, uint32_t thread) = 0;
  void OnFault(Gfn page, bool write) { OnFault(page, write, 0); }
  // Asks for the page; `granted` follows, maybe inside this call. Several may wait for one page. Out of the space:
  // kOutOfRange.
  virtual void Want(Gfn page, PageAccess access, Granted granted) = 0;
  // Writes all of the page: kPageSize bytes, which stay valid until `granted`. The old ones are not fetched, and nobody
  // sees anything but those or the new ones. `granted` follows when it is written, as after Want.
  virtual void Replace(Gfn page, std::span<const std::byte> bytes, Granted granted) = 0;

  // Pins pages `first` to `first` + `count` - 1 for a write of a device: this node has all of them writable, and keeps
  // them so until Unpin; others wait, and it is never given up for its frame. `granted` follows when all are pinned, or
  // with why none is; not inside this call if a page has to be fetched. They are pinned in ascending order, so that
  // nodes do not wait for each other in a ring: who holds pins asks for none below them. Nobody holds a pin while it
  // waits for anything but a disk. kOutOfRange, kResourceExhausted (kMostPinnedPages).
  virtual void Pin(Gfn first, uint64_t count, Granted granted) = 0;
  // REQUIRES: pinned as often as unpinned, unless the space has stopped. The others that wait have the page now.
  virtual void Unpin(Gfn first, uint64_t count) = 0;

  // Stops the space here with this reason, as if it had found out itself.
  virtual void Stop(const absl::Status& why) = 0;

  // Epochs (README, "Recovery"), driven by the coordinator: each call begins at no node before the call before has
  // ended at all survivors. Errors: kFailedPrecondition, stopped, with the reason; kUnavailable, naming a survivor that
  // failed here, or stopped, and the others may go on without this node (EpochState().failed has which); kAborted,
  // another epoch. Defaults: for what has no epochs.
  using Suspended = std::function<void(NodeId failed)>;
  // Before the engine is used. Told for each node whose loss the space may survive, with or without locks held: it must
  // not call the engine and not block.
  virtual void WatchLosses(Suspended /*suspended*/) {}
  // No older message is sent or taken any more; what was under way is given up. Wishes go on waiting.
  virtual absl::Status BeginEpoch(const SpaceEpoch& /*epoch*/) { return absl::UnimplementedError("no epochs"); }
  // Tells each page's new home what is here, and makes the entries whose home this is. `done`: all survivors have told,
  // and have said what this node has from now on. On a thread of the timers or the transport, maybe inside this call.
  virtual void Rebuild(Epoch /*epoch*/, std::function<void(const absl::Status&)> done) {
    done(absl::UnimplementedError("no epochs"));
  }
  // What was rebuilt holds: messages of the epoch are served.
  virtual absl::Status Commit(Epoch /*epoch*/) { return absl::UnimplementedError("no epochs"); }
  // Wishes ask again.
  virtual absl::Status Run(Epoch /*epoch*/) { return absl::UnimplementedError("no epochs"); }
  virtual SpaceEpochState EpochState() const { return {}; }
  // Before the space goes on without this node though it lives: it offers all pages that it owns to the others, as they
  // have room, takes no more, and asks for none: wishes of Want, Replace and Pin end with kFailedPrecondition, programs
  // wait. It goes on being a home. When LeavingState is empty, the coordinator begins an epoch without it (left), which
  // stops the space here. `leave` false: it stays after all, and programs go on.
  virtual void Leave(bool /*leave*/) {}
  virtual SpaceLeaving LeavingState() const { return {}; }
  // True if this node is the page's home and the page is lost.
  virtual bool IsLost(Gfn /*page*/) const { return false; }

  virtual SpaceStatistics Statistics() const = 0;
  // Extents of which pages are here, ascending, from extent `first` on, `most` at most.
  virtual std::vector<ExtentUse> Uses(uint64_t first, size_t most) const = 0;
  // Pages that this node loses to others again and again, those most lost of late first.
  virtual std::vector<HotPage> MostLost(size_t most) const = 0;
  // The page's right on this node, and its home.
  virtual PageRight RightOf(Gfn page) const = 0;
  virtual NodeId HomeOf(Gfn page) const = 0;
  virtual SpaceResidue Residue() const = 0;
};

}  // namespace hk
