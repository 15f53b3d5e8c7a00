// The host's verbs devices, as a transport chooses among them.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace hk {

// One device. Plain value.
struct VerbsDevice {
  std::string name;     // "mlx5_0", "rxe0"
  bool active = false;  // port 1 is active: messages can travel
  std::string netdev;   // network interface of port 1; empty for InfiniBand without one
};

// All verbs devices of this host, by name; none is an empty list, not an error. Reads /sys only: a device listed
// here may still lack its user space driver. Thread-safe; takes microseconds. Errors: /sys cannot be read.
absl::StatusOr<std::vector<VerbsDevice>> ListVerbsDevices();

}  // namespace hk
