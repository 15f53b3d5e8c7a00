#include "hyperkernel/node/descriptors.h"

#include <dirent.h>
#include <sys/resource.h>

#include <limits>

#include "fmt/format.h"
#include "hyperkernel/memory/fault_stripe.h"

namespace hk {
namespace {

// Peers, operators, disks and taps: 63 peers have eleven each.
constexpr uint64_t kKeptForOthers = 256;
// A stripe has its userfaultfd and an eventfd; a space its file and the service view's userfaultfd.
constexpr uint64_t kOfAStripe = 2, kOfASpace = 2;

}  // namespace

DescriptorUse ReadDescriptorUse() {
  DescriptorUse use{.open = 0, .limit = std::numeric_limits<uint64_t>::max()};
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) use.limit = limit.rlim_cur;
  DIR* const directory = ::opendir("/proc/self/fd");
  if (directory == nullptr) return use;
  while (const dirent* const entry = ::readdir(directory)) use.open += entry->d_name[0] != '.' ? 1 : 0;
  ::closedir(directory);
  return use;
}

void RaiseDescriptorLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

absl::Status CheckDescriptors(uint64_t space_bytes, const DescriptorUse& use) {
  const uint64_t stripes = space_bytes / kStripeBytes + (space_bytes % kStripeBytes != 0 ? 1 : 0);
  const uint64_t needed = stripes * kOfAStripe + kOfASpace;
  if (use.open + kKeptForOthers + needed <= use.limit) return absl::OkStatus();
  return absl::ResourceExhaustedError(fmt::format(
      "it takes {} file descriptors (two for each GiB); {} of {} are open and {} are kept for connections: raise "
      "LimitNOFILE of the unit to {} (systemctl edit hyperkerneld), or ulimit -n, and start the daemon again",
      needed, use.open, use.limit, kKeptForOthers, use.open + kKeptForOthers + needed));
}

}  // namespace hk
