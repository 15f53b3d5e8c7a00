// `hkctl space drain`. Not thread-safe.
#pragma once

#include <CLI/CLI.hpp>

#include "hyperkernel/cli/client.h"

namespace hk::cli {

// Adds it to `space`. `options` and `exit_code` outlive the parsing.
void AddDrainCommand(CLI::App* space, const Options* options, int* exit_code);

// The same for `hkctl space join`.
void AddJoinCommand(CLI::App* space, const Options* options, int* exit_code);

}  // namespace hk::cli
