// What of the host a machine's devices stand on: images and network interfaces. Opened before anything else of a
// machine is made, so that what cannot be had is refused while nothing has been touched. Thread-safe: no state.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/device/disk_image.h"
#include "hyperkernel/device/net_backend.h"
#include "proto/vm.pb.h"

namespace hk {

// Open images and taps of one machine, in the order of its specification. Images are locked as long as this lives.
struct MachineBackends {
  // REQUIRES: a complete specification. Errors: one line, with the field: FIELD: OBJECT: what is wrong.
  static absl::StatusOr<MachineBackends> Open(const v1::VmSpec& spec);

  std::vector<DiskImage> disks;
  std::vector<std::unique_ptr<NetBackend>> nets;
};

}  // namespace hk
