#include "rdma/tcp_socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"

namespace hk {

namespace {

// Connections that wait for accept: a burst of all peers of a full cluster (63 x 3), and strangers beside them.
constexpr int kBacklog = 1024;

// The subnet of an IPv6 address that a host is given as a whole (RFC 4291, 2.5.4).
constexpr size_t kSubnetBytes = 8;

absl::StatusOr<OwnedFd> MakeSocket(int family) {
  OwnedFd fd(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP));
  if (!fd.valid()) return ErrnoStatus(errno, "TCP socket");
  return fd;
}

}  // namespace

std::string SocketAddress::ToString() const {
  char text[INET6_ADDRSTRLEN] = "?";
  if (storage.ss_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(&storage);
    ::inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text);
    return fmt::format("{}:{}", text, ntohs(v4->sin_port));
  }
  if (storage.ss_family == AF_INET6) {
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&storage);
    ::inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text);
    return fmt::format("[{}]:{}", text, ntohs(v6->sin6_port));
  }
  return text;
}

std::string SocketAddress::Source() const {
  const auto text = [](const void* bytes, size_t count) { return std::string(static_cast<const char*>(bytes), count); };
  if (storage.ss_family == AF_INET) {
    return text(&reinterpret_cast<const sockaddr_in*>(&storage)->sin_addr, sizeof(in_addr));
  }
  if (storage.ss_family != AF_INET6) return "";
  const in6_addr& v6 = reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_addr;
  if (!IN6_IS_ADDR_V4MAPPED(&v6)) return text(v6.s6_addr, kSubnetBytes);
  return text(v6.s6_addr + sizeof(in6_addr) - sizeof(in_addr), sizeof(in_addr));
}

absl::StatusOr<SocketAddress> Resolve(const Address& address) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (address.is_literal ? AI_NUMERICHOST : 0);
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(fmt::format("{}: {}", address.host, ::gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, ::freeaddrinfo);
  SocketAddress resolved;
  std::memcpy(&resolved.storage, found->ai_addr, found->ai_addrlen);
  resolved.size = found->ai_addrlen;
  return resolved;
}

absl::StatusOr<OwnedFd> BindTcp(const Address& address) {
  HK_ASSIGN_OR_RETURN(const SocketAddress resolved, Resolve(address));
  HK_ASSIGN_OR_RETURN(OwnedFd fd, MakeSocket(resolved.storage.ss_family));
  const int yes = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  if (::bind(fd.get(), resolved.get(), resolved.size) != 0) return ErrnoStatus(errno, address.ToString());
  return fd;
}

absl::Status ListenTcp(int fd) {
  // The socket may be one that somebody else made: accept() must never wait for the next connection.
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) return ErrnoStatus(errno, "O_NONBLOCK");
  if (::listen(fd, kBacklog) != 0) return ErrnoStatus(errno, "listen");
  return absl::OkStatus();
}

absl::StatusOr<Address> BoundAddress(int fd) {
  SocketAddress bound;
  bound.size = sizeof bound.storage;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&bound.storage), &bound.size) != 0) {
    return ErrnoStatus(errno, "address of the listener");
  }
  return ParseAddress(bound.ToString(), AddressForm::kListenTcp);
}

absl::StatusOr<OwnedFd> ConnectTcp(const SocketAddress& to) {
  HK_ASSIGN_OR_RETURN(OwnedFd fd, MakeSocket(to.storage.ss_family));
  if (::connect(fd.get(), to.get(), to.size) != 0 && errno != EINPROGRESS) return ErrnoStatus(errno, to.ToString());
  return fd;
}

absl::Status ConnectResult(int fd, const std::string& to) {
  int error = 0;
  socklen_t size = sizeof error;
  if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
  return error == 0 ? absl::OkStatus() : ErrnoStatus(error, to);
}

void SetTcpOptions(int fd, std::chrono::milliseconds patience) {
  const int yes = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  const auto timeout = static_cast<unsigned>(patience.count());
  ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof timeout);
}

void ClearTcpPatience(int fd) {
  const unsigned none = 0;
  ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &none, sizeof none);
}

}  // namespace hk
