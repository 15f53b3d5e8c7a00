// The transport over TCP. See transport.h and rdma/README.md.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "hyperkernel/base/fd.h"
#include "rdma/transport.h"

namespace hk {

// Who we are, and whom we believe, in mutual TLS. Plain value.
struct TcpTls {
  std::string ca_pem;           // authorities
  std::string certificate_pem;  // ours, with its chain; subject "node:NAME"
  std::string key_pem;
  // The name that a node's certificate has; empty: let no such node in. Called on the control thread.
  std::function<std::string(NodeId)> name_of;
};

// What TCP needs beside the settings that all back ends have. Plain value.
struct TcpOptions {
  std::string listen;  // IP:PORT
  OwnedFd listener;    // instead of `listen`: a bound TCP socket
  std::optional<TcpTls> tls;
};

// A transport over TCP, not started. The handler outlives it. Errors: kInvalidArgument naming the setting.
absl::StatusOr<std::unique_ptr<Transport>> MakeTcpTransport(const TransportSettings& settings, TcpOptions options,
                                                            TransportHandler* handler);

}  // namespace hk
