#include "hyperkernel/boot/byte_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

class FileSource final : public ByteSource {
 public:
  FileSource(std::string path, uint64_t size, OwnedFd fd) : ByteSource(std::move(path), size), fd_(std::move(fd)) {}

 private:
  absl::Status ReadWithin(uint64_t offset, std::span<std::byte> to) const override {
    while (!to.empty()) {
      const ssize_t n = ::pread(fd_.get(), to.data(), to.size(), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return ErrnoStatus(errno, name());
      if (n == 0) return absl::OutOfRangeError(fmt::format("{}: became shorter while it was read", name()));
      offset += static_cast<uint64_t>(n);
      to = to.subspan(static_cast<size_t>(n));
    }
    return absl::OkStatus();
  }

  OwnedFd fd_;
};

// Of a std::vector<std::byte> or a Mapping.
template <typename Bytes>
class MemorySource final : public ByteSource {
 public:
  MemorySource(std::string name, Bytes bytes) : ByteSource(std::move(name), bytes.size()), bytes_(std::move(bytes)) {}

 private:
  absl::Status ReadWithin(uint64_t offset, std::span<std::byte> to) const override {
    if (!to.empty()) std::memcpy(to.data(), bytes_.data() + offset, to.size());
    return absl::OkStatus();
  }

  Bytes bytes_;
};

}  // namespace

absl::Status ByteSource::Read(uint64_t offset, std::span<std::byte> to) const {
  if (offset > size_ || to.size() > size_ - offset) {
    return absl::OutOfRangeError(fmt::format("{}: ends at byte {}, before byte {}", name_, size_, offset + to.size()));
  }
  return ReadWithin(offset, to);
}

absl::StatusOr<std::unique_ptr<ByteSource>> OpenFileSource(const std::string& path) {
  // O_NONBLOCK: a FIFO given by mistake must not hang the open.
  OwnedFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return ErrnoStatus(errno, path);
  struct stat file = {};
  if (::fstat(fd.get(), &file) != 0) return ErrnoStatus(errno, path);
  if (!S_ISREG(file.st_mode)) return absl::InvalidArgumentError(fmt::format("{}: is not a regular file", path));
  if (file.st_size == 0) return absl::InvalidArgumentError(fmt::format("{}: is empty", path));
  return std::make_unique<FileSource>(path, static_cast<uint64_t>(file.st_size), std::move(fd));
}

std::unique_ptr<ByteSource> MakeMemorySource(std::string name, std::vector<std::byte> bytes) {
  return std::make_unique<MemorySource<std::vector<std::byte>>>(std::move(name), std::move(bytes));
}

std::unique_ptr<ByteSource> MakeMappingSource(std::string name, Mapping bytes) {
  return std::make_unique<MemorySource<Mapping>>(std::move(name), std::move(bytes));
}

}  // namespace hk
