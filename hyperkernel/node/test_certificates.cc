#include "hyperkernel/node/test_certificates.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include "hyperkernel/base/check.h"

namespace hk {
namespace {

std::string Drain(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  std::string text(data, static_cast<size_t>(size));
  BIO_free(bio);
  return text;
}

void SetName(X509_NAME* name, const std::string& common_name) {
  HK_CHECK(X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8,
                                      reinterpret_cast<const unsigned char*>(common_name.c_str()), -1, -1, 0) == 1);
}

void AddExtension(X509* certificate, int id, const char* value) {
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, id, value);
  HK_CHECK(extension != nullptr && X509_add_ext(certificate, extension, -1) == 1);
  X509_EXTENSION_free(extension);
}

}  // namespace

TestCertificate MakeTestCertificate(const std::string& common_name, const TestCertificate* issuer,
                                    const TestCertificateUse& use) {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* certificate = X509_new();
  X509_set_version(certificate, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), issuer == nullptr ? 1 : 2);
  X509_gmtime_adj(X509_getm_notBefore(certificate), use.from_s);
  X509_gmtime_adj(X509_getm_notAfter(certificate), use.to_s);
  X509_set_pubkey(certificate, key);
  SetName(X509_get_subject_name(certificate), common_name);
  EVP_PKEY* signer = key;
  if (use.authority) {
    AddExtension(certificate, NID_basic_constraints, "critical,CA:TRUE");
  } else {
    if (!use.names.empty()) AddExtension(certificate, NID_subject_alt_name, use.names.c_str());
    if (!use.usage.empty()) AddExtension(certificate, NID_ext_key_usage, use.usage.c_str());
  }
  if (issuer == nullptr) {
    X509_set_issuer_name(certificate, X509_get_subject_name(certificate));
  } else {
    BIO* in = BIO_new_mem_buf(issuer->certificate_pem.data(), -1);
    X509* parent = PEM_read_bio_X509(in, nullptr, nullptr, nullptr);
    BIO_free(in);
    in = BIO_new_mem_buf(issuer->key_pem.data(), -1);
    signer = PEM_read_bio_PrivateKey(in, nullptr, nullptr, nullptr);
    BIO_free(in);
    X509_set_issuer_name(certificate, X509_get_subject_name(parent));
    X509_free(parent);
  }
  HK_CHECK(X509_sign(certificate, signer, EVP_sha256()) > 0);
  TestCertificate out;
  BIO* bio = BIO_new(BIO_s_mem());
  PEM_write_bio_X509(bio, certificate);
  out.certificate_pem = Drain(bio);
  bio = BIO_new(BIO_s_mem());
  PEM_write_bio_PrivateKey(bio, key, nullptr, nullptr, 0, nullptr, nullptr);
  out.key_pem = Drain(bio);
  if (signer != key) EVP_PKEY_free(signer);
  EVP_PKEY_free(key);
  X509_free(certificate);
  return out;
}

}  // namespace hk
