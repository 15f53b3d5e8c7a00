#include "rdma/tls_stream.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <string_view>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {

namespace {

// The payload of one TLS record (RFC 8446, 5.1): what is gathered into one write.
constexpr size_t kRecordBytes = 16384;
constexpr std::string_view kNodeRole = "node:";

// What OpenSSL says went wrong last, for people.
std::string TlsError() {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  if (code == 0) return "the connection ended";
  const char* reason = ERR_reason_error_string(code);
  return reason == nullptr ? "unknown TLS error" : reason;
}

// Frees a BIO.
struct FreeBio {
  void operator()(BIO* bio) const { BIO_free(bio); }
};
using Bio = std::unique_ptr<BIO, FreeBio>;

Bio MemoryBio(const std::string& pem) {
  return Bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

absl::Status Bad(std::string_view field) {
  return absl::InvalidArgumentError(fmt::format("{}: {}", field, TlsError()));
}

absl::Status UseAuthorities(SSL_CTX* context, const std::string& pem) {
  const Bio bio = MemoryBio(pem);
  X509_STORE* store = SSL_CTX_get_cert_store(context);
  int count = 0;
  while (X509* authority = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) {
    X509_STORE_add_cert(store, authority);
    X509_free(authority);
    ++count;
  }
  ERR_clear_error();
  return count > 0 ? absl::OkStatus() : absl::InvalidArgumentError("ca: no PEM certificate in it");
}

absl::Status UseCertificate(SSL_CTX* context, const std::string& pem) {
  const Bio bio = MemoryBio(pem);
  X509* own = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr);
  if (own == nullptr) return Bad("certificate");
  const bool used = SSL_CTX_use_certificate(context, own) == 1;
  X509_free(own);
  if (!used) return Bad("certificate");
  while (X509* issuer = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) {
    if (SSL_CTX_add0_chain_cert(context, issuer) == 1) continue;
    X509_free(issuer);
    return Bad("certificate");
  }
  ERR_clear_error();
  return absl::OkStatus();
}

absl::Status UseKey(SSL_CTX* context, const std::string& pem) {
  const Bio bio = MemoryBio(pem);
  char no_passphrase[] = "";
  EVP_PKEY* key = PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, no_passphrase);
  if (key == nullptr) return Bad("key");
  const bool used = SSL_CTX_use_PrivateKey(context, key) == 1;
  EVP_PKEY_free(key);
  return used && SSL_CTX_check_private_key(context) == 1 ? absl::OkStatus() : Bad("key");
}

}  // namespace

absl::StatusOr<std::unique_ptr<TlsContext>> TlsContext::Create(const std::string& ca_pem,
                                                               const std::string& certificate_pem,
                                                               const std::string& key_pem) {
  std::unique_ptr<SSL_CTX, Free> context(SSL_CTX_new(TLS_method()));
  if (context == nullptr) return absl::ResourceExhaustedError(TlsError());
  SSL_CTX_set_min_proto_version(context.get(), TLS1_3_VERSION);
  // A connection that just ends is no error of the protocol here: what is missing of a message is seen by its length.
  SSL_CTX_set_options(context.get(), SSL_OP_ENABLE_KTLS | SSL_OP_IGNORE_UNEXPECTED_EOF);
  SSL_CTX_set_mode(context.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  // A connection lives as long as its session; nothing is resumed by TLS, so nothing comes after the handshake.
  SSL_CTX_set_num_tickets(context.get(), 0);
  SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
  if (!HK_MUTANT(tls_peer_unverified)) {
    SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  }
  HK_RETURN_IF_ERROR(UseAuthorities(context.get(), ca_pem));
  HK_RETURN_IF_ERROR(UseCertificate(context.get(), certificate_pem));
  HK_RETURN_IF_ERROR(UseKey(context.get(), key_pem));
  struct sigaction present {};
  if (::sigaction(SIGPIPE, nullptr, &present) == 0 && present.sa_handler == SIG_DFL) ::signal(SIGPIPE, SIG_IGN);
  return std::unique_ptr<TlsContext>(new TlsContext(std::move(context)));
}

absl::StatusOr<std::unique_ptr<TlsStream>> TlsContext::Wrap(OwnedFd fd, bool accepting) const {
  SSL* ssl = SSL_new(context_.get());
  if (ssl == nullptr || SSL_set_fd(ssl, fd.get()) != 1) {
    SSL_free(ssl);
    return absl::ResourceExhaustedError(TlsError());
  }
  if (accepting) {
    SSL_set_accept_state(ssl);
  } else {
    SSL_set_connect_state(ssl);
  }
  return std::unique_ptr<TlsStream>(new TlsStream(std::move(fd), ssl));
}

TlsStream::TlsStream(OwnedFd fd, SSL* ssl) : ByteStream(std::move(fd)), ssl_(ssl) {}

TlsStream::~TlsStream() {
  MutexLock lock(&mutex_);
  SSL_free(ssl_);
}

absl::StatusOr<bool> TlsStream::Handshake() {
  MutexLock lock(&mutex_);
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl_);
  if (result == 1) return true;
  const int error = SSL_get_error(ssl_, result);
  if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) return false;
  const long verified = SSL_get_verify_result(ssl_);
  const std::string reason = TlsError();
  if (verified == X509_V_OK) return absl::UnauthenticatedError(reason);
  return absl::UnauthenticatedError(fmt::format("{}: {}", reason, X509_verify_cert_error_string(verified)));
}

