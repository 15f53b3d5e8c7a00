// hkctl vm trace: what a machine's virtual CPUs wait for on other nodes, into a file (proto/trace_file.h).
#pragma once

#include <cstdint>
#include <string>

#include "hyperkernel/cli/client.h"

namespace hk::cli {

// Records until `for_ms` have passed (0: no end), the machine's run ends, or SIGINT, SIGTERM or SIGHUP comes; the file
// is whole then, and after anything else it is up to its last record. It is made when the daemon has begun to record.
// Returns the exit code.
int RunTrace(const Options& options, const std::string& name, const std::string& file, uint64_t for_ms);

}  // namespace hk::cli
