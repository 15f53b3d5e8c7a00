#include "hyperkernel/node/host_link.h"

#include <net/if.h>
#include <netlink/errno.h>
#include <netlink/netlink.h>
#include <netlink/route/link.h>
#include <netlink/route/link/bridge.h>
#include <netlink/socket.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "fmt/format.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

using Socket = std::unique_ptr<nl_sock, decltype(&::nl_socket_free)>;
using Link = std::unique_ptr<rtnl_link, decltype(&::rtnl_link_put)>;

// The kernel answers at once, unless it waits long for its own network lock.
constexpr timeval kAnswerLimit = {.tv_sec = 5, .tv_usec = 0};

absl::Status NetlinkStatus(int error, const std::string& what) {
  switch (-error) {
    case NLE_PERM:
    case NLE_NOACCESS:
      return absl::PermissionDeniedError(
          what + ": not permitted; give the daemon CAP_NET_ADMIN, or name a tap of its user that is set up already");
    case NLE_NODEV:
    case NLE_OBJ_NOTFOUND:
      return absl::NotFoundError(what + ": no such interface");
    case NLE_BUSY:
      return absl::FailedPreconditionError(what + ": the kernel says it is busy");
    default:
      return absl::InternalError(fmt::format("{}: {}", what, ::nl_geterror(error)));
  }
}

absl::StatusOr<Socket> Connect() {
  Socket socket(::nl_socket_alloc(), &::nl_socket_free);
  if (socket == nullptr) return absl::ResourceExhaustedError("no memory for a netlink socket");
  if (const int error = ::nl_connect(socket.get(), NETLINK_ROUTE); error < 0) return NetlinkStatus(error, "netlink");
  ::setsockopt(::nl_socket_get_fd(socket.get()), SOL_SOCKET, SO_RCVTIMEO, &kAnswerLimit, sizeof(kAnswerLimit));
  return socket;
}

absl::StatusOr<Link> Find(const Socket& socket, const std::string& name) {
  rtnl_link* found = nullptr;
  if (const int error = ::rtnl_link_get_kernel(socket.get(), 0, name.c_str(), &found); error < 0) {
    return NetlinkStatus(error, name);
  }
  return Link(found, &::rtnl_link_put);
}

absl::StatusOr<Link> FindBridge(const Socket& socket, const std::string& name) {
  absl::StatusOr<Link> bridge = Find(socket, name);
  if (absl::IsNotFound(bridge.status())) {
    return absl::NotFoundError(fmt::format("{}: no such interface (ip link add {} type bridge)", name, name));
  }
  if (!bridge.ok()) return bridge.status();
  const char* const type = ::rtnl_link_get_type(bridge->get());
  if (type == nullptr || std::string(type) != "bridge") {
    return absl::InvalidArgumentError(fmt::format("{}: not a bridge", name));
  }
  return bridge;
}

absl::Status Change(const Socket& socket, const std::string& name, const std::function<void(rtnl_link*)>& set) {
  HK_ASSIGN_OR_RETURN(const Link link, Find(socket, name));
  const Link wanted(::rtnl_link_alloc(), &::rtnl_link_put);
  if (wanted == nullptr) return absl::ResourceExhaustedError("no memory for a netlink message");
  set(wanted.get());
  const int error = ::rtnl_link_change(socket.get(), link.get(), wanted.get(), 0);
  return error < 0 ? NetlinkStatus(error, name) : absl::OkStatus();
}

}  // namespace

absl::Status SetLinkUp(const std::string& name) {
  HK_ASSIGN_OR_RETURN(const Socket socket, Connect());
  return Change(socket, name, [](rtnl_link* link) { ::rtnl_link_set_flags(link, IFF_UP); });
}

absl::Status CheckBridge(const std::string& name) {
  HK_ASSIGN_OR_RETURN(const Socket socket, Connect());
  return FindBridge(socket, name).status();
}

absl::Status AddToBridge(const std::string& name, const std::string& bridge) {
  HK_ASSIGN_OR_RETURN(const Socket socket, Connect());
  HK_ASSIGN_OR_RETURN(const Link master, FindBridge(socket, bridge));
  const unsigned mtu = ::rtnl_link_get_mtu(master.get());
  HK_RETURN_IF_ERROR(Change(socket, name, [mtu](rtnl_link* link) { ::rtnl_link_set_mtu(link, mtu); }));
  const int index = ::rtnl_link_get_ifindex(master.get());
  if (absl::Status status = Change(socket, name, [index](rtnl_link* link) { ::rtnl_link_set_master(link, index); });
      !status.ok()) {
    return WithContext(status, bridge);
  }
  return Change(socket, name, [](rtnl_link* link) { ::rtnl_link_set_flags(link, IFF_UP); });
}

}  // namespace hk
