// hkctl vm console: a terminal on a guest's serial console.
#pragma once

#include <string>

#include "hyperkernel/cli/client.h"

namespace hk::cli {

// Shows the console until the machine ends, the operator types Ctrl-], or a signal comes; the terminal is as before
// then. If standard input is no terminal it is passed on as it is, and its end only ends the input. Returns the exit
// code.
int RunConsole(const Options& options, const std::string& name);

}  // namespace hk::cli
