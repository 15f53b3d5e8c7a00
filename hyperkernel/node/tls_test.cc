#include "hyperkernel/node/tls.h"

#include <sys/stat.h>
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
  const TestCertificate ca_ = MakeTestCertificate("trial CA", nullptr, {.authority = true});
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
  const TestCertificate stranger = MakeTestCertificate("another CA", nullptr, {.authority = true});
  EXPECT_THAT(Load(stranger.certificate_pem, node_.certificate_pem, node_.key_pem), HasSubstr("not valid under ca"));
  const TestCertificate expired = MakeTestCertificate("node:a", &ca_, {.from_s = -7200, .to_s = -3600});
  EXPECT_THAT(Load(ca_.certificate_pem, expired.certificate_pem, expired.key_pem), HasSubstr("expired"));
  for (const char* name : {"node:b", "admin:a", "a", "node:"}) {
    const TestCertificate wrong = MakeTestCertificate(name, &ca_);
    EXPECT_THAT(Load(ca_.certificate_pem, wrong.certificate_pem, wrong.key_pem), HasSubstr("this node needs 'node:a'"))
        << name;
  }
}

TEST_F(TlsTest, ChainsAndBundlesWork) {
  const TestCertificate middle = MakeTestCertificate("middle CA", &ca_, {.authority = true});
  const TestCertificate leaf = MakeTestCertificate("node:a", &middle);
  EXPECT_EQ(Load(ca_.certificate_pem, leaf.certificate_pem + middle.certificate_pem, leaf.key_pem), "");
  EXPECT_THAT(Load(ca_.certificate_pem, leaf.certificate_pem, leaf.key_pem), HasSubstr("not valid under ca"));
  const TestCertificate old = MakeTestCertificate("old CA", nullptr, {.authority = true});
  EXPECT_EQ(Load(old.certificate_pem + ca_.certificate_pem, node_.certificate_pem, node_.key_pem), "");
}

TEST_F(TlsTest, ACertificateThatNobodyWouldAcceptIsRefusedHere) {
  const auto load = [&](const TestCertificateUse& use) {
    const TestCertificate certificate = MakeTestCertificate("node:a", &ca_, use);
    return Load(ca_.certificate_pem, certificate.certificate_pem, certificate.key_pem);
  };
  EXPECT_THAT(load({.names = ""}), HasSubstr("lack DNS:a"));
  EXPECT_THAT(load({.names = "DNS:a"}), HasSubstr("lack DNS:hyperkernel-node"));
  EXPECT_THAT(load({.usage = "clientAuth"}), HasSubstr("lacks serverAuth"));
  EXPECT_THAT(load({.usage = "serverAuth"}), HasSubstr("lacks clientAuth"));
  EXPECT_EQ(load({.usage = ""}), "");
}

TEST_F(TlsTest, AKeyThatOthersCanReadIsRefused) {
  const std::string ca = Write("ca", ca_.certificate_pem), certificate = Write("crt", node_.certificate_pem);
  const std::string key = Write("key", node_.key_pem);
  ASSERT_EQ(::chmod(key.c_str(), 0644), 0);
  EXPECT_THAT(MessageOf(LoadTls({ca, certificate, key}, "a").status()), HasSubstr("chmod 0600"));
  ASSERT_EQ(::chmod(key.c_str(), 0640), 0);
  EXPECT_TRUE(LoadTls({ca, certificate, key}, "a").ok()) << "a group of key readers is a common set-up";
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
