// A daemon that replaces itself by its own program, as it is on disk then: same process, so that a service manager, its
// limits and its cgroup see nothing of it, and nobody has to be relied on to start the new one.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace hk {

// How it was started. Immutable.
class Restart {
 public:
  // REQUIRES: `argv` is main's. The program is where it was when this was made.
  explicit Restart(char** argv);

  // Has the new program check its configuration, which must be as good as the present one's: a daemon that keeps guests
  // must not end for one that cannot start. Takes up to 10 s. Errors: kFailedPrecondition with what it says.
  absl::Status Check(const std::string& config_path) const;
  // Becomes it; no destructor runs, all descriptors but the standard ones are closed. Returns why it could not.
  absl::Status Become() const;

 private:
  std::string program_;
  std::vector<std::string> arguments_;
};

}  // namespace hk
