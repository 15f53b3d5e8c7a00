// The storage replica table of one guest on one node: which pages hold which blocks of the guest's disks (README.md).
// This is the shell around replica_entry.h, io_window.h and flush_clock.h: storage, index and locks.
//
// Invariants, beside those of an entry:
//  1. A change is in the file when the call that makes it returns: what is removed stays removed if the process dies.
//  2. Chains of the index hold exactly the slots whose entry names a block. They are rebuilt when a file is opened.
//  3. An entry that names a block is changed under the lock of its block's stripe; one that does not under the lock of
//     its slot; who makes one name a block holds both. A slot's lock is taken before a stripe's, never two stripes.
//  4. The page of frame f in a bank lies at f pages from the begin of the bank's frame file, on the node the entry
//  names.
//     In the present bank f is the GFN.
//
// Thread safety: thread-safe, but for what says that it needs the guest to stand still. Nothing blocks but on these
// locks, held for some hundred instructions, and on fallocate() for the first entry of 2 MiB.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/mapping.h"
#include "hyperkernel/base/mutex.h"
#include "storage-replica/disk_io.h"
#include "storage-replica/flush_clock.h"
#include "storage-replica/io_window.h"
#include "storage-replica/replica_entry.h"
#include "storage-replica/table_file.h"

namespace hk {

// What an image is known by. Plain value. `image`: of what names it for good (device and inode, or the device's
// serial), hashed; not 0. `changed_ns`: mtime, wall clock.
struct DiskImageIdentity {
  uint64_t image = 0;
  uint64_t bytes = 0;
  uint64_t changed_ns = 0;
};

// True if the image is the one of `then`, and was not changed after `then.changed_ns`, our own last change.
bool IsUnchanged(const DiskImageIdentity& now, const DiskImageIdentity& then);

// A frame file and a frame in it. Plain value.
struct FrameRef {
  uint64_t file_generation = 0;
  uint64_t frame = 0;
  friend bool operator==(const FrameRef&, const FrameRef&) = default;
};

// Consecutive blocks of a disk that are in consecutive frames of one node (`hit`), or in none. Plain value.
struct ReplicaRun {
  bool hit = false;
  Ssa first;
  uint64_t blocks = 0;
  // Of hits.
  NodeId node{};
  FrameRef frame;           // of the first block
  uint64_t generation = 0;  // of all of them
  bool check = false;       // their bytes are to be checked before they are used: see Confirm
};

// A request in flight. From Begin to End, once. Plain value.
struct IoTicket {
  uint64_t generation = 0;
  IoWindow::Place place = 0;
};

// Counts. Plain value.
struct ReplicaStatistics {
  uint64_t pending = 0;     // entries now
  uint64_t valid = 0;       // entries now, Unchecked too
  uint64_t removed = 0;     // entries that were valid, since the start
  uint64_t found = 0;       // blocks that Lookup found
  uint64_t not_found = 0;   // blocks that it did not
  uint64_t refused = 0;     // pages that were not tracked for want of memory
  uint64_t recovered = 0;   // entries of an earlier process
  uint64_t dropped = 0;     // entries of an earlier process that were not believed
  uint64_t mismatched = 0;  // entries of an earlier process whose page was not what its checksum says
  uint64_t impossible = 0;  // requests that ended without having begun: own errors
  uint64_t bytes = 0;       // memory of the table
};

// Told of every entry that becomes or ceases to be served; see durable_replica.h. Called with locks held: must not call
// the table, nor block.
class ReplicaJournal {
 public:
  virtual ~ReplicaJournal() = default;
  // `was`: the block that the slot was served for until now, if it was.
  virtual void Changed(uint32_t slot, std::optional<Ssa> was) = 0;
  // Slots are of other frames than before.
  virtual void FilesChanged() = 0;
};

// One table. See above for threads.
class ReplicaTable {
 public:
  // As TableFile::Create.
  static absl::StatusOr<std::unique_ptr<ReplicaTable>> Create(OwnedFd file, const TableIdentity& identity,
                                                              uint64_t file_generation,
                                                              uint64_t first_generation = kGenerationStep,
                                                              std::shared_ptr<TableRoom> room = nullptr);
  // As TableFile::Open; entries of an earlier process are Unchecked, those that cannot be checked are dropped, and so
  // are those of disks until they are attached. REQUIRES: that process has ended.
  static absl::StatusOr<std::unique_ptr<ReplicaTable>> Open(OwnedFd file, const TableIdentity& identity,
                                                            std::shared_ptr<TableRoom> room = nullptr);
  ~ReplicaTable();

  // --- Disks. REQUIRES: the disk has no request in flight.
  // Entries of the disk count if its image is the one of before, unchanged since our own last change; else they are
  // dropped. True if they count. A disk that is read-only is stable: its entries need no flush.
  bool AttachDisk(DiskId disk, const DiskImageIdentity& identity, bool read_only);
  // Drops the disk's entries.
  void DropDisk(DiskId disk);

