#include "hyperkernel/node/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509_vfy.h>

#include <memory>

#include "fmt/format.h"
#include "hyperkernel/base/file.h"
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
using Bio = std::unique_ptr<BIO, Deleter<BIO_free>>;
using Certificate = std::unique_ptr<X509, Deleter<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY_free>>;
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

absl::StatusOr<Certificate> ParseCertificate(std::string_view field, const std::string& path, const std::string& pem) {
  Bio bio = MemoryBio(pem);
  Certificate certificate(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
  ERR_clear_error();
  if (certificate == nullptr)
    return absl::InvalidArgumentError(fmt::format("{}: {}: no PEM certificate in it", field, path));
  return certificate;
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

absl::Status Verify(X509* ca, X509* certificate, const std::string& path) {
  Store store(X509_STORE_new());
  X509_STORE_add_cert(store.get(), ca);
  StoreContext context(X509_STORE_CTX_new());
  if (store == nullptr || context == nullptr ||
      X509_STORE_CTX_init(context.get(), store.get(), certificate, nullptr) != 1) {
    return absl::InternalError("OpenSSL cannot allocate");
  }
  const bool trusted = X509_verify_cert(context.get()) == 1;
  const int error = X509_STORE_CTX_get_error(context.get());
  ERR_clear_error();
  if (trusted) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("certificate: {}: not valid under ca: {}", path, X509_verify_cert_error_string(error)));
}

}  // namespace

absl::StatusOr<TlsSettings> LoadTls(const TlsPaths& paths, std::string_view node_name) {
  TlsSettings tls;
  HK_ASSIGN_OR_RETURN(tls.ca_pem, ReadPem("ca", paths.ca));
  HK_ASSIGN_OR_RETURN(tls.certificate_pem, ReadPem("certificate", paths.certificate));
  HK_ASSIGN_OR_RETURN(tls.key_pem, ReadPem("key", paths.key));
  HK_ASSIGN_OR_RETURN(const Certificate ca, ParseCertificate("ca", paths.ca, tls.ca_pem));
  HK_ASSIGN_OR_RETURN(const Certificate certificate,
                      ParseCertificate("certificate", paths.certificate, tls.certificate_pem));
  Bio bio = MemoryBio(tls.key_pem);
  // The empty passphrase: an encrypted key is refused instead of asking the terminal.
  char passphrase[] = "";
  const Key key(PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, passphrase));
  ERR_clear_error();
  if (key == nullptr)
    return absl::InvalidArgumentError(fmt::format("key: {}: no unencrypted PEM private key in it", paths.key));
  const bool match = X509_check_private_key(certificate.get(), key.get()) == 1;
  ERR_clear_error();
  if (!match)
    return absl::InvalidArgumentError(
        fmt::format("key: {}: is not the key of certificate {}", paths.key, paths.certificate));
  HK_RETURN_IF_ERROR(Verify(ca.get(), certificate.get(), paths.certificate));
  const std::string name = CommonName(certificate.get());
  const Caller caller = CallerOfCommonName(name);
  if (caller.role != Role::kNode || caller.name != node_name) {
    return absl::InvalidArgumentError(fmt::format("certificate: {}: subject CN is '{}'; this node needs 'node:{}'",
                                                  paths.certificate, name, node_name));
  }
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