bool TlsStream::WantsWrite() const {
  MutexLock lock(&mutex_);
  return SSL_want_write(ssl_) == 1;
}

bool TlsStream::HasBuffered() const {
  MutexLock lock(&mutex_);
  return SSL_has_pending(ssl_) == 1;
}

// A record that was begun is finished with the same bytes (SSL_write(3)).
size_t TlsStream::RetryBytes() const {
  return kRecordBytes;
}

std::string TlsStream::PeerName() const {
  MutexLock lock(&mutex_);
  X509* certificate = SSL_get0_peer_certificate(ssl_);
  if (certificate == nullptr) return "";
  X509_NAME* subject = X509_get_subject_name(certificate);
  const int index = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
  if (index < 0) return "";
  unsigned char* utf8 = nullptr;
  const int size = ASN1_STRING_to_UTF8(&utf8, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, index)));
  if (size < 0) return "";
  const std::string name(reinterpret_cast<char*>(utf8), static_cast<size_t>(size));
  OPENSSL_free(utf8);
  return name.starts_with(kNodeRole) ? name.substr(kNodeRole.size()) : "";
}

ssize_t TlsStream::Failed(int result) {
  const int saved = errno;
  const int error = SSL_get_error(ssl_, result);
  ERR_clear_error();
  switch (error) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
      return -EAGAIN;
    case SSL_ERROR_ZERO_RETURN:
      return 0;
    case SSL_ERROR_SYSCALL:
      return saved == 0 ? 0 : -saved;
    default:
      return -EPROTO;
  }
}

ssize_t TlsStream::Read(std::span<const iovec> parts) {
  MutexLock lock(&mutex_);
  size_t total = 0;
  for (const iovec& part : parts) {
    size_t filled = 0;
    while (filled < part.iov_len) {
      ERR_clear_error();
      errno = 0;
      size_t read = 0;
      const int result = SSL_read_ex(ssl_, static_cast<char*>(part.iov_base) + filled, part.iov_len - filled, &read);
      if (result != 1) return total > 0 ? static_cast<ssize_t>(total) : Failed(result);
      filled += read;
      total += read;
    }
  }
  return static_cast<ssize_t>(total);
}

ssize_t TlsStream::Write(std::span<const iovec> parts) {
  MutexLock lock(&mutex_);
  // Small parts go into one record. After -EAGAIN the same bytes come first again, as OpenSSL wants it: nothing is
  // added behind what could not be written.
  const void* data = parts[0].iov_base;
  size_t size = parts[0].iov_len;
  if (parts.size() > 1 && size < kRecordBytes) {
    gathered_.clear();
    for (const iovec& part : parts) {
      const size_t room = kRecordBytes - gathered_.size();
      gathered_.append(static_cast<const char*>(part.iov_base), std::min(room, part.iov_len));
      if (gathered_.size() == kRecordBytes) break;
    }
    data = gathered_.data();
    size = gathered_.size();
  }
  ERR_clear_error();
  errno = 0;
  size_t written = 0;
  const int result = SSL_write_ex(ssl_, data, size, &written);
  if (result == 1) return static_cast<ssize_t>(written);
  const ssize_t failed = Failed(result);
  return failed == 0 ? -EPIPE : failed;
}

}  // namespace hk
