#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "fmt/format.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/probe_group.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/probe/host_parts.h"

namespace hk {
namespace {

constexpr std::string_view kNoNetwork = "network devices of guests whose I/O node is here (the rest of the guest runs)";
constexpr ProbeQuestion kTun = {
    .name = "/dev/net/tun",
    .lost = kNoNetwork,
    .fix = "modprobe tun, and let the daemon's user open /dev/net/tun (DeviceAllow= in the unit)"};
constexpr ProbeQuestion kHeader = {.name = "virtio-net headers (IFF_VNET_HDR)",
                                   .lost = "checksum and segmentation offloads of guests: their network is slow",
                                   .fix = "boot a stock kernel, 6.1 or later"};
constexpr ProbeQuestion kQueues = {.name = "multi-queue tap (optional)",
                                   .lost = "network devices with more than one pair of queues",
                                   .fix = "boot a stock kernel, 6.1 or later"};
constexpr ProbeQuestion kTap = {
    .name = "a tap interface can be made",
    .lost = kNoNetwork,
    .fix =
        "give the daemon CAP_NET_ADMIN (AmbientCapabilities= in the unit), or make persistent taps for its user: ip "
        "tuntap add mode tap user USER vnet_hdr"};

// An interface without IFF_PERSIST lives as long as this descriptor.
absl::StatusOr<std::string> TryTap(int tun) {
  ifreq request = {};
  std::strncpy(request.ifr_name, "hkprobe%d", IFNAMSIZ - 1);
  request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
  if (ioctl(tun, TUNSETIFF, &request) < 0) return ErrnoStatus(errno, "TUNSETIFF");
  int header_bytes = 12;  // struct virtio_net_hdr_v1
  if (ioctl(tun, TUNSETVNETHDRSZ, &header_bytes) < 0) return ErrnoStatus(errno, "TUNSETVNETHDRSZ");
  if (ioctl(tun, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) < 0) return ErrnoStatus(errno, "TUNSETOFFLOAD");
  return fmt::format("{} was made and removed; headers of 12 bytes and offloads were accepted", request.ifr_name);
}

}  // namespace

ProbeItems ProbeNetwork() {
  ProbeGroup group("network");
  OwnedFd tun(open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (!tun.valid()) {
    group.No(kTun, MessageOf(ErrnoStatus(errno, "open /dev/net/tun")));
    return group.Take();
  }
  unsigned features = 0;
  if (ioctl(tun.get(), TUNGETFEATURES, &features) < 0) {
    group.No(kTun, MessageOf(ErrnoStatus(errno, "TUNGETFEATURES")));
    return group.Take();
  }
  const std::string flags = fmt::format("features {:#x}", features);
  group.Answer(kTun, (features & IFF_TAP) != 0, flags);
  group.Answer(kHeader, (features & IFF_VNET_HDR) != 0, flags);
  group.Answer(kQueues, (features & IFF_MULTI_QUEUE) != 0, flags);
  absl::StatusOr<std::string> tap = TryTap(tun.get());
  group.Answer(kTap, tap.ok(), tap.ok() ? *tap : MessageOf(tap.status()));
  return group.Take();
}

}  // namespace hk
