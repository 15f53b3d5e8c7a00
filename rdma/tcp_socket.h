// TCP sockets as the transport wants them: non-blocking, without delay, watched by the kernel. Thread-safe.
#pragma once

#include <sys/socket.h>

#include <chrono>
#include <string>

#include "absl/status/statusor.h"
#include "hyperkernel/base/address.h"
#include "hyperkernel/base/fd.h"

namespace hk {

// An IP address and port as the kernel has it. Plain value.
struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  // "127.0.0.1:7000", "[::1]:7000"; for people.
  std::string ToString() const;
  // The same for all addresses that one host has at will: of IPv6 it is given a subnet, of IPv4 an address.
  std::string Source() const;
};

// The first address of a host and port. Blocks, perhaps for long, unless `address.is_literal`. Errors: kUnavailable.
absl::StatusOr<SocketAddress> Resolve(const Address& address);

// A socket that is bound and not yet listening. With SO_REUSEADDR, so that a restart need not wait. Errors: errno.
absl::StatusOr<OwnedFd> BindTcp(const Address& address);
// REQUIRES: a bound TCP socket.
absl::Status ListenTcp(int fd);
// Its port.
absl::StatusOr<Address> BoundAddress(int fd);

// A socket whose connection is on its way: writable when it is done, SO_ERROR says how. Errors: errno.
absl::StatusOr<OwnedFd> ConnectTcp(const SocketAddress& to);
// How a connection attempt ended.
absl::Status ConnectResult(int fd, const std::string& to);

// TCP_NODELAY, and an end, during the handshake, for what the other end does not take for `patience`.
void SetTcpOptions(int fd, std::chrono::milliseconds patience);
// After the handshake: what is not taken waits (tcp_acks.h says how long).
void ClearTcpPatience(int fd);

}  // namespace hk
