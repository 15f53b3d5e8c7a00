#include "hyperkernel/cli/terminal_text.h"

namespace hk::cli {
namespace {

constexpr unsigned char kEscape = 0x1b, kBell = 0x07, kDelete = 0x7f;
// First byte, in UTF-8, of U+0080 to U+00BF: the first half are control characters, among them another ESC [.
constexpr unsigned char kC2Lead = 0xc2;

bool IsControl(unsigned char c) {
  return (c < 0x20 && c != '\n' && c != '\t') || c == kDelete;
}

}  // namespace

// ECMA-48: ESC [ parameters, intermediates, a final byte of 0x40-0x7e; ESC ] P X ^ _ begin a string.
std::string TerminalText::Filter(std::string_view piece) {
  std::string out;
  out.reserve(piece.size());
  for (const char character : piece) {
    const auto c = static_cast<unsigned char>(character);
    if (c == '\n') {
      if (state_ == State::kC2) out += '?';
      state_ = State::kText;  // whatever was begun: a sequence that never ends must not hide the rest
    }
    switch (state_) {
      case State::kC2:
        state_ = State::kText;
        if (c >= 0x80 && c < 0xa0) {
          out += '?';
          continue;
        }
        if (c >= 0xa0 && c < 0xc0) {
          out += static_cast<char>(kC2Lead);
          out += character;
          continue;
        }
        out += '?';
        break;  // the byte is text of its own
      case State::kEscape:
        if (c == '[') {
          state_ = State::kSequence;
        } else if (c == ']' || c == 'P' || c == 'X' || c == '^' || c == '_') {
          state_ = State::kString;
        } else if (c < 0x20 || c > 0x2f) {  // 0x20-0x2f: intermediate bytes, more to come
          state_ = c == kEscape ? State::kEscape : State::kText;
        }
        continue;
      case State::kSequence:
        if (c >= 0x40 && c <= 0x7e) state_ = State::kText;
        if (c == kEscape) state_ = State::kEscape;
        continue;
      case State::kString:
        if (c == kBell) state_ = State::kText;
        if (c == kEscape) state_ = State::kEscape;  // ESC \ ends it
        continue;
      case State::kText:
        break;
    }
    if (c == kEscape) {
      state_ = State::kEscape;
    } else if (c == kC2Lead) {
      state_ = State::kC2;
    } else if (c != '\r') {
      out += IsControl(c) ? '?' : character;
    }
  }
  return out;
}

}  // namespace hk::cli
