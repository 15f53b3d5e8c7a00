#include "hyperkernel/node/guest_replica.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/disk_replica.h"
#include "hyperkernel/node/membership.h"

namespace hk {
namespace {

// Claims that are compared between two looks at the table.
constexpr size_t kClaimsAtOnce = 256;
constexpr uint32_t kDefaultMibPerSecond = 64;
// How long verification sleeps at a time, so that it hears of its end.
constexpr std::chrono::milliseconds kVerifyNap(50);
constexpr std::chrono::milliseconds kProgressInterval(500);

// What names an image for good, hashed; not 0.
uint64_t ImageNumber(const struct stat& status) {
  const uint64_t device = S_ISBLK(status.st_mode) ? status.st_rdev : status.st_dev;
  const uint64_t inode = S_ISBLK(status.st_mode) ? 0 : status.st_ino;
  const uint64_t number = (device * 0x9e3779b97f4a7c15) ^ (inode * 0xd6e8feb86659fd93);
  return number == 0 ? 1 : number;
}

uint64_t Nanoseconds(const timespec& time) {
  return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(time.tv_nsec);
}

// The same file anew, for reading, without the locks of the first.
OwnedFd OpenAnew(int fd) {
  const int direct = ::fcntl(fd, F_GETFL) & O_DIRECT;
  return OwnedFd(::open(fmt::format("/proc/self/fd/{}", fd).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | direct));
}

TableIdentity IdentityOf(const ReplicaSite& site, const ReplicaOwner& owner) {
  return {.guest = owner.guest,
          .node = NodeId(0),
          .pages = owner.pages,
          .boot = site.boot,
          .frame_store = site.frame_store};
}

bool ReadAll(int fd, uint64_t offset, std::span<std::byte> to) {
  for (size_t done = 0; done < to.size();) {
    const ssize_t n = ::pread(fd, to.data() + done, to.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n == 0) errno = EIO;  // the image is shorter than it was
    if (n <= 0) return false;
    done += static_cast<size_t>(n);
  }
  return true;
}

}  // namespace

// What a memory tells of stores; there as long as the memory is, and so a little longer than all of its users.
class GuestReplica::Watch final : public StoreListener {
 public:
  explicit Watch(std::shared_ptr<GuestReplica> replica) : replica_(std::move(replica)) {}
  ~Watch() override { replica_->MemoryGone(); }
  void BeforeStore(Gfn page) override { replica_->table_->Remove(page); }

