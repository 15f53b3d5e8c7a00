// The file that holds the frames of one guest, or of one space, on this node; and the two ways to map it (DESIGN: guest
// memory on one node).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/mapping.h"
#include "hyperkernel/memory/frame_store.h"

namespace hk {

// A sparse file FRAME_STORE/NAME.GENERATION and its reservation; both go with it. Thread-safe. Offsets and sizes are
// bytes. Errors of all methods: errno with the path, or kResourceExhausted if the frame store is full.
class FrameFile {
 public:
  // A file of holes, and room for `most_bytes` of frames. kResourceExhausted: beyond the budget. kAlreadyExists: the
  // file is there.
  static absl::StatusOr<std::unique_ptr<FrameFile>> Create(const FrameStore& frames, const std::string& name,
                                                           uint64_t generation, uint64_t bytes, uint64_t most_bytes);
  // The file that Keep left, with all its frames. kNotFound: there is none; kFailedPrecondition: it is not one that
  // Create made with so many bytes, or another one than that of this inode. It goes with the object again.
  static absl::StatusOr<std::unique_ptr<FrameFile>> Reopen(const FrameStore& frames, const std::string& name,
                                                           uint64_t generation, uint64_t bytes, uint64_t inode);
  // A file that an earlier daemon left, as spare frames: of its pages only those set in `kept`, by their place in the
  // file, are taken over, as far as they are there; all others go at once, and are not set on return. A page's bytes
  // are whatever they are. Errors: kNotFound: there is none; kFailedPrecondition: it is not one that Create made with
  // so many bytes; kResourceExhausted: it does not fit. After an error the file is as it was, or gone.
  static absl::StatusOr<std::unique_ptr<FrameFile>> Adopt(const FrameStore& frames, const std::string& name,
                                                          uint64_t generation, uint64_t bytes, std::vector<bool>* kept);
  ~FrameFile();

  // The file stays when the object goes, for the next daemon.
  void Keep() { keep_ = true; }
  absl::StatusOr<uint64_t> Inode() const;
  // Calls `found` for the runs of whole pages that have frames, in their order; ends early if it returns false.
  absl::Status ForEachRun(const std::function<bool(uint64_t offset, uint64_t bytes)>& found) const;
  uint64_t bytes() const { return bytes_; }
  const std::string& path() const { return path_; }
  int fd() const { return file_.get(); }

  // For programs: no huge pages, and no child process has it. Faults are the caller's to register.
  absl::StatusOr<Mapping> MapGuestView() const;
  // Copies out; a hole reads as zeroes and gets no frame.
  absl::Status Read(uint64_t offset, std::span<std::byte> to) const;
  // Copies in, taking frames. `done`, if not null: bytes written, also on failure.
  absl::Status Write(uint64_t offset, std::span<const std::byte> from, uint64_t* done = nullptr) const;
  // Gives frames to the holes of the range: zero pages; or, if there is no space, to none of them.
  absl::Status Allocate(uint64_t offset, uint64_t bytes) const;
  // Takes the range's frames back, out of every mapping.
  absl::Status Punch(uint64_t offset, uint64_t bytes) const;
  // No more than so many bytes of frames are taken from now on, and they are spare (FrameReservation::MakeSpare). Not
  // thread-safe.
  void MakeSpare(uint64_t bytes) { reservation_.MakeSpare(bytes); }

 private:
  FrameFile(std::string path, OwnedFd file, FrameReservation reservation, uint64_t bytes)
      : path_(std::move(path)), file_(std::move(file)), reservation_(std::move(reservation)), bytes_(bytes) {}
  absl::Status Fallocate(int mode, uint64_t offset, uint64_t bytes) const;
  // Clears what of `kept` is a hole.
  absl::Status LookForHoles(std::vector<bool>* kept) const;

  const std::string path_;
  const OwnedFd file_;
  FrameReservation reservation_;
  const uint64_t bytes_;
  std::atomic<bool> keep_{false};
};

// The daemon's own mapping of a frame file: a touch of a hole is SIGBUS and takes no frame. Immutable.
class ServiceView {
 public:
  ServiceView() = default;
  // `file` outlives the view.
  static absl::StatusOr<ServiceView> Create(const FrameFile& file);
  std::byte* data() const { return reinterpret_cast<std::byte*>(mapping_.data()); }

 private:
  OwnedFd faults_;  // the kernel refuses to fill holes as long as it is open
  Mapping mapping_;
};

}  // namespace hk
