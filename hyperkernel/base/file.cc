#include "hyperkernel/base/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <memory>

#include "fmt/format.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

absl::Status WriteAll(int fd, std::string_view content, const std::string& path) {
  while (!content.empty()) {
    ssize_t n = ::write(fd, content.data(), content.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, fmt::format("write {}", path));
    content.remove_prefix(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

absl::Status SyncDirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  OwnedFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid() || ::fsync(fd.get()) != 0) return ErrnoStatus(errno, fmt::format("sync {}", directory));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t limit) {
  // O_NONBLOCK: a FIFO given by mistake must not hang the open.
  OwnedFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return ErrnoStatus(errno, path);
  struct stat info;
  if (::fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, path);
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError(fmt::format("{}: not a regular file", path));
  std::string content;
  content.resize(limit + 1);
  size_t size = 0;
  while (size < content.size()) {
    ssize_t n = ::read(fd.get(), content.data() + size, content.size() - size);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, path);
    if (n == 0) break;
    size += static_cast<size_t>(n);
  }
  if (size > limit) return absl::InvalidArgumentError(fmt::format("{}: longer than {} bytes", path, limit));
  content.resize(size);
  return content;
}

absl::Status ReplaceFile(const std::string& path, std::string_view content, unsigned mode) {
  std::string temporary = path + ".XXXXXX";
  OwnedFd fd(::mkostemp(temporary.data(), O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, fmt::format("create {}", temporary));
  absl::Status status = WriteAll(fd.get(), content, temporary);
  if (status.ok() && ::fchmod(fd.get(), mode) != 0) status = ErrnoStatus(errno, fmt::format("chmod {}", temporary));
  if (status.ok() && ::fsync(fd.get()) != 0) status = ErrnoStatus(errno, fmt::format("fsync {}", temporary));
  if (status.ok() && ::rename(temporary.c_str(), path.c_str()) != 0) {
    status = ErrnoStatus(errno, fmt::format("rename {} to {}", temporary, path));
  }
  if (!status.ok()) {
    ::unlink(temporary.c_str());
    return status;
  }
  return SyncDirectoryOf(path);
}

absl::StatusOr<uint64_t> BytesOfFiles(const std::string& directory) {
  constexpr uint64_t kStatBlock = 512;  // of st_blocks, whatever the file system's block is
  const std::unique_ptr<DIR, int (*)(DIR*)> open(::opendir(directory.c_str()), &::closedir);
  if (open == nullptr) return ErrnoStatus(errno, directory);
  uint64_t sum = 0;
  while (const dirent* entry = ::readdir(open.get())) {
    struct stat info;
    if (::fstatat(::dirfd(open.get()), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(info.st_mode)) {
      sum += static_cast<uint64_t>(info.st_blocks) * kStatBlock;
    }
  }
  return sum;
}

absl::Status MakeDirectories(const std::string& path, unsigned mode) {
  for (size_t end = path.find('/', 1); end != std::string::npos; end = path.find('/', end + 1)) {
    const std::string parent = path.substr(0, end);
    if (::mkdir(parent.c_str(), 0755) != 0 && errno != EEXIST)
      return ErrnoStatus(errno, fmt::format("mkdir {}", parent));
  }
  if (::mkdir(path.c_str(), mode) == 0) return absl::OkStatus();
  if (errno != EEXIST) return ErrnoStatus(errno, fmt::format("mkdir {}", path));
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, path);
  if (!S_ISDIR(info.st_mode)) return ErrnoStatus(ENOTDIR, path);
  return absl::OkStatus();
}

}  // namespace hk
