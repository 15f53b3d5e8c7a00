#include "hyperkernel/memory/space_swap.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

// I/O at once. A disk's queue is deeper, but it is not this space's alone, and each is a thread.
constexpr size_t kThreads = 4;
// Taken from the disk at a time: large enough that the file lies in few pieces.
constexpr uint64_t kGrowSlots = (uint64_t{8} << 20) / kPageSize;
constexpr uint32_t kReadsInARow = 8;
// A thread with nothing to do looks again, for no reason.
constexpr std::chrono::hours kIdle{1};

uint64_t ChecksumOf(Gfn gfn, const SwapPage& page) {
  return XXH3_64bits_withSeed(page.bytes.data(), page.bytes.size(), gfn.value());
}

bool IsUnsupported(int error) {
  return error == EOPNOTSUPP || error == ENOSYS;
}

// Bytes that the disk would give us.
absl::StatusOr<uint64_t> AvailableBytes(int fd, const std::string& path) {
  struct statvfs found = {};
  if (::fstatvfs(fd, &found) != 0) return ErrnoStatus(errno, path);
  return uint64_t{found.f_bavail} * found.f_frsize;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SpaceSwap>> SpaceSwap::Create(const std::string& directory, const std::string& name,
                                                             uint64_t generation, uint64_t limit_bytes,
                                                             std::shared_ptr<void> reservation) {
  if (name.empty() || name.find('/') != std::string::npos) {
    return absl::InvalidArgumentError(fmt::format("swap: name \"{}\" cannot be a file's", name));
  }
  const uint64_t most_slots = limit_bytes / kPageSize;
  if (most_slots == 0 || most_slots > UINT32_MAX) {
    return absl::InvalidArgumentError(fmt::format("swap: {} bytes are not from {} to 16 TiB", limit_bytes, kPageSize));
  }
  HK_RETURN_IF_ERROR(MakeDirectories(directory, 0700));
  std::string path = fmt::format("{}/{}.{}", directory, name, generation);
  constexpr int kFlags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
  OwnedFd fd(::open(path.c_str(), kFlags, 0600));
  if (!fd.valid()) return ErrnoStatus(errno, fmt::format("swap file {}", path));
  const auto fail = [&path](absl::Status status) {
    ::unlink(path.c_str());
    return status;
  };
  const absl::StatusOr<uint64_t> available = AvailableBytes(fd.get(), path);
  if (!available.ok()) return fail(available.status());
  if (*available < limit_bytes) {
    return fail(absl::ResourceExhaustedError(
        fmt::format("swap file {}: the disk has {} MiB to give, less than the {} MiB of swap that are asked for", path,
                    *available >> 20, limit_bytes >> 20)));
  }
  // Set afterwards: open with it fails where it is not supported, and leaves a file.
  const bool direct = ::fcntl(fd.get(), F_SETFL, O_DIRECT) == 0;
  return std::unique_ptr<SpaceSwap>(
      new SpaceSwap(std::move(path), std::move(fd), direct, most_slots, std::move(reservation)));
}

absl::StatusOr<int> SpaceSwap::RemoveLeftovers(const std::string& directory) {
  // Not through a link: what it leads to is not ours to remove.
  OwnedFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid() && errno == ENOENT) return 0;
  if (!fd.valid()) return ErrnoStatus(errno, directory);
  const std::unique_ptr<DIR, int (*)(DIR*)> open(::fdopendir(fd.get()), &::closedir);
  if (open == nullptr) return ErrnoStatus(errno, directory);
  static_cast<void>(fd.Release());
  int removed = 0;
  while (const dirent* entry = ::readdir(open.get())) {
    const std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    if (::unlinkat(::dirfd(open.get()), name.c_str(), 0) != 0) {
      return ErrnoStatus(errno, fmt::format("{}/{}", directory, name));
    }
    ++removed;
  }
  return removed;
}

SpaceSwap::SpaceSwap(std::string path, OwnedFd fd, bool direct, uint64_t most_slots, std::shared_ptr<void> reservation)
    : reservation_(std::move(reservation)),
      path_(std::move(path)),
      fd_(std::move(fd)),
      direct_(direct),
      most_slots_(most_slots) {
  for (size_t i = 0; i < kThreads; ++i) threads_.emplace_back(&SpaceSwap::Run, this);
}

SpaceSwap::~SpaceSwap() {
  Stop();
  ::unlink(path_.c_str());
}

void SpaceSwap::Stop() {
  {
    MutexLock lock(&mutex_);
    stopped_ = true;
    changed_.SignalAll();
  }
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
  // What was captured is destroyed here, where nothing runs any more.
  std::deque<Order> reads, writes;
  MutexLock lock(&mutex_);
  reads.swap(reads_);
  writes.swap(writes_);
}

void SpaceSwap::Write(Gfn gfn, std::shared_ptr<const SwapPage> page, Done done) {
  Order order;
  order.gfn = gfn;
  order.write = true;
  order.page = std::const_pointer_cast<SwapPage>(std::move(page));  // not changed by a write
  order.done = std::move(done);
  MutexLock lock(&mutex_);
  if (stopped_) return;
  writes_.push_back(std::move(order));
  changed_.Signal();
}

void SpaceSwap::Read(Gfn gfn, std::shared_ptr<SwapPage> page, Done done) {
  Order order;
  order.gfn = gfn;
  order.page = std::move(page);
  order.done = std::move(done);
  MutexLock lock(&mutex_);
  if (stopped_) return;
  const auto places = places_.find(gfn.value() / kExtentPages);
  HK_CHECK(places != places_.end());
  order.slot = places->second->slot[gfn.value() % kExtentPages];
  order.checksum = places->second->checksum[gfn.value() % kExtentPages];
  HK_CHECK(order.slot != 0);
  reads_.push_back(std::move(order));
  changed_.Signal();
}

