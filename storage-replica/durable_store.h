// The replica's database: RocksDB behind the operations that the replica needs (README.md, "The durable form"; the
// bytes are in FORMAT.md).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "storage-replica/durable_format.h"

namespace rocksdb {
class ColumnFamilyHandle;
class DB;
class Env;
class WriteBatch;
}  // namespace rocksdb

namespace hk {

// Changes that become durable together. Movable, not thread-safe.
class DurableBatch {
 public:
  DurableBatch();
  ~DurableBatch();
  DurableBatch(DurableBatch&&) noexcept;
  size_t bytes() const;
  bool empty() const;
  void Clear();

 private:
  friend class DurableStore;
  std::unique_ptr<rocksdb::WriteBatch> batch_;
};

// One guest's database on one node. Thread-safe, but for a batch that is being filled. Errors of all methods, with the
// directory: kDataLoss: damaged; kResourceExhausted: no space; kUnavailable: what else RocksDB says.
class DurableStore {
 public:
  // Where it is and whose. Plain value. `env` is not owned; nullptr: the host's.
  struct Options {
    std::string directory;
    TableIdentity identity;
    uint64_t above = 0;  // a table that is there already gave out generations below this one
    rocksdb::Env* env = nullptr;
  };

  // Opens it, or makes it if it is not there or was abandoned. Also kFailedPrecondition, one line: of another format
  // version, guest or size of memory, or not a replica's, which is left as it is. REQUIRES: the caller holds the data
  // directory's lock.
  static absl::StatusOr<std::unique_ptr<DurableStore>> Open(const Options& options);
  ~DurableStore();

  // Removes what Open made, and the directory. Nothing if it is not there. Errors: kFailedPrecondition: it is not a
  // replica's, and is left as it is; kUnavailable: what RocksDB says. REQUIRES: it is not open.
  static absl::Status Remove(const std::string& directory);

  // The frames of this node that rows name are gone: another boot, or another frame store.
  bool frames_lost() const { return frames_lost_; }
  // Above every generation that was ever given out with this database open.
  uint64_t first_generation() const { return first_generation_; }

  // Calls each for every entry that may be believed if its holder confirms it: not in a marked region, not beyond the
  // disk's last durable flush, with a checksum, of an image that is unchanged, on a node whose frames are there. Rows
  // that are damaged are an error. `images`: as they are now, before this process changes them; none: it does not
  // count.
  absl::Status Load(const std::function<std::optional<DiskImageIdentity>(DiskId)>& images,
                    const std::function<void(const FrameRef&, const ReplicaEntry&)>& each) const;
  absl::StatusOr<std::vector<DiskRegion>> Intents() const;
  // All frames that by_block names for these blocks and by_page confirms.
  absl::StatusOr<std::vector<BlockRow>> FramesOf(DiskId disk, BlockRange blocks) const;
  absl::StatusOr<uint64_t> Epoch() const;

  void PutEntry(DurableBatch* batch, const FrameRef& frame, const ReplicaEntry& entry) const;
  void RemoveEntry(DurableBatch* batch, const FrameRef& frame) const;
  void RemoveBlock(DurableBatch* batch, Ssa ssa, const FrameRef& frame) const;
  // Entries and disks: what is known of them is told anew, of this boot's frames. At once; rows that are written from
  // then on count when their disk has a row again. REQUIRES: nobody else uses the rows.
  absl::Status RemoveAllEntries();
  void PutIntent(DurableBatch* batch, DiskRegion region) const;
  void RemoveIntent(DurableBatch* batch, DiskRegion region) const;
  void PutDisk(DurableBatch* batch, DiskId disk, const DurableDisk& value) const;
  void PutEpoch(DurableBatch* batch, uint64_t epoch) const;
  // `sync`: it, and all before it, is on disk when the call returns. Else the host's crash may lose it, with all after.
  absl::Status Write(DurableBatch* batch, bool sync);

  // What it says must never be believed again, though it cannot be written any more: it is thrown away when it is next
  // opened. On disk on return. If that fails too, no write of a disk may go on.
  absl::Status Abandon();

 private:
  explicit DurableStore(const Options& options);
  absl::Status OpenDatabase();
  absl::Status CheckContents();
  absl::StatusOr<std::string> Meta(std::string_view key) const;
  absl::Status ForEach(
      int family, std::string_view from,
      const std::function<absl::Status(std::string_view key, std::string_view value, bool* end)>& each) const;
  std::string MarkPath() const;
  std::string OwnPath() const;
  // Makes an empty file whose being there says something; on disk on return.
  absl::Status MakeMark(const std::string& path);
  absl::Status SyncDirectory();

  const Options options_;
  rocksdb::Env* const env_;
  std::unique_ptr<rocksdb::DB> db_;
  std::vector<rocksdb::ColumnFamilyHandle*> families_;  // kPage, kBlock, kMeta, default
  bool frames_lost_ = false;
  NodeId lost_node_{};  // whose, if so
  uint64_t first_generation_ = 0;
};

}  // namespace hk
