// Where a node keeps the storage replicas of its machines, and what its files are known by when a daemon starts again.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/memory/frame_store.h"
#include "proto/state.pb.h"
#include "storage-replica/table_file.h"

namespace hk {

// One node's. Plain value; what it names outlives whoever has it.
struct ReplicaSite {
  const FrameStore* frames = nullptr;
  const Clock* clock = nullptr;
  ReplicaUuid boot{};         // of the host
  ReplicaUuid frame_store{};  // of this data directory's frames in this mount
  std::string databases;      // directory of the durable forms; "": there are none
};

// Whose replica it is. Plain value.
struct ReplicaOwner {
  std::string name;    // of the machine
  GuestId guest{};     // of no other machine, not even one of that name
  uint64_t pages = 0;  // up to the end of its RAM
  bool durable = false;
};

// The site of a node whose data directory is `node_id`'s; without databases. Errors: errno of what names the boot or
// the frame store.
absl::StatusOr<ReplicaSite> FindReplicaSite(const FrameStore& frames, const Clock& clock, const std::string& node_id);

// Whose the replica of this machine is. A machine that was deleted and defined anew is another.
ReplicaOwner OwnerOf(const v1::VmRecord& record);

// Where the durable form of this machine's replica is; "": it has none.
std::string DatabaseOf(const ReplicaSite& site, const ReplicaOwner& owner);
// Removes the databases of all machines but these. What cannot be removed is logged.
void RemoveOtherDatabases(const ReplicaSite& site, const std::vector<ReplicaOwner>& owners);

// The table of a replica, in the frame store: a name there, and room that is the store's.
class ReplicaTablePath {
 public:
  // A new, empty file, whatever was there; without a name, and so gone with the process, if the store has no room for
  // any table. Errors: errno with the path.
  static absl::StatusOr<ReplicaTablePath> Create(const FrameStore& frames, const std::string& name,
                                                 uint64_t generation);
  // One that is there. Errors: as Create.
  static absl::StatusOr<ReplicaTablePath> Open(const FrameStore& frames, const std::string& name, uint64_t generation);
  ReplicaTablePath(ReplicaTablePath&& other) noexcept = default;
  ReplicaTablePath& operator=(ReplicaTablePath&& other) = delete;
  // The name goes. Who has the file open keeps it.
  ~ReplicaTablePath();

  const std::string& path() const { return *path_; }
  // The file; once.
  OwnedFd TakeFile() { return std::move(file_); }

 private:
  ReplicaTablePath(std::string path, OwnedFd file)
      : path_(std::make_unique<std::string>(std::move(path))), file_(std::move(file)) {}
  static absl::StatusOr<ReplicaTablePath> OpenPath(std::string path, int flags);
  std::unique_ptr<std::string> path_;  // null: moved from
  OwnedFd file_;
};

// Counts what tables take beside the frames of a store; null: it has no room for any, and they are not in it.
std::shared_ptr<TableRoom> MakeTableRoom(const FrameStore& frames);

}  // namespace hk
