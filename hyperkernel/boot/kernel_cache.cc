#include "hyperkernel/boot/kernel_cache.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <span>
#include <system_error>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

constexpr std::string_view kSuffix = ".vmlinux";
constexpr std::string_view kUnfinished = ".new";
constexpr std::array<char, 8> kMagic = {'h', 'k', 'v', 'm', 'l', 'n', 'x', '1'};

// The end of a file.
struct Trailer {
  std::array<char, 8> magic = kMagic;
  uint64_t bytes = 0;
  uint64_t runs = 0;
  uint64_t hash_low = 0, hash_high = 0;

  bool operator==(const Trailer&) const = default;
};

using Run = UnpackedKernel::Run;
static_assert(sizeof(Run) == 16 && sizeof(Trailer) == 40);

// A kernel has a few dozen; more are another file's.
constexpr uint64_t kMostRuns = 4096;

absl::StatusOr<Trailer> TrailerOf(const UnpackedKernel& kernel) {
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), XXH3_freeState);
  if (state == nullptr) return absl::ResourceExhaustedError("no memory");
  XXH3_128bits_reset(state.get());
  for (const Run& run : kernel.runs) XXH3_128bits_update(state.get(), kernel.bytes.data() + run.offset, run.bytes);
  XXH3_128bits_update(state.get(), kernel.runs.data(), kernel.runs.size() * sizeof(Run));
  const XXH128_hash_t hash = XXH3_128bits_digest(state.get());
  return Trailer{
      .bytes = kernel.bytes.size(), .runs = kernel.runs.size(), .hash_low = hash.low64, .hash_high = hash.high64};
}

// Of a hash that nobody can aim with: whoever gives one machine its kernel must not choose what another one boots.
absl::StatusOr<std::string> NameOf(std::span<const std::byte> packed) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned size = 0;
  if (EVP_Digest(packed.data(), packed.size(), digest.data(), &size, EVP_sha256(), nullptr) != 1) {
    return absl::InternalError("no SHA-256 in OpenSSL");
  }
  return fmt::format("{:02x}", fmt::join(std::span(digest).first(size), ""));
}

bool RunsFit(const std::vector<Run>& runs, uint64_t size) {
  uint64_t end = 0;
  for (const Run& run : runs) {
    if (run.offset < end || run.bytes == 0 || run.offset > size || run.bytes > size - run.offset) return false;
    end = run.offset + run.bytes;
  }
  return true;
}

