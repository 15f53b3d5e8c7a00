#include "tests/transport/tcp_back_end.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <thread>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/node/test_certificates.h"
#include "rdma/tcp_socket.h"

namespace hk {

namespace {

// Between looks whether this host has a port again.
constexpr std::chrono::milliseconds kNoPortPause(100);

// A plain socket.
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

// A socket under TLS, by OpenSSL alone: it is not what it tests.
class TlsStranger final : public Stranger {
 public:
  // `identity`: authorities, and a certificate unless it is empty.
  TlsStranger(OwnedFd fd, const TcpTls& identity) : fd_(std::move(fd)), context_(SSL_CTX_new(TLS_client_method())) {
    HK_CHECK(context_ != nullptr);
    SSL_CTX_set_mode(context_.get(), SSL_MODE_AUTO_RETRY);
    if (!identity.certificate_pem.empty()) UseCertificate(identity);
    ssl_.reset(SSL_new(context_.get()));
    HK_CHECK(SSL_set_fd(ssl_.get(), fd_.get()) == 1);
    SSL_set_connect_state(ssl_.get());
    HK_CHECK(::fcntl(fd_.get(), F_SETFL, O_NONBLOCK) == 0);
  }

  void Write(std::span<const std::byte> bytes) override {
    while (!closed_) {
      size_t written = 0;
      const int result = SSL_write_ex(ssl_.get(), bytes.data(), bytes.size(), &written);
      if (result == 1) return;
      if (!Waits(result)) return;
      pollfd ready{.fd = fd_.get(), .events = POLLIN, .revents = 0};
      ::poll(&ready, 1, kPollMs);
    }
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
  static constexpr int kPollMs = 5;

  void UseCertificate(const TcpTls& identity) {
    BIO* bio = BIO_new_mem_buf(identity.certificate_pem.data(), -1);
    X509* certificate = PEM_read_bio_X509(bio, nullptr, nullptr, nullptr);
    BIO_free(bio);
    bio = BIO_new_mem_buf(identity.key_pem.data(), -1);
    EVP_PKEY* key = PEM_read_bio_PrivateKey(bio, nullptr, nullptr, nullptr);
    BIO_free(bio);
    HK_CHECK(SSL_CTX_use_certificate(context_.get(), certificate) == 1);
    HK_CHECK(SSL_CTX_use_PrivateKey(context_.get(), key) == 1);
    X509_free(certificate);
    EVP_PKEY_free(key);
  }
  // False: it is over.
  bool Waits(int result) {
    const int error = SSL_get_error(ssl_.get(), result);
    ERR_clear_error();
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) return true;
    closed_ = true;
    return false;
  }
  void Look() {
    std::array<std::byte, 4096> bytes;
    while (!closed_) {
      size_t read = 0;
      const int result = SSL_read_ex(ssl_.get(), bytes.data(), bytes.size(), &read);
      if (result == 1) {
        read_.insert(read_.end(), bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(read));
      } else if (Waits(result)) {
        return;
      }
    }
  }

  // Frees what OpenSSL made.
  struct Free {
    void operator()(SSL* ssl) const { SSL_free(ssl); }
    void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  };
  OwnedFd fd_;
  std::unique_ptr<SSL_CTX, Free> context_;
  std::unique_ptr<SSL, Free> ssl_;
  std::vector<std::byte> read_;
  bool closed_ = false;
};

}  // namespace

Address LoopbackAddress(uint16_t port) {
  return {.kind = Address::Kind::kTcp, .path = {}, .host = "127.0.0.1", .port = port, .is_literal = true};
}

namespace {

// Connects to a port of this host that listens, from `from` unless it is null. Waits while this host has no port for
// one more connection: those of connections that ended a moment ago are still taken. One that is taken again meets what
// is left of the connection before, and the kernel may answer that with a reset (seen once in thousands of runs of the
// flood): another is tried. Nobody listening is found by the guard.
OwnedFd Connect(const SocketAddress* from, uint16_t port) {
  const auto to = Resolve(LoopbackAddress(port));
  HK_CHECK(to.ok());
  const auto guard = std::chrono::steady_clock::now() + HangGuard();
  for (;;) {
    OwnedFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd.valid()) std::perror("socket");
    HK_CHECK(fd.valid());
    const bool bound = from == nullptr || ::bind(fd.get(), from->get(), from->size) == 0;
    if (bound && ::connect(fd.get(), to->get(), to->size) == 0) return fd;
    const bool no_port = errno == EADDRNOTAVAIL || (!bound && errno == EADDRINUSE) || (bound && errno == ECONNREFUSED);
    if (!no_port) std::perror(bound ? "connect" : "bind");
    HK_CHECK(no_port && std::chrono::steady_clock::now() < guard);
    std::this_thread::sleep_for(kNoPortPause);
  }
}

}  // namespace

