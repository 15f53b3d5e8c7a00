#include "storage-replica/durable_store.h"

#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/memtablerep.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <array>
#include <optional>
#include <set>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

// Order of families_.
enum Family : int { kPage, kBlock, kMetaFamily, kDefault, kFamilies };
const std::array<std::string, kFamilies>& FamilyNames() {
  static const std::array<std::string, kFamilies> names = {std::string(kByPage), std::string(kByBlock),
                                                           std::string(kMeta), rocksdb::kDefaultColumnFamilyName};
  return names;
}

// Rows are small and come by the hundred thousand a second: large write buffers, so that what changes again soon is
// written to a table once; few levels.
constexpr size_t kWriteBufferBytes = 32 << 20;
constexpr int kWriteBuffers = 3;
constexpr size_t kMetaBufferBytes = 1 << 20;
constexpr size_t kBlockCacheBytes = 4 << 20;
constexpr size_t kTableBlockBytes = 16 << 10;
constexpr int kMaxOpenFiles = 128;
constexpr uint64_t kMaxLogBytes = 256 << 20;
// Generations of one opening: more than one process can use up.
constexpr uint64_t kGenerationsPerOpening = uint64_t{1} << 44;
// There while what the database says counts.
constexpr std::string_view kMarkName = "REPLICA";
// There before the first of RocksDB's files: what has no mark beside it may be thrown away.
constexpr std::string_view kOwnName = "HYPER_KERNEL";

absl::Status FromRocks(const rocksdb::Status& status, std::string_view what) {
  if (status.ok()) return absl::OkStatus();
  absl::StatusCode code = absl::StatusCode::kUnavailable;
  if (status.IsCorruption()) code = absl::StatusCode::kDataLoss;
  if (status.IsNoSpace()) code = absl::StatusCode::kResourceExhausted;
  return absl::Status(code, fmt::format("replica database {}: {}", what, status.ToString()));
}

rocksdb::Slice ToSlice(std::string_view text) {
  return rocksdb::Slice(text.data(), text.size());
}

rocksdb::ColumnFamilyOptions FamilyOptions(int family) {
  rocksdb::ColumnFamilyOptions options;
  const bool rows = family == kPage || family == kBlock;
  options.write_buffer_size = rows ? kWriteBufferBytes : kMetaBufferBytes;
  options.max_write_buffer_number = rows ? kWriteBuffers : 2;
  options.compression = rocksdb::kNoCompression;
  if (rows) {
    // Nothing is read before it is in a table file, but at leisure: rows are appended, and sorted when they are
    // written.
    options.memtable_factory.reset(new rocksdb::VectorRepFactory);
    options.compaction_style = rocksdb::kCompactionStyleUniversal;
    options.level0_file_num_compaction_trigger = 6;
    options.compaction_options_universal.max_size_amplification_percent = 100;
  }
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(kBlockCacheBytes);
  table.block_size = kTableBlockBytes;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

rocksdb::DBOptions DatabaseOptions(rocksdb::Env* env) {
  rocksdb::DBOptions options;
  options.env = env;
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  options.paranoid_checks = true;
  options.max_open_files = kMaxOpenFiles;
  options.max_total_wal_size = kMaxLogBytes;
  options.keep_log_file_num = 2;
  options.max_background_jobs = 2;
  options.allow_concurrent_memtable_write = false;  // one thread writes
  options.enable_write_thread_adaptive_yield = false;
  // After a crash the database is as it was at some moment, all of it: what marks and rows say of each other holds.
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
  return options;
}

absl::Status Foreign(const std::string& directory, std::string_view what) {
  return absl::FailedPreconditionError(fmt::format("replica database {}: {}", directory, what));
}

}  // namespace

DurableBatch::DurableBatch() : batch_(new rocksdb::WriteBatch) {}
DurableBatch::~DurableBatch() = default;
DurableBatch::DurableBatch(DurableBatch&&) noexcept = default;
size_t DurableBatch::bytes() const {
  return batch_->GetDataSize();
}
bool DurableBatch::empty() const {
  return batch_->Count() == 0;
}
void DurableBatch::Clear() {
  batch_->Clear();
}

DurableStore::DurableStore(const Options& options)
    : options_(options), env_(options.env == nullptr ? rocksdb::Env::Default() : options.env) {}

DurableStore::~DurableStore() {
  if (db_ == nullptr) return;
  for (rocksdb::ColumnFamilyHandle* family : families_) db_->DestroyColumnFamilyHandle(family);
  db_->Close();
}

