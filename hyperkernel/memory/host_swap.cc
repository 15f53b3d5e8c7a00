#include "hyperkernel/memory/host_swap.h"

#include <sys/mount.h>

#include <algorithm>
#include <cerrno>

#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/status.h"

namespace hk {

absl::StatusOr<uint64_t> CountSwapAreas() {
  HK_ASSIGN_OR_RETURN(const std::string swaps, ReadSmallFile("/proc/swaps", 64 << 10));
  return std::max<std::ptrdiff_t>(std::ranges::count(swaps, '\n') - 1, 0);  // under a heading
}

absl::Status TryNoswapTmpfs() {
  const OwnedFd tmpfs(::fsopen("tmpfs", FSOPEN_CLOEXEC));
  if (!tmpfs.valid()) return ErrnoStatus(errno, "fsopen of a tmpfs");
  if (::fsconfig(tmpfs.get(), FSCONFIG_SET_FLAG, "noswap", nullptr, 0) != 0) {
    return ErrnoStatus(errno, "tmpfs option noswap");
  }
  return absl::OkStatus();
}

}  // namespace hk
