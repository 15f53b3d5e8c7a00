#include "hyperkernel/memory/frame_file.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/userfaultfd_trial.h"

namespace hk {
namespace {

// A file that an earlier process of this daemon left, of so many bytes.
absl::StatusOr<OwnedFd> OpenLeft(const std::string& path, uint64_t bytes, struct stat* info) {
  OwnedFd file(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!file.valid() || ::fstat(file.get(), info) != 0) return ErrnoStatus(errno, path);
  if (!S_ISREG(info->st_mode) || info->st_uid != ::geteuid() || info->st_nlink != 1) {
    return absl::FailedPreconditionError(path + ": not a frame file of this daemon's");
  }
  if (static_cast<uint64_t>(info->st_size) != bytes) {
    return absl::FailedPreconditionError(fmt::format("{}: {} bytes of frames, not {}", path, info->st_size, bytes));
  }
  return file;
}

}  // namespace

absl::StatusOr<std::unique_ptr<FrameFile>> FrameFile::Create(const FrameStore& frames, const std::string& name,
                                                             uint64_t generation, uint64_t bytes, uint64_t most_bytes) {
  HK_ASSIGN_OR_RETURN(FrameReservation reservation, frames.Reserve(most_bytes));
  const std::string path = frames.PathOf(name, generation);
  OwnedFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file.valid()) return ErrnoStatus(errno, path);
  if (::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) {
    const int error = errno;
    ::unlink(path.c_str());
    return ErrnoStatus(error, fmt::format("ftruncate {}", path));
  }
  return std::unique_ptr<FrameFile>(new FrameFile(path, std::move(file), std::move(reservation), bytes));
}

absl::StatusOr<std::unique_ptr<FrameFile>> FrameFile::Adopt(const FrameStore& frames, const std::string& name,
                                                            uint64_t generation, uint64_t bytes,
                                                            std::vector<bool>* kept) {
  HK_CHECK(kept->size() == bytes / kPageSize);
  const std::string path = frames.PathOf(name, generation);
  struct stat info {};
  HK_ASSIGN_OR_RETURN(OwnedFd file, OpenLeft(path, bytes, &info));
  // From here on it goes with the object.
  std::unique_ptr<FrameFile> adopted(new FrameFile(path, std::move(file), FrameReservation(), bytes));
  for (size_t at = 0; at < kept->size();) {
    const auto next = std::find(kept->begin() + static_cast<ptrdiff_t>(at), kept->end(), true);
    const auto end = static_cast<size_t>(next - kept->begin());
    if (end > at) HK_RETURN_IF_ERROR(adopted->Punch(at * kPageSize, (end - at) * kPageSize));
    at = static_cast<size_t>(std::find(next, kept->end(), false) - kept->begin());
  }
  HK_RETURN_IF_ERROR(adopted->LookForHoles(kept));
  const auto count = static_cast<uint64_t>(std::count(kept->begin(), kept->end(), true));
  HK_ASSIGN_OR_RETURN(adopted->reservation_, frames.Reserve(count * kPageSize));
  adopted->MakeSpare(count * kPageSize);
  return adopted;
}

