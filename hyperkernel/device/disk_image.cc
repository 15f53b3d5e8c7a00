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
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

constexpr uint64_t kSectorBytes = 512;
constexpr uint32_t kLargestAlignment = 4096;

absl::StatusOr<OwnedFd> OpenPath(const DiskImage::Options& options, const std::string& what) {
  // Not blocking: opening a FIFO must not hang.
  const int access = (options.read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK;
  OwnedFd fd(::open(options.path.c_str(), access));
  if (!fd.valid()) {
    const int error = errno;
    const absl::Status status = ErrnoStatus(error, what);
    if (!options.read_only && (error == EACCES || error == EROFS || error == EPERM)) {
      return absl::PermissionDeniedError(MessageOf(status) + "; a disk that is not to be written needs readonly: true");
    }
    return status;
  }
  return fd;
}

absl::Status Lock(int fd, bool read_only, const std::string& what) {
  struct flock lock {};
  lock.l_type = read_only ? F_RDLCK : F_WRLCK;
  lock.l_whence = SEEK_SET;  // from 0 to the end, wherever that comes to be
  if (::fcntl(fd, F_OFD_SETLK, &lock) == 0) return absl::OkStatus();
  if (errno == EAGAIN || errno == EACCES) {
    return absl::FailedPreconditionError(what + ": in use by another guest or program (it holds a lock on it)");
  }
  return ErrnoStatus(errno, what + ": lock");
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
  return absl::FailedPreconditionError(what + ": cannot be read with O_DIRECT; cache: buffered does without");
}

}  // namespace

absl::StatusOr<DiskImage> DiskImage::Open(const Options& options) {
  const std::string what = "disk " + options.path;
  DiskImage image;
  HK_ASSIGN_OR_RETURN(image.fd, OpenPath(options, what));
  struct stat status {};
  if (::fstat(image.fd.get(), &status) != 0) return ErrnoStatus(errno, what);
  image.block_device = S_ISBLK(status.st_mode);
  if (!S_ISREG(status.st_mode) && !image.block_device) {
    return absl::InvalidArgumentError(what + ": neither a regular file nor a block device");
  }
  HK_RETURN_IF_ERROR(Lock(image.fd.get(), options.read_only, what));
  uint64_t bytes = static_cast<uint64_t>(status.st_size);
  if (image.block_device && ::ioctl(image.fd.get(), BLKGETSIZE64, &bytes) != 0) return ErrnoStatus(errno, what);
  image.bytes = bytes / kSectorBytes * kSectorBytes;
  if (image.bytes == 0) return absl::InvalidArgumentError(fmt::format("{}: {} bytes is not a disk", what, bytes));
  image.read_only = options.read_only;
  int flags = ::fcntl(image.fd.get(), F_GETFL) & ~O_NONBLOCK;
  if (!options.buffered) flags |= O_DIRECT;
  if (::fcntl(image.fd.get(), F_SETFL, flags) != 0) {
    if (errno == EINVAL && !options.buffered) {
      return absl::FailedPreconditionError(what + ": its file system has no O_DIRECT; cache: buffered does without");
    }
    return ErrnoStatus(errno, what);
  }
  if (!options.buffered) {
    HK_ASSIGN_OR_RETURN(image.alignment, DirectAlignment(image.fd.get(), image.bytes, what));
    image.bytes = image.bytes / image.alignment * image.alignment;
  }
  return image;
}

}  // namespace hk
