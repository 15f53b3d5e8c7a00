// The image behind a disk: a raw file or a block device, opened once, locked against a second user.
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
    bool buffered = false;  // through the host's page cache; else O_DIRECT
  };

  // Locks the whole image (open file description lock: shared for read-only, else exclusive; it goes with the
  // descriptor, also when the daemon dies). Errors, one line each with the path: not there, not permitted or read-only,
  // not a file or block device, in use by another guest or program, shorter than a sector, no O_DIRECT on its file
  // system.
  static absl::StatusOr<DiskImage> Open(const Options& options);

  OwnedFd fd;
  uint64_t bytes = 0;      // rounded down to whole sectors of 512 bytes
  uint32_t alignment = 1;  // of memory, offsets and lengths; 1 if buffered
  bool read_only = false;
  bool block_device = false;
};

}  // namespace hk