 private:
  const std::shared_ptr<GuestReplica> replica_;
};

absl::StatusOr<std::shared_ptr<GuestReplica>> GuestReplica::Create(const ReplicaSite& site, ReplicaOwner owner,
                                                                   uint64_t generation) {
  HK_ASSIGN_OR_RETURN(ReplicaTablePath path, ReplicaTablePath::Create(*site.frames, owner.name, generation));
  OpenedStore store = OpenStore(site, owner, 0);
  const uint64_t first = store.ok() ? (*store)->first_generation() : kGenerationStep;
  HK_ASSIGN_OR_RETURN(
      std::unique_ptr<ReplicaTable> table,
      ReplicaTable::Create(path.TakeFile(), IdentityOf(site, owner), generation, first, MakeTableRoom(*site.frames)));
  std::shared_ptr<GuestReplica> replica(new GuestReplica(site, std::move(owner), std::move(path), std::move(table)));
  replica->KeepDurable(std::move(store));
  site.frames->AddSpare(replica->warm_);
  return replica;
}

absl::StatusOr<std::shared_ptr<GuestReplica>> GuestReplica::Recover(const ReplicaSite& site, ReplicaOwner owner,
                                                                    uint64_t table_generation,
                                                                    const std::vector<RamRange>& ranges,
                                                                    uint64_t last) {
  HK_ASSIGN_OR_RETURN(ReplicaTablePath path, ReplicaTablePath::Open(*site.frames, owner.name, table_generation));
  HK_ASSIGN_OR_RETURN(std::unique_ptr<ReplicaTable> table,
                      ReplicaTable::Open(path.TakeFile(), IdentityOf(site, owner), MakeTableRoom(*site.frames)));
  const std::vector<uint64_t> generations = table->FileGenerations();
  if (generations.back() > last) {
    return absl::FailedPreconditionError(
        fmt::format("of run {}, which the machine's record does not know: its last is {}", generations.back(), last));
  }
  if (std::adjacent_find(generations.begin(), generations.end()) != generations.end()) {
    return absl::DataLossError("replica table: two banks of one frame file");
  }
  std::shared_ptr<GuestReplica> replica(new GuestReplica(site, std::move(owner), std::move(path), std::move(table)));
  // The newest first: if there is no room for all, they are the ones that are worth most.
  for (auto at = generations.rbegin(); at != generations.rend(); ++at) {
    const absl::Status taken = replica->warm_->Adopt(*site.frames, replica->owner_.name, ranges, *at);
    if (taken.ok() || absl::IsNotFound(taken)) continue;
    log::Warning("replica", "frames that a killed daemon left are not used",
                 {{"guest", replica->owner_.name}, {"error", MessageOf(taken)}});
  }
  if (replica->warm_->bytes() == 0) return absl::NotFoundError("it knows of no page");
  // The table is what is true; the database is written anew from it.
  OpenedStore store = OpenStore(site, replica->owner_, replica->table_->generation_limit());
  if (store.ok()) replica->table_->BeginGenerationsAt((*store)->first_generation());
  replica->KeepDurable(std::move(store));
  site.frames->AddSpare(replica->warm_);
  return replica;
}

GuestReplica::~GuestReplica() {
  // Whoever asks for spare frames from now on finds none here: nobody but this uses the table.
  warm_->Drop();
  durable_.reset();
  if (database_.empty()) return;
  if (const absl::Status removed = DurableStore::Remove(database_); !removed.ok()) {
    log::Warning("replica", "the database of a machine stays", {{"guest", owner_.name}, {"error", MessageOf(removed)}});
  }
}

GuestReplica::OpenedStore GuestReplica::OpenStore(const ReplicaSite& site, const ReplicaOwner& owner, uint64_t above) {
  if (!owner.durable) return absl::FailedPreconditionError("no_durable_replica is set in the machine's specification");
  if (site.databases.empty()) return absl::FailedPreconditionError("this node has no place for it");
  HK_RETURN_IF_ERROR(MakeDirectories(site.databases, 0700));
  OpenedStore store =
      DurableStore::Open({.directory = DatabaseOf(site, owner), .identity = IdentityOf(site, owner), .above = above});
  if (!store.ok()) {
    log::Warning("replica", "the machine's replica has no durable form",
                 {{"guest", owner.name}, {"error", MessageOf(store.status())}});
  }
  return store;
}

void GuestReplica::KeepDurable(OpenedStore store) {
  if (store.ok()) {
    durable_ = std::make_unique<DurableReplica>(*std::move(store), table_.get(), clock_);
    return;
  }
  MutexLock lock(&mutex_);
  not_durable_because_ = MessageOf(store.status());
}

absl::Status GuestReplica::BeginRun(uint64_t generation) {
  std::shared_ptr<FrameFile> file;
  std::vector<RamRange> ranges;
  {
    MutexLock lock(&mutex_);
    if (memory_ != nullptr || open_requests_.load() != 0) {
      return absl::FailedPreconditionError("I/O of the run before has not ended");
    }
    if (generation <= table_->file_generation()) return absl::FailedPreconditionError("a run of before");
    file = std::exchange(file_, nullptr);
    ranges = std::move(ranges_);
    ++resets_;
  }
  return warm_->Add(std::move(file), std::move(ranges), generation);
}

bool GuestReplica::Attach(GuestMemory* memory) {
  std::shared_ptr<FrameFile> file = memory->frame_file();
  if (file == nullptr) return false;
  {
    MutexLock lock(&mutex_);
    HK_CHECK(memory_ == nullptr);
    memory_ = memory;
    file_ = std::move(file);
    ranges_.clear();
    for (const GuestMemory::Slot& slot : memory->slots()) ranges_.push_back({slot.start, slot.bytes});
  }
  // One that is not taken goes at once, and with it what was attached.
  return memory->SetStoreListener(std::make_shared<Watch>(shared_from_this()));
}

void GuestReplica::NoteMismatch() {
  if (table_->Statistics().mismatched == 0 || mismatch_told_.exchange(true)) return;
  log::Error("replica", "a frame of the run before the daemon was killed is not what it was; it is not used",
             {{"guest", owner_.name}});
}

void GuestReplica::MemoryGone() {
  MutexLock lock(&mutex_);
  memory_ = nullptr;
  for (auto& disk : disks_) disk.reset();
}

std::unique_ptr<BlockReplica> GuestReplica::AttachDisk(size_t number, const DiskImage& image) {
  if (number >= kMaxReplicaDisks) return nullptr;
  struct stat status {};
  if (::fstat(image.fd.get(), &status) != 0) return nullptr;
  const DiskId id(static_cast<uint8_t>(number));
  // The later of two: a time of modification can be set back by anybody who may write to the file.
  const DiskImageIdentity identity{.image = ImageNumber(status),
                                   .bytes = image.bytes,
                                   .changed_ns = std::max(Nanoseconds(status.st_mtim), Nanoseconds(status.st_ctim))};
  GuestMemory* memory = nullptr;
  {
    MutexLock lock(&mutex_);
    memory = memory_;
    disks_[number] = std::make_shared<Disk>(Disk{OpenAnew(image.fd.get())});
  }
  HK_CHECK(memory != nullptr);
  uint64_t dropped = 0;
  warm_->WithTable([&](ReplicaTable& table) {
    const uint64_t before = table.Statistics().removed;
    // Nobody's lock was on it while no run was, and it has no time of change that counts.
    if (image.block_device) table.DropDisk(id);
    table.AttachDisk(id, identity, image.read_only);
    if (durable_ != nullptr) durable_->NoteDisk(id, identity);
    dropped = table.Statistics().removed - before;
  });
  if (dropped > 0) {
    log::Warning("replica", "what was known of a disk is not used: it may have been written to since",
                 {{"guest", owner_.name}, {"disk", fmt::to_string(number)}, {"entries", fmt::to_string(dropped)}});
  }
  return std::make_unique<DiskReplica>(shared_from_this(), id, memory);
}

void GuestReplica::Drop() {
  warm_->Drop();
  warm_->WithTable([](ReplicaTable& table) {
    for (uint8_t disk = 0; disk < kMaxReplicaDisks; ++disk) table.DropDisk(DiskId(disk));
  });
  const ReplicaStatistics statistics = table_->Statistics();
  MutexLock lock(&mutex_);
  if (durable_ == nullptr && owner_.durable && !database_.empty()) {
    // One that could not be opened: the next start makes a new one.
    const absl::Status removed = DurableStore::Remove(database_);
    not_durable_because_ =
        removed.ok() ? "it was dropped; the machine's next start makes a new one" : MessageOf(removed);
  }
  since_ = clock_.Wall();
  resets_ = 0;
  hits_before_ = hits_.load();
  misses_before_ = misses_.load();
  saved_before_ = saved_bytes_.load();
  removed_before_ = statistics.removed;
}

absl::Status GuestReplica::SyncDurable(Monotonic deadline) {
  if (durable_ == nullptr) return absl::FailedPreconditionError("the replica has no durable form");
  return durable_->Sync(deadline);
}

v1::Replica GuestReplica::Describe(bool all) const {
  const uint64_t warm_entries = all ? warm_->entries() : 0, warm_bytes = warm_->bytes();
  const ReplicaStatistics statistics = table_->Statistics();
  v1::Replica replica;
  replica.set_vm(owner_.name);
  replica.set_entries(statistics.valid);
  replica.set_warm_entries(std::min(warm_entries, statistics.valid));
  replica.set_warm_bytes(warm_bytes);
  replica.set_table_bytes(statistics.bytes);
  MutexLock lock(&mutex_);
  replica.set_hits(hits_.load() - hits_before_);
  replica.set_misses(misses_.load() - misses_before_);
  replica.set_bytes_saved(saved_bytes_.load() - saved_before_);
  replica.set_removed(statistics.removed - removed_before_);
  *replica.mutable_since() = ToTimestamp(since_);
  replica.set_resets(resets_);
  uint32_t disks = 0;
  for (const auto& disk : disks_) disks += disk != nullptr;
  replica.set_disks(disks);
  const absl::Status durable = durable_ == nullptr ? absl::UnavailableError("") : durable_->statistics().status;
  replica.set_durable(durable.ok());
  if (!durable.ok()) replica.set_not_durable_because(durable_ == nullptr ? not_durable_because_ : MessageOf(durable));
  replica.set_recovered(statistics.recovered);
  replica.set_mismatched(statistics.mismatched);
  return replica;
}

uint64_t GuestReplica::WallNs() const {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(clock_.Wall().time_since_epoch()).count());
}

