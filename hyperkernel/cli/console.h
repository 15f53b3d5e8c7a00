// hkctl vm console: a terminal on a guest's console.
#pragma once

#include <string>

#include "hyperkernel/cli/client.h"

namespace hk::cli {

// Shows the console until the machine ends, the operator types Ctrl-], or a signal comes; the terminal is as before
// then. The guest is told the terminal's size, at first and when it changes. If standard input is no terminal it is
// passed on as it is, and its end only ends the input. Returns the exit code.
int RunConsole(const Options& options, const std::string& name, v1::ConsoleChannel channel);

}  // namespace hk::cli
