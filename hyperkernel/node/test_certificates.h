// Certificates for unit tests, made in memory. Test code only; not thread-safe.
#pragma once

#include <string>

namespace hk {

// A key and a certificate in PEM form.
struct TestCertificate {
  std::string certificate_pem;
  std::string key_pem;
};

// What a certificate is for, and for how long from now.
struct TestCertificateUse {
  std::string names = "DNS:a,DNS:hyperkernel-node";  // subject alternative names; empty for none
  std::string usage = "serverAuth,clientAuth";       // extended key usage; empty for none
  bool authority = false;                            // may sign others
  long from_s = -60;
  long to_s = 3600;
};

// A certificate for `common_name`, signed by `issuer`, or by itself if null.
TestCertificate MakeTestCertificate(const std::string& common_name, const TestCertificate* issuer,
                                    const TestCertificateUse& use = {});

}  // namespace hk
