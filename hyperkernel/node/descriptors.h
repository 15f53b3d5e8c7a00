// File descriptors, of which a large space takes thousands. Thread-safe.
#pragma once

#include <cstdint>

#include "absl/status/status.h"

namespace hk {

// Of the process: open ones, and the limit. Plain value.
struct DescriptorUse {
  uint64_t open = 0, limit = 0;
};
DescriptorUse ReadDescriptorUse();

// Raises the soft limit to the hard one.
void RaiseDescriptorLimit();

// Whether a space of this size can be attached beside what is open, with some left for connections: gRPC stops to
// listen for good when there is none. Pure. kResourceExhausted: what is needed, and what to do.
absl::Status CheckDescriptors(uint64_t space_bytes, const DescriptorUse& use);

}  // namespace hk
