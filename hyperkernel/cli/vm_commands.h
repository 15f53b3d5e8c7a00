// hkctl vm ...
#pragma once

#include <CLI/CLI.hpp>

#include "hyperkernel/cli/client.h"

namespace hk::cli {

// `vm exec`: what follows its -- is the guest's business, not the parser's (AddVmCommands takes it from
// Options.guest_command).
inline constexpr char kExecCommand[] = "exec";

// Adds "vm" with its subcommands. A command that runs puts its exit code into `*exit_code`. Both pointers must outlive
// the parse.
void AddVmCommands(CLI::App* app, const Options* options, int* exit_code);

}  // namespace hk::cli
