#include "hyperkernel/memory/frame_store.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <mntent.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string_view>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/host_swap.h"

namespace hk {
namespace {

// Room beyond the budget for what tmpfs itself counts: directories and the daemon's small files.
constexpr uint64_t kSlackBytes = 4 << 20;
constexpr std::string_view kTableSuffix = ".replica";

// Room for tables: 160 bytes for each page at most, of all four runs that one knows (storage-replica/FORMAT.md).
constexpr uint64_t RoomBeside(uint64_t budget_bytes) {
  return (budget_bytes / 24 + (1 << 20)) & ~uint64_t{0xfffff};
}

struct FileSystem {
  bool tmpfs = false;
  uint64_t size_bytes = 0;
  uint64_t free_bytes = 0;
  uint64_t used_bytes = 0;
  bool mount_point = false;
};

absl::StatusOr<FileSystem> Look(const std::string& directory) {
  struct statfs info;
  if (::statfs(directory.c_str(), &info) != 0) return ErrnoStatus(errno, directory);
  struct stat self, parent;
  if (::stat(directory.c_str(), &self) != 0 || ::stat((directory + "/..").c_str(), &parent) != 0)
    return ErrnoStatus(errno, directory);
  const auto block = static_cast<uint64_t>(info.f_bsize);
  return FileSystem{.tmpfs = info.f_type == TMPFS_MAGIC,
                    .size_bytes = info.f_blocks * block,
                    .free_bytes = info.f_bavail * block,
                    .used_bytes = (info.f_blocks - info.f_bfree) * block,
                    .mount_point = self.st_dev != parent.st_dev};
}

// What the options of the mount at `directory` say of `name`, "" if it has no value; nothing if it is not there.
std::optional<std::string> MountOption(const std::string& directory, const char* name) {
  struct MntClose {
    void operator()(FILE* file) const { ::endmntent(file); }
  };
  const std::unique_ptr<FILE, MntClose> mounts(::setmntent("/proc/self/mounts", "r"));
  const std::unique_ptr<char, decltype(&::free)> real(::realpath(directory.c_str(), nullptr), &::free);
  std::optional<std::string> value;
  if (mounts == nullptr || real == nullptr) return value;
  mntent entry;
  char buffer[8192];
  while (::getmntent_r(mounts.get(), &entry, buffer, sizeof buffer) != nullptr) {
    if (std::string_view(real.get()) != entry.mnt_dir) continue;
    value.reset();  // the last mount over a directory is the one seen
    const char* option = ::hasmntopt(&entry, name);
    if (option == nullptr) continue;
    const std::string_view word = std::string_view(option).substr(0, std::string_view(option).find(','));
    const size_t equals = word.find('=');
    value = equals == std::string_view::npos ? "" : std::string(word.substr(equals + 1));
  }
  return value;
}

// Of a mount of our own.
uint64_t WholeBytes(uint64_t budget_bytes) {
  return budget_bytes + RoomBeside(budget_bytes) + kSlackBytes;
}

std::string Options(uint64_t budget_bytes) {
  return fmt::format("size={},huge=never,mode=0700", WholeBytes(budget_bytes));
}

// Returns 0 or the errno. Without noswap where the kernel does not have it (before 6.4, in a user namespace).
int MountTmpfs(const std::string& target, uint64_t budget_bytes) {
  const std::string options = Options(budget_bytes);
  for (const std::string& tried : {options + ",noswap", options}) {
    if (::mount("hyperkernel", target.c_str(), "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, tried.c_str()) == 0) return 0;
    if (errno != EINVAL) break;
  }
  return errno;
}

bool IsForbidden(int error) {
  return error == EPERM || error == EACCES;
}

absl::Status Grow(const std::string& directory, uint64_t budget_bytes, const FileSystem& found) {
  const uint64_t wanted = WholeBytes(budget_bytes);
  if (found.size_bytes == 0 || found.size_bytes >= wanted) return absl::OkStatus();  // size 0: no limit
  // Kernels from 6.4 to 6.17 refuse a remount that does not repeat noswap.
  const bool noswap = MountOption(directory, "noswap").has_value();
  const std::string options = fmt::format("size={}{}", wanted, noswap ? ",noswap" : "");
  if (::mount("tmpfs", directory.c_str(), "tmpfs", MS_REMOUNT | MS_NOSUID | MS_NODEV | MS_NOEXEC, options.c_str()) == 0)
    return absl::OkStatus();
  if (found.size_bytes >= budget_bytes) return absl::OkStatus();  // for frames it is large enough
  return absl::FailedPreconditionError(
      fmt::format("the tmpfs at {} has {} MiB, less than frame_store.budget_mib {}: mount -o remount,{} {}", directory,
                  found.size_bytes >> 20, budget_bytes >> 20, options, directory));
}

// The directory, if it is no symbolic link, this user's and nobody else's to write.
absl::StatusOr<OwnedFd> OpenOwnDirectory(const std::string& directory) {
  const int follow = HK_MUTANT(frame_store_follows_links) ? 0 : O_NOFOLLOW;
  OwnedFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | follow));
  if (!fd.valid() && (errno == ELOOP || errno == ENOTDIR)) {
    return absl::FailedPreconditionError(fmt::format("{} is a symbolic link; name the directory itself", directory));
  }
  struct stat info;
  if (!fd.valid() || ::fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, directory);
  if (info.st_uid != ::geteuid()) {
    return absl::FailedPreconditionError(
        fmt::format("{} belongs to user {}, not to this daemon's ({}): guest memory would be theirs; chown {} {}",
                    directory, info.st_uid, ::geteuid(), ::geteuid(), directory));
  }
  if ((info.st_mode & 0022) != 0) {
    return absl::FailedPreconditionError(fmt::format("{} is writable by other users (mode {:04o}); chmod 0700 {}",
                                                     directory, info.st_mode & 07777, directory));
  }
  return fd;
}

using OpenDirectory = std::unique_ptr<DIR, decltype([](DIR* open) { ::closedir(open); })>;

// Only an earlier daemon's own files may be in a directory that is about to be mounted on or used: a lock tells it.
absl::Status CheckNothingForeign(const std::string& directory) {
  const OpenDirectory open(::opendir(directory.c_str()));
  if (open == nullptr) return ErrnoStatus(errno, directory);
  bool any = false, lock = false;
  while (const dirent* entry = ::readdir(open.get())) {
    const std::string_view name = entry->d_name;
    if (name == "." || name == "..") continue;
    any = true;
    lock = lock || name == "lock";
  }
  if (!any || lock) return absl::OkStatus();
  return absl::FailedPreconditionError(
      fmt::format("{} holds files that are not this daemon's; name an empty or new directory", directory));
}

// GUEST.GENERATION or GUEST.GENERATION.replica, as PathOf and TablePathOf make them; nothing: it is neither.
std::optional<FrameStore::Leftover> ToLeftover(std::string_view name) {
  FrameStore::Leftover left;
  left.file = name;
  left.table = name.ends_with(kTableSuffix);
  if (left.table) name.remove_suffix(kTableSuffix.size());
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos || dot == 0 || dot + 1 == name.size()) return std::nullopt;
  if (name.find_first_not_of("0123456789", dot + 1) != std::string_view::npos) return std::nullopt;
  left.guest = name.substr(0, dot);
  if (std::from_chars(name.data() + dot + 1, name.data() + name.size(), left.generation).ec != std::errc()) {
    left.generation = 0;
  }
  return left;
}

}  // namespace

