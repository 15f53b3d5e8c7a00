#include "storage-replica/replica_table.h"

#include <sys/mman.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

// Blocks that follow each other on the disk follow each other in the index too, so many of them: one page of it. So a
// range costs few cache misses, and what nobody tracks costs no memory.
constexpr uint32_t kGroupShift = 10;
constexpr uint32_t kGroupBuckets = 1 << kGroupShift;
constexpr uint32_t kStripes = 256;
constexpr uint32_t kSlotLocks = 1024;

uint64_t Mix(uint64_t value) {
  value *= 0x9e3779b97f4a7c15;
  value ^= value >> 32;
  value *= 0xd6e8feb86659fd93;
  return value ^ value >> 32;
}

}  // namespace

uint64_t ChecksumOf(std::span<const std::byte> page) {
  const uint64_t sum = XXH3_64bits(page.data(), page.size());
  return sum == kNoChecksum ? 1 : sum;
}

ReplicaTable::ReplicaTable(std::unique_ptr<TableFile> file)
    : file_(std::move(file)),
      self_(static_cast<uint16_t>(file_->header().node)),
      stripes_(new Stripe[kStripes]),
      slot_locks_(new SlotLock[kSlotLocks]),
      disks_(new Disk[kMaxReplicaDisks]),
      generation_(*GenerationLimit(file_->header().generation_limit)),
      generation_limit_(generation_.load()) {}

ReplicaTable::~ReplicaTable() = default;

absl::StatusOr<std::unique_ptr<ReplicaTable>> ReplicaTable::Create(OwnedFd file, const TableIdentity& identity,
                                                                   uint64_t file_generation, uint64_t first_generation,
                                                                   std::shared_ptr<TableRoom> room) {
  HK_ASSIGN_OR_RETURN(std::unique_ptr<TableFile> made,
                      TableFile::Create(std::move(file), identity, file_generation, first_generation, std::move(room)));
  std::unique_ptr<ReplicaTable> table(new ReplicaTable(std::move(made)));
  HK_RETURN_IF_ERROR(table->MakeIndex());
  return table;
}

absl::StatusOr<std::unique_ptr<ReplicaTable>> ReplicaTable::Open(OwnedFd file, const TableIdentity& identity,
                                                                 std::shared_ptr<TableRoom> room) {
  HK_ASSIGN_OR_RETURN(std::unique_ptr<TableFile> opened, TableFile::Open(std::move(file), identity, std::move(room)));
  std::unique_ptr<ReplicaTable> table(new ReplicaTable(std::move(opened)));
  HK_RETURN_IF_ERROR(table->MakeIndex());
  table->Recover();
  return table;
}

absl::Status ReplicaTable::MakeIndex() {
  const uint32_t buckets = std::bit_ceil(std::max(static_cast<uint32_t>(file_->pages()), kGroupBuckets));
  buckets_mask_ = buckets - 1;
  HK_ASSIGN_OR_RETURN(heads_, Mapping::Create(uint64_t{buckets} * sizeof(uint32_t), PROT_READ | PROT_WRITE,
                                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, "replica index"));
  return absl::OkStatus();
}

uint64_t ReplicaTable::NextGeneration() {
  const uint64_t generation = generation_.fetch_add(1, std::memory_order_relaxed);
  if (generation < generation_limit_.load(std::memory_order_acquire)) [[likely]]
    return generation;
  LimitAbove(generation);
  return generation;
}

void ReplicaTable::LimitAbove(uint64_t generation) {
  if (generation < generation_limit_.load(std::memory_order_acquire)) [[likely]]
    return;
  MutexLock lock(&limit_);
  if (generation < generation_limit_.load(std::memory_order_relaxed)) return;
  const uint64_t limit = (generation / kGenerationStep + 1) * kGenerationStep;
  file_->header().generation_limit.store(GenerationWord(limit), std::memory_order_release);
  generation_limit_.store(limit, std::memory_order_release);
}

uint32_t ReplicaTable::BucketOf(Ssa ssa) const {
  const uint64_t group = ssa.block >> kGroupShift | uint64_t{ssa.disk.value()} << 40;
  const auto in_group = static_cast<uint32_t>(ssa.block & (kGroupBuckets - 1));
  return (static_cast<uint32_t>(Mix(group)) << kGroupShift | in_group) & buckets_mask_;
}
ReplicaTable::Stripe& ReplicaTable::StripeOf(uint32_t bucket) const {
  return stripes_[(bucket >> kGroupShift) % kStripes];
}
Mutex& ReplicaTable::LockOf(uint32_t slot) const {
  return slot_locks_[slot % kSlotLocks].mutex;
}
uint32_t& ReplicaTable::HeadOf(uint32_t bucket) const {
  return reinterpret_cast<uint32_t*>(heads_.data())[bucket];
}

