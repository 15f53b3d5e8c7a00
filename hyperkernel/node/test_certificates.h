// Certificates for unit tests, made in memory. Test code only; not thread-safe.
#pragma once

#include <string>

namespace hk {

// A key and a certificate in PEM form.
struct TestCertificate {
  std::string certificate_pem;
  std::string key_pem;
};

// A certificate for `common_name`, signed by `issuer` (self-signed authority if null), valid from now+`from_s` to
// now+`to_s`.
TestCertificate MakeTestCertificate(const std::string& common_name, const TestCertificate* issuer, long from_s = -60,
                                    long to_s = 3600);

}  // namespace hk