OwnedFd ConnectLoopback(uint16_t port) {
  return Connect(nullptr, port);
}

OwnedFd ConnectLoopbackFrom(uint8_t last, uint16_t port) {
  const auto from = Resolve({.kind = Address::Kind::kTcp,
                             .path = {},
                             .host = fmt::format("127.0.0.{}", last),
                             .port = 0,
                             .is_literal = true});
  HK_CHECK(from.ok());
  return Connect(&*from, port);
}

std::string TestCluster::NameOf(NodeId node) {
  return fmt::format("n{}", node.value());
}

TcpTls TestCluster::TlsAs(const std::string& name, int authority) {
  static Mutex mutex;
  static auto& authorities = *new std::map<int, TestCertificate>;
  static auto& made = *new std::map<std::pair<int, std::string>, TestCertificate>;
  MutexLock lock(&mutex);
  if (authorities.empty()) {
    for (const int number : {0, 1}) {
      authorities[number] = MakeTestCertificate("authority", nullptr, {.names = "", .usage = "", .authority = true});
    }
  }
  const auto [entry, fresh] = made.try_emplace({authority, name});
  if (fresh) entry->second = MakeTestCertificate(name, &authorities[authority]);
  return {.ca_pem = authorities[0].certificate_pem,
          .certificate_pem = entry->second.certificate_pem,
          .key_pem = entry->second.key_pem,
          .name_of = NameOf};
}

absl::StatusOr<std::unique_ptr<Transport>> TcpBackEnd::Make(const TransportSettings& settings,
                                                            TransportHandler* handler) {
  TcpOptions options;
  if (const auto set = identities_.find(settings.self); set != identities_.end()) {
    options.tls = set->second;
  } else if (tls_) {
    options.tls = TestCluster::TlsAs("node:" + TestCluster::NameOf(settings.self));
  }
  TransportSettings with_wait = settings;
  with_wait.wait = wait_;
  // A node keeps its port when it is made again.
  const uint16_t port = PortOf(settings.self);
  OwnedFd& bound = bound_[settings.self];
  if (!bound.valid()) {
    auto again = BindTcp(LoopbackAddress(port));
    if (!again.ok()) return again.status();
    bound = *std::move(again);
  }
  options.listener = std::move(bound);
  return MakeTcpTransport(with_wait, std::move(options), handler);
}

bool TcpBackEnd::Break(NodeId a, NodeId b) {
  proxy_.Break(a, b);
  return true;
}

bool TcpBackEnd::Cut(NodeId a, NodeId b) {
  proxy_.Cut(a, b, true);
  return true;
}

bool TcpBackEnd::Silence(NodeId a, NodeId b) {
  proxy_.Silence(a, b, true);
  return true;
}

void TcpBackEnd::Heal(NodeId a, NodeId b) {
  proxy_.Cut(a, b, false);
  proxy_.Silence(a, b, false);
}

std::unique_ptr<Stranger> TcpBackEnd::Connect(NodeId to) {
  return tls_ ? ConnectTls(to, TestCluster::TlsAs("node:" + TestCluster::NameOf(NodeId(0)))) : ConnectBare(to);
}

std::unique_ptr<Stranger> TcpBackEnd::ConnectBare(NodeId to) {
  return std::make_unique<TcpStranger>(ConnectLoopback(PortOf(to)));
}

std::unique_ptr<Stranger> TcpBackEnd::ConnectBareFrom(uint8_t last, NodeId to) {
  return std::make_unique<TcpStranger>(ConnectLoopbackFrom(last, PortOf(to)));
}

std::unique_ptr<Stranger> TcpBackEnd::ConnectTls(NodeId to, const TcpTls& identity) {
  return std::make_unique<TlsStranger>(ConnectLoopback(PortOf(to)), identity);
}

uint16_t TcpBackEnd::PortOf(NodeId node) {
  uint16_t& port = ports_[node];
  if (port == 0) {
    auto fd = BindTcp(LoopbackAddress(0));
    HK_CHECK(fd.ok());
    port = BoundAddress(fd->get())->port;
    bound_[node] = *std::move(fd);
  }
  return port;
}

}  // namespace hk
