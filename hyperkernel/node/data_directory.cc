#include "hyperkernel/node/data_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

#include "fmt/chrono.h"
#include "fmt/format.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/membership.h"

namespace hk {
namespace {

constexpr size_t kMaxLockBytes = 1024;
constexpr size_t kMaxIdentityBytes = 4096;
constexpr char kUuidPath[] = "/proc/sys/kernel/random/uuid";
constexpr size_t kUuidBytes = 36;

// What the lock file says of its holder, for a message.
std::string HolderOf(const std::string& path) {
  absl::StatusOr<std::string> text = ReadSmallFile(path, kMaxLockBytes);
  if (!text.ok() || text->empty()) return "an unnamed process";
  const size_t end = text->find('\n');
  return text->substr(0, end);
}

// Errors of a damaged file are ours to word; the parser must not print its own.
class Quiet final : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int, google::protobuf::io::ColumnNumber, const std::string&) override {}
  void AddWarning(int, google::protobuf::io::ColumnNumber, const std::string&) override {}
};

absl::StatusOr<v1::NodeIdentity> MakeIdentity(const std::string& path, const std::string& name,
                                              const std::string& cluster, const Clock& clock) {
  HK_ASSIGN_OR_RETURN(const std::string uuid, ReadSmallFile(kUuidPath, kMaxIdentityBytes));
  v1::NodeIdentity identity;
  identity.set_node_id(uuid.substr(0, kUuidBytes));
  identity.set_name(name);
  identity.set_cluster(cluster);
  *identity.mutable_created() = ToTimestamp(clock.Wall());
  std::string text;
  google::protobuf::TextFormat::PrintToString(identity, &text);
  HK_RETURN_IF_ERROR(ReplaceFile(path, text, 0644));
  return identity;
}

}  // namespace

absl::StatusOr<DirectoryLock> DirectoryLock::Take(const std::string& directory, const std::string& node_name,
                                                  const Clock& clock) {
  HK_RETURN_IF_ERROR(MakeDirectories(directory, 0700));
  const std::string path = directory + "/lock";
  OwnedFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (!fd.valid()) return ErrnoStatus(errno, path);
  if (!HK_MUTANT(data_directory_unlocked) && ::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus(errno, fmt::format("lock {}", path));
    return absl::FailedPreconditionError(fmt::format(
        "{} is in use by {}; stop that daemon, or give this one another directory", directory, HolderOf(path)));
  }
  const std::string holder = fmt::format("hyperkerneld pid {} (node {}, since {:%Y-%m-%dT%H:%M:%S}Z)\n", ::getpid(),
                                         node_name, fmt::gmtime(std::chrono::system_clock::to_time_t(clock.Wall())));
  // The text is for messages only: the lock is what counts, so a short write is no reason to stop.
  if (::ftruncate(fd.get(), 0) == 0) static_cast<void>(!::pwrite(fd.get(), holder.data(), holder.size(), 0));
  return DirectoryLock(std::move(fd));
}

absl::StatusOr<v1::NodeIdentity> LoadOrMakeIdentity(const std::string& directory, const std::string& name,
                                                    const std::string& cluster, const Clock& clock) {
  const std::string path = directory + "/identity.textproto";
  const absl::StatusOr<std::string> text = ReadSmallFile(path, kMaxIdentityBytes);
  if (absl::IsNotFound(text.status()) || HK_MUTANT(identity_renewed)) return MakeIdentity(path, name, cluster, clock);
  if (!text.ok()) return text.status();
  v1::NodeIdentity identity;
  Quiet quiet;
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&quiet);
  if (!parser.ParseFromString(*text, &identity) || identity.node_id().size() != kUuidBytes) {
    return absl::DataLossError(
        fmt::format("{}: damaged; restore it from a backup, or move {} away to start as a new node", path, directory));
  }
  if (identity.name() != name || identity.cluster() != cluster) {
    return absl::FailedPreconditionError(
        fmt::format("{} belongs to node '{}' of cluster '{}', not to node '{}' of cluster '{}'; set data_directory, or "
                    "name and cluster, to match",
                    directory, identity.name(), identity.cluster(), name, cluster));
  }
  return identity;
}

}  // namespace hk
