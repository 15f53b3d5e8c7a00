// `hkctl replica`: what a machine's memory holds of its disks.
#pragma once

#include <CLI/CLI.hpp>

#include "hyperkernel/cli/client.h"

namespace hk::cli {

// Adds them to `app`; they run when the command line is parsed, and set `exit_code`. Both pointers stay valid as long
// as `app`.
void AddReplicaCommands(CLI::App* app, const Options* options, int* exit_code);

}  // namespace hk::cli