absl::Status FrameFile::LookForHoles(std::vector<bool>* kept) const {
  const auto clear = [kept](uint64_t from, uint64_t to) {
    std::fill(kept->begin() + static_cast<ptrdiff_t>(from / kPageSize),
              kept->begin() + static_cast<ptrdiff_t>(to / kPageSize), false);
  };
  uint64_t seen = 0;
  HK_RETURN_IF_ERROR(ForEachRun([&](uint64_t offset, uint64_t bytes) {
    clear(seen, offset);
    seen = offset + bytes;
    return true;
  }));
  clear(seen, bytes_);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<FrameFile>> FrameFile::Reopen(const FrameStore& frames, const std::string& name,
                                                             uint64_t generation, uint64_t bytes, uint64_t inode) {
  HK_ASSIGN_OR_RETURN(FrameReservation reservation, frames.Reserve(bytes));
  const std::string path = frames.PathOf(name, generation);
  struct stat info {};
  HK_ASSIGN_OR_RETURN(OwnedFd file, OpenLeft(path, bytes, &info));
  if (info.st_ino != inode) return absl::FailedPreconditionError(path + ": not the frame file that was left");
  return std::unique_ptr<FrameFile>(new FrameFile(path, std::move(file), std::move(reservation), bytes));
}

absl::StatusOr<uint64_t> FrameFile::Inode() const {
  struct stat info {};
  if (::fstat(file_.get(), &info) != 0) return ErrnoStatus(errno, path_);
  return info.st_ino;
}

absl::Status FrameFile::ForEachRun(const std::function<bool(uint64_t offset, uint64_t bytes)>& found) const {
  for (uint64_t at = 0; at < bytes_;) {
    const off_t data = ::lseek(file_.get(), static_cast<off_t>(at), SEEK_DATA);
    if (data < 0 && errno == ENXIO) return absl::OkStatus();
    const off_t hole = data < 0 ? data : ::lseek(file_.get(), data, SEEK_HOLE);
    if (hole < 0) return ErrnoStatus(errno, fmt::format("seek {}", path_));
    const uint64_t begin = static_cast<uint64_t>(data), end = std::min(bytes_, static_cast<uint64_t>(hole));
    if (end <= begin) return absl::DataLossError(fmt::format("seek {}: the file changes", path_));
    if (!found(begin, end - begin)) return absl::OkStatus();
    at = end;
  }
  return absl::OkStatus();
}

FrameFile::~FrameFile() {
  if (!keep_) ::unlink(path_.c_str());
}

absl::StatusOr<Mapping> FrameFile::MapGuestView() const {
  HK_ASSIGN_OR_RETURN(Mapping view,
                      Mapping::Create(bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file_.get(), path_));
  // Either may be refused by a kernel without the option, which does not matter then.
  ::madvise(view.data(), bytes_, MADV_NOHUGEPAGE);
  ::madvise(view.data(), bytes_, MADV_DONTFORK);
  return view;
}

absl::Status FrameFile::Read(uint64_t offset, std::span<std::byte> to) const {
  size_t done = 0;
  while (done < to.size()) {
    const ssize_t n = ::pread(file_.get(), to.data() + done, to.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return ErrnoStatus(n < 0 ? errno : EIO, fmt::format("read {}", path_));
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status FrameFile::Write(uint64_t offset, std::span<const std::byte> from, uint64_t* done) const {
  size_t written = 0;
  absl::Status status;
  while (written < from.size()) {
    const ssize_t n =
        ::pwrite(file_.get(), from.data() + written, from.size() - written, static_cast<off_t>(offset + written));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == ENOSPC) status = absl::ResourceExhaustedError(path_ + ": the frame store is full");
    if (n <= 0 && status.ok()) status = ErrnoStatus(n < 0 ? errno : EIO, fmt::format("write {}", path_));
    if (n <= 0) break;
    written += static_cast<size_t>(n);
  }
  if (done != nullptr) *done = written;
  return status;
}

absl::Status FrameFile::Fallocate(int mode, uint64_t offset, uint64_t bytes) const {
  while (::fallocate(file_.get(), mode, static_cast<off_t>(offset), static_cast<off_t>(bytes)) != 0) {
    if (errno == EINTR) continue;
    if (errno == ENOSPC) return absl::ResourceExhaustedError(path_ + ": the frame store is full");
    return ErrnoStatus(errno, fmt::format("fallocate {}", path_));
  }
  return absl::OkStatus();
}

absl::Status FrameFile::Allocate(uint64_t offset, uint64_t bytes) const {
  return Fallocate(0, offset, bytes);
}

absl::Status FrameFile::Punch(uint64_t offset, uint64_t bytes) const {
  return Fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes);
}

absl::StatusOr<ServiceView> ServiceView::Create(const FrameFile& file) {
  ServiceView view;
  HK_ASSIGN_OR_RETURN(view.mapping_, Mapping::Create(file.bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                                                     file.fd(), file.path()));
  ::madvise(view.mapping_.data(), file.bytes(), MADV_DONTFORK);
  HK_ASSIGN_OR_RETURN(KernelModeUserfaultfd opened, OpenKernelModeUserfaultfd());
  view.faults_ = std::move(opened.fd);
  HK_RETURN_IF_ERROR(
      UserfaultfdHandshake(view.faults_.get(), UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_SIGBUS).status());
  uffdio_register request = {};
  request.range = {.start = reinterpret_cast<uint64_t>(view.mapping_.data()), .len = file.bytes()};
  request.mode = UFFDIO_REGISTER_MODE_MISSING;
  if (::ioctl(view.faults_.get(), UFFDIO_REGISTER, &request) < 0) return ErrnoStatus(errno, "UFFDIO_REGISTER");
  return view;
}

}  // namespace hk
