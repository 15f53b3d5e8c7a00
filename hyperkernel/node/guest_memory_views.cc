// The part of the guest manager that looks at machines' memory, in the messages of spaces: a machine's memory is one
// node's, which has all of it.

#include <chrono>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/guest_manager.h"
#include "hyperkernel/node/membership.h"
#include "hyperkernel/node/placed_memory.h"
#include "hyperkernel/node/space_rules.h"

namespace hk {

absl::StatusOr<const Guest*> GuestManager::FindWithMemory(const std::string& name) {
  HK_ASSIGN_OR_RETURN(const Guest* const guest, FindIdle(name));
  if (guest->machine != nullptr) return guest;
  return absl::FailedPreconditionError(fmt::format("vm '{}' is {}, not running, and has no memory; hkctl vm start {}",
                                                   name, NameOf(guest->state), name));
}

absl::StatusOr<bool> GuestManager::MemoryIsSpace(const std::string& name) {
  MutexLock lock(&mutex_);
  HK_ASSIGN_OR_RETURN(const Guest* const guest, FindWithMemory(name));
  return IsPlaced(guest->record.spec());
}

absl::StatusOr<std::shared_ptr<MachinePolicy>> GuestManager::PolicyOf(const std::string& name) {
  MutexLock lock(&mutex_);
  HK_ASSIGN_OR_RETURN(const Guest* const guest, FindWithMemory(name));
  std::shared_ptr<MachinePolicy> policy = guest->machine->policy();
  if (policy != nullptr) return policy;
  return absl::FailedPreconditionError(fmt::format("vm '{}' is on one node, and its vCPUs wait for no other", name));
}

absl::Status GuestManager::LookAtMemory(const std::string& name, v1::Space* space, v1::SpacePart* part,
                                        const std::function<void(const Machine&)>& look) {
  MutexLock lock(&mutex_);
  HK_ASSIGN_OR_RETURN(const Guest* const guest, FindWithMemory(name));
  part->set_node(node_);
  part->set_state(v1::SPACE_STATE_RUNNING);
  *part->mutable_since() = ToTimestamp(guest->started);
  part->set_frame_bytes(guest->machine->frame_bytes());
  space->set_name(name);
  space->set_memory_bytes(guest->record.spec().memory_mib() << 20);
  space->add_nodes(node_);
  space->set_coordinator(node_);
  space->set_state(part->state());
  *space->mutable_since() = part->since();
  *space->mutable_created() = part->since();
  space->set_frame_bytes(part->frame_bytes());
  look(*guest->machine);
  return absl::OkStatus();
}

absl::StatusOr<v1::SpaceMapResponse> GuestManager::MemoryMap(const std::string& name, uint64_t first_extent) {
  v1::SpaceMapResponse response;
  v1::SpacePart part;
  NodeExtents extents{.node = node_, .extents = {}};
  HK_RETURN_IF_ERROR(LookAtMemory(name, response.mutable_space(), &part, [&](const Machine& machine) {
    response.mutable_space()->set_memory_bytes(machine.memory_end());
    for (const ExtentUse& use : machine.memory_uses(first_extent, kMaxExtentsPerCall)) {
      v1::ExtentHolding& extent = extents.extents.emplace_back();
      extent.set_extent(use.extent);
      extent.set_exclusive(use.exclusive);
      extent.set_heat(use.heat);
    }
  }));
  response.set_next_extent(MergeExtents({extents}, &response));
  for (v1::SpaceExtent& extent : *response.mutable_extents()) extent.set_home(node_);
  return response;
}

absl::StatusOr<v1::SpaceTopResponse> GuestManager::MemoryTop(const std::string& name) {
  v1::SpaceTopResponse response;
  v1::SpaceNodeCounters& node = *response.add_nodes();
  HK_RETURN_IF_ERROR(LookAtMemory(name, response.mutable_space(), node.mutable_part(), [&](const Machine& machine) {
    *node.mutable_counters() = CountersOf(machine.memory_statistics());
    node.mutable_counters()->set_counted_at_ns(
        static_cast<uint64_t>(std::chrono::nanoseconds(clock_.Now().time_since_epoch()).count()));
  }));
  return response;
}

}  // namespace hk
