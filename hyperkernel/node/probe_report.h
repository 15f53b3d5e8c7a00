// The host probe as a report. Thread-safe; takes up to a few seconds.
#pragma once

#include <string>

#include "proto/node.pb.h"

namespace hk {

// Asks every layer's questions of this host. `node` names the report.
v1::ProbeReport ProbeThisHost(const std::string& node);

}  // namespace hk