std::shared_ptr<FrameFile> GuestReplica::FileOf(const FrameRef& frame, uint64_t* offset) const {
  {
    MutexLock lock(&mutex_);
    // Before the first run after a restart the present frames are warm already.
    if (file_ != nullptr && frame.file_generation == table_->file_generation()) {
      const std::optional<uint64_t> at = FrameOffset(ranges_, Gfn(frame.frame));
      if (!at.has_value()) return nullptr;
      *offset = *at;
      return file_;
    }
  }
  return warm_->Find(frame, offset);
}

absl::StatusOr<GuestReplica::Verdict> GuestReplica::Compare(const Claim& claim, std::span<std::byte> page,
                                                            std::span<std::byte> block) {
  std::shared_ptr<Disk> disk;
  {
    MutexLock lock(&mutex_);
    disk = disks_[claim.entry.ssa.disk.value()];
  }
  uint64_t offset = 0;
  const std::shared_ptr<FrameFile> file = FileOf(claim.frame, &offset);
  if (disk == nullptr || file == nullptr) return Verdict::kGone;
  HK_RETURN_IF_ERROR(file->Read(offset, page));
  if (!ReadAll(disk->image.get(), claim.entry.ssa.block << kBlockShift, block)) {
    return ErrnoStatus(errno, fmt::format("vm '{}': disk {} block {} cannot be read for the comparison", owner_.name,
                                          claim.entry.ssa.disk.value(), claim.entry.ssa.block));
  }
  if (std::memcmp(page.data(), block.data(), page.size()) == 0) return Verdict::kRight;
  // Nothing has changed the block or the page while they were read, if the entry is the same still.
  Verdict verdict = Verdict::kGone;
  warm_->WithTable([&](ReplicaTable& table) {
    const ReplicaRun run{.hit = true,
                         .first = claim.entry.ssa,
                         .blocks = 1,
                         .node = claim.entry.node,
                         .frame = claim.frame,
                         .generation = claim.entry.generation,
                         .check = false};
    // Of one that is not checked yet it may be the page that is wrong: then it goes here.
    const uint64_t checksum = ChecksumOf(page);
    if (!table.Confirm(run, {&checksum, 1})) return;
    verdict = Verdict::kWrong;
    table.RemoveFrames(claim.frame, 1);
  });
  return verdict;
}