FrameRef ReplicaTable::FrameOf(uint32_t slot) const {
  const uint64_t bank = slot / file_->bank_slots();
  return {.file_generation = file_->header().bank[bank].file_generation.load(std::memory_order_acquire),
          .frame = slot % file_->bank_slots()};
}
std::optional<uint32_t> ReplicaTable::SlotOf(const FrameRef& frame) const {
  if (frame.file_generation == 0 || frame.frame >= file_->pages()) return std::nullopt;
  for (uint32_t bank = 0; bank < kTableBanks; ++bank) {
    if (file_->header().bank[bank].file_generation.load(std::memory_order_acquire) == frame.file_generation) {
      return file_->SlotOf(bank, frame.frame);
    }
  }
  return std::nullopt;
}

void ReplicaTable::Unlink(uint32_t bucket, uint32_t slot) {
  TableSlot* const at = file_->SlotAt(slot);
  const uint32_t next = at->next.load(std::memory_order_relaxed);
  if (HeadOf(bucket) == slot + 1) {
    HeadOf(bucket) = next;
    return;
  }
  uint32_t before = HeadOf(bucket);
  for (;;) {
    HK_CHECK(before != 0);
    TableSlot* const link = file_->SlotAt(before - 1);
    const uint32_t following = link->next.load(std::memory_order_relaxed);
    if (following == slot + 1) {
      link->next.store(next, std::memory_order_relaxed);
      return;
    }
    before = following;
  }
}

void ReplicaTable::Count(Stripe& stripe, uint32_t slot, const ReplicaEntry& before, const ReplicaEntry& after) {
  const bool was = IsServed(before.state), is = IsServed(after.state);
  if (before.state == EntryState::kPending) --stripe.pending;
  if (after.state == EntryState::kPending) ++stripe.pending;
  if (was) --stripe.valid;
  if (is) ++stripe.valid;
  if (was && !is) ++stripe.removed;
  if (journal_ != nullptr && (was || is)) {
    journal_->Changed(slot, was ? std::optional<Ssa>(before.ssa) : std::nullopt);
  }
}

void ReplicaTable::Change(Stripe& stripe, uint32_t bucket, TableSlot* at, uint32_t slot, const ReplicaEntry& before,
                          const ReplicaEntry& after) {
  if (NamesBlock(after.state)) {
    HK_DCHECK(after.ssa == before.ssa);
    StoreEntry(*at, slot, after);
  } else {
    StoreState(*at, after.state, after.requests);
    Unlink(bucket, slot);
  }
  Count(stripe, slot, before, after);
}

void ReplicaTable::Insert(TableSlot* at, uint32_t slot, const ReplicaEntry& entry) {
  const uint32_t bucket = BucketOf(entry.ssa);
  Stripe& stripe = StripeOf(bucket);
  MutexLock lock(&stripe.mutex);
  StoreEntry(*at, slot, entry);
  at->next.store(HeadOf(bucket), std::memory_order_relaxed);
  HeadOf(bucket) = slot + 1;
  Count(stripe, slot, {}, entry);
}

bool ReplicaTable::ApplyNamed(TableSlot* at, uint32_t slot, Ssa seen, const EntryEvent& event, ReplicaEntry* before,
                              std::optional<ReplicaEntry>* then) {
  const uint32_t bucket = BucketOf(seen);
  Stripe& stripe = StripeOf(bucket);
  MutexLock lock(&stripe.mutex);
  // With both locks held it cannot change; who has only the stripe's may have taken the block's name from it before.
  *before = LoadEntry(*at);
  if (!NamesBlock(before->state) || before->ssa != seen) return false;
  const EntryResult result = Step(*before, event);
  if (result.verdict == EntryVerdict::kImpossible) impossible_.fetch_add(1, std::memory_order_relaxed);
  if (result.verdict != EntryVerdict::kDone) return true;
  if (NamesBlock(result.entry.state) && result.entry.ssa != before->ssa) {
    *then = result.entry;
    Change(stripe, bucket, at, slot, *before, {});
  } else {
    Change(stripe, bucket, at, slot, *before, result.entry);
  }
  return true;
}

ReplicaEntry ReplicaTable::Apply(uint32_t slot, const EntryEvent& event, bool make) {
  TableSlot* const at = make ? file_->FindOrMake(slot) : file_->Find(slot);
  if (at == nullptr) {
    if (make) refused_.fetch_add(1, std::memory_order_relaxed);
    return {};
  }
  MutexLock lock(&LockOf(slot));
  for (;;) {
    ReplicaEntry before = LoadEntryWhole(*at);
    std::optional<ReplicaEntry> then;
    if (NamesBlock(before.state)) {
      if (!ApplyNamed(at, slot, before.ssa, event, &before, &then)) continue;
      if (then.has_value()) Insert(at, slot, *then);
      return before;
    }
    const EntryResult result = Step(before, event);
    if (result.verdict == EntryVerdict::kImpossible) impossible_.fetch_add(1, std::memory_order_relaxed);
    if (result.verdict != EntryVerdict::kDone) return before;
    if (NamesBlock(result.entry.state)) {
      Insert(at, slot, result.entry);
    } else {
      StoreState(*at, result.entry.state, result.entry.requests);
    }
    return before;
  }
}

