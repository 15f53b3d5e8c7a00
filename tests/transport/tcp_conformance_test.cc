// The conformance suite over TCP on this host's loopback, with and without a network that fails.
#include <poll.h>
#include <sys/socket.h>

#include <map>
#include <memory>
#include <utility>

#include "hyperkernel/base/check.h"
#include "rdma/tcp_socket.h"
#include "rdma/tcp_transport.h"
#include "tests/transport/conformance.h"
#include "tests/transport/tcp_proxy.h"

namespace hk {
namespace {

// A plain socket, connected past the network that fails.
class TcpStranger final : public Stranger {
 public:
  explicit TcpStranger(OwnedFd fd) : fd_(std::move(fd)) {}

  void Write(std::span<const std::byte> bytes) override {
    // A node may have closed the connection already; then the bytes go nowhere.
    static_cast<void>(::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL));
  }
  std::vector<std::byte> Read() override {
    Look();
    return read_;
  }
  bool Closed() override {
    Look();
    return closed_;
  }

 private:
  void Look() {
    std::array<std::byte, 4096> bytes;
    for (;;) {
      const ssize_t size = ::recv(fd_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
      if (size < 0 && errno == EAGAIN) return;
      if (size <= 0) closed_ = true;
      if (size <= 0) return;
      read_.insert(read_.end(), bytes.begin(), bytes.begin() + size);
    }
  }

  OwnedFd fd_;
  std::vector<std::byte> read_;
  bool closed_ = false;
};

class TcpBackEnd final : public ThreadedBackEnd {
 public:
  explicit TcpBackEnd(WaitMode wait) : wait_(wait) {}

  absl::StatusOr<std::unique_ptr<Transport>> Make(const TransportSettings& settings,
                                                  TransportHandler* handler) override {
    TransportSettings with_wait = settings;
    with_wait.wait = wait_;
    // A node keeps its port when it is made again.
    const uint16_t port = PortOf(settings.self);
    OwnedFd& bound = bound_[settings.self];
    if (!bound.valid()) {
      auto again = BindTcp(Loopback(port));
      if (!again.ok()) return again.status();
      bound = *std::move(again);
    }
    TcpOptions options;
    options.listener = std::move(bound);
    return MakeTcpTransport(with_wait, std::move(options), handler);
  }
  std::string Address(NodeId from, NodeId to) override { return proxy_.Address(from, to, PortOf(to)); }
  bool Break(NodeId a, NodeId b) override {
    proxy_.Break(a, b);
    return true;
  }
  bool Cut(NodeId a, NodeId b) override {
    proxy_.Cut(a, b, true);
    return true;
  }
  bool Silence(NodeId a, NodeId b) override {
    proxy_.Silence(a, b, true);
    return true;
  }
  void Heal(NodeId a, NodeId b) override {
    proxy_.Cut(a, b, false);
    proxy_.Silence(a, b, false);
  }
  std::unique_ptr<Stranger> Connect(NodeId to) override {
    const auto address = Resolve(Loopback(PortOf(to)));
    HK_CHECK(address.ok());
    OwnedFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::connect(fd.get(), address->get(), address->size), 0);
    return std::make_unique<TcpStranger>(std::move(fd));
  }

 private:
  static hk::Address Loopback(uint16_t port) {
    return {.kind = hk::Address::Kind::kTcp, .path = {}, .host = "127.0.0.1", .port = port, .is_literal = true};
  }
  uint16_t PortOf(NodeId node) {
    uint16_t& port = ports_[node];
    if (port == 0) {
      auto fd = BindTcp(Loopback(0));
      HK_CHECK(fd.ok());
      port = BoundAddress(fd->get())->port;
      bound_[node] = *std::move(fd);
    }
    return port;
  }

  const WaitMode wait_;
  std::map<NodeId, uint16_t> ports_;
  std::map<NodeId, OwnedFd> bound_;  // and not yet a transport's
  TcpProxy proxy_;
};

BackEndMaker Maker(WaitMode wait) {
  return {[wait] { return std::make_unique<TcpBackEnd>(wait); }};
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Blocking, TransportConformance, testing::Values(Maker(WaitMode::kBlocking)));
INSTANTIATE_TEST_SUITE_P(BoundedSpin, TransportConformance, testing::Values(Maker(WaitMode::kBoundedSpin)));

}  // namespace hk
