#include "hyperkernel/device/disk_image.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <memory>

#include "fmt/format.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

constexpr uint64_t kSectorBytes = 512;
constexpr uint32_t kLargestAlignment = 4096;

// QEMU's bytes, see the header.
constexpr off_t kUsesReading = 100, kUsesWriting = 101, kKeepsReading = 200, kKeepsWriting = 201;
constexpr off_t kWriteBytes = 3, kWholeFile = 0;  // 0: to the end, wherever that comes to be

absl::StatusOr<OwnedFd> OpenPath(const DiskImage::Options& options, const std::string& what) {
  // Not blocking: opening a FIFO must not hang. O_EXCL means something for block devices only.
  const int claim = !options.read_only || options.exclusive ? O_EXCL : 0;
  const int access = (options.read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | claim;
  OwnedFd fd(::open(options.path.c_str(), access));
  if (!fd.valid()) {
    const int error = errno;
    const absl::Status status = ErrnoStatus(error, what);
    if (!options.read_only && (error == EACCES || error == EROFS || error == EPERM)) {
      return absl::PermissionDeniedError(MessageOf(status) + "; a disk that is not to be written needs readonly: true");
    }
    if (error == EBUSY)
      return absl::FailedPreconditionError(what + ": in use by the host (mounted, or part of a volume)");
    return status;
  }
  return fd;
}

absl::Status InUse(const std::string& what) {
  return absl::FailedPreconditionError(what +
                                       ": in use by another guest or program (it holds a lock on it): stop that first");
}

absl::Status Take(int fd, short type, off_t start, off_t bytes, const std::string& what) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = start;
  lock.l_len = bytes;
  if (::fcntl(fd, F_OFD_SETLK, &lock) == 0) return absl::OkStatus();
  if (errno == EAGAIN || errno == EACCES) return InUse(what);
  return ErrnoStatus(errno, what + ": lock");
}

// Looks for locks of others.
absl::Status Look(int fd, off_t start, off_t bytes, const std::string& what) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = start;
  lock.l_len = bytes;
  if (::fcntl(fd, F_OFD_GETLK, &lock) != 0) return ErrnoStatus(errno, what + ": lock");
  return lock.l_type == F_UNLCK || HK_MUTANT(disk_locks_unseen) ? absl::OkStatus() : InUse(what);
}

// Takes first and looks then: of two who come at once one sees the other, and perhaps both.
absl::Status Lock(int fd, const DiskImage::Options& options, const std::string& what) {
  if (!options.read_only) return Take(fd, F_WRLCK, 0, kWholeFile, what);
  HK_RETURN_IF_ERROR(Take(fd, F_RDLCK, kUsesReading, 1, what));
  HK_RETURN_IF_ERROR(Take(fd, F_RDLCK, kKeepsWriting, kWriteBytes, what));
  if (options.exclusive) HK_RETURN_IF_ERROR(Take(fd, F_RDLCK, kKeepsReading, 1, what));
  HK_RETURN_IF_ERROR(Look(fd, kKeepsReading, 1, what));
  HK_RETURN_IF_ERROR(Look(fd, kUsesWriting, kWriteBytes, what));
  return options.exclusive ? Look(fd, kUsesReading, 1, what) : absl::OkStatus();
}

// What O_DIRECT asks for here: tried, since statx tells it only from Linux 6.1 on and not for every file system.
absl::StatusOr<uint32_t> DirectAlignment(int fd, uint64_t bytes, const std::string& what) {
  std::unique_ptr<void, decltype(&std::free)> buffer(std::aligned_alloc(kLargestAlignment, 2 * kLargestAlignment),
                                                     &std::free);
  for (uint32_t alignment = kSectorBytes; alignment <= kLargestAlignment; alignment *= 2) {
    if (alignment > bytes) break;
    // The buffer's alignment is tried with the offset's.
    auto* const at = static_cast<std::byte*>(buffer.get()) + (alignment == kLargestAlignment ? 0 : alignment);
    if (::pread(fd, at, alignment, alignment * 2 <= bytes ? alignment : 0) >= 0) return alignment;
    if (errno != EINVAL) return ErrnoStatus(errno, what + ": read");
  }
  return absl::FailedPreconditionError(what +
                                       ": cannot be read with O_DIRECT; cache: DISK_CACHE_BUFFERED does without");
}

}  // namespace

absl::StatusOr<DiskImage> DiskImage::Open(const Options& options) {
  const std::string& what = options.path;
  DiskImage image;
  HK_ASSIGN_OR_RETURN(image.fd, OpenPath(options, what));
  struct stat status {};
  if (::fstat(image.fd.get(), &status) != 0) return ErrnoStatus(errno, what);
  image.block_device = S_ISBLK(status.st_mode);
  if (!S_ISREG(status.st_mode) && !image.block_device) {
    return absl::InvalidArgumentError(what + ": neither a regular file nor a block device");
  }
  HK_RETURN_IF_ERROR(Lock(image.fd.get(), options, what));
  uint64_t bytes = static_cast<uint64_t>(status.st_size);
  if (image.block_device && ::ioctl(image.fd.get(), BLKGETSIZE64, &bytes) != 0) return ErrnoStatus(errno, what);
  if (bytes == 0 || bytes % kSectorBytes != 0) {
    return absl::InvalidArgumentError(fmt::format("{}: {} bytes is not a disk of whole 512-byte sectors", what, bytes));
  }
  image.bytes = bytes;
  image.read_only = options.read_only;
  int flags = ::fcntl(image.fd.get(), F_GETFL) & ~O_NONBLOCK;
  if (!options.buffered) flags |= O_DIRECT;
  if (::fcntl(image.fd.get(), F_SETFL, flags) != 0) {
    if (errno == EINVAL && !options.buffered) {
      return absl::FailedPreconditionError(
          what + ": its file system has no O_DIRECT; cache: DISK_CACHE_BUFFERED does without");
    }
    return ErrnoStatus(errno, what);
  }
  if (!options.buffered) {
    HK_ASSIGN_OR_RETURN(image.alignment, DirectAlignment(image.fd.get(), image.bytes, what));
    if (image.bytes % image.alignment != 0) {
      return absl::InvalidArgumentError(fmt::format(
          "{}: {} bytes is not a multiple of {}, the unit of O_DIRECT there; cache: DISK_CACHE_BUFFERED does "
          "without",
          what, image.bytes, image.alignment));
    }
  }
  return image;
}

}  // namespace hk
