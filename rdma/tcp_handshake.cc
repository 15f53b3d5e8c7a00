#include "rdma/tcp_handshake.h"

#include <poll.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "rdma/tcp_socket.h"

namespace hk {

TcpHandshake::TcpHandshake(std::unique_ptr<ByteStream> stream, TlsStream* tls, std::string who, Monotonic deadline)
    : stream_(std::move(stream)), tls_(tls), who_(std::move(who)), deadline_(deadline) {}

absl::StatusOr<std::unique_ptr<TcpHandshake>> TcpHandshake::Make(OwnedFd fd, std::string who, const TlsContext* tls,
                                                                 Monotonic deadline, bool accepting) {
  if (tls == nullptr) {
    return std::unique_ptr<TcpHandshake>(
        new TcpHandshake(MakeSocketStream(std::move(fd)), nullptr, std::move(who), deadline));
  }
  HK_ASSIGN_OR_RETURN(std::unique_ptr<TlsStream> stream, tls->Wrap(std::move(fd), accepting));
  TlsStream* const raw = stream.get();
  return std::unique_ptr<TcpHandshake>(new TcpHandshake(std::move(stream), raw, std::move(who), deadline));
}

absl::StatusOr<std::unique_ptr<TcpHandshake>> TcpHandshake::Accepted(OwnedFd fd, std::string who, const TlsContext* tls,
                                                                     Monotonic deadline) {
  return Make(std::move(fd), std::move(who), tls, deadline, true);
}

absl::StatusOr<std::unique_ptr<TcpHandshake>> TcpHandshake::Dialled(OwnedFd fd, std::string who, const TlsContext* tls,
                                                                    Monotonic deadline, const DialTarget& target) {
  HK_ASSIGN_OR_RETURN(std::unique_ptr<TcpHandshake> made, Make(std::move(fd), std::move(who), tls, deadline, false));
  made->target_ = target;
  made->phase_ = Phase::kConnect;
  return made;
}

TcpHandshake::Result TcpHandshake::Fail(StrangerEnd reason, std::string detail) {
  failure_ = reason;
  detail_ = std::move(detail);
  return Result::kFailed;
}

bool TcpHandshake::WantsWrite() const {
  return phase_ == Phase::kConnect || (phase_ == Phase::kTls && tls_ != nullptr && tls_->WantsWrite());
}

std::optional<std::string> TcpHandshake::PeerName() const {
  if (tls_ == nullptr) return std::nullopt;
  return tls_->PeerName();
}

TcpHandshake::Result TcpHandshake::Progress() {
  if (phase_ == Phase::kConnect) {
    pollfd connecting{.fd = fd(), .events = POLLOUT, .revents = 0};
    if (::poll(&connecting, 1, 0) == 0) return Result::kWait;
    if (const absl::Status connected = ConnectResult(fd(), who_); !connected.ok()) {
      return Fail(StrangerEnd::kGone, MessageOf(connected));
    }
    phase_ = Phase::kTls;
  }
  if (phase_ == Phase::kTls) {
    if (tls_ != nullptr) {
      const absl::StatusOr<bool> done = tls_->Handshake();
      if (!done.ok()) return Fail(StrangerEnd::kTls, fmt::format("TLS: {}", MessageOf(done.status())));
      if (!*done) return Result::kWait;
      if (target_ && (target_->name.empty() || tls_->PeerName() != target_->name) && !HK_MUTANT(tls_any_name)) {
        return Fail(StrangerEnd::kTls,
                    fmt::format("the certificate is node '{}', not '{}'", tls_->PeerName(), target_->name));
      }
    }
    phase_ = target_ ? Phase::kSay : Phase::kHear;
  }
  if (phase_ == Phase::kSay) {
    if (!Reply(target_->hello)) return Fail(StrangerEnd::kGone, "the hello could not be sent");
    phase_ = Phase::kHear;
  }
  return Hear();
}

bool TcpHandshake::Reply(const Hello& reply) {
  std::array<std::byte, kHelloBytes> bytes = EncodeHello(reply);
  // The first bytes on a connection fit its buffer: what is not taken at once never will be.
  const iovec part{.iov_base = bytes.data(), .iov_len = bytes.size()};
  return stream_->Write({&part, 1}) == static_cast<ssize_t>(bytes.size());
}

TcpHandshake::Result TcpHandshake::Hear() {
  while (in_bytes_ < in_.size()) {
    const iovec part{.iov_base = in_.data() + in_bytes_, .iov_len = in_.size() - in_bytes_};
    const ssize_t read = stream_->Read({&part, 1});
    if (read == -EAGAIN) return Result::kWait;
    if (read == 0) return Fail(StrangerEnd::kGone, fmt::format("closed after {} bytes", in_bytes_));
    if (read < 0) return Fail(StrangerEnd::kGone, std::strerror(static_cast<int>(-read)));
    in_bytes_ += static_cast<size_t>(read);
  }
  const WireError error = DecodeHello(in_, &hello_);
  if (error == WireError::kNone) return Result::kHello;
  // The version is in the same place in every version.
  const StrangerEnd reason = error == WireError::kVersion ? StrangerEnd::kRefused : StrangerEnd::kMalformed;
  return Fail(reason, fmt::format("hello: {}", WireErrorName(error)));
}

}  // namespace hk
