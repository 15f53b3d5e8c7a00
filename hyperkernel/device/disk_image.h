// The image behind a disk: a raw file or a block device, opened once, locked against a second user.
//
// Locks are open file description locks: they go with the descriptor, also when the daemon dies. They follow QEMU's
// convention (block/file-posix.c: byte 100 + n is read-locked by who uses permission n, byte 200 + n by who does not
// share it; 0 is reading, 1 to 3 are ways of writing), so that QEMU and its tools keep off our images and we off
// theirs:
//
// | user                | takes                          | looks that nobody has          |
// |---------------------|--------------------------------|--------------------------------|
// | writer              | write lock on the whole file   |                                |
// | reader              | read lock on 100, 201 to 203   | 200, 101 to 103                |
// | exclusive reader    | read lock on 100, 200 to 203   | 200, 100 to 103                |
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "hyperkernel/base/fd.h"

namespace hk {

// An open image. Plain value with an owned descriptor.
struct DiskImage {
  // How it is opened.
  struct Options {
    std::string path;
    bool read_only = false;
    bool buffered = false;   // through the host's page cache; else O_DIRECT
    bool exclusive = false;  // not shared with other readers either
  };

  // Opens and locks. A block device that is written to or exclusive is also claimed (O_EXCL), which keeps mounts, swap
  // and volumes of the host away. Errors, one line each with the path: not there, not permitted or read-only, not a
  // file or block device, in use by another guest or program, not of whole sectors (of the O_DIRECT unit), no O_DIRECT
  // on its file system.
  static absl::StatusOr<DiskImage> Open(const Options& options);

  OwnedFd fd;
  uint64_t bytes = 0;      // a multiple of 512 and of the alignment
  uint32_t alignment = 1;  // of memory, offsets and lengths; 1 if buffered
  bool read_only = false;
  bool block_device = false;
};

}  // namespace hk
