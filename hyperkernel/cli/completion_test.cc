#include "hyperkernel/cli/completion.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk::cli {
namespace {

TEST(Completion, EveryCommandKnowsItsWordsAndTheGlobalOptions) {
  CLI::App app{"x", "hkctl"};
  std::string endpoint;
  app.add_option("--endpoint", endpoint);
  CLI::App* node = app.add_subcommand("node", "x");
  bool wide = false;
  node->add_subcommand("list", "x")->add_flag("--wide", wide);
  const std::string script = BashCompletion(app);
  EXPECT_THAT(script, testing::HasSubstr("\"\") words=\"node --help --endpoint \" ;;"));
  EXPECT_THAT(script, testing::HasSubstr("\"node\") words=\"list --help --endpoint \" ;;"));
  EXPECT_THAT(script, testing::HasSubstr("\"node list\") words=\"--help --endpoint --wide \" ;;"));
}

}  // namespace
}  // namespace hk::cli