  // --- Requests of disks, in this order (README.md, "A disk request"): Begin; then the pages of the request are
  // write-protected; then the I/O; then, for a checksum, the pages are read; End. Requests may come from any thread. A
  // request that is served from frames goes the same way, the copying instead of the I/O.
  // `now_ns`: wall clock. REQUIRES: disk below kMaxReplicaDisks.
  IoTicket Begin(const DiskIo& io, uint64_t now_ns);
  // `io`: as it was in Begin. `ok`: all bytes were transferred. `checksums`: of the whole pieces, in their order
  // (ChecksumOf); or none: the entries will not outlive the process. Returns the flush that will cover the blocks.
  uint32_t End(const IoTicket& ticket, const DiskIo& io, bool ok, std::span<const uint64_t> checksums, uint64_t now_ns);
  // A flush of the disk is about to be submitted; its number, for FlushEnds. If it fails, what the disk holds is not
  // known: the disk's entries are dropped.
  uint32_t FlushBegins(DiskId disk);
  void FlushEnds(DiskId disk, uint32_t flush, bool ok);
  // Up to which flush the disk's blocks are stable.
  uint32_t DurableFlush(DiskId disk);
  // Our own last change of the disk, as `now_ns` of Begin and End told it.
  uint64_t LastChangeNs(DiskId disk) const;

  // --- Reads from frames. All runs of the blocks, in order, hits and gaps. Pending entries are gaps.
  void Lookup(DiskId disk, BlockRange blocks, std::vector<ReplicaRun>* runs);
  // To be asked after the bytes of a hit have been copied, or under a pin, before they are used: true if they are the
  // blocks' still. `checksums`: of the copied pages if the run is to be checked; pages that do not agree are removed.
  // Asked of the table of the node that has the frames and, if that is another, then of the I/O node's too.
  bool Confirm(const ReplicaRun& run, std::span<const uint64_t> checksums);

  // --- Pages of the guest. The page's transaction orders these calls.
  // The page is about to be writable, or its bytes to change: to be called before. True if an entry was removed. Costs
  // a load where nothing is tracked.
  bool Remove(Gfn gfn);
  // What of the page must be write-protected: it has an entry.
  bool IsTracked(Gfn gfn) const;
  // The page moves to `to`, in the step that moves its ownership. The entry that goes with it; the I/O node keeps it
  // with the new address, others (keep = false) remove it.
  std::optional<ReplicaEntry> Leaves(Gfn gfn, NodeId to, bool keep);
  // The page has come with this entry, or with none; one beyond the limits is none. On the I/O node (`authority`) it
  // counts only if it is the entry that stands here.
  void Comes(Gfn gfn, const std::optional<ReplicaEntry>& entry, bool authority);
  // On the I/O node: the page with this entry went from a node to another.
  void Relocate(Gfn gfn, const ReplicaEntry& entry, NodeId to);

  // --- Warm files. REQUIRES: the guest stands still, no request is in flight.
  // The present bank becomes a warm file; the guest goes on in a new frame file. Returns the frame file that is no
  // longer tracked at all, 0 if there is none: the oldest, where there were kTableBanks. Errors: errno; the table is to
  // be abandoned.
  absl::StatusOr<uint64_t> Reset(uint64_t new_file_generation);
  // The present bank, of which nothing is served, is for another frame file; no other bank changes. A process that dies
  // within leaves a table that is refused. REQUIRES: as Reset.
  void RenamePresent(uint64_t new_file_generation);
  // A frame file of before, whose entries come by Restore, is a warm file. Errors: kResourceExhausted: there are
  // kTableBanks already.
  absl::Status AddWarm(uint64_t file_generation);
  // An entry of the durable form, Unchecked; its block is stable (DurableStore::Load). Nothing if the frame has one, or
  // its file is not a bank.
  void Restore(const FrameRef& frame, const ReplicaEntry& entry);
  // Warm frames that were moved out, or are to be punched: their entries go. Needs no standstill.
  void RemoveFrames(const FrameRef& first, uint64_t count);
  // Calls each(frame) for every frame of the file whose entry is served, in order.
  void ForEachServed(uint64_t file_generation, const std::function<void(uint64_t frame)>& each) const;

  // --- For the durable form.
  // At most one; set before use, or while the guest stands still. Must outlive its use.
  void SetJournal(ReplicaJournal* journal) { journal_ = journal; }
  // What is served from the slot now, and which frame it is.
  struct Served {
    FrameRef frame;
    ReplicaEntry entry;
  };
  std::optional<Served> ServedAt(uint32_t slot) const;
  // REQUIRES: a slot's number. File generation 0: its bank is not used.
  FrameRef FrameOf(uint32_t slot) const;
  uint32_t slot_count() const { return static_cast<uint32_t>(kTableBanks * file_->bank_slots()); }
  // Slots in [slot, result) have no memory; result is slot itself where there is.
  uint32_t SkipEmpty(uint32_t slot) const;

