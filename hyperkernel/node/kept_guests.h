// The machines that one daemon leaves to the next: a file FRAME_STORE/NAME.GENERATION.state for each, beside its
// frames, whole and checked, and used once (README.md, "Restarts that keep guests").
//
// Not thread-safe.
#pragma once

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/memory/frame_store.h"
#include "hyperkernel/node/machine_state.h"

namespace hk {

// What an earlier daemon left. Plain value.
struct LeftGuests {
  std::vector<MachineState> states;            // to be believed, as far as one can know without the machines' records
  std::map<std::string, std::string> refused;  // machine: why not, in one line
  std::set<std::string> frame_files;           // of `states`, by name in the frame store
};

// Writes and reads them.
class KeptGuests {
 public:
  // `frames` outlives it. Of what daemon, and what boot of the host, they are.
  KeptGuests(const FrameStore& frames, std::string node_id, std::string boot_id)
      : frames_(frames), node_id_(std::move(node_id)), boot_id_(std::move(boot_id)) {}

  // Makes the file, as durable as the frames when it returns. REQUIRES: the machine stands still, and nothing of this
  // process changes its memory any more.
  absl::Status Write(MachineState state) const;
  // Reads all, and removes those that are not to be believed. REQUIRES: the frame store's lock is held. Errors: errno,
  // naming the directory.
  absl::StatusOr<LeftGuests> Look() const;
  // Removes the file of one of them, before it is used: whatever happens then, it is not used again. Errors: errno, and
  // it must not be used.
  absl::Status Use(const MachineState& state) const;

 private:
  absl::StatusOr<MachineState> Read(const std::string& path, const std::string& stem) const;

  const FrameStore& frames_;
  const std::string node_id_, boot_id_;
};

}  // namespace hk
