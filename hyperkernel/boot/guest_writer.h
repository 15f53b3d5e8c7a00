// How the loader reaches guest memory: a seam, so that this folder knows nothing of how memory is made.
#pragma once

#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "hyperkernel/base/types.h"

namespace hk {

// Writes into the RAM of a guest that is not running. Implementations need not be thread-safe.
class GuestWriter {
 public:
  virtual ~GuestWriter() = default;
  // Copies `bytes` to guest-physical `to`. Errors: what the memory says (not RAM, no frames left); parts may be
  // written.
  virtual absl::Status Write(Gpa to, std::span<const std::byte> bytes) = 0;
};

}  // namespace hk