bool ReplicaTable::Remove(Gfn gfn) {
  if (gfn.value() >= file_->pages()) return false;
  const uint32_t slot = file_->SlotOf(file_->current_bank(), gfn.value());
  const TableSlot* const at = file_->Find(slot);
  if (at == nullptr || !NamesBlock(LoadState(*at))) return false;
  return IsServed(Apply(slot, {.type = EntryEventType::kWritten}, false).state);
}

bool ReplicaTable::IsTracked(Gfn gfn) const {
  if (gfn.value() >= file_->pages()) return false;
  const TableSlot* const at = file_->Find(file_->SlotOf(file_->current_bank(), gfn.value()));
  return at != nullptr && NamesBlock(LoadState(*at));
}

std::optional<ReplicaEntry> ReplicaTable::Leaves(Gfn gfn, NodeId to, bool keep) {
  if (gfn.value() >= file_->pages()) return std::nullopt;
  const uint32_t slot = file_->SlotOf(file_->current_bank(), gfn.value());
  const TableSlot* const at = file_->Find(slot);
  if (at == nullptr || !NamesBlock(LoadState(*at))) return std::nullopt;
  // A page of another node, of which there was a copy here: the entry is of that page.
  const ReplicaEntry seen = LoadEntryWhole(*at);
  if (NamesBlock(seen.state) && seen.node != self_) return std::nullopt;
  const EntryEvent event{.type = keep ? EntryEventType::kMoved : EntryEventType::kWritten, .node = to};
  ReplicaEntry entry = Apply(slot, event, false);
  if (entry.state != EntryState::kValid || entry.node != self_) return std::nullopt;
  entry.node = to;
  return entry;
}

void ReplicaTable::Comes(Gfn gfn, const std::optional<ReplicaEntry>& entry, bool authority) {
  if (gfn.value() >= file_->pages()) return;
  const uint32_t slot = file_->SlotOf(file_->current_bank(), gfn.value());
  const bool counts = entry.has_value() && entry->state == EntryState::kValid &&
                      entry->ssa.disk.value() < kMaxReplicaDisks && entry->ssa.block < kMaxBlocks &&
                      entry->generation != 0 && entry->generation < kMaxGeneration;
  if (!counts) {
    Apply(slot, {.type = EntryEventType::kWritten}, false);
    return;
  }
  // Else this table's recovery would take it for one that cannot have been.
  if (!authority && !HK_MUTANT(replica_generations_of_others_lost)) LimitAbove(entry->generation);
  Apply(slot,
        {.type = authority ? EntryEventType::kReturned : EntryEventType::kCame,
         .node = self_,
         .ssa = entry->ssa,
         .generation = entry->generation,
         .checksum = entry->checksum,
         .flush = entry->flush},
        !authority);
}

void ReplicaTable::Relocate(Gfn gfn, const ReplicaEntry& entry, NodeId to) {
  if (gfn.value() >= file_->pages() || to.value() >= kMaxNodes) return;
  Apply(file_->SlotOf(file_->current_bank(), gfn.value()),
        {.type = EntryEventType::kMovedIf, .node = to, .ssa = entry.ssa, .generation = entry.generation}, false);
}

uint64_t ReplicaTable::file_generation() const {
  return file_->header().bank[file_->current_bank()].file_generation.load(std::memory_order_acquire);
}

std::vector<uint64_t> ReplicaTable::FileGenerations() const {
  std::vector<uint64_t> generations;
  for (const BankRecord& bank : file_->header().bank) {
    const uint64_t generation = bank.file_generation.load(std::memory_order_acquire);
    if (generation != 0) generations.push_back(generation);
  }
  std::sort(generations.begin(), generations.end());
  return generations;
}

void ReplicaTable::BeginGenerationsAt(uint64_t generation) {
  if (generation <= generation_.load(std::memory_order_relaxed)) return;
  LimitAbove(generation);
  generation_.store(generation, std::memory_order_relaxed);
}

ReplicaStatistics ReplicaTable::Statistics() const {
  ReplicaStatistics statistics;
  for (uint32_t i = 0; i < kStripes; ++i) {
    MutexLock lock(&stripes_[i].mutex);
    statistics.pending += stripes_[i].pending;
    statistics.valid += stripes_[i].valid;
    statistics.removed += stripes_[i].removed;
  }
  statistics.found = found_.load(std::memory_order_relaxed);
  statistics.not_found = not_found_.load(std::memory_order_relaxed);
  statistics.refused = refused_.load(std::memory_order_relaxed);
  statistics.mismatched = mismatched_.load(std::memory_order_relaxed);
  statistics.impossible = impossible_.load(std::memory_order_relaxed);
  statistics.recovered = recovered_;
  statistics.dropped = dropped_;
  statistics.bytes = file_->BytesInUse();
  return statistics;
}

}  // namespace hk
