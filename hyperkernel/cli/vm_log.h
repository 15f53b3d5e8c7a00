// hkctl vm log: what a guest wrote to a console.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "hyperkernel/cli/client.h"

namespace hk::cli {

// What to show. Plain value.
struct LogOptions {
  v1::ConsoleChannel channel = v1::CONSOLE_CHANNEL_SERIAL;
  bool follow = false;
  std::optional<uint64_t> tail_lines;
};

// Prints the log; with `follow`, what comes too, until the run ends. Returns the exit code.
int RunLog(const Options& options, const std::string& name, const LogOptions& log);

}  // namespace hk::cli
