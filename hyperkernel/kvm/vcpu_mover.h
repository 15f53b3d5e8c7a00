// A node's end of a vCPU's move to another node: its state, its local APIC and its place leave together, and come
// together. Who asks first one node and then the other is not said here (node/machine_move.h).
//
// Invariants:
//  1. A vCPU is at one end or, between Leave and Arrive, at none. What fails changes nothing at its end.
//  2. It leaves with all that was sent to it, and when all that it has sent has arrived (irq/README.md, "Across
//  nodes").
//  3. Its TSC goes on by this node's offset, not by that of the node it comes from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/irq/interrupt_controller.h"
#include "hyperkernel/kvm/vcpu_group.h"

namespace hk {

// A vCPU between two nodes. Plain value.
struct MovedVcpu {
  VcpuId id;
  std::vector<std::byte> state;       // EncodeVcpuState
  std::vector<std::byte> local_apic;  // EncodeLocalApic
  uint32_t version = 0;               // of the place it goes to; one more if it goes back to where it left
};

// The state as a vCPU of this node has it: its TSC goes on by this node's offset, and at this node's rate.
VcpuState AtThisNode(VcpuState state, const VcpuConfig& config);

// What a node does for a move. Errors of all three: nothing has changed. REQUIRES of all three: a vCPU of the guest.
class VcpuMoveEndpoint {
 public:
  virtual ~VcpuMoveEndpoint() = default;
  // What can be done for a vCPU that is to come, or to leave, before it is stopped.
  virtual absl::Status Prepare(VcpuId id) = 0;
  // Stops the vCPU and takes it out, for `to`. `left`, if any, is told as soon as it has left: what remains of it here
  // is put away after that. From then on nothing fails.
  using Left = std::function<void(const MovedVcpu& moved)>;
  virtual absl::StatusOr<MovedVcpu> Leave(VcpuId id, NodeId to, const Left& left) = 0;
  // It is here, and runs if the others do.
  virtual absl::Status Arrive(const MovedVcpu& moved) = 0;
};

// One node's, of one guest. Thread-safe, as far as the group and the controller are.
class VcpuMover final : public VcpuMoveEndpoint {
 public:
  // How vCPUs of this node are made.
  using ConfigOf = std::function<VcpuConfig(VcpuId id)>;

  // All outlive it. REQUIRES: the controller is that of a guest on several nodes; the group is created, and of the same
  // vCPUs.
  VcpuMover(VcpuGroup* vcpus, InterruptController* interrupts, ConfigOf config_of)
      : vcpus_(vcpus), interrupts_(interrupts), config_of_(std::move(config_of)) {}

  // Errors: those of VcpuGroup::Prepare.
  absl::Status Prepare(VcpuId id) override;
  // Errors: as VcpuGroup::Leave and InterruptController::TakeVcpu; kDeadlineExceeded.
  absl::StatusOr<MovedVcpu> Leave(VcpuId id, NodeId to, const Left& left) override;
  // Errors: kInvalidArgument: bytes that no node sends; as VcpuGroup::Join and InterruptController::PutVcpu.
  absl::Status Arrive(const MovedVcpu& moved) override;

 private:
  VcpuGroup* const vcpus_;
  InterruptController* const interrupts_;
  const ConfigOf config_of_;
};

}  // namespace hk