void SpaceSwap::Forget(Gfn gfn) {
  MutexLock lock(&mutex_);
  const auto found = places_.find(gfn.value() / kExtentPages);
  HK_CHECK(found != places_.end());
  uint32_t& slot = found->second->slot[gfn.value() % kExtentPages];
  HK_CHECK(slot != 0);
  free_.push_back(slot - 1);
  slot = 0;
  --pages_;
  if (--found->second->used == 0) places_.erase(found);
}

size_t SpaceSwap::table_bytes() const {
  MutexLock lock(&mutex_);
  return places_.size() * sizeof(Places) + places_.capacity() * (sizeof(uint64_t) + sizeof(void*) + 1) +
         free_.capacity() * sizeof(uint32_t);
}

uint64_t SpaceSwap::pages() const {
  MutexLock lock(&mutex_);
  return pages_;
}

uint64_t SpaceSwap::disk_bytes() const {
  return grown_.load() * kPageSize;
}

void SpaceSwap::Run() {
  mutex_.Lock();
  while (!stopped_) {
    const bool write = reads_.empty() || (!writes_.empty() && reads_in_a_row_ >= kReadsInARow);
    std::deque<Order>& orders = write ? writes_ : reads_;
    if (orders.empty()) {
      changed_.WaitUntil(&mutex_, std::chrono::steady_clock::now() + kIdle);
      continue;
    }
    {
      reads_in_a_row_ = write ? 0 : reads_in_a_row_ + 1;
      const Order order = std::move(orders.front());
      orders.pop_front();
      mutex_.Unlock();
      order.done(order.write ? DoWrite(order) : DoRead(order));
    }
    mutex_.Lock();
  }
  mutex_.Unlock();
}

absl::StatusOr<uint32_t> SpaceSwap::TakeSlot() {
  uint64_t slot = 0;
  {
    MutexLock lock(&mutex_);
    if (!free_.empty()) {
      slot = free_.back();
      free_.pop_back();
    } else if (next_slot_ < most_slots_) {
      slot = next_slot_++;
    } else {
      return absl::ResourceExhaustedError(
          fmt::format("swap file {}: its {} MiB are full", path_, (most_slots_ * kPageSize) >> 20));
    }
  }
  if (slot < grown_.load()) return static_cast<uint32_t>(slot);
  MutexLock lock(&growing_);
  const uint64_t grown = grown_.load();
  if (slot >= grown) {
    const uint64_t more = std::min(std::max(kGrowSlots, slot + 1 - grown), most_slots_ - grown);
    const auto offset = static_cast<off_t>(grown * kPageSize), bytes = static_cast<off_t>(more * kPageSize);
    if (::fallocate(fd_.get(), 0, offset, bytes) != 0 && !IsUnsupported(errno)) {
      const int error = errno;
      GiveSlot(static_cast<uint32_t>(slot));
      const std::string what = fmt::format("swap file {}, {} MiB so far", path_, (grown * kPageSize) >> 20);
      if (error == ENOSPC || error == EDQUOT) {
        return absl::ResourceExhaustedError(fmt::format("{}: the disk is full", what));
      }
      return ErrnoStatus(error, what);
    }
    grown_.store(grown + more);
  }
  return static_cast<uint32_t>(slot);
}

void SpaceSwap::GiveSlot(uint32_t slot) {
  MutexLock lock(&mutex_);
  free_.push_back(slot);
}

absl::Status SpaceSwap::DoWrite(const Order& order) {
  HK_ASSIGN_OR_RETURN(const uint32_t slot, TakeSlot());
  const uint64_t checksum = ChecksumOf(order.gfn, *order.page);
  const ssize_t written =
      ::pwrite(fd_.get(), order.page->bytes.data(), kPageSize, static_cast<off_t>(slot * uint64_t{kPageSize}));
  if (written != static_cast<ssize_t>(kPageSize)) {
    const int error = written < 0 ? errno : ENOSPC;
    GiveSlot(slot);
    return ErrnoStatus(error, fmt::format("write to swap file {} at {:#x}", path_, slot * uint64_t{kPageSize}));
  }
  MutexLock lock(&mutex_);
  std::unique_ptr<Places>& places = places_[order.gfn.value() / kExtentPages];
  if (places == nullptr) places = std::make_unique<Places>();
  const size_t index = order.gfn.value() % kExtentPages;
  HK_CHECK(places->slot[index] == 0);
  places->slot[index] = slot + 1;
  places->checksum[index] = checksum;
  ++places->used;
  ++pages_;
  return absl::OkStatus();
}

absl::Status SpaceSwap::DoRead(const Order& order) const {
  const uint64_t offset = (order.slot - 1) * uint64_t{kPageSize};
  const ssize_t got = ::pread(fd_.get(), order.page->bytes.data(), kPageSize, static_cast<off_t>(offset));
  if (got < 0) return ErrnoStatus(errno, fmt::format("read of swap file {} at {:#x}", path_, offset));
  const bool good = got == static_cast<ssize_t>(kPageSize) && ChecksumOf(order.gfn, *order.page) == order.checksum;
  if (good || HK_MUTANT(swap_checksum_unchecked)) return absl::OkStatus();
  return absl::DataLossError(
      fmt::format("swap file {} at {:#x}: these are not the bytes that were written (checksum)", path_, offset));
}

}  // namespace hk
