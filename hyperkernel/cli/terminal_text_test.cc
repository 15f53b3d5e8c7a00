#include "hyperkernel/cli/terminal_text.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk::cli {
namespace {

TEST(TerminalText, KeepsTextAndDropsWhatSteersATerminal) {
  const struct {
    std::string in, out;
  } kTable[] = {
      {"plain\ttext\r\nnext\n", "plain\ttext\nnext\n"},
      {"[\x1b[0;32m  OK  \x1b[0m] up", "[  OK  ] up"},
      {"a\x1b]0;title\x07"
       "b",
       "ab"},
      {"a\x1b]0;title\x1b\\b", "ab"},
      {"a\x1bPq123\x1b\\b", "ab"},
      {"a\x1b(Bb\x1b"
       "7c",
       "abc"},
      {"bell\x07 back\x08 del\x7f nul" + std::string(1, '\0'), "bell? back? del? nul?"},
      {"\xc3\xa4\xe2\x82\xac\xc2\xb5", "\xc3\xa4\xe2\x82\xac\xc2\xb5"},  // letters and signs stay
      {"a\xc2\x9b"
       "2Jb",
       "a?2Jb"},  // U+009B is ESC [
      {"a\xc2"
       "b\xc2\n",
       "a?b?\n"},
      {"never ends \x1b]0;\nnext line", "never ends \nnext line"},
      {"a\x1b\x1b[31mb", "ab"},
  };
  for (const auto& [in, out] : kTable) {
    EXPECT_EQ(TerminalText().Filter(in), out) << testing::PrintToString(in);
    // The same in pieces of one byte.
    TerminalText text;
    std::string pieces;
    for (const char c : in) pieces += text.Filter(std::string_view(&c, 1));
    EXPECT_EQ(pieces, out) << testing::PrintToString(in);
  }
}

}  // namespace
}  // namespace hk::cli
