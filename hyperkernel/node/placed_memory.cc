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

// The space's addresses are the guest's, up to the end of its RAM; nobody ever has frames for the hole below 4 GiB.
v1::CreateSpaceRequest SpaceOf(const v1::VmSpec& spec, uint64_t bytes) {
  v1::CreateSpaceRequest request;
  request.set_name(spec.name());
  request.set_memory_bytes(bytes);
  for (const v1::PlacementSpec& place : spec.placement()) request.add_nodes(place.node());
  const uint64_t placed_mib = spec.placement(0).memory_mib();  // the same of all
  const uint64_t frames = (placed_mib == 0 ? spec.memory_mib() : placed_mib) << 20;
  if (frames < bytes) request.set_node_frames_bytes(frames);
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
    *made = {.id = space->id(), .node_frames_bytes = request.node_frames_bytes()};
    HK_ASSIGN_OR_RETURN(std::shared_ptr<GuestSpace> memory, spaces->Hold(spec.name(), std::move(failed)));
    return MakeSpaceMemory(std::move(memory), request.node_frames_bytes() / kPageSize, ranges, clock);
  };
  const auto ended = [name = spec.name(), spaces, made] {
    if (made->id != 0) DeleteSpaceOf(name, spaces);
  };
  return {.make = make, .ended = ended, .space = made};
}

}  // namespace hk
