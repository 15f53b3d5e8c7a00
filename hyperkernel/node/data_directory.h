// The node's durable state on disk: who holds it and whose it is.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/fd.h"
#include "proto/state.pb.h"

namespace hk {

// A locked directory. The lock is the kernel's (flock) and goes with the process, however it ends. Movable; not
// thread-safe.
class DirectoryLock {
 public:
  // Makes the directory if needed and locks DIRECTORY/lock, which then says who holds it. Errors: kFailedPrecondition,
  // naming the holder, if another process has it.
  static absl::StatusOr<DirectoryLock> Take(const std::string& directory, const std::string& node_name,
                                            const Clock& clock);

 private:
  explicit DirectoryLock(OwnedFd fd) : fd_(std::move(fd)) {}
  OwnedFd fd_;
};

// Reads DIRECTORY/identity.textproto, or makes it at the first start. REQUIRES: the caller holds the directory's lock.
// Errors: kFailedPrecondition if the directory belongs to a node of another name or cluster; kDataLoss if the file is
// damaged.
absl::StatusOr<v1::NodeIdentity> LoadOrMakeIdentity(const std::string& directory, const std::string& name,
                                                    const std::string& cluster, const Clock& clock);

}  // namespace hk
