#include "hyperkernel/base/address.h"

#include <string>

#include "gtest/gtest.h"

namespace hk {
namespace {

TEST(Address, ParsesAndPrintsEveryForm) {
  for (const char* text : {"unix:/run/hyperkernel/admin.sock", "127.0.0.1:7470", "0.0.0.0:1", "[::1]:65535",
                           "[fe80::1]:80", "node-b.example:7469"}) {
    auto address = ParseAddress(text, AddressForm::kConnect);
    ASSERT_TRUE(address.ok()) << text << ": " << address.status();
    EXPECT_EQ(address->ToString(), text);
  }
}

TEST(Address, LocalMeansUnixOrLoopbackLiteral) {
  EXPECT_TRUE(ParseAddress("unix:/a", AddressForm::kListen)->IsLocal());
  EXPECT_TRUE(ParseAddress("127.9.9.9:1", AddressForm::kListen)->IsLocal());
  EXPECT_TRUE(ParseAddress("[::1]:1", AddressForm::kListen)->IsLocal());
  EXPECT_FALSE(ParseAddress("0.0.0.0:1", AddressForm::kListen)->IsLocal());
  EXPECT_FALSE(ParseAddress("[::]:1", AddressForm::kListen)->IsLocal());
  EXPECT_FALSE(ParseAddress("128.0.0.1:1", AddressForm::kListen)->IsLocal());
  EXPECT_FALSE(ParseAddress("localhost:1", AddressForm::kConnect)->IsLocal());
}

TEST(Address, RefusesWhatItCannotUse) {
  const std::string long_path = "unix:/" + std::string(200, 'x');
  for (const std::string& text :
       {std::string(""), std::string("7470"), std::string("1.2.3.4:"), std::string("1.2.3.4:0"),
        std::string("1.2.3.4:65536"), std::string("1.2.3.4:80x"), std::string("1.2.3:80"), std::string("::1:80"),
        std::string("[1.2.3.4]:80"), std::string("host:80"), std::string("unix:relative"), long_path,
        std::string("unix:/a\0b", 9)}) {
    EXPECT_FALSE(ParseAddress(text, AddressForm::kListen).ok()) << text;
  }
  EXPECT_FALSE(ParseAddress("unix:/a", AddressForm::kListenTcp).ok());
  EXPECT_FALSE(ParseAddress("unix:/a", AddressForm::kConnectTcp).ok());
  EXPECT_FALSE(ParseAddress("300.1.1.1:80", AddressForm::kConnect).ok());
  EXPECT_FALSE(ParseAddress("a b:80", AddressForm::kConnect).ok());
}

}  // namespace
}  // namespace hk