absl::StatusOr<FrameStore> FrameStore::Open(const std::string& directory, uint64_t budget_bytes) {
  HK_RETURN_IF_ERROR(MakeDirectories(directory, 0700));
  HK_ASSIGN_OR_RETURN(const OwnedFd opened, OpenOwnDirectory(directory));
  HK_ASSIGN_OR_RETURN(const FileSystem found, Look(directory));
  FrameStore store(directory, budget_bytes);
  store.own_mount_ = found.mount_point;
  if (found.mount_point) {
    if (found.tmpfs) {
      store.CountRoomBeside();
      const absl::StatusOr<uint64_t> swaps = CountSwapAreas();
      if (swaps.ok() && *swaps > 0 && !MountOption(directory, "noswap").has_value()) {
        store.warnings_.push_back(fmt::format(
            "the tmpfs at {} can be swapped out: from Linux 6.4 on, unmount it before the daemon starts", directory));
      }
      return store;
    }
    return absl::FailedPreconditionError(fmt::format(
        "another file system than tmpfs is mounted at {}; unmount it, or name another directory", directory));
  }
  HK_RETURN_IF_ERROR(CheckNothingForeign(directory));
  // Through the descriptor: what was checked is what is mounted on, whatever happens to the path meanwhile.
  const std::string target = fmt::format("/proc/self/fd/{}", opened.get());
  const int error = MountTmpfs(target, budget_bytes);
  if (error == 0) {
    store.own_mount_ = true;
    store.CountRoomBeside();
    return store;
  }
  if (!IsForbidden(error)) return ErrnoStatus(error, fmt::format("mount a tmpfs at {}", directory));
  if (!found.tmpfs) {
    return absl::PermissionDeniedError(fmt::format(
        "{} is not on a tmpfs, and mounting one needs CAP_SYS_ADMIN: run as root, or mount -t tmpfs -o {} tmpfs {}",
        directory, Options(budget_bytes), directory));
  }
  store.CountRoomBeside();
  store.warnings_.push_back(fmt::format("frame store {} shares a tmpfs: others may use up its space", directory));
  return store;
}

