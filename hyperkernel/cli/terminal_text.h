// Text that a guest wrote, made harmless for the operator's terminal: a guest must not retitle, clear, or answer for
// it.
#pragma once

#include <string>
#include <string_view>

namespace hk::cli {

// A filter for a stream that comes in pieces. Lines, tabs and printable text stay as they are; carriage returns and
// escape sequences (colours too) go; any other control character becomes '?'. Not thread-safe.
class TerminalText {
 public:
  std::string Filter(std::string_view piece);

 private:
  // kString: within an operating system command or its like, up to BEL, ESC or the line's end.
  enum class State { kText, kEscape, kSequence, kString, kC2 };

  State state_ = State::kText;
};

}  // namespace hk::cli
