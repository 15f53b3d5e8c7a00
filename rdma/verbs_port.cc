#include "rdma/verbs_port.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/status.h"
#include "rdma/tcp_socket.h"
#include "rdma/verbs_device.h"

namespace hk {

namespace {

// Hellos that wait while one is looked at: a whole cluster that dials at once.
constexpr int kBacklog = kMaxNodes * static_cast<int>(kMessageClasses);

absl::Status SetNonBlocking(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) return ErrnoStatus(errno, "fcntl O_NONBLOCK");
  return absl::OkStatus();
}

absl::Status NoDevice(const Address& listen, const absl::Status& cause) {
  return absl::FailedPreconditionError(fmt::format(
      "no verbs device carries {} ({}): let listen.data name an address of a network interface that has one "
      "(rdma link show), or take TRANSPORT_TCP",
      listen.ToString(), MessageOf(cause)));
}

}  // namespace

RdmaAddress RdmaAddress::Of(const Address& address, uint16_t port) {
  RdmaAddress result;
  auto* four = reinterpret_cast<sockaddr_in*>(&result.storage);
  if (::inet_pton(AF_INET, address.host.c_str(), &four->sin_addr) == 1) {
    four->sin_family = AF_INET;
    four->sin_port = htons(port);
    return result;
  }
  auto* six = reinterpret_cast<sockaddr_in6*>(&result.storage);
  HK_CHECK(::inet_pton(AF_INET6, address.host.c_str(), &six->sin6_addr) == 1);
  six->sin6_family = AF_INET6;
  six->sin6_port = htons(port);
  return result;
}

std::string PeerAddress(rdma_cm_id* id) {
  const sockaddr* address = rdma_get_peer_addr(id);
  if (address == nullptr) return "unknown";
  std::array<char, NI_MAXHOST> host{};
  const socklen_t size = address->sa_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  if (::getnameinfo(address, size, host.data(), host.size(), nullptr, 0, NI_NUMERICHOST) != 0) return "unknown";
  return fmt::format("{}:{}", host.data(), ntohs(rdma_get_dst_port(id)));
}

std::string PeerSource(rdma_cm_id* id) {
  const sockaddr* address = rdma_get_peer_addr(id);
  if (address == nullptr) return "";
  SocketAddress peer;
  peer.size = address->sa_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  std::memcpy(&peer.storage, address, peer.size);
  return peer.Source();
}

void CloseRemovedDevice(std::unique_ptr<VerbsPort> port) {
  const std::array<int, 2> fds = {port->context()->cmd_fd, port->context()->async_fd};
  std::array<struct stat, 2> before{};
  for (size_t i = 0; i < fds.size(); ++i) ::fstat(fds[i], &before[i]);
  port.reset();
  // Makes the library compare its devices with those that there are; it forgets to when there are none.
  ibv_context** devices = rdma_get_devices(nullptr);
  if (devices != nullptr) return rdma_free_devices(devices);
  const OwnedFd nowhere(::open("/dev/null", O_RDWR | O_CLOEXEC));
  for (size_t i = 0; i < fds.size(); ++i) {
    struct stat now = {};
    const bool still = ::fstat(fds[i], &now) == 0 && now.st_dev == before[i].st_dev && now.st_ino == before[i].st_ino &&
                       now.st_rdev == before[i].st_rdev;
    if (still && nowhere.valid()) ::dup3(nowhere.get(), fds[i], O_CLOEXEC);
  }
}

absl::StatusOr<RdmaEvents> OpenRdmaEvents() {
  // The verbs library is not entered without a device: it would print warnings of its own.
  HK_ASSIGN_OR_RETURN(const std::vector<VerbsDevice> devices, ListVerbsDevices());
  if (devices.empty()) {
    return absl::FailedPreconditionError(
        "no verbs device on this host: load its driver (rxe: rdma link add rxe0 type rxe netdev DEVICE), or take "
        "TRANSPORT_TCP");
  }
  RdmaEvents events(rdma_create_event_channel());
  if (events == nullptr) {
    return WithContext(ErrnoStatus(errno, "/dev/infiniband/rdma_cm"),
                       "modprobe rdma_ucm, and let the daemon's user open it");
  }
  HK_RETURN_IF_ERROR(SetNonBlocking(events->fd));
  return events;
}

absl::StatusOr<std::unique_ptr<VerbsPort>> VerbsPort::Open(rdma_event_channel* events, const Address& listen,
                                                           const SlotMemory& memory,
                                                           const TransportSettings& settings) {
  std::unique_ptr<VerbsPort> port(new VerbsPort());
  rdma_cm_id* id = nullptr;
  if (rdma_create_id(events, &id, nullptr, RDMA_PS_TCP) != 0) return ErrnoStatus(errno, "rdma_create_id");
  port->listener_.reset(id);
  RdmaAddress address = RdmaAddress::Of(listen, listen.port);
  if (rdma_bind_addr(id, address.get()) != 0) {
    const absl::Status status = ErrnoStatus(errno, "rdma_bind_addr");
    if (errno == EADDRINUSE) return WithContext(status, listen.ToString());
    return NoDevice(listen, status);
  }
  if (id->verbs == nullptr) return NoDevice(listen, absl::NotFoundError("the address is on no device"));
  HK_RETURN_IF_ERROR(SetNonBlocking(id->verbs->async_fd));
  HK_ASSIGN_OR_RETURN(port->pool_, VerbsPool::Create(id->verbs, memory, settings));
  for (std::shared_ptr<ibv_comp_channel>& channel : port->channels_) {
    channel = std::shared_ptr<ibv_comp_channel>(ibv_create_comp_channel(id->verbs), [](ibv_comp_channel* old) {
      if (old != nullptr) ibv_destroy_comp_channel(old);
    });
    if (channel == nullptr) return ErrnoStatus(errno, "ibv_create_comp_channel");
    HK_RETURN_IF_ERROR(SetNonBlocking(channel->fd));
  }
  if (rdma_listen(id, kBacklog) != 0) {
    return WithContext(ErrnoStatus(errno, "rdma_listen"), listen.ToString());
  }
  return port;
}

bool VerbsPort::IsInUse() const {
  return std::ranges::any_of(channels_, [](const auto& channel) { return channel.use_count() > 1; });
}

VerbsPort::~VerbsPort() {
  // The identifier keeps the device open for the others.
  channels_ = {};
  pool_.reset();
}

}  // namespace hk
