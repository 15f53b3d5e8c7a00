// The move of a vCPU between two nodes of a machine that runs, as the machine's I/O node has it done, and one node's
// steps of it.
//
//     PREPARE at both --> LEAVE at the source --> ARRIVE at the target
//                                                    | refused
//                                                    +--> ARRIVE at the source, one version later
//
// Invariants:
//  1. The vCPU runs at one node at a time: it comes to the target when the source has said that it left, and back to
//  the
//     source when the target has said that it has not come, and will not.
//  2. A step is done once, however often it is asked for, and one that was given up is not done later.
//  3. If nobody knows where the vCPU is, it is lost, and its machine has to end.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/kvm/vcpu_mover.h"
#include "proto/machine.pb.h"

namespace hk {

// Has a step done at a node. An error: nobody knows whether it was.
using MoveAt = std::function<absl::StatusOr<v1::MoveMachineVcpuResponse>(const std::string& node,
                                                                         const v1::MoveMachineVcpuRequest& request)>;

// A move that is to be made. Plain value.
struct VcpuMove {
  VcpuId vcpu;
  std::string from, to;
  NodeId to_number;
};

// What became of it. Plain value.
struct VcpuMoveEnd {
  absl::Status status;                          // OK: it is at the target; else it is at the source, or lost
  bool lost = false;                            // the machine must end: `status` says why
  std::chrono::nanoseconds stopped{};           // the guest has missed it for so long, at most
  std::chrono::nanoseconds source{}, target{};  // of that, at each end
};

// Makes it. `numbers`: the last number of a step of the machine's run, raised with each. Returns within the limits of
// `at`, and a second. One at a time for a machine.
VcpuMoveEnd MoveVcpu(const VcpuMove& move, const MoveAt& at, const Clock& clock, uint64_t* numbers);

// A node's steps, of one run of a machine. Not thread-safe: one at a time.
class MoveSteps {
 public:
  // `end` outlives it. `vcpus`: of the machine.
  MoveSteps(VcpuMoveEndpoint* end, uint32_t vcpus) : end_(end), vcpus_(vcpus) {}
  v1::MoveMachineVcpuResponse Do(const v1::MoveMachineVcpuRequest& request);

 private:
  absl::Status Try(const v1::MoveMachineVcpuRequest& request, v1::MoveMachineVcpuResponse* response);

  VcpuMoveEndpoint* const end_;
  const uint32_t vcpus_;
  uint64_t last_number_ = 0;
  v1::MoveMachineVcpuResponse last_;
};

}  // namespace hk
