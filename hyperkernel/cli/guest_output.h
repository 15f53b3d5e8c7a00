// Writing what a guest said to standard output or standard error. Not thread-safe.
#pragma once

#include <cstdio>
#include <string_view>

#include "hyperkernel/cli/terminal_text.h"

namespace hk::cli {

// One of the standard streams. On a terminal the text is made harmless, elsewhere it passes unchanged.
class GuestOutput {
 public:
  explicit GuestOutput(std::FILE* file);
  // Writes at once. False if it cannot be written: nobody reads any more.
  bool Write(std::string_view bytes);

 private:
  std::FILE* const file_;
  const bool terminal_;
  TerminalText text_;
};

}  // namespace hk::cli
