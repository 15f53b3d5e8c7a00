// What tests of the replica table share: table files in memory, and a table's life as of several processes.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/fd.h"
#include "storage-replica/replica_table.h"

namespace hk {

// A file in memory that several descriptors name.
class MemoryFile {
 public:
  MemoryFile() : file_(::memfd_create("replica", MFD_CLOEXEC)) { HK_CHECK(file_.valid()); }
  OwnedFd Fd() const {
    OwnedFd copy(::dup(file_.get()));
    HK_CHECK(copy.valid());
    return copy;
  }
  int get() const { return file_.get(); }

 private:
  OwnedFd file_;
};

inline TableIdentity TestIdentity(uint64_t pages, NodeId node = NodeId(0)) {
  TableIdentity identity{.guest = GuestId(7), .node = node, .pages = pages};
  identity.boot.bytes[0] = 1;
  identity.frame_store.bytes[0] = 2;
  return identity;
}

inline DiskImageIdentity TestImage(uint64_t blocks) {
  return {.image = 99, .bytes = blocks * kBlockSize, .changed_ns = 0};
}

}  // namespace hk
