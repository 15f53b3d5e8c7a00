// The state of a machine of one node between two instructions of its guest, all but its memory, as bytes: what its next
// daemon goes on from (README.md, "Saved state"). Plain values and pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hk {

// The parts by name; each has a version and bounds of its own.
using MachineSections = std::map<std::string, std::vector<std::byte>>;

// A machine that stands still. Plain value.
struct MachineState {
  // Whose it is: what is not exactly that is not to be used.
  std::string node_id;          // of the data directory
  std::string boot_id;          // of the host's kernel: clocks and frames end with it
  std::string name;             // the machine's
  uint64_t generation = 0;      // the run
  uint64_t spec_hash = 0;       // HashOf its specification
  uint64_t frame_bytes = 0;     // of its frame file
  uint64_t frame_inode = 0;     // the same
  int64_t held_ns = 0;          // when its vCPUs were held, on the host's monotonic clock
  int64_t started_wall_ns = 0;  // when the run began, since 1970
  bool paused = false;          // by an operator: it is not to run
  bool stopping = false;        // its power button was pressed
  std::string failure;          // why there is no state, one line: then there are no sections
  // What the consoles have shown, as far as it is kept.
  std::string serial_log, virtio_log;
  MachineSections sections;
};

inline constexpr uint16_t kMachineStateVersion = 1;
// Of each console.
inline constexpr size_t kMostKeptLogBytes = 1 << 20;
// No machine's is larger: 64 vCPUs of 128 KiB, devices, consoles.
inline constexpr size_t kMostMachineStateBytes = 64 << 20;

// The byte form.
std::vector<std::byte> EncodeMachineState(const MachineState& state);
// Errors: kInvalidArgument, one line: damaged, of another version, not such a state. What the sections hold is not
// looked at.
absl::StatusOr<MachineState> DecodeMachineState(std::span<const std::byte> bytes);

// Of bytes that say what something is.
uint64_t HashOf(std::string_view bytes);

// Takes sections out of a state, each once, so that what nobody knows is seen.
class SectionReader {
 public:
  // `sections` outlives it.
  explicit SectionReader(const MachineSections* sections) : sections_(sections) {}
  // Errors: kInvalidArgument: it is not there.
  absl::StatusOr<std::span<const std::byte>> Take(const std::string& name);
  // Errors: kInvalidArgument: some were not taken.
  absl::Status Done() const;

 private:
  const MachineSections* const sections_;
  std::set<std::string> taken_;
};

}  // namespace hk
