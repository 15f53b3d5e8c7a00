// Network interfaces of this host, by netlink: what a machine's taps need besides being opened. Thread-safe: no state.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace hk {

// Sets an interface up. Errors: kNotFound, kPermissionDenied with what to do; one line with the name.
absl::Status SetLinkUp(const std::string& name);

// Errors: kNotFound, kInvalidArgument if it is something else.
absl::Status CheckBridge(const std::string& name);

// Makes an interface a port of a bridge, with the bridge's MTU (a smaller one would become the bridge's), and sets it
// up. Errors: as above.
absl::Status AddToBridge(const std::string& name, const std::string& bridge);

}  // namespace hk
