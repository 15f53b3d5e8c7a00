// hkctl vm exec: a command inside a guest, by its agent.
#pragma once

#include <string>
#include <vector>

#include "hyperkernel/cli/client.h"

namespace hk::cli {

// Exit codes of `vm exec` beside the command's own, as env(1) and timeout(1) have them.
inline constexpr int kExitExecFailed = 125;  // hkctl's own: usage, no such machine, no agent, time is up
inline constexpr int kExitNotStarted = 126;  // the guest could not start the command
inline constexpr int kExitSignalBase = 128;  // + the number of the signal that ended it

// Runs the command, with standard input unless that is a terminal; prints its output to the two standard streams when
// it has ended, and returns its exit status, or one of the above after a line to standard error.
int RunExec(const Options& options, const std::string& name, const std::vector<std::string>& command);

}  // namespace hk::cli
