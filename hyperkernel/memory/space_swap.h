// The swap of a space on this node: a file in stable storage.
//
// Invariants:
//  1. The file is this process's alone: made new, mode 0600, removed by the destructor, or by RemoveLeftovers when the
//     next daemon starts. What is in it is of no use to anybody after the process.
//  2. What Read gives is what Write was given for that page: a checksum of the bytes and the GFN is kept in memory.
//  3. At most `limit` bytes. The file takes them from the disk by pieces before they are written: a full disk is an
//     error of a Write, whose page is still in memory.
//  4. Reads go before writes, somebody waits for them; but of so many one is a write (kReadsInARow): writes free
//  frames.
//
// Threads of its own do pread and pwrite (kThreads at once, no more is gained by one disk that other spaces use too);
// O_DIRECT where the file system can: through the page cache, the memory that the swap is to save would be taken by it.
// Thread-safe.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/page_swap.h"
#include "hyperkernel/memory/space_engine.h"

namespace hk {

// Swap of one space in one file.
class SpaceSwap final : public PageSwap {
 public:
  // Makes DIRECTORY/NAME.GENERATION, and the directory (0700). `limit_bytes`: at least a page. `reservation` is kept as
  // long as the file is there. Errors:
  // kAlreadyExists if the file is there, kResourceExhausted if the disk has less than the limit to give, errno with the
  // path.
  static absl::StatusOr<std::unique_ptr<SpaceSwap>> Create(const std::string& directory, const std::string& name,
                                                           uint64_t generation, uint64_t limit_bytes,
                                                           std::shared_ptr<void> reservation = nullptr);
  // Removes the files of a daemon that was killed; how many. REQUIRES: the caller holds the data directory's lock. A
  // directory that is not there is empty.
  static absl::StatusOr<int> RemoveLeftovers(const std::string& directory);
  // Calls Stop.
  ~SpaceSwap() override;

  // What is under way ends, nothing else begins, and no `done` is called after it. Not inside a `done`.
  void Stop();

  // PageSwap.
  void Write(Gfn gfn, std::shared_ptr<const SwapPage> page, Done done) override;
  void Read(Gfn gfn, std::shared_ptr<SwapPage> page, Done done) override;
  void Forget(Gfn gfn) override;

  size_t table_bytes() const override;

  // Pages in it, and bytes taken from the disk.
  uint64_t pages() const;
  uint64_t disk_bytes() const;
  const std::string& path() const { return path_; }
  // False: the file system has no O_DIRECT, and the page cache has copies.
  bool direct() const { return direct_; }

 private:
  // Places of an extent's pages: slot and one, 0 for none. Plain value; 6 KiB for 2 MiB, while any is there.
  struct Places {
    std::array<uint32_t, kExtentPages> slot{};
    std::array<uint64_t, kExtentPages> checksum{};
    uint32_t used = 0;
  };
  // Something to do. `slot`: where, for a Read. Plain value.
  struct Order {
    Gfn gfn;
    bool write = false;
    uint32_t slot = 0;  // and one
    uint64_t checksum = 0;
    std::shared_ptr<SwapPage> page;
    Done done;
  };

  SpaceSwap(std::string path, OwnedFd fd, bool direct, uint64_t most_slots, std::shared_ptr<void> reservation);
  void Run();
  absl::Status DoWrite(const Order& order);
  absl::Status DoRead(const Order& order) const;
  // A slot that the file has bytes for.
  absl::StatusOr<uint32_t> TakeSlot();
  void GiveSlot(uint32_t slot);

  const std::shared_ptr<void> reservation_;
  const std::string path_;
  const OwnedFd fd_;
  const bool direct_;
  const uint64_t most_slots_;
  mutable Mutex mutex_;
  CondVar changed_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<Order> reads_ ABSL_GUARDED_BY(mutex_), writes_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, std::unique_ptr<Places>> places_ ABSL_GUARDED_BY(mutex_);  // by extent
  uint32_t reads_in_a_row_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<uint32_t> free_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_slot_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t pages_ ABSL_GUARDED_BY(mutex_) = 0;
  Mutex growing_;                   // one takes bytes from the disk at a time; before mutex_
  std::atomic<uint64_t> grown_{0};  // slots that the file has bytes for
  std::vector<std::thread> threads_;
};

}  // namespace hk
