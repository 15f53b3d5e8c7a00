#include "hyperkernel/node/machine_peers.h"

#include <chrono>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/cluster.h"
#include "hyperkernel/node/peer_ask.h"

namespace hk {
namespace {

// A VM of KVM is made and taken apart again.
constexpr std::chrono::milliseconds kDescribeLimit(3000);
// Its memory is there already; a VM, its vCPUs, and some round trips of a clock. Emulated hosts take 10 ms for a vCPU.
constexpr std::chrono::milliseconds kMachineAttachLimit(8000);
// vCPUs are held within 5 s, or all go on (kPauseDeadline); they end within 10.
constexpr std::chrono::milliseconds kOrderLimit(6000);
constexpr std::chrono::milliseconds kEndLimit(12'000);
// The answer has what the policy goes by. A host whose processors are busy with fetching pages takes seconds to give
// it.
constexpr std::chrono::milliseconds kStatusLimit(8000);

// A vCPU is made, or made of its state again (kvm/vcpu_mover.cc): 2 s at most.
constexpr std::chrono::milliseconds kMoveStepLimit(3000);

std::chrono::milliseconds LimitOf(v1::MachineOrder order) {
  if (order == v1::MACHINE_ORDER_STATUS || order == v1::MACHINE_ORDER_STALLS) return kStatusLimit;
  return order == v1::MACHINE_ORDER_END ? kEndLimit : kOrderLimit;
}

}  // namespace

absl::Status CheckMachineProtocol(uint32_t theirs, const std::string& node) {
  if (theirs == kMachineProtocolVersion) return absl::OkStatus();
  return absl::FailedPreconditionError(
      fmt::format("node '{}' speaks version {} in machines, this node version {}: run the same release on both", node,
                  theirs, kMachineProtocolVersion));
}

absl::StatusOr<NodeId> ClusterMachinePeers::NumberOf(const std::string& node) const {
  return cluster_->NumberOf(node);
}

absl::StatusOr<v1::DescribeMachineHostResponse> ClusterMachinePeers::Describe(const std::string& node,
                                                                              const v1::CpuSpec& cpu) {
  v1::DescribeMachineHostRequest request;
  request.set_from(cluster_->name());
  request.set_machine_protocol(kMachineProtocolVersion);
  *request.mutable_cpu() = cpu;
  HK_ASSIGN_OR_RETURN(const v1::DescribeMachineHostResponse response,
                      Ask(cluster_, node, kDescribeLimit, &v1::PeerControl::Stub::DescribeMachineHost, request));
  HK_RETURN_IF_ERROR(CheckMachineProtocol(response.machine_protocol(), node));
  return response;
}

absl::StatusOr<v1::AttachMachineResponse> ClusterMachinePeers::Attach(const std::string& node,
                                                                      const v1::AttachMachineRequest& request) {
  v1::AttachMachineRequest versioned = request;
  versioned.set_from(cluster_->name());
  versioned.set_machine_protocol(kMachineProtocolVersion);
  return Ask(cluster_, node, kMachineAttachLimit, &v1::PeerControl::Stub::AttachMachine, versioned);
}

absl::StatusOr<v1::OrderMachineResponse> ClusterMachinePeers::Order(const std::string& node, uint64_t id,
                                                                    v1::MachineOrder order, uint64_t number,
                                                                    uint64_t tsc_offset) {
  v1::OrderMachineRequest request;
  request.set_from(cluster_->name());
  request.set_id(id);
  request.set_order(order);
  request.set_number(number);
  request.set_tsc_offset(tsc_offset);
  // How a node is, is asked each second, also of hosts that take a second of processor time to make a connection.
  const bool kept = order == v1::MACHINE_ORDER_STATUS || order == v1::MACHINE_ORDER_STALLS;
  return Ask(cluster_, node, LimitOf(order), &v1::PeerControl::Stub::OrderMachine, request, kept);
}

absl::StatusOr<v1::MoveMachineVcpuResponse> ClusterMachinePeers::Move(const std::string& node, uint64_t id,
                                                                      const v1::MoveMachineVcpuRequest& request) {
  v1::MoveMachineVcpuRequest addressed = request;
  addressed.set_from(cluster_->name());
  addressed.set_id(id);
  // Connections take longer to make than all the rest.
  return Ask(cluster_, node, kMoveStepLimit, &v1::PeerControl::Stub::MoveMachineVcpu, addressed, /*kept=*/true);
}

}  // namespace hk