std::string DurableStore::MarkPath() const {
  return fmt::format("{}/{}", options_.directory, kMarkName);
}

std::string DurableStore::OwnPath() const {
  return fmt::format("{}/{}", options_.directory, kOwnName);
}

absl::Status DurableStore::MakeMark(const std::string& path) {
  HK_RETURN_IF_ERROR(FromRocks(rocksdb::WriteStringToFile(env_, "replica\n", path, /*should_sync=*/true), path));
  return SyncDirectory();
}

absl::Status DurableStore::SyncDirectory() {
  std::unique_ptr<rocksdb::Directory> opened;
  HK_RETURN_IF_ERROR(FromRocks(env_->NewDirectory(options_.directory, &opened), options_.directory));
  return FromRocks(opened->Fsync(), options_.directory);
}

absl::StatusOr<std::unique_ptr<DurableStore>> DurableStore::Open(const Options& options) {
  std::unique_ptr<DurableStore> store(new DurableStore(options));
  HK_RETURN_IF_ERROR(store->OpenDatabase());
  HK_RETURN_IF_ERROR(store->CheckContents());
  return store;
}

absl::Status DurableStore::Remove(const std::string& directory) {
  rocksdb::Env* const env = rocksdb::Env::Default();
  if (env->FileExists(directory).IsNotFound()) return absl::OkStatus();
  const auto path = [&directory](std::string_view name) { return fmt::format("{}/{}", directory, name); };
  const auto remove = [&](std::string_view name) {
    const rocksdb::Status removed = env->DeleteFile(path(name));
    return removed.IsNotFound() || removed.IsPathNotFound() ? absl::OkStatus() : FromRocks(removed, path(name));
  };
  std::vector<std::string> files;
  HK_RETURN_IF_ERROR(FromRocks(env->GetChildren(directory, &files), directory));
  std::erase_if(files, [](const std::string& name) { return name == "." || name == ".."; });
  if (!files.empty()) {
    if (!env->FileExists(path(kOwnName)).ok()) return Foreign(directory, "it is not a replica's; it is left as it is");
    // What is left, if this process dies in here, is thrown away by the next opening.
    HK_RETURN_IF_ERROR(remove(kMarkName));
    const rocksdb::Options all(DatabaseOptions(env), rocksdb::ColumnFamilyOptions());
    HK_RETURN_IF_ERROR(FromRocks(rocksdb::DestroyDB(directory, all), directory));
    HK_RETURN_IF_ERROR(remove(kOwnName));
  }
  return FromRocks(env->DeleteDir(directory), directory);
}

