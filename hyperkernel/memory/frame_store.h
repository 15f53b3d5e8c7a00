// The frame store: a tmpfs that holds guest memory's frame files and outlives the daemon (DESIGN: guest memory on one
// node).
//
// Invariants:
//  1. Frames are memory: the directory is on tmpfs, never on a disk file system.
//  2. The file system can hold the whole budget, so filling a frame within the budget does not fail for space (on a
//  tmpfs of
//     its own; on a shared one that can only be checked, and is a warning).
//  3. No huge pages: a 2 MiB page would come and go with the first 4 KiB (huge=never).
//  4. Frames are not swapped (noswap), where the kernel has such mounts: from 6.4 on, not in a user namespace. What the
//     mount began with stays: a remount cannot change it.
//  6. Beside the frames of a guest lies the table of what is in them (storage-replica), with room of its own beyond the
//     budget, as far as the file system has it: a table never takes what a frame was promised.
//  5. The directory is the daemon's alone: its user's, writable by nobody else, no symbolic link. Guest memory is in
//  it, and
//     mounting over a directory hides what it holds.
//
// | what is found at the directory             | what happens                                                     |
// |--------------------------------------------|------------------------------------------------------------------|
// | a symbolic link                            | refused                                                          |
// | another user's, or writable by others      | refused, with the command that mends it                          |
// | nothing mounted, files that are not ours   | refused: mounting would hide them                                |
// | nothing mounted, CAP_SYS_ADMIN             | a tmpfs of its own is mounted there                              |
// | nothing mounted, no privilege, on a tmpfs  | used as it is, with a warning                                    |
// | nothing mounted, no privilege, on a disk   | refused, with the mount command                                  |
// | a tmpfs, too small, CAP_SYS_ADMIN          | grown (remount), once its lock is held                           |
// | a tmpfs without room for tables, the same  | grown; without privilege used as it is: fewer pages are tracked  |
// | a tmpfs, too small, no privilege           | refused, with the remount command                                |
// | a tmpfs without noswap, and the host swaps | used as it is, with a warning                                    |
// | a tmpfs with huge pages                    | refused, with the remount command                                |
// | another file system mounted there          | refused                                                          |
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/mutex.h"

namespace hk {

// Who has frames that nobody needs, though they may save work: they go when the room is needed. Thread-safe.
class SpareFrames {
 public:
  virtual ~SpareFrames() = default;
  // So many bytes more are needed: frames are given back, and their room (FrameReservation::MakeSpare), as far as there
  // are any. Called by whoever reserves, with no lock of the store held.
  virtual void GiveBack(uint64_t bytes) = 0;
};

// The books of a frame store. Thread-safe.
struct FrameRoom {
  std::atomic<uint64_t> reserved{0};  // all that is promised, spare too
  std::atomic<uint64_t> spare{0};     // of it
  // Of what lies beside the frames, beyond the budget.
  std::atomic<uint64_t> beside{0}, most_beside{0};
  Mutex mutex;
  std::vector<std::weak_ptr<SpareFrames>> holders ABSL_GUARDED_BY(mutex);
};

// Room in a frame store for one guest, given back when destroyed. Movable; thread-safe to destroy.
class FrameReservation {
 public:
  FrameReservation() = default;
  FrameReservation(FrameReservation&& other) noexcept = default;
  FrameReservation& operator=(FrameReservation&& other) noexcept;
  ~FrameReservation();

  // From now on it is for `bytes` only, at most what it was for, and those are spare: they are in nobody's way. The
  // frames beyond were given back before. Not thread-safe.
  void MakeSpare(uint64_t bytes);

 private:
  friend class FrameStore;
  FrameReservation(std::shared_ptr<FrameRoom> room, uint64_t bytes) : room_(std::move(room)), bytes_(bytes) {}
  std::shared_ptr<FrameRoom> room_;  // null: nothing is held
  uint64_t bytes_ = 0;
  bool spare_ = false;
};

// An opened frame store. Thread-safe: only asks the kernel.
class FrameStore {
 public:
  // Makes the directory and mount as in the table above; changes nothing of a mount that is there. `budget_bytes` is
  // the most that frames may take.
  static absl::StatusOr<FrameStore> Open(const std::string& directory, uint64_t budget_bytes);

  // Checks the mount's options and grows it to the budget. REQUIRES: the caller holds the directory's lock, so that the
  // mount is not another daemon's.
  absl::Status EnsureCapacity() const;
  // A file that an earlier daemon left, that is one that was killed. Plain value.
  struct Leftover {
    std::string file;  // its name in the directory
    std::string guest;
    uint64_t generation = 0;  // of a number that is none: 0
    bool table = false;       // else it has frames
  };
  // All of them. REQUIRES: as EnsureCapacity; no guest runs yet. Errors: errno, naming the directory.
  absl::StatusOr<std::vector<Leftover>> Leftovers() const;
  // Removes them but for those in `kept`, by name: no guest outlives its daemon. Returns how many were removed.
  // REQUIRES, errors: as Leftovers.
  absl::StatusOr<int> RemoveLeftovers(const std::set<std::string>& kept = {}) const;

  const std::string& directory() const { return directory_; }
  // Where the frames of a guest's generation are.
  std::string PathOf(const std::string& guest, uint64_t generation) const;
  // Where the table of a guest is that began with this generation.
  std::string TablePathOf(const std::string& guest, uint64_t generation) const;
  uint64_t budget_bytes() const { return budget_bytes_; }
  // What an operator should know, one line each.
  const std::vector<std::string>& warnings() const { return warnings_; }
  // Of it, what is reserved now: of what is promised, frames may take any part. Without what is spare.
  uint64_t reserved_bytes() const {
    const uint64_t spare = room_->spare.load(), reserved = room_->reserved.load();
    return reserved > spare ? reserved - spare : 0;  // between the two loads either may have changed
  }
  // What frames take that go when somebody needs the room.
  uint64_t spare_bytes() const { return room_->spare.load(); }
  // Takes room for `bytes` of frames; spare frames go for it if need be. Errors: kResourceExhausted, saying how much
  // there is.
  absl::StatusOr<FrameReservation> Reserve(uint64_t bytes) const;
  // `holder` is asked for its spare frames from now on, as long as it is there.
  void AddSpare(std::weak_ptr<SpareFrames> holder) const;
  // Room beside the frames, in this store's file system. False: there is none. What is taken is to be given back.
  bool TakeBeside(uint64_t bytes) const;
  void GiveBeside(uint64_t bytes) const { room_->beside.fetch_sub(bytes); }
  uint64_t beside_bytes() const { return room_->beside.load(); }
  // The most that there is room for, all together. 0: the file system has nothing beyond the budget.
  uint64_t most_beside_bytes() const { return room_->most_beside.load(); }
  // Bytes of frames held now. On a tmpfs of its own: what the file system uses; on a shared one: the sum over the
  // directory's files. Without what is beside them. Errors: errno of the failing call.
  absl::StatusOr<uint64_t> UsedBytes() const;

 private:
  FrameStore(std::string directory, uint64_t budget_bytes)
      : directory_(std::move(directory)), budget_bytes_(budget_bytes) {}

  std::string directory_;
  uint64_t budget_bytes_;
  // Takes room for `bytes`, and returns 0; or how many bytes there are too few.
  uint64_t TryReserve(uint64_t bytes) const;
  // How much may lie beside the frames, as the file system is.
  void CountRoomBeside() const;

  std::shared_ptr<FrameRoom> room_ = std::make_shared<FrameRoom>();
  bool own_mount_ = false;
  std::vector<std::string> warnings_;
};

}  // namespace hk
