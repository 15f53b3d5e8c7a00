// The move of a vCPU between two nodes of a machine that runs, as the machine's I/O node has it done. One node's part:
// move_steps.h.
//
//     PREPARE at both --> order to the source --> the vCPU to the target --> words of both to the I/O node
//                                                                               | refused
//                                                                               +--> TAKE_BACK at the source
//
// Invariants:
//  1. The vCPU runs at one node at a time: at the target when the source has let it go, and at the source again when
//  the target has said that it has not come, and will not.
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
#include "hyperkernel/node/move_wire.h"
#include "proto/machine.pb.h"

namespace hk {

// A move that is to be made. Plain value.
struct VcpuMove {
  VcpuId vcpu;
  std::string from, to;
  NodeId from_number, to_number;
};

// What came of a vCPU's way from the source to the target. Plain value.
struct Crossing {
  absl::StatusOr<MoveWord> left, come;  // an error: the source, the target has not said, and why
  std::chrono::nanoseconds stopped{};   // from the order until the word that it came
};

// How a move is made. All return within limits of their own.
struct MoveCalls {
  // Has a step done at a node. An error: nobody knows whether it was.
  std::function<absl::StatusOr<v1::MoveMachineVcpuResponse>(const std::string& node,
                                                            const v1::MoveMachineVcpuRequest& request)>
      at;
  // The source lets it go, the target takes it.
  std::function<Crossing(const VcpuMove& move, uint64_t number)> cross;
};

// The I/O node's own part. See MoveSteps.
class LocalMoves {
 public:
  virtual ~LocalMoves() = default;
  virtual v1::MoveMachineVcpuResponse Do(const v1::MoveMachineVcpuRequest& request) = 0;
  virtual Crossing Cross(const VcpuMove& move, uint64_t number) = 0;
};

// What became of it. Plain value.
struct VcpuMoveEnd {
  absl::Status status;                          // OK: it is at the target; else it is at the source, or lost
  bool lost = false;                            // the machine must end: `status` says why
  std::chrono::nanoseconds stopped{};           // the guest has missed it for so long, at most
  std::chrono::nanoseconds source{}, target{};  // of that, at each end
};

// Makes it. `numbers`: the last number of the machine's run, raised with each move. Returns within the limits of
// `calls`, and a second for each step. One at a time for a machine.
VcpuMoveEnd MoveVcpu(const VcpuMove& move, const MoveCalls& calls, const Clock& clock, uint64_t* numbers);

}  // namespace hk