absl::Status DurableStore::OpenDatabase() {
  const std::string& directory = options_.directory;
  HK_RETURN_IF_ERROR(FromRocks(env_->CreateDirIfMissing(directory), directory));
  const bool is_there = env_->FileExists(directory + "/CURRENT").ok();
  const bool believed = env_->FileExists(MarkPath()).ok();
  rocksdb::Options all(DatabaseOptions(env_), rocksdb::ColumnFamilyOptions());
  const bool own = env_->FileExists(OwnPath()).ok();
  if (is_there && !own && !HK_MUTANT(replica_any_database_thrown_away))
    return Foreign(directory, "there is a database that is not a replica's; it is left as it is");
  if (!own) HK_RETURN_IF_ERROR(MakeMark(OwnPath()));
  // Also if CURRENT is not there: a process that died in here has left logs, and RocksDB makes no database beside logs.
  if (!believed) HK_RETURN_IF_ERROR(FromRocks(rocksdb::DestroyDB(directory, all), directory));
  std::vector<std::string> names(FamilyNames().begin(), FamilyNames().end());
  if (is_there && believed) {
    std::vector<std::string> there;
    HK_RETURN_IF_ERROR(FromRocks(rocksdb::DB::ListColumnFamilies(all, directory, &there), directory));
    // A newer program may have more of them; its format number is what is to be told.
    for (const std::string& name : there) {
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
  }
  std::vector<rocksdb::ColumnFamilyDescriptor> descriptors;
  for (size_t i = 0; i < names.size(); ++i) {
    descriptors.emplace_back(names[i], FamilyOptions(static_cast<int>(std::min(i, size_t{kDefault}))));
  }
  rocksdb::DB* db = nullptr;
  HK_RETURN_IF_ERROR(FromRocks(rocksdb::DB::Open(all, directory, descriptors, &families_, &db), directory));
  db_.reset(db);
  return absl::OkStatus();
}

absl::Status DurableStore::CheckContents() {
  const std::string& directory = options_.directory;
  const bool believed = env_->FileExists(MarkPath()).ok();
  uint64_t generation = 0;
  if (believed) {
    HK_ASSIGN_OR_RETURN(const std::string format, Meta(kFormatKey));
    const std::optional<uint64_t> version = DecodeNumberValue(format);
    if (version.has_value() && *version != kDurableVersion) {
      return Foreign(directory, fmt::format("of format version {}, this program has {}; hkctl replica drop removes it",
                                            *version, kDurableVersion));
    }
    HK_ASSIGN_OR_RETURN(const std::string identity_value, Meta(kIdentityKey));
    HK_ASSIGN_OR_RETURN(const std::string generation_value, Meta(kGenerationKey));
    const std::optional<TableIdentity> identity = DecodeIdentityValue(identity_value);
    const std::optional<uint64_t> number = DecodeNumberValue(generation_value);
    if (!version.has_value() || !identity.has_value() || !number.has_value() || *number % kGenerationStep != 0) {
      return absl::DataLossError(fmt::format("replica database {}: its description is damaged", directory));
    }
    if (identity->guest != options_.identity.guest) {
      return Foreign(directory,
                     fmt::format("of guest {}, not {}", identity->guest.value(), options_.identity.guest.value()));
    }
    if (identity->pages != options_.identity.pages) {
      return Foreign(directory,
                     fmt::format("of a guest of {} pages, not {}", identity->pages, options_.identity.pages));
    }
    frames_lost_ = identity->boot != options_.identity.boot || identity->frame_store != options_.identity.frame_store ||
                   identity->node != options_.identity.node;
    lost_node_ = identity->node;
    generation = *number;
  }
  if (families_.size() != kFamilies) return Foreign(directory, "it has parts that this program does not know");
  if (std::max(generation, options_.above) >= kMaxGeneration - kGenerationsPerOpening) {
    return Foreign(directory, "its generations have run out; hkctl replica drop removes it");
  }
  first_generation_ = std::max(generation, options_.above) / kGenerationStep * kGenerationStep + kGenerationsPerOpening;
  rocksdb::WriteBatch batch;
  rocksdb::ColumnFamilyHandle* const meta = families_[kMetaFamily];
  batch.Put(meta, ToSlice(kFormatKey), NumberValue(kDurableVersion));
  batch.Put(meta, ToSlice(kGenerationKey), NumberValue(first_generation_));
  // With RemoveAllEntries the boot becomes this one: until then rows name frames of the boot before.
  if (!believed) batch.Put(meta, ToSlice(kIdentityKey), IdentityValue(options_.identity));
  rocksdb::WriteOptions sync;
  sync.sync = true;
  HK_RETURN_IF_ERROR(FromRocks(db_->Write(sync, &batch), directory));
  return believed ? absl::OkStatus() : MakeMark(MarkPath());
}

absl::StatusOr<std::string> DurableStore::Meta(std::string_view key) const {
  std::string value;
  const rocksdb::Status status = db_->Get(rocksdb::ReadOptions(), families_[kMetaFamily], ToSlice(key), &value);
  if (status.IsNotFound()) {
    return absl::DataLossError(fmt::format("replica database {}: it has no {}", options_.directory, key));
  }
  HK_RETURN_IF_ERROR(FromRocks(status, options_.directory));
  return value;
}

absl::Status DurableStore::ForEach(
    int family, std::string_view from,
    const std::function<absl::Status(std::string_view key, std::string_view value, bool* end)>& each) const {
  rocksdb::ReadOptions options;
  options.fill_cache = false;
  options.readahead_size = 1 << 20;
  const std::unique_ptr<rocksdb::Iterator> at(db_->NewIterator(options, families_[static_cast<size_t>(family)]));
  bool end = false;
  for (at->Seek(ToSlice(from)); at->Valid() && !end; at->Next()) {
    HK_RETURN_IF_ERROR(each(at->key().ToStringView(), at->value().ToStringView(), &end));
  }
  return FromRocks(at->status(), options_.directory);
}

absl::Status DurableStore::Load(const std::function<std::optional<DiskImageIdentity>(DiskId)>& images,
                                const std::function<void(const FrameRef&, const ReplicaEntry&)>& each) const {
  const auto damaged = [&](std::string_view what) {
    return absl::DataLossError(fmt::format("replica database {}: a damaged row of {}", options_.directory, what));
  };
  std::array<std::optional<DurableDisk>, kMaxReplicaDisks> disks;
  HK_RETURN_IF_ERROR(ForEach(kMetaFamily, kDiskPrefix, [&](std::string_view key, std::string_view value, bool* end) {
    *end = key.substr(0, kDiskPrefix.size()) != kDiskPrefix;
    if (*end) return absl::OkStatus();
    const std::optional<DiskId> disk = DecodeDiskKey(key);
    const std::optional<DurableDisk> row = DecodeDiskValue(value);
    if (!disk.has_value() || !row.has_value()) return damaged(kMeta);
    const std::optional<DiskImageIdentity> now = images(*disk);
    const DiskImageIdentity then{.image = row->image, .bytes = row->bytes, .changed_ns = row->last_change_ns};
    if (now.has_value() && IsUnchanged(*now, then)) disks[disk->value()] = row;
    return absl::OkStatus();
  }));
  HK_ASSIGN_OR_RETURN(const std::vector<DiskRegion> intents, Intents());
  const std::set<DiskRegion> marked(intents.begin(), intents.end());
  return ForEach(kPage, "", [&](std::string_view key, std::string_view value, bool*) {
    const std::optional<FrameRef> frame = DecodePageKey(key);
    const std::optional<ReplicaEntry> entry = DecodePageValue(value);
    if (!frame.has_value() || !entry.has_value()) return damaged(kByPage);
    const std::optional<DurableDisk>& disk = disks[entry->ssa.disk.value()];
    if (!disk.has_value() || entry->checksum == kNoChecksum) return absl::OkStatus();
    if (entry->flush > disk->durable_flush && !HK_MUTANT(replica_unflushed_believed)) return absl::OkStatus();
    if (marked.contains(RegionOf(entry->ssa)) && !HK_MUTANT(replica_intent_ignored)) return absl::OkStatus();
    const bool whole_disk = marked.contains({.disk = entry->ssa.disk, .number = kWholeDisk});
    if (whole_disk && !HK_MUTANT(replica_whole_disk_mark_ignored)) return absl::OkStatus();
    if (frames_lost_ && entry->node == lost_node_) return absl::OkStatus();
    each(*frame, *entry);
    return absl::OkStatus();
  });
}

absl::StatusOr<std::vector<DiskRegion>> DurableStore::Intents() const {
  std::vector<DiskRegion> regions;
  HK_RETURN_IF_ERROR(ForEach(kMetaFamily, kIntentPrefix, [&](std::string_view key, std::string_view, bool* end) {
    *end = key.substr(0, kIntentPrefix.size()) != kIntentPrefix;
    if (*end) return absl::OkStatus();
    const std::optional<DiskRegion> region = DecodeIntentKey(key);
    if (!region.has_value()) {
      return absl::DataLossError(fmt::format("replica database {}: a damaged mark", options_.directory));
    }
    regions.push_back(*region);
    return absl::OkStatus();
  }));
  return regions;
}

absl::StatusOr<std::vector<BlockRow>> DurableStore::FramesOf(DiskId disk, BlockRange blocks) const {
  std::vector<BlockRow> rows;
  if (blocks.count == 0) return rows;
  const Ssa last{.disk = disk, .block = blocks.first + blocks.count - 1};
  absl::Status status =
      ForEach(kBlock, BlockKey({disk, blocks.first}, {}), [&](std::string_view key, std::string_view, bool* end) {
        const std::optional<BlockRow> row = DecodeBlockKey(key);
        if (!row.has_value()) {
          return absl::DataLossError(fmt::format("replica database {}: a damaged row of by_block", options_.directory));
        }
        *end = row->ssa > last;
        if (*end) return absl::OkStatus();
        std::string value;
        const rocksdb::Status found = db_->Get(rocksdb::ReadOptions(), families_[kPage], PageKey(row->frame), &value);
        if (found.IsNotFound()) return absl::OkStatus();
        HK_RETURN_IF_ERROR(FromRocks(found, options_.directory));
        const std::optional<ReplicaEntry> entry = DecodePageValue(value);
        if (entry.has_value() && entry->ssa == row->ssa) rows.push_back(*row);
        return absl::OkStatus();
      });
  HK_RETURN_IF_ERROR(status);
  return rows;
}

absl::StatusOr<uint64_t> DurableStore::Epoch() const {
  std::string value;
  const rocksdb::Status status = db_->Get(rocksdb::ReadOptions(), families_[kMetaFamily], ToSlice(kEpochKey), &value);
  if (status.IsNotFound()) return uint64_t{0};
  HK_RETURN_IF_ERROR(FromRocks(status, options_.directory));
  const std::optional<uint64_t> epoch = DecodeNumberValue(value);
  if (!epoch.has_value()) {
    return absl::DataLossError(fmt::format("replica database {}: its epoch is damaged", options_.directory));
  }
  return *epoch;
}

void DurableStore::PutEntry(DurableBatch* batch, const FrameRef& frame, const ReplicaEntry& entry) const {
  batch->batch_->Put(families_[kPage], PageKey(frame), PageValue(entry));
  batch->batch_->Put(families_[kBlock], BlockKey(entry.ssa, frame), rocksdb::Slice());
}
void DurableStore::RemoveEntry(DurableBatch* batch, const FrameRef& frame) const {
  batch->batch_->Delete(families_[kPage], PageKey(frame));
}
void DurableStore::RemoveBlock(DurableBatch* batch, Ssa ssa, const FrameRef& frame) const {
  batch->batch_->Delete(families_[kBlock], BlockKey(ssa, frame));
}
absl::Status DurableStore::RemoveAllEntries() {
  // No range deletions: a compaction that keeps nothing of one, and then cannot write, fails an assertion (RocksDB
  // 7.8.3 as Debian builds it: CompactionJob::UpdateCompactionJobStats), and a full disk would end the daemon.
  DurableBatch batch;
  for (uint8_t disk = 0; disk < kMaxReplicaDisks; ++disk) {
    batch.batch_->Delete(families_[kMetaFamily], DiskKey(DiskId(disk)));
  }
  batch.batch_->Put(families_[kMetaFamily], ToSlice(kIdentityKey), IdentityValue(options_.identity));
  HK_RETURN_IF_ERROR(Write(&batch, /*sync=*/true));
  for (const int family : {kPage, kBlock}) {
    rocksdb::ColumnFamilyHandle*& there = families_[static_cast<size_t>(family)];
    HK_RETURN_IF_ERROR(FromRocks(db_->DropColumnFamily(there), options_.directory));
    rocksdb::ColumnFamilyHandle* made = nullptr;
    HK_RETURN_IF_ERROR(
        FromRocks(db_->CreateColumnFamily(FamilyOptions(family), FamilyNames()[static_cast<size_t>(family)], &made),
                  options_.directory));
    HK_RETURN_IF_ERROR(FromRocks(db_->DestroyColumnFamilyHandle(std::exchange(there, made)), options_.directory));
  }
  return absl::OkStatus();
}
void DurableStore::PutIntent(DurableBatch* batch, DiskRegion region) const {
  batch->batch_->Put(families_[kMetaFamily], IntentKey(region), rocksdb::Slice());
}
void DurableStore::RemoveIntent(DurableBatch* batch, DiskRegion region) const {
  batch->batch_->Delete(families_[kMetaFamily], IntentKey(region));
}
void DurableStore::PutDisk(DurableBatch* batch, DiskId disk, const DurableDisk& value) const {
  batch->batch_->Put(families_[kMetaFamily], DiskKey(disk), DiskValue(value));
}
void DurableStore::PutEpoch(DurableBatch* batch, uint64_t epoch) const {
  batch->batch_->Put(families_[kMetaFamily], ToSlice(kEpochKey), NumberValue(epoch));
}

absl::Status DurableStore::Write(DurableBatch* batch, bool sync) {
  rocksdb::WriteOptions options;
  options.sync = sync;
  // An empty batch is written too if it is to sync what was written before.
  if (batch->empty() && !sync) return absl::OkStatus();
  if (batch->empty()) batch->batch_->PutLogData("sync");
  const absl::Status status = FromRocks(db_->Write(options, batch->batch_.get()), options_.directory);
  batch->Clear();
  return status;
}

absl::Status DurableStore::Abandon() {
  // Removing a file needs no space.
  const rocksdb::Status removed = env_->DeleteFile(MarkPath());
  if (!removed.ok() && !removed.IsNotFound()) return FromRocks(removed, MarkPath());
  return SyncDirectory();
}

}  // namespace hk