FrameReservation& FrameReservation::operator=(FrameReservation&& other) noexcept {
  std::swap(room_, other.room_);
  std::swap(bytes_, other.bytes_);
  std::swap(spare_, other.spare_);
  return *this;
}

FrameReservation::~FrameReservation() {
  if (room_ == nullptr) return;
  if (spare_) room_->spare.fetch_sub(bytes_);
  room_->reserved.fetch_sub(bytes_);
}

void FrameReservation::MakeSpare(uint64_t bytes) {
  if (room_ == nullptr) return;
  HK_CHECK(bytes <= bytes_);
  if (spare_) {
    room_->spare.fetch_sub(bytes_ - bytes);
    room_->reserved.fetch_sub(bytes_ - bytes);
  } else {
    room_->reserved.fetch_sub(bytes_ - bytes);
    room_->spare.fetch_add(bytes);
  }
  bytes_ = bytes;
  spare_ = true;
}

uint64_t FrameStore::TryReserve(uint64_t bytes) const {
  uint64_t reserved = room_->reserved.load();
  do {
    if (bytes > budget_bytes_ - reserved) return bytes - (budget_bytes_ - reserved);
  } while (!room_->reserved.compare_exchange_weak(reserved, reserved + bytes));
  return 0;
}

absl::StatusOr<FrameReservation> FrameStore::Reserve(uint64_t bytes) const {
  uint64_t missing = TryReserve(bytes);
  if (missing > 0 && bytes <= budget_bytes_ && !HK_MUTANT(warm_frames_keep_room)) {
    std::vector<std::shared_ptr<SpareFrames>> holders;
    {
      MutexLock lock(&room_->mutex);
      std::erase_if(room_->holders, [](const auto& holder) { return holder.expired(); });
      for (const auto& holder : room_->holders) {
        if (std::shared_ptr<SpareFrames> there = holder.lock(); there != nullptr) holders.push_back(std::move(there));
      }
    }
    for (const std::shared_ptr<SpareFrames>& holder : holders) {
      holder->GiveBack(missing);
      missing = TryReserve(bytes);
      if (missing == 0) break;
    }
  }
  if (missing == 0) return FrameReservation(room_, bytes);
  return absl::ResourceExhaustedError(
      fmt::format("{} MiB of guest memory do not fit: the budget is {} MiB (frame_store.budget_mib), {} MiB are taken",
                  bytes >> 20, budget_bytes_ >> 20, reserved_bytes() >> 20));
}

