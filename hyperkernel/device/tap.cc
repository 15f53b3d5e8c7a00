#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/device/net_backend.h"

namespace hk {
namespace {

absl::Status Refusal(int error, const std::string& what) {
  switch (error) {
    case EPERM:
    case EACCES:
      return absl::PermissionDeniedError(
          what +
          ": not permitted; give the daemon CAP_NET_ADMIN or a tap of its user (ip tuntap add mode tap user ...)");
    case EBUSY:
      return absl::FailedPreconditionError(what + ": in use by another guest or program");
    case EINVAL:
      return absl::FailedPreconditionError(what +
                                           ": not a tap, or made for one queue only (ip tuntap add ... multi_queue)");
    default:
      return ErrnoStatus(error, what);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tap>> Tap::Open(const std::string& name, uint16_t queues) {
  const std::string& what = name;
  ifreq request{};
  if (name.empty() || name.size() >= sizeof(request.ifr_name)) {
    return absl::InvalidArgumentError(fmt::format("{}: a name has 1 to {} bytes", what, sizeof(request.ifr_name) - 1));
  }
  if (queues == 0) return absl::InvalidArgumentError(what + ": no queues");
  std::unique_ptr<Tap> tap(new Tap());
  std::memcpy(request.ifr_name, name.data(), name.size());
  request.ifr_flags = static_cast<short>(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (queues > 1 ? IFF_MULTI_QUEUE : 0));
  for (uint16_t i = 0; i < queues; ++i) {
    OwnedFd fd(::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
    if (!fd.valid()) return ErrnoStatus(errno, what + ": /dev/net/tun");
    int result = ::ioctl(fd.get(), TUNSETIFF, &request);
    if (result != 0 && errno == EINVAL && queues == 1) {  // one that was made for several queues can have one as well
      request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_MULTI_QUEUE);
      result = ::ioctl(fd.get(), TUNSETIFF, &request);
    }
    if (result != 0) return Refusal(errno, what);
    const int header = kNetHeaderBytes;
    if (::ioctl(fd.get(), TUNSETVNETHDRSZ, &header) != 0) return ErrnoStatus(errno, what + ": TUNSETVNETHDRSZ");
    tap->fds_.push_back(fd.get());
    tap->owned_.push_back(std::move(fd));
  }
  tap->name_ = request.ifr_name;  // the kernel's answer; it ends with a zero
  tap->active_ = queues;
  HK_RETURN_IF_ERROR(tap->SetOffloads({}));
  return tap;
}

absl::Status Tap::SetOffloads(const NetOffloads& offloads) {
  // Segmentation needs the checksum (virtio 1.2: 5.1.3.1).
  const unsigned long flags =
      offloads.checksum ? TUN_F_CSUM | (offloads.tso4 ? TUN_F_TSO4 : 0ul) | (offloads.tso6 ? TUN_F_TSO6 : 0ul) : 0ul;
  // One setting for the interface, through any attached queue.
  if (::ioctl(fds_[0], TUNSETOFFLOAD, flags) != 0) return ErrnoStatus(errno, "tap " + name_ + ": TUNSETOFFLOAD");
  return absl::OkStatus();
}

absl::Status Tap::SetActiveQueues(size_t count) {
  count = std::clamp<size_t>(count, 1, fds_.size());
  for (; active_ != count; active_ < count ? ++active_ : --active_) {
    const bool attach = active_ < count;
    ifreq request{};
    request.ifr_flags = attach ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE;
    if (::ioctl(fds_[attach ? active_ : active_ - 1], TUNSETQUEUE, &request) != 0) {
      return ErrnoStatus(errno, "tap " + name_ + ": TUNSETQUEUE");
    }
  }
  return absl::OkStatus();
}

}  // namespace hk
