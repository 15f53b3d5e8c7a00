#include "tests/transport/tcp_proxy.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "hyperkernel/base/check.h"
#include "rdma/tcp_socket.h"

namespace hk {

namespace {

constexpr size_t kBufferBytes = 256 << 10;

Address Loopback(uint16_t port) {
  return {.kind = Address::Kind::kTcp, .path = {}, .host = "127.0.0.1", .port = port, .is_literal = true};
}

}  // namespace

TcpProxy::TcpProxy() : wake_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  HK_CHECK(wake_.valid());
  thread_ = std::thread([this] { Run(); });
}

TcpProxy::~TcpProxy() {
  stop_ = true;
  Wake();
  thread_.join();
}

void TcpProxy::Wake() {
  const uint64_t one = 1;
  HK_CHECK(::write(wake_.get(), &one, sizeof one) == sizeof one);
}

std::string TcpProxy::Address(NodeId from, NodeId to, uint16_t port) {
  MutexLock lock(&mutex_);
  Route& route = routes_[{from, to}];
  if (!route.listener.valid()) {
    auto bound = BindTcp(Loopback(0));
    HK_CHECK(bound.ok() && ListenTcp(bound->get()).ok());
    route.listener = *std::move(bound);
    route.target = port;
    Wake();
  }
  return BoundAddress(route.listener.get())->ToString();
}

void TcpProxy::Break(NodeId a, NodeId b) {
  MutexLock lock(&mutex_);
  for (const Key& key : {Key{a, b}, Key{b, a}}) routes_[key].connections.clear();
  Wake();
}

void TcpProxy::Cut(NodeId a, NodeId b, bool cut) {
  MutexLock lock(&mutex_);
  for (const Key& key : {Key{a, b}, Key{b, a}}) {
    routes_[key].cut = cut;
    if (cut) routes_[key].connections.clear();
  }
  Wake();
}

void TcpProxy::Silence(NodeId a, NodeId b, bool silent) {
  MutexLock lock(&mutex_);
  for (const Key& key : {Key{a, b}, Key{b, a}}) routes_[key].silent = silent;
  Wake();
}

void TcpProxy::Accept(Route* route) {
  OwnedFd near(::accept4(route->listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!near.valid() || route->cut) return;
  const auto target = Resolve(Loopback(route->target));
  HK_CHECK(target.ok());
  auto far = ConnectTcp(*target);
  if (!far.ok()) return;
  SetTcpOptions(near.get(), std::chrono::minutes(10));
  SetTcpOptions(far->get(), std::chrono::minutes(10));
  auto connection = std::make_unique<Connection>();
  connection->near = std::move(near);
  connection->far = *std::move(far);
  route->connections.push_back(std::move(connection));
}

bool TcpProxy::Pass(int from, int to, Way* way) {
  for (;;) {
    if (way->written == way->bytes.size()) {
      way->bytes.resize(kBufferBytes);
      way->written = 0;
      const ssize_t read = ::recv(from, way->bytes.data(), way->bytes.size(), MSG_DONTWAIT);
      way->bytes.resize(static_cast<size_t>(std::max<ssize_t>(read, 0)));
      if (read < 0) return errno == EAGAIN;
      // What went before the end has been passed on: the other end sees an end, not a reset.
      if (read == 0) {
        way->ended = true;
        ::shutdown(to, SHUT_WR);
        return true;
      }
    }
    const ssize_t written =
        ::send(to, way->bytes.data() + way->written, way->bytes.size() - way->written, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (written < 0) return errno == EAGAIN;
    way->written += static_cast<size_t>(written);
  }
}

bool TcpProxy::Serve(Connection* connection) {
  if (!connection->connected) {
    pollfd far{.fd = connection->far.get(), .events = POLLOUT, .revents = 0};
    if (::poll(&far, 1, 0) == 0) return true;
    if (!ConnectResult(connection->far.get(), "").ok()) return false;
    connection->connected = true;
  }
  if (!connection->out.ended && !Pass(connection->near.get(), connection->far.get(), &connection->out)) return false;
  if (!connection->back.ended && !Pass(connection->far.get(), connection->near.get(), &connection->back)) return false;
  return !connection->out.ended || !connection->back.ended;
}

void TcpProxy::Run() {
  std::vector<pollfd> polled;
  for (;;) {
    // In this order: who stops us says so, and then wakes us.
    uint64_t times = 0;
    static_cast<void>(::read(wake_.get(), &times, sizeof times));
    if (stop_) return;
    polled.assign(1, {.fd = wake_.get(), .events = POLLIN, .revents = 0});
    {
      MutexLock lock(&mutex_);
      for (auto& [key, route] : routes_) {
        if (!route.listener.valid()) continue;
        if (!route.silent) {
          Accept(&route);
          std::erase_if(route.connections, [](const auto& connection) { return !Serve(connection.get()); });
        }
        if (route.silent) continue;
        polled.push_back({.fd = route.listener.get(), .events = POLLIN, .revents = 0});
        for (const auto& connection : route.connections) {
          const bool out = connection->out.written < connection->out.bytes.size();
          const bool back = connection->back.written < connection->back.bytes.size();
          auto watch = [&](int fd, bool reads, bool writes) {
            const short events = static_cast<short>((reads ? POLLIN : 0) | (writes ? POLLOUT : 0));
            if (events != 0) polled.push_back({.fd = fd, .events = events, .revents = 0});
          };
          if (!connection->connected) {
            watch(connection->far.get(), false, true);
          } else {
            watch(connection->near.get(), !out && !connection->out.ended, back);
            watch(connection->far.get(), !back && !connection->back.ended, out);
          }
        }
      }
    }
    ::poll(polled.data(), polled.size(), -1);
  }
}

}  // namespace hk