absl::Status GuestReplica::Verify(uint32_t mib_per_second,
                                  const std::function<bool(const v1::ReplicaVerification&)>& progress) {
  {
    MutexLock lock(&mutex_);
    if (memory_ == nullptr) {
      return absl::FailedPreconditionError(fmt::format(
          "vm '{}' does not run; its disks are compared while it does: hkctl vm start {}", owner_.name, owner_.name));
    }
  }
  const uint64_t rate = uint64_t{mib_per_second == 0 ? kDefaultMibPerSecond : mib_per_second} << 20;
  const std::unique_ptr<std::byte, decltype(&std::free)> memory(
      static_cast<std::byte*>(std::aligned_alloc(kPageSize, 2 * kPageSize)), &std::free);
  const std::span<std::byte> page(memory.get(), kPageSize), block(memory.get() + kPageSize, kPageSize);
  v1::ReplicaVerification found;
  found.set_entries(table_->Statistics().valid);
  const uint64_t run = table_->file_generation();
  const Monotonic begin = clock_.Now();
  Monotonic told = begin;
  uint64_t read = 0;
  std::vector<Claim> claims;
  for (uint32_t slot = 0; slot < table_->slot_count();) {
    claims.clear();
    bool same = true;
    warm_->WithTable([&](ReplicaTable& table) {
      same = table.file_generation() == run;
      while (same && claims.size() < kClaimsAtOnce && (slot = table.SkipEmpty(slot)) < table.slot_count()) {
        if (const auto served = table.ServedAt(slot)) claims.push_back({served->frame, served->entry});
        ++slot;
      }
    });
    if (!same) return absl::AbortedError(fmt::format("vm '{}' was reset meanwhile; verify again", owner_.name));
    for (const Claim& claim : claims) {
      HK_ASSIGN_OR_RETURN(const Verdict verdict, Compare(claim, page, block));
      found.set_done(found.done() + 1);
      if (verdict == Verdict::kGone) found.set_gone(found.gone() + 1);
      if (verdict != Verdict::kWrong) continue;
      found.set_wrong(found.wrong() + 1);
      const std::string where = fmt::format("disk {} block {}", claim.entry.ssa.disk.value(), claim.entry.ssa.block);
      if (found.first_wrong().empty()) found.set_first_wrong(where);
      log::Error("replica", "a page is not the block it was taken for", {{"guest", owner_.name}, {"where", where}});
    }
    read += claims.size() * kBlockSize;
    // Whoever is faster than the rate waits until it is not.
    const auto due = begin + std::chrono::microseconds(read * 1'000'000 / rate);
    do {
      if (clock_.Now() >= told + kProgressInterval) {
        told = clock_.Now();
        if (!progress(found)) return absl::AbortedError("ended by who asked for it");
      }
      if (clock_.Now() < due)
        std::this_thread::sleep_for(std::min<Monotonic::duration>(kVerifyNap, due - clock_.Now()));
    } while (clock_.Now() < due);
  }
  found.set_finished(true);
  return progress(found) ? absl::OkStatus() : absl::AbortedError("ended by who asked for it");
}

}  // namespace hk