void FrameStore::AddSpare(std::weak_ptr<SpareFrames> holder) const {
  MutexLock lock(&room_->mutex);
  std::erase_if(room_->holders, [](const auto& known) { return known.expired(); });
  room_->holders.push_back(std::move(holder));
}

absl::Status FrameStore::EnsureCapacity() const {
  HK_ASSIGN_OR_RETURN(const FileSystem found, Look(directory_));
  if (own_mount_) {
    const std::string huge = MountOption(directory_, "huge").value_or("never");
    if (huge != "never") {
      return absl::FailedPreconditionError(
          fmt::format("the tmpfs at {} has huge={}: mount -o remount,huge=never {}", directory_, huge, directory_));
    }
    HK_RETURN_IF_ERROR(Grow(directory_, budget_bytes_, found));
    CountRoomBeside();
    return absl::OkStatus();
  }
  if (found.size_bytes == 0 || found.size_bytes >= budget_bytes_) return absl::OkStatus();
  return absl::FailedPreconditionError(fmt::format(
      "the tmpfs at {} has {} MiB, less than frame_store.budget_mib {}: lower the budget, or mount a larger "
      "tmpfs there",
      directory_, found.size_bytes >> 20, budget_bytes_ >> 20));
}

std::string FrameStore::PathOf(const std::string& guest, uint64_t generation) const {
  return fmt::format("{}/{}.{}", directory_, guest, generation);
}

std::string FrameStore::TablePathOf(const std::string& guest, uint64_t generation) const {
  return fmt::format("{}{}", PathOf(guest, generation), kTableSuffix);
}

absl::StatusOr<std::vector<FrameStore::Leftover>> FrameStore::Leftovers() const {
  const OpenDirectory open(::opendir(directory_.c_str()));
  if (open == nullptr) return ErrnoStatus(errno, directory_);
  std::vector<Leftover> left;
  while (const dirent* entry = ::readdir(open.get())) {
    if (std::optional<Leftover> found = ToLeftover(entry->d_name)) left.push_back(*std::move(found));
  }
  return left;
}

absl::StatusOr<int> FrameStore::RemoveLeftovers(const std::set<std::string>& kept) const {
  HK_ASSIGN_OR_RETURN(const std::vector<Leftover> all, Leftovers());
  int removed = 0;
  for (const Leftover& left : all) {
    if (kept.contains(left.file)) continue;
    const std::string path = fmt::format("{}/{}", directory_, left.file);
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) return ErrnoStatus(errno, path);
    removed++;
  }
  return removed;
}

void FrameStore::CountRoomBeside() const {
  const absl::StatusOr<FileSystem> found = Look(directory_);
  if (!found.ok()) return;
  const uint64_t most = RoomBeside(budget_bytes_), taken = budget_bytes_ + (own_mount_ ? kSlackBytes : 0);
  const uint64_t rest = found->size_bytes > taken ? found->size_bytes - taken : 0;
  room_->most_beside.store(found->size_bytes == 0 ? most : std::min(most, rest));
}

bool FrameStore::TakeBeside(uint64_t bytes) const {
  uint64_t taken = room_->beside.load();
  do {
    const uint64_t most = room_->most_beside.load();
    if (taken > most || bytes > most - taken) return false;
  } while (!room_->beside.compare_exchange_weak(taken, taken + bytes));
  return true;
}

absl::StatusOr<uint64_t> FrameStore::UsedBytes() const {
  uint64_t used = 0;
  if (own_mount_) {
    HK_ASSIGN_OR_RETURN(const FileSystem found, Look(directory_));
    used = found.used_bytes;
  } else {
    HK_ASSIGN_OR_RETURN(used, BytesOfFiles(directory_));
  }
  return used - std::min(used, beside_bytes());
}

}  // namespace hk
