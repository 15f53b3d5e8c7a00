#include "hyperkernel/node/placed_memory.h"

#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/space_memory.h"
#include "proto/admin.pb.h"

namespace hk {
namespace {

// Most that the node holds; 0: all.
uint64_t PlacedFrameBytes(const v1::VmSpec& spec, std::string_view node, uint64_t bytes) {
  for (const v1::PlacementSpec& place : spec.placement()) {
    if (place.node() != node) continue;
    const uint64_t frames = (place.memory_mib() == 0 ? spec.memory_mib() : place.memory_mib()) << 20;
    return frames < bytes ? frames : 0;
  }
  return 0;
}

// The space's addresses are the guest's, up to the end of its RAM; nobody ever has frames for the hole below 4 GiB.
v1::CreateSpaceRequest SpaceOf(const v1::VmSpec& spec, uint64_t bytes) {
  v1::CreateSpaceRequest request;
  request.set_name(spec.name());
  request.set_memory_bytes(bytes);
  // What the I/O node has is what a node that joins later has at most.
  request.set_node_frames_bytes(PlacedFrameBytes(spec, spec.io_node(), bytes));
  for (const v1::PlacementSpec& place : spec.placement()) {
    request.add_nodes(place.node());
    const uint64_t frames = PlacedFrameBytes(spec, place.node(), bytes);
    if (frames == request.node_frames_bytes()) continue;
    v1::SpaceNodeFrames& own = *request.add_own_frames();
    own.set_node(place.node());
    own.set_frames_bytes(frames == 0 ? bytes : frames);
  }
  request.set_node_swap_bytes(spec.placement(0).swap_mib() << 20);  // the same of all
  request.set_node_vcpus(spec.vcpus());
  request.set_homes_at_coordinator(true);  // devices and the kernel that boots are here
  return request;
}

void DeleteSpaceOf(const std::string& name, SpaceManager* spaces) {
  const absl::StatusOr<std::vector<std::string>> notes = spaces->Delete(name);
  if (!notes.ok()) {
    log::Warning("guest", "the space that was its memory is not deleted; hkctl space delete does it",
                 {{"guest", name}, {"reason", MessageOf(notes.status())}});
    return;
  }
  for (const std::string& note : *notes) log::Warning("guest", note, {{"guest", name}});
}

}  // namespace

absl::Status CheckPlacedNodes(const v1::VmSpec& spec, const std::function<absl::Status(const std::string&)>& known) {
  for (int i = 0; i < spec.placement_size(); i++) {
    const absl::Status status = known(spec.placement(i).node());
    if (!status.ok() && !HK_MUTANT(vm_unknown_nodes_taken)) {
      return WithContext(status, fmt::format("placement[{}].node", i));
    }
  }
  return absl::OkStatus();
}

MachineMemory PlacedMemory(const v1::VmSpec& spec, SpaceManager* spaces, const Clock& clock) {
  const auto made = std::make_shared<MachineSpace>();
  const auto make = [spec, spaces, &clock, made](
                        const std::vector<RamRange>& ranges,
                        GuestMemory::FaultFailure failed) -> absl::StatusOr<std::unique_ptr<GuestMemory>> {
    const uint64_t bytes = ranges.back().start.value() + ranges.back().bytes;
    const v1::CreateSpaceRequest request = SpaceOf(spec, bytes);
    const absl::StatusOr<v1::Space> space = spaces->Create(request);
    if (!space.ok()) return WithContext(space.status(), "placement");
    made->id = space->id();
    HK_ASSIGN_OR_RETURN(std::shared_ptr<GuestSpace> memory, spaces->Hold(spec.name(), std::move(failed)));
    return MakeSpaceMemory(std::move(memory), ranges, clock);
  };
  const auto ended = [name = spec.name(), spaces, made] {
    if (made->id != 0) DeleteSpaceOf(name, spaces);
  };
  return {.make = make, .ended = ended, .space = made};
}

}  // namespace hk
