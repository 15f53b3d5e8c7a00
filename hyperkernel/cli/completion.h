// Shell completion, made from the command line's own description, so that it cannot fall behind.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace hk::cli {

// A bash script that completes the program's subcommands and options. Pure.
std::string BashCompletion(const CLI::App& app);

}  // namespace hk::cli
