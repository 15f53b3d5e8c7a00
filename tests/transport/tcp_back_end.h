// The conformance suite's back end over TCP on this host's loopback, bare or under mutual TLS, with a network that can
// be made to fail. And strangers, who go past that network.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "hyperkernel/base/address.h"
#include "hyperkernel/base/fd.h"
#include "rdma/tcp_transport.h"
#include "tests/transport/conformance.h"
#include "tests/transport/tcp_proxy.h"

namespace hk {

// A TCP address of this host.
Address LoopbackAddress(uint16_t port);
// A blocking socket, connected to a port of this host.
OwnedFd ConnectLoopback(uint16_t port);
// The same from another address of this host: 127.0.0.`last`.
OwnedFd ConnectLoopbackFrom(uint8_t last, uint16_t port);

// Certificates of a cluster in which node N is called "nN"; made once, in memory.
struct TestCluster {
  // What a transport needs. `authority`: which of two, of which only 0 is the cluster's. `name`: the certificate's
  // subject, as a whole.
  static TcpTls TlsAs(const std::string& name, int authority = 0);
  static std::string NameOf(NodeId node);
};

// See BackEnd. Strangers of a back end with TLS have node 0's certificate.
class TcpBackEnd final : public ThreadedBackEnd {
 public:
  explicit TcpBackEnd(WaitMode wait, bool tls = false) : wait_(wait), tls_(tls) {}

  absl::StatusOr<std::unique_ptr<Transport>> Make(const TransportSettings& settings,
                                                  TransportHandler* handler) override;
  // How the node is made from now on, instead of with its own certificate; nullopt: without TLS.
  void SetIdentity(NodeId node, std::optional<TcpTls> identity) { identities_[node] = std::move(identity); }
  std::string Address(NodeId from, NodeId to) override { return proxy_.Address(from, to, PortOf(to)); }
  bool Break(NodeId a, NodeId b) override;
  bool Cut(NodeId a, NodeId b) override;
  bool Silence(NodeId a, NodeId b) override;
  void Heal(NodeId a, NodeId b) override;
  std::unique_ptr<Stranger> Connect(NodeId to) override;
  bool ProvesNames() const override { return tls_; }

  // A stranger without TLS, whatever the back end has; and one with the given certificate, or none if it is empty.
  std::unique_ptr<Stranger> ConnectBare(NodeId to);
  std::unique_ptr<Stranger> ConnectTls(NodeId to, const TcpTls& identity);
  // A stranger without TLS from another address: 127.0.0.`last`.
  std::unique_ptr<Stranger> ConnectBareFrom(uint8_t last, NodeId to);
  uint16_t PortOf(NodeId node);

 private:
  const WaitMode wait_;
  const bool tls_;
  std::map<NodeId, std::optional<TcpTls>> identities_;
  std::map<NodeId, uint16_t> ports_;
  std::map<NodeId, OwnedFd> bound_;  // and not yet a transport's
  TcpProxy proxy_;
};

}  // namespace hk
