#include "hyperkernel/cli/guest_output.h"

#include <unistd.h>

#include <string>

namespace hk::cli {

GuestOutput::GuestOutput(std::FILE* file) : file_(file), terminal_(::isatty(::fileno(file)) == 1) {}

bool GuestOutput::Write(std::string_view bytes) {
  const std::string harmless = terminal_ ? text_.Filter(bytes) : std::string();
  if (terminal_) bytes = harmless;
  return std::fwrite(bytes.data(), 1, bytes.size(), file_) == bytes.size() && std::fflush(file_) == 0;
}

}  // namespace hk::cli
