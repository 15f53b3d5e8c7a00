// What this host's kernel may do with frames when memory is short. Thread-safe: only asks the kernel.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hk {

// Swap files and partitions in use. Errors: errno of reading /proc/swaps.
absl::StatusOr<uint64_t> CountSwapAreas();
// Whether this process may mount a tmpfs that is never swapped; mounts nothing. Errors: kInvalidArgument where the
// kernel has no such mount (before 6.4, or in a user namespace), kPermissionDenied without CAP_SYS_ADMIN.
absl::Status TryNoswapTmpfs();

}  // namespace hk
