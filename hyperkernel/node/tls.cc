#include "hyperkernel/node/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include <cerrno>
#include <ctime>
#include <memory>
#include <vector>

#include "fmt/format.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/names.h"

namespace hk {
namespace {

// A chain of a dozen certificates takes 30 KiB.
constexpr size_t kMaxPemBytes = 256 << 10;

template <auto Free>
struct Deleter {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};
// The stack only; what is on it is owned elsewhere.
void FreeStack(STACK_OF(X509) * stack) {
  sk_X509_free(stack);
}

using Bio = std::unique_ptr<BIO, Deleter<BIO_free>>;
using Certificate = std::unique_ptr<X509, Deleter<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY_free>>;
using Stack = std::unique_ptr<STACK_OF(X509), Deleter<FreeStack>>;
using Store = std::unique_ptr<X509_STORE, Deleter<X509_STORE_free>>;
using StoreContext = std::unique_ptr<X509_STORE_CTX, Deleter<X509_STORE_CTX_free>>;

absl::StatusOr<std::string> ReadPem(std::string_view field, const std::string& path) {
  if (path.empty())
    return absl::InvalidArgumentError(fmt::format("{}: not set; tls needs ca, certificate and key", field));
  absl::StatusOr<std::string> pem = ReadSmallFile(path, kMaxPemBytes);
  if (!pem.ok()) return WithContext(pem.status(), field);
  return pem;
}

Bio MemoryBio(const std::string& pem) {
  return Bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

// All certificates of a file: a bundle of authorities, or a certificate and its chain.
absl::StatusOr<std::vector<Certificate>> ParseCertificates(std::string_view field, const std::string& path,
                                                           const std::string& pem) {
  Bio bio = MemoryBio(pem);
  std::vector<Certificate> certificates;
  while (X509* next = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) certificates.emplace_back(next);
  ERR_clear_error();
  if (certificates.empty()) {
    return absl::InvalidArgumentError(fmt::format("{}: {}: no PEM certificate in it", field, path));
  }
  return certificates;
}

// A private key that others can read is no secret.
absl::Status CheckKeyMode(const std::string& path) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, fmt::format("key: {}", path));
  if ((info.st_mode & 0037) == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("key: {}: others may read or write it (mode {:04o}); chmod 0600 {}",
                                                path, info.st_mode & 07777, path));
}

std::string CommonName(X509* certificate) {
  X509_NAME* subject = X509_get_subject_name(certificate);
  const int index = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
  if (index < 0) return "";
  unsigned char* utf8 = nullptr;
  const int size = ASN1_STRING_to_UTF8(&utf8, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, index)));
  if (size < 0) return "";
  std::string name(reinterpret_cast<char*>(utf8), static_cast<size_t>(size));
  OPENSSL_free(utf8);
  return name;
}

// `chain` is the certificate and what came with it.
absl::Status Verify(const std::vector<Certificate>& authorities, const std::vector<Certificate>& chain,
                    const std::string& path) {
  const Store store(X509_STORE_new());
  const StoreContext context(X509_STORE_CTX_new());
  const Stack untrusted(sk_X509_new_null());
  if (store == nullptr || context == nullptr || untrusted == nullptr)
    return absl::InternalError("OpenSSL cannot allocate");
  for (const Certificate& authority : authorities) X509_STORE_add_cert(store.get(), authority.get());
  for (size_t i = 1; i < chain.size() && !HK_MUTANT(tls_chain_ignored); i++)
    sk_X509_push(untrusted.get(), chain[i].get());
  if (X509_STORE_CTX_init(context.get(), store.get(), chain[0].get(), untrusted.get()) != 1) {
    return absl::InternalError("OpenSSL cannot start a verification");
  }
  const bool trusted = X509_verify_cert(context.get()) == 1;
  const int error = X509_STORE_CTX_get_error(context.get());
  ERR_clear_error();
  if (trusted) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("certificate: {}: not valid under ca: {}", path, X509_verify_cert_error_string(error)));
}

