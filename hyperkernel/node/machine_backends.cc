#include "hyperkernel/node/machine_backends.h"

#include <net/if.h>

#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/host_link.h"

namespace hk {
namespace {

// The kernel puts a number for %d. What is made here goes with its last descriptor.
constexpr char kBridgeTapPattern[] = "hk%d";

absl::StatusOr<std::unique_ptr<NetBackend>> OpenTap(const std::string& name, uint16_t queues) {
  const bool made = ::if_nametoindex(name.c_str()) == 0;
  HK_ASSIGN_OR_RETURN(std::unique_ptr<Tap> tap, Tap::Open(name, queues));
  // One that was there is as its owner wants it.
  if (made) HK_RETURN_IF_ERROR(SetLinkUp(tap->name()));
  return tap;
}

absl::StatusOr<std::unique_ptr<NetBackend>> OpenBridgeTap(const std::string& bridge, uint16_t queues) {
  HK_RETURN_IF_ERROR(CheckBridge(bridge));
  HK_ASSIGN_OR_RETURN(std::unique_ptr<Tap> tap, Tap::Open(kBridgeTapPattern, queues));
  HK_RETURN_IF_ERROR(AddToBridge(tap->name(), bridge));
  return tap;
}

}  // namespace

absl::StatusOr<MachineBackends> MachineBackends::Open(const v1::VmSpec& spec) {
  MachineBackends backends;
  for (int i = 0; i < spec.disks_size(); i++) {
    const v1::DiskSpec& disk = spec.disks(i);
    absl::StatusOr<DiskImage> image = DiskImage::Open({.path = disk.path(),
                                                       .read_only = disk.readonly(),
                                                       .buffered = disk.cache() == v1::DISK_CACHE_BUFFERED,
                                                       .exclusive = disk.exclusive()});
    if (absl::IsNotFound(image.status())) {
      return WithContext(absl::NotFoundError(fmt::format("{}; it is to be on the I/O node, '{}'",
                                                         MessageOf(image.status()), spec.io_node())),
                         fmt::format("disks[{}].path", i));
    }
    if (!image.ok()) return WithContext(image.status(), fmt::format("disks[{}].path", i));
    backends.disks.push_back(*std::move(image));
  }
  for (int i = 0; i < spec.nets_size(); i++) {
    const v1::NetSpec& net = spec.nets(i);
    const auto queues = static_cast<uint16_t>(std::max(net.queues(), 1u));
    auto tap = net.bridge().empty() ? OpenTap(net.tap(), queues) : OpenBridgeTap(net.bridge(), queues);
    if (!tap.ok()) {
      return WithContext(tap.status(), fmt::format("nets[{}].{}", i, net.bridge().empty() ? "tap" : "bridge"));
    }
    backends.nets.push_back(*std::move(tap));
  }
  return backends;
}

}  // namespace hk