absl::Status WriteAt(int fd, const void* from, size_t bytes, uint64_t offset, const std::string& path) {
  const auto* at = static_cast<const std::byte*>(from);
  while (bytes > 0) {
    const ssize_t n = ::pwrite(fd, at, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return ErrnoStatus(n < 0 ? errno : EIO, path);
    at += n;
    offset += static_cast<uint64_t>(n);
    bytes -= static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status WriteKernel(int fd, const UnpackedKernel& kernel, const std::string& path) {
  for (const Run& run : kernel.runs) {
    HK_RETURN_IF_ERROR(WriteAt(fd, kernel.bytes.data() + run.offset, run.bytes, run.offset, path));
  }
  const uint64_t table = kernel.runs.size() * sizeof(Run);
  HK_RETURN_IF_ERROR(WriteAt(fd, kernel.runs.data(), table, kernel.bytes.size(), path));
  HK_ASSIGN_OR_RETURN(const Trailer trailer, TrailerOf(kernel));
  HK_RETURN_IF_ERROR(WriteAt(fd, &trailer, sizeof(trailer), kernel.bytes.size() + table, path));
  return ::fsync(fd) == 0 ? absl::OkStatus() : ErrnoStatus(errno, fmt::format("fsync {}", path));
}

}  // namespace

absl::StatusOr<UnpackedKernel> KernelCache::Get(const ByteSource& file, const KernelImage::Payload& payload) const {
  if (payload.bytes > kMostUnpackedBytes) {
    return absl::UnimplementedError(fmt::format("{}: a payload of {} MiB", file.name(), payload.bytes >> 20));
  }
  std::vector<std::byte> packed(payload.bytes);
  HK_RETURN_IF_ERROR(file.Read(payload.file_offset, packed));
  HK_ASSIGN_OR_RETURN(const std::string name, NameOf(packed));
  const std::string path = fmt::format("{}/{}{}", directory_, name, kSuffix);
  absl::StatusOr<UnpackedKernel> found = Find(path);
  if (found.ok()) return found;
  if (!absl::IsNotFound(found.status())) {
    log::Warning("boot", "a kept kernel is not used; it is unpacked again", {{"error", MessageOf(found.status())}});
  }
  absl::StatusOr<UnpackedKernel> kernel = UnpackKernel(packed);
  if (!kernel.ok()) return WithContext(kernel.status(), file.name());
  if (const absl::Status kept = Keep(path, *kernel); !kept.ok()) {
    log::Warning("boot", "an unpacked kernel cannot be kept; the next start unpacks it again",
                 {{"kernel", file.name()}, {"error", MessageOf(kept)}});
  }
  return kernel;
}

absl::StatusOr<UnpackedKernel> KernelCache::Find(const std::string& path) const {
  HK_ASSIGN_OR_RETURN(const std::unique_ptr<ByteSource> file, OpenFileSource(path));
  const absl::Status damaged = absl::DataLossError(fmt::format("{}: is damaged", path));
  if (file->size() < sizeof(Trailer)) return damaged;
  Trailer trailer;
  HK_RETURN_IF_ERROR(file->Read(file->size() - sizeof(Trailer), std::as_writable_bytes(std::span(&trailer, 1))));
  if (trailer.bytes > kMostUnpackedBytes || trailer.runs > kMostRuns ||
      trailer.bytes + trailer.runs * sizeof(Run) + sizeof(Trailer) != file->size()) {
    return damaged;
  }
  UnpackedKernel kernel;
  kernel.runs.resize(trailer.runs);
  HK_RETURN_IF_ERROR(file->Read(trailer.bytes, std::as_writable_bytes(std::span(kernel.runs))));
  if (!RunsFit(kernel.runs, trailer.bytes)) return damaged;
  HK_ASSIGN_OR_RETURN(kernel.bytes, MapUnpackedKernel(trailer.bytes));
  for (const Run& run : kernel.runs)
    HK_RETURN_IF_ERROR(file->Read(run.offset, kernel.span().subspan(run.offset, run.bytes)));
  HK_ASSIGN_OR_RETURN(const Trailer found, TrailerOf(kernel));
  if (found != trailer && !HK_MUTANT(kept_kernel_unchecked)) return damaged;
  ::utimensat(AT_FDCWD, path.c_str(), nullptr, 0);  // used now; if it fails it is only dropped too early
  return kernel;
}

absl::Status KernelCache::Keep(const std::string& path, const UnpackedKernel& kernel) const {
  if (kernel.runs.size() > kMostRuns) return absl::UnimplementedError("too many runs");
  HK_RETURN_IF_ERROR(MakeDirectories(directory_, 0700));
  // Two starts may unpack one kernel at the same time.
  static std::atomic<uint64_t> files{0};
  const std::string unfinished = fmt::format("{}.{}{}", path, files.fetch_add(1), kUnfinished);
  const OwnedFd fd(::open(unfinished.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return ErrnoStatus(errno, unfinished);
  absl::Status written = WriteKernel(fd.get(), kernel, unfinished);
  if (written.ok() && ::rename(unfinished.c_str(), path.c_str()) != 0) written = ErrnoStatus(errno, unfinished);
  if (!written.ok()) {
    ::unlink(unfinished.c_str());
    return written;
  }
  DropOldest();
  return absl::OkStatus();
}

void KernelCache::DropOldest() const {
  namespace fs = std::filesystem;
  std::error_code error;
  std::vector<std::pair<fs::file_time_type, fs::path>> kept;
  for (fs::directory_iterator at(directory_, error), end; !error && at != end; at.increment(error)) {
    std::error_code gone;
    const fs::file_time_type used = at->last_write_time(gone);
    if (!gone && at->path().extension() == kSuffix) kept.emplace_back(used, at->path());
  }
  std::ranges::sort(kept);
  for (size_t i = 0; i + kMostKernels < kept.size(); i++) fs::remove(kept[i].second, error);
}

}  // namespace hk
