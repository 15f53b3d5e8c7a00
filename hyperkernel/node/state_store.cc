#include "hyperkernel/node/state_store.h"

#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>

#include "fmt/format.h"

namespace hk {
namespace {

// The state is small: a few KiB per VM. What RocksDB would take by default is more than the daemon itself.
constexpr size_t kWriteBufferBytes = 1 << 20;
constexpr size_t kBlockCacheBytes = 1 << 20;
constexpr int kMaxOpenFiles = 64;

absl::Status FromRocks(const rocksdb::Status& status, std::string_view what) {
  if (status.ok()) return absl::OkStatus();
  const auto code = status.IsCorruption() ? absl::StatusCode::kDataLoss : absl::StatusCode::kUnavailable;
  return absl::Status(code, fmt::format("{}: {}", what, status.ToString()));
}

rocksdb::Slice ToSlice(std::string_view text) {
  return rocksdb::Slice(text.data(), text.size());
}

}  // namespace

StateStore::StateStore(std::unique_ptr<rocksdb::DB> db) : db_(std::move(db)) {}
StateStore::~StateStore() = default;

absl::StatusOr<std::unique_ptr<StateStore>> StateStore::Open(const std::string& directory) {
  rocksdb::Options options;
  options.create_if_missing = true;
  options.write_buffer_size = kWriteBufferBytes;
  options.max_open_files = kMaxOpenFiles;
  options.keep_log_file_num = 2;
  options.paranoid_checks = true;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(kBlockCacheBytes);
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  rocksdb::DB* db = nullptr;
  const rocksdb::Status status = rocksdb::DB::Open(options, directory, &db);
  if (!status.ok()) return FromRocks(status, directory);
  return std::unique_ptr<StateStore>(new StateStore(std::unique_ptr<rocksdb::DB>(db)));
}

absl::Status StateStore::Put(std::string_view key, const google::protobuf::MessageLite& value) {
  rocksdb::WriteOptions options;
  options.sync = true;
  return FromRocks(db_->Put(options, ToSlice(key), value.SerializeAsString()), fmt::format("write of {}", key));
}

absl::Status StateStore::Delete(std::string_view key) {
  rocksdb::WriteOptions options;
  options.sync = true;
  return FromRocks(db_->Delete(options, ToSlice(key)), fmt::format("removal of {}", key));
}

absl::StatusOr<std::vector<std::pair<std::string, std::string>>> StateStore::List(std::string_view prefix) const {
  std::vector<std::pair<std::string, std::string>> entries;
  const std::unique_ptr<rocksdb::Iterator> at(db_->NewIterator(rocksdb::ReadOptions()));
  for (at->Seek(ToSlice(prefix)); at->Valid() && at->key().starts_with(ToSlice(prefix)); at->Next()) {
    entries.emplace_back(at->key().ToString(), at->value().ToString());
  }
  if (!at->status().ok()) return FromRocks(at->status(), fmt::format("list of {}", prefix));
  return entries;
}

}  // namespace hk