// What peers and hkctl will ask of it, asked before anyone is refused.
absl::Status CheckUse(X509* certificate, const std::string& path, const std::string& node_name) {
  for (const std::string& name : {node_name, std::string(kAnyNodeDnsName)}) {
    if (X509_check_host(certificate, name.c_str(), name.size(), X509_CHECK_FLAG_NEVER_CHECK_SUBJECT, nullptr) != 1) {
      return absl::InvalidArgumentError(
          fmt::format("certificate: {}: its subject alternative names lack DNS:{}", path, name));
    }
  }
  for (const int purpose : {X509_PURPOSE_SSL_SERVER, X509_PURPOSE_SSL_CLIENT}) {
    if (X509_check_purpose(certificate, purpose, 0) != 1) {
      return absl::InvalidArgumentError(
          fmt::format("certificate: {}: its extended key usage lacks {}; a node needs serverAuth and clientAuth", path,
                      purpose == X509_PURPOSE_SSL_SERVER ? "serverAuth" : "clientAuth"));
    }
  }
  return absl::OkStatus();
}

std::chrono::system_clock::time_point ExpiryOf(X509* certificate) {
  tm utc{};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &utc) != 1) return {};
  return std::chrono::system_clock::from_time_t(::timegm(&utc));
}

}  // namespace

absl::StatusOr<TlsSettings> LoadTls(const TlsPaths& paths, std::string_view node_name) {
  TlsSettings tls;
  HK_ASSIGN_OR_RETURN(tls.ca_pem, ReadPem("ca", paths.ca));
  HK_ASSIGN_OR_RETURN(tls.certificate_pem, ReadPem("certificate", paths.certificate));
  HK_ASSIGN_OR_RETURN(tls.key_pem, ReadPem("key", paths.key));
  HK_RETURN_IF_ERROR(CheckKeyMode(paths.key));
  HK_ASSIGN_OR_RETURN(const std::vector<Certificate> authorities, ParseCertificates("ca", paths.ca, tls.ca_pem));
  HK_ASSIGN_OR_RETURN(const std::vector<Certificate> chain,
                      ParseCertificates("certificate", paths.certificate, tls.certificate_pem));
  X509* const certificate = chain[0].get();
  Bio bio = MemoryBio(tls.key_pem);
  // The empty passphrase: an encrypted key is refused instead of asking the terminal.
  char passphrase[] = "";
  const Key key(PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, passphrase));
  ERR_clear_error();
  if (key == nullptr)
    return absl::InvalidArgumentError(fmt::format("key: {}: no unencrypted PEM private key in it", paths.key));
  const bool match = X509_check_private_key(certificate, key.get()) == 1;
  ERR_clear_error();
  if (!match)
    return absl::InvalidArgumentError(
        fmt::format("key: {}: is not the key of certificate {}", paths.key, paths.certificate));
  HK_RETURN_IF_ERROR(Verify(authorities, chain, paths.certificate));
  const std::string name = CommonName(certificate);
  const Caller caller = CallerOfCommonName(name);
  if (caller.role != Role::kNode || caller.name != node_name) {
    return absl::InvalidArgumentError(fmt::format("certificate: {}: subject CN is '{}'; this node needs 'node:{}'",
                                                  paths.certificate, name, node_name));
  }
  HK_RETURN_IF_ERROR(CheckUse(certificate, paths.certificate, std::string(node_name)));
  tls.expires = ExpiryOf(certificate);
  return tls;
}

Caller CallerOfCommonName(std::string_view common_name) {
  const size_t colon = common_name.find(':');
  const std::string_view role = common_name.substr(0, colon);
  const std::string name(colon == std::string_view::npos ? std::string_view() : common_name.substr(colon + 1));
  if (role == "viewer") return {Role::kViewer, name};
  if (role == "admin") return {Role::kAdmin, name};
  if (role == "node" && IsValidName(name)) return {Role::kNode, name};
  return {};
}

}  // namespace hk
