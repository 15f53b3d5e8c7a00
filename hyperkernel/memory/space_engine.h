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
//     ends with it.
//
// Thread-safe. Callbacks run on the thread that found out, inside the page's lock: they must not call the engine and
// not block.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/node_set.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/page_frames.h"
#include "hyperkernel/memory/page_protocol.h"
#include "rdma/transport.h"

namespace hk {

// Pages of an extent: 2 MiB. Extents are what has a home.
inline constexpr uint64_t kExtentPages = 512;
// Most pages of a space: 4 PiB (Debian 12's CPUs have 52 bits of physical address).
inline constexpr uint64_t kMaxSpacePages = uint64_t{1} << 40;

// Fewest frames of a node: an instruction may need as many pages at once (code and data over page ends, four levels of
// page tables), or it never ends.
inline constexpr uint64_t kLeastFrames = 8;

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
  std::vector<NodeId> nodes;  // ascending, without repetition; `self` is one of them
  uint64_t pages = 0;         // GFNs 0 to pages - 1
  // Most frames of the space on this node, at least kLeastFrames; 0: no bound. Beyond it Shared copies are dropped,
  // then pages are offered to the other nodes; if none takes any in request_limit, the space stops.
  uint64_t max_pages = 0;
  // A granted page is kept for that long (DESIGN 4): an instruction that needs several pages at once comes to its end.
  std::chrono::microseconds hold{200};
  // Between a Nack(busy) and the next try: up to this, by chance.
  std::chrono::microseconds retry{500};
  // A request not answered by then stops the space. Far above holds, retries and the transport's lease (2 s): only a
  // peer that is alive and broken can make it.
  std::chrono::milliseconds request_limit{30'000};
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
  uint64_t retries = 0;                                             // Nack(busy)
  uint64_t stale_messages = 0;                                      // README, R1
  // Asked for ahead of a stream of read faults; as far as it is known: used, or gone before that.
  uint64_t prefetched = 0, prefetch_useful = 0, prefetch_wasted = 0;
  std::array<uint64_t, kLatencyBuckets> read_latency{}, write_latency{};  // from the wish to the installation
};

// Who holds the pages of an extent on this node, by count. Plain value.
struct ExtentUse {
  uint64_t extent = 0;  // GFN / kExtentPages
  uint32_t shared = 0, owned = 0, exclusive = 0;
};

// What is under way, for tests and whoever looks for leaks: all of it is 0 when nobody wishes and nothing is on its
// way. Plain value.
struct SpaceResidue {
  size_t active_pages = 0, busy_entries = 0, unsent_messages = 0, waiting_for_slots = 0;
  size_t table_bytes = 0;  // of all extents that were touched; this one stays
};

// One space on this node.
class SpaceEngine {
 public:
  // Called once, with the page's lock held: why this node can no longer keep the space. `page` as far as it is one's
  // fault.
  using Stopped = std::function<void(const absl::Status& why)>;
  // Called once, with the page's lock held: OK means that the page is here now and stays so during the call.
  using Granted = std::function<void(const absl::Status& status)>;

  // All of them outlive the engine. The transport's handler gives it what belongs to its guest and generation.
  // kInvalidArgument, naming the field.
  static absl::StatusOr<std::unique_ptr<SpaceEngine>> Create(const SpaceConfig& config, Transport* transport,
                                                             PageFrames* frames, Timers* timers, const Clock& clock,
                                                             Stopped stopped);
  // REQUIRES: no call is under way or comes; the guest is forgotten by the transport (ForgetGuest) or it has stopped.
  virtual ~SpaceEngine() = default;

  // A program touched the page and waits (userfaultfd). Wake of the frames follows when it is worth to look again.
  virtual void OnFault(Gfn page, bool write) = 0;
  // Asks for the page; `granted` follows, maybe inside this call. Several may wait for one page. Out of the space:
  // kOutOfRange.
  virtual void Want(Gfn page, PageAccess access, Granted granted) = 0;
  // Writes all of the page: kPageSize bytes, which stay valid until `granted`. The old ones are not fetched, and nobody
  // sees anything but those or the new ones. `granted` follows when it is written, as after Want.
  virtual void Replace(Gfn page, std::span<const std::byte> bytes, Granted granted) = 0;

  // From the transport's handler.
  virtual void OnMessage(NodeId from, const Message& message, std::span<const std::byte> payload, bool late) = 0;
  virtual void OnWritable(NodeId peer, MessageClass message_class) = 0;
  virtual void OnSlotsFree(MessageClass message_class, SlotUse use) = 0;
  virtual void OnRequestExpired(NodeId asked, MessageClass message_class, uint64_t transaction, SlotId slot,
                                RequestFailure why) = 0;
  virtual void OnPeerFailed(NodeId peer, PeerFailure why, const std::string& detail) = 0;

  // Stops the space here with this reason, as if it had found out itself.
  virtual void Stop(const absl::Status& why) = 0;

  virtual SpaceStatistics Statistics() const = 0;
  // Extents of which pages are here, ascending, from extent `first` on, `most` at most.
  virtual std::vector<ExtentUse> Uses(uint64_t first, size_t most) const = 0;
  // The page's right on this node, and its home.
  virtual PageRight RightOf(Gfn page) const = 0;
  virtual NodeId HomeOf(Gfn page) const = 0;
  virtual SpaceResidue Residue() const = 0;
};

}  // namespace hk
