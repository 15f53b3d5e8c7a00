// One TCP connection until it is a peer's: connecting, TLS, and one hello each way. Used by one thread; decides nothing
// but whether the bytes are a hello: what it means is the engine's to say.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/fd.h"
#include "rdma/byte_stream.h"
#include "rdma/log_limit.h"
#include "rdma/tls_stream.h"
#include "rdma/wire.h"

namespace hk {

// What a dialled connection is for. Plain value.
struct DialTarget {
  NodeId peer;
  MessageClass message_class = MessageClass::kFault;
  uint64_t attempt = 0;
  Hello hello;
  std::string name;  // the peer's, as its certificate must have it
};

// One connection. Not thread-safe.
class TcpHandshake {
 public:
  // `who`: the other end's address, for people. `tls` may be null, and outlives this. kResourceExhausted.
  static absl::StatusOr<std::unique_ptr<TcpHandshake>> Accepted(OwnedFd fd, std::string who, const TlsContext* tls,
                                                                Monotonic deadline);
  // `fd`: a socket whose connection is on its way.
  static absl::StatusOr<std::unique_ptr<TcpHandshake>> Dialled(OwnedFd fd, std::string who, const TlsContext* tls,
                                                               Monotonic deadline, const DialTarget& target);

  enum class Result : uint8_t {
    kWait,    // poll (WantsWrite) and call again
    kHello,   // the other end's hello, or its reply, is there: hello()
    kFailed,  // failure() and detail() say why; close it
  };
  // Goes as far as it can.
  Result Progress();
  bool WantsWrite() const;

  const Hello& hello() const { return hello_; }
  // The name in the other end's certificate; nullopt without TLS.
  std::optional<std::string> PeerName() const;
  // Says the reply to the hello. False: it could not be said.
  bool Reply(const Hello& reply);
  // The connection, after the handshake.
  std::unique_ptr<ByteStream> TakeStream() { return std::move(stream_); }

  int fd() const { return stream_->fd(); }
  const std::string& who() const { return who_; }
  Monotonic deadline() const { return deadline_; }
  const std::optional<DialTarget>& target() const { return target_; }
  StrangerEnd failure() const { return failure_; }
  const std::string& detail() const { return detail_; }

 private:
  enum class Phase : uint8_t { kConnect, kTls, kSay, kHear };

  TcpHandshake(std::unique_ptr<ByteStream> stream, TlsStream* tls, std::string who, Monotonic deadline);
  static absl::StatusOr<std::unique_ptr<TcpHandshake>> Make(OwnedFd fd, std::string who, const TlsContext* tls,
                                                            Monotonic deadline, bool accepting);
  Result Fail(StrangerEnd reason, std::string detail);
  Result Hear();

  std::unique_ptr<ByteStream> stream_;
  TlsStream* const tls_;  // stream_, if it is one
  const std::string who_;
  const Monotonic deadline_;
  std::optional<DialTarget> target_;
  Phase phase_ = Phase::kTls;
  std::array<std::byte, kHelloBytes> in_{};
  size_t in_bytes_ = 0;
  Hello hello_;
  StrangerEnd failure_ = StrangerEnd::kGone;
  std::string detail_;
};

}  // namespace hk
