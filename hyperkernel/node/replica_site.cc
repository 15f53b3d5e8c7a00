#include "hyperkernel/node/replica_site.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/boot/address_map.h"
#include "storage-replica/durable_store.h"

namespace hk {
namespace {

constexpr char kBootIdPath[] = "/proc/sys/kernel/random/boot_id";
constexpr size_t kMostBootIdBytes = 64;

ReplicaUuid UuidOf(std::string_view text) {
  XXH128_canonical_t bytes;
  ::XXH128_canonicalFromHash(&bytes, XXH3_128bits(text.data(), text.size()));
  ReplicaUuid uuid;
  static_assert(sizeof bytes == sizeof uuid.bytes);
  std::memcpy(uuid.bytes.data(), &bytes, sizeof bytes);
  return uuid;
}

class StoreTableRoom final : public TableRoom {
 public:
  explicit StoreTableRoom(FrameStore frames) : frames_(std::move(frames)) {}
  bool Take(uint64_t bytes) override { return frames_.TakeBeside(bytes); }
  void Give(uint64_t bytes) override { frames_.GiveBeside(bytes); }

 private:
  const FrameStore frames_;  // its books are shared
};

}  // namespace

absl::StatusOr<ReplicaSite> FindReplicaSite(const FrameStore& frames, const Clock& clock, const std::string& node_id) {
  HK_ASSIGN_OR_RETURN(const std::string boot, ReadSmallFile(kBootIdPath, kMostBootIdBytes));
  // A mount has a number of its own for as long as it is there, and a directory in it too.
  struct stat info {};
  if (::stat(frames.directory().c_str(), &info) != 0) return ErrnoStatus(errno, frames.directory());
  ReplicaSite site{.frames = &frames, .clock = &clock, .boot = {}, .frame_store = {}, .databases = ""};
  site.boot = UuidOf(boot);
  site.frame_store = UuidOf(fmt::format("{} {} {}", node_id, info.st_dev, info.st_ino));
  return site;
}

ReplicaOwner OwnerOf(const v1::VmRecord& record) {
  const v1::VmSpec& spec = record.spec();
  const std::string known_by =
      fmt::format("{} {} {}", spec.name(), record.created().seconds(), record.created().nanos());
  const RamPiece last = RamLayout(spec.memory_mib() << 20).back();
  return {.name = spec.name(),
          .guest = GuestId(XXH3_64bits(known_by.data(), known_by.size())),
          .pages = (last.start.value() + last.bytes) / kPageSize,
          .durable = !spec.no_durable_replica()};
}

std::string DatabaseOf(const ReplicaSite& site, const ReplicaOwner& owner) {
  if (site.databases.empty() || !owner.durable) return "";
  return fmt::format("{}/{}-{:016x}", site.databases, owner.name, owner.guest.value());
}

void RemoveOtherDatabases(const ReplicaSite& site, const std::vector<ReplicaOwner>& owners) {
  std::set<std::string> kept;
  for (const ReplicaOwner& owner : owners) kept.insert(DatabaseOf(site, owner));
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(site.databases, error)) {
    const std::string path = entry.path().string();
    if (kept.contains(path)) continue;
    const absl::Status removed = DurableStore::Remove(path);
    if (removed.ok()) continue;
    log::Warning("replica", "a database of a machine that is not there stays", {{"error", MessageOf(removed)}});
  }
}

absl::StatusOr<ReplicaTablePath> ReplicaTablePath::OpenPath(std::string path, int flags) {
  OwnedFd file(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | flags, 0600));
  if (!file.valid()) return ErrnoStatus(errno, path);
  return ReplicaTablePath(std::move(path), std::move(file));
}

absl::StatusOr<ReplicaTablePath> ReplicaTablePath::Create(const FrameStore& frames, const std::string& name,
                                                          uint64_t generation) {
  if (frames.most_beside_bytes() == 0) {
    OwnedFd nameless(::memfd_create("hk-replica", MFD_CLOEXEC));
    if (!nameless.valid()) return ErrnoStatus(errno, "memory for the replica table");
    return ReplicaTablePath("", std::move(nameless));
  }
  std::string path = frames.TablePathOf(name, generation);
  // One of that name is of a machine that is no more; who still has it open keeps what it had.
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return ErrnoStatus(errno, path);
  return OpenPath(std::move(path), O_CREAT | O_EXCL);
}

absl::StatusOr<ReplicaTablePath> ReplicaTablePath::Open(const FrameStore& frames, const std::string& name,
                                                        uint64_t generation) {
  return OpenPath(frames.TablePathOf(name, generation), 0);
}

ReplicaTablePath::~ReplicaTablePath() {
  if (path_ != nullptr && !path_->empty()) ::unlink(path_->c_str());
}

std::shared_ptr<TableRoom> MakeTableRoom(const FrameStore& frames) {
  return frames.most_beside_bytes() == 0 ? nullptr : std::make_shared<StoreTableRoom>(frames);
}

}  // namespace hk
