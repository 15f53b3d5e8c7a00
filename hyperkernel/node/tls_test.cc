#include "hyperkernel/node/tls.h"

#include <unistd.h>

#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/test_certificates.h"

namespace hk {
namespace {

using testing::HasSubstr;
using testing::Not;

class TlsTest : public testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/hk_tls_test.XXXXXX";
    ASSERT_NE(::mkdtemp(pattern), nullptr);
    directory_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  std::string Write(const std::string& name, const std::string& content) {
    EXPECT_TRUE(ReplaceFile(directory_ + "/" + name, content, 0600).ok());
    return directory_ + "/" + name;
  }
  // The error of loading these three for node a; empty if there is none.
  std::string Load(const std::string& ca, const std::string& certificate, const std::string& key) {
    return MessageOf(LoadTls({Write("ca", ca), Write("crt", certificate), Write("key", key)}, "a").status());
  }

  std::string directory_;
  const TestCertificate ca_ = MakeTestCertificate("trial CA", nullptr);
  const TestCertificate node_ = MakeTestCertificate("node:a", &ca_);
};

TEST_F(TlsTest, AGoodSetLoads) {
  EXPECT_EQ(Load(ca_.certificate_pem, node_.certificate_pem, node_.key_pem), "");
}

TEST_F(TlsTest, EachBadFileIsNamedAndKeysAreNeverShown) {
  const TestCertificate other = MakeTestCertificate("node:a", &ca_);
  EXPECT_THAT(Load("junk", node_.certificate_pem, node_.key_pem), HasSubstr("ca: "));
  EXPECT_THAT(Load(ca_.certificate_pem, "junk", node_.key_pem), HasSubstr("no PEM certificate"));
  EXPECT_THAT(Load(ca_.certificate_pem, node_.certificate_pem, "junk"), HasSubstr("no unencrypted PEM private key"));
  const std::string mismatch = Load(ca_.certificate_pem, node_.certificate_pem, other.key_pem);
  EXPECT_THAT(mismatch, HasSubstr("is not the key of certificate"));
  EXPECT_THAT(mismatch, Not(HasSubstr("BEGIN")));
  EXPECT_THAT(MessageOf(LoadTls({"/nonexistent", "", ""}, "a").status()), HasSubstr("ca: /nonexistent: No such file"));
}

TEST_F(TlsTest, ACertificateOfAnotherAuthorityNameOrTimeIsRefused) {
  const TestCertificate stranger = MakeTestCertificate("another CA", nullptr);
  EXPECT_THAT(Load(stranger.certificate_pem, node_.certificate_pem, node_.key_pem), HasSubstr("not valid under ca"));
  const TestCertificate expired = MakeTestCertificate("node:a", &ca_, -7200, -3600);
  EXPECT_THAT(Load(ca_.certificate_pem, expired.certificate_pem, expired.key_pem), HasSubstr("expired"));
  for (const char* name : {"node:b", "admin:a", "a", "node:"}) {
    const TestCertificate wrong = MakeTestCertificate(name, &ca_);
    EXPECT_THAT(Load(ca_.certificate_pem, wrong.certificate_pem, wrong.key_pem), HasSubstr("this node needs 'node:a'"))
        << name;
  }
}

TEST(CallerTest, RolesComeFromTheWholeName) {
  EXPECT_EQ(CallerOfCommonName("admin").role, Role::kAdmin);
  EXPECT_EQ(CallerOfCommonName("admin:alice").role, Role::kAdmin);
  EXPECT_EQ(CallerOfCommonName("viewer:bob").name, "bob");
  EXPECT_EQ(CallerOfCommonName("node:b").role, Role::kNode);
  for (const char* name : {"", "node", "node:", "node:B", "Admin", "administrator", "superviewer", ":admin", "root"}) {
    EXPECT_EQ(CallerOfCommonName(name).role, Role::kNone) << name;
  }
  EXPECT_LT(Role::kViewer, Role::kAdmin);
}

}  // namespace
}  // namespace hk