  uint64_t file_generation() const;
  // Of all banks that are in use, the smallest first.
  std::vector<uint64_t> FileGenerations() const;
  // Above every generation that a request has, or will have before it is raised.
  uint64_t generation_limit() const { return generation_limit_.load(std::memory_order_acquire); }
  // Every request from now on has this generation or a greater one. REQUIRES: no request has begun; as of Create.
  void BeginGenerationsAt(uint64_t generation);
  ReplicaStatistics Statistics() const;

 private:
  // A disk of the guest.
  struct Disk {
    Mutex mutex;
    bool attached ABSL_GUARDED_BY(mutex) = false;
    bool read_only ABSL_GUARDED_BY(mutex) = false;
    IoWindow window ABSL_GUARDED_BY(mutex);
    FlushClock flush ABSL_GUARDED_BY(mutex);
  };
  // The lock of some buckets, and the counts of what is in them.
  struct alignas(64) Stripe {
    Mutex mutex;
    uint64_t pending ABSL_GUARDED_BY(mutex) = 0;
    uint64_t valid ABSL_GUARDED_BY(mutex) = 0;
    uint64_t removed ABSL_GUARDED_BY(mutex) = 0;
  };
  // The lock of some slots.
  struct alignas(64) SlotLock {
    Mutex mutex;
  };

  explicit ReplicaTable(std::unique_ptr<TableFile> file);

  uint64_t NextGeneration();
  // Makes the stored limit of generations greater than this one.
  void LimitAbove(uint64_t generation);
  uint32_t BucketOf(Ssa ssa) const;
  Stripe& StripeOf(uint32_t bucket) const;
  Mutex& LockOf(uint32_t slot) const;
  // Applies an event to a slot under its locks; `make`: gives it memory. The entry of before.
  ReplicaEntry Apply(uint32_t slot, const EntryEvent& event, bool make);
  // The same for an entry that names a block. False: it had changed before its stripe was locked. If it is to name
  // another block, it becomes None first, and that is `*then`.
  bool ApplyNamed(TableSlot* at, uint32_t slot, Ssa seen, const EntryEvent& event, ReplicaEntry* before,
                  std::optional<ReplicaEntry>* then);
  // Changes a slot that is in the bucket, and takes it out if it does not name the same block any more.
  void Change(Stripe& stripe, uint32_t bucket, TableSlot* at, uint32_t slot, const ReplicaEntry& before,
              const ReplicaEntry& after) ABSL_EXCLUSIVE_LOCKS_REQUIRED(stripe.mutex);
  // Makes a slot, whose lock is held, name a block.
  void Insert(TableSlot* at, uint32_t slot, const ReplicaEntry& entry);
  void Unlink(uint32_t bucket, uint32_t slot);
  void Count(Stripe& stripe, uint32_t slot, const ReplicaEntry& before, const ReplicaEntry& after)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(stripe.mutex);
  // The blocks' entries are false from now on.
  void OverwriteBlocks(DiskId disk, BlockRange blocks);
  // The same, by a walk over all slots.
  void OverwriteTracked(DiskId disk, BlockRange blocks);
  // The best of the frames that the block is served from; none: nothing.
  std::optional<Served> Find(uint32_t bucket, Ssa ssa) const;
  void Recover();
  void RecoverChunk(uint64_t chunk, std::span<uint32_t> last_flush);
  std::optional<uint32_t> SlotOf(const FrameRef& frame) const;
  // The begin of a chain: a slot plus one, or 0. Under the bucket's stripe's lock.
  uint32_t& HeadOf(uint32_t bucket) const;
  absl::Status MakeIndex();

  const std::unique_ptr<TableFile> file_;
  NodeId self_;
  uint32_t buckets_mask_ = 0;
  Mapping heads_;  // of chains, a slot plus one each: fresh memory is empty
  std::unique_ptr<Stripe[]> stripes_;
  std::unique_ptr<SlotLock[]> slot_locks_;
  std::unique_ptr<Disk[]> disks_;
  ReplicaJournal* journal_ = nullptr;
  Mutex limit_;  // who stores a new limit of generations
  std::atomic<uint64_t> generation_;
  std::atomic<uint64_t> generation_limit_;
  std::atomic<uint64_t> found_{0}, not_found_{0}, refused_{0}, mismatched_{0}, impossible_{0};
  uint64_t recovered_ = 0, dropped_ = 0;
};

// The checksum of a page as entries have it; never kNoChecksum.
uint64_t ChecksumOf(std::span<const std::byte> page);

}  // namespace hk
