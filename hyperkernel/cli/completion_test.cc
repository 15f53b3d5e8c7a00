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
  std::string form;
  CLI::App* list = node->add_subcommand("list", "x");
  list->add_flag("-w,--wide", wide);
  list->add_option("-f,--form", form)->check(CLI::IsMember({"a", "b"}));
  const std::string script = BashCompletion(app);
  EXPECT_THAT(script, testing::HasSubstr("\"\") words=\"node --help --endpoint \" ;;"));
  EXPECT_THAT(script, testing::HasSubstr("\"node\") words=\"list --help --endpoint \" ;;"));
  EXPECT_THAT(script, testing::HasSubstr("\"node list\") words=\"--help --endpoint --wide --form \" ;;"));
  // Options with a value are known, with their values; flags are not taken for such.
  EXPECT_THAT(script, testing::HasSubstr("*\" --endpoint\") ((i++)) ;;"));
  EXPECT_THAT(script, testing::HasSubstr("\"node list --form\"|\"node list -f\") ((i++)) ;;"));
  EXPECT_THAT(script, testing::HasSubstr("\"node list -f\") COMPREPLY=($(compgen -W \"a b\""));
  EXPECT_THAT(script, testing::Not(testing::HasSubstr("wide\") ((i++))")));
}

}  // namespace
}  // namespace hk::cli
