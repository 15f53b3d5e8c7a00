// hkctl space ...
#pragma once

#include <CLI/CLI.hpp>

#include "hyperkernel/cli/client.h"

namespace hk::cli {

// Adds "space" with its subcommands. A command that runs puts its exit code into `*exit_code`. Both pointers must
// outlive the parse.
void AddSpaceCommands(CLI::App* app, const Options* options, int* exit_code);

}  // namespace hk::cli
