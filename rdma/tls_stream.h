// Mutual TLS on a TCP connection (OpenSSL, TLS 1.3 only; the kernel encrypts if it can). Both ends show a certificate
// of the cluster's authority with the subject "node:NAME".
#pragma once

#include <openssl/ssl.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/mutex.h"
#include "rdma/byte_stream.h"

namespace hk {

// A TLS connection. See ByteStream; Handshake is to be finished first.
class TlsStream final : public ByteStream {
 public:
  ~TlsStream() override;

  ssize_t Read(std::span<const iovec> parts) override;
  ssize_t Write(std::span<const iovec> parts) override;
  bool HasBuffered() const override;
  size_t RetryBytes() const override;

  // Goes on with the handshake. True: it is done. False: poll for WantsWrite or reading, and call again.
  // kUnauthenticated with the reason: the connection is over.
  absl::StatusOr<bool> Handshake();
  bool WantsWrite() const;
  // NAME of the other end's "node:NAME"; empty: it is no node. After the handshake.
  std::string PeerName() const;

 private:
  friend class TlsContext;
  TlsStream(OwnedFd fd, SSL* ssl);
  // As Read and Write, for what an SSL_* call returned.
  ssize_t Failed(int result) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable Mutex mutex_;  // OpenSSL does not read and write at once
  SSL* const ssl_ ABSL_PT_GUARDED_BY(mutex_);
  std::string gathered_ ABSL_GUARDED_BY(mutex_);
};

// Our identity, and whom we trust. Thread-safe.
class TlsContext {
 public:
  // PEM texts: authorities, our certificate with its chain, our key. kInvalidArgument: what is wrong with them. Ignores
  // SIGPIPE in the process if nobody handles it: OpenSSL writes without MSG_NOSIGNAL.
  static absl::StatusOr<std::unique_ptr<TlsContext>> Create(const std::string& ca_pem,
                                                            const std::string& certificate_pem,
                                                            const std::string& key_pem);
  // `fd`: a connected non-blocking socket. kResourceExhausted.
  absl::StatusOr<std::unique_ptr<TlsStream>> Wrap(OwnedFd fd, bool accepting) const;

 private:
  // Frees an SSL_CTX.
  struct Free {
    void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  };
  explicit TlsContext(std::unique_ptr<SSL_CTX, Free> context) : context_(std::move(context)) {}

  const std::unique_ptr<SSL_CTX, Free> context_;
};

}  // namespace hk
