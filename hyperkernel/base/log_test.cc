#include "hyperkernel/base/log.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk::log {
namespace {

TEST(Log, QuotesWhatCouldForgeALineOrAKey) {
  EXPECT_EQ(Quote("plain-1.2:3/4"), "plain-1.2:3/4");
  EXPECT_EQ(Quote(""), "\"\"");
  EXPECT_EQ(Quote("a b=c"), "\"a b=c\"");
  EXPECT_EQ(Quote("x\nlevel=error \"y\" \\ \x01"), "\"x\\nlevel=error \\\"y\\\" \\\\ \\x01\"");
  EXPECT_LT(Quote(std::string(100000, 'x')).size(), 3000u);
}

TEST(Log, OneLineWithNodeComponentAndFields) {
  testing::internal::CaptureStderr();
  Init("a", Level::kInfo);
  Info("membership", "peer is up", {{"peer", "b"}, {"reason", "x\ny"}});
  Debug("membership", "not shown");
  const std::string output = testing::internal::GetCapturedStderr();
  EXPECT_THAT(output,
              testing::MatchesRegex(
                  "ts=[-0-9T:.]+Z level=info node=a component=membership msg=\"peer is up\" peer=b reason=\"x.ny\"\n"));
}

}  // namespace
}  // namespace hk::log
