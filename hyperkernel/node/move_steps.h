// A node's part in the moves of a machine's vCPUs (machine_move.h): what it is asked on the control plane before and
// after a vCPU stands still, and what is said over the machine's link while it does. README.md, "Moves".
//
// Invariants:
//  1. Nothing said over the link is believed but of the move that the last PREPARE was for, of the nodes that it named,
//  once.
//  2. What has left is kept until the next move is prepared, for TAKE_BACK.
//  3. No transport's thread waits here: a vCPU stops and comes on a thread of this, or, at the I/O node, of who asked.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/kvm/vcpu_mover.h"
#include "hyperkernel/node/machine_link.h"
#include "hyperkernel/node/machine_move.h"
#include "hyperkernel/node/move_wire.h"
#include "proto/machine.pb.h"

namespace hk {

// How long the I/O node waits for words. Plain value.
struct MoveLimits {
  // A vCPU is held, saved and drained, or goes on, within 4 s, and comes within 2 (kvm/vcpu_mover.cc). Nobody waits for
  // longer than that for a node that is lost.
  std::chrono::milliseconds leave{5000}, arrive{3000};
};

// See above; of one run of a machine. Thread-safe; one Cross at a time.
class MoveSteps final : public MoveMessages, public LocalMoves {
 public:
  // `link` outlives this; messages are taken until it is closed. `vcpus`: of the machine.
  MoveSteps(MachineLink* link, uint32_t vcpus, MoveLimits limits = {});
  ~MoveSteps() override;
  MoveSteps(const MoveSteps&) = delete;
  MoveSteps& operator=(const MoveSteps&) = delete;

  // Once; before that everything is refused. `end` outlives Stop.
  void Begin(VcpuMoveEndpoint* end);
  // When it returns nothing is done any more; waits for what is under way, seconds at most (kvm/vcpu_mover.cc).
  // REQUIRES: the link is closed. More than once is allowed.
  void Stop();

  // LocalMoves. A step on the control plane.
  v1::MoveMachineVcpuResponse Do(const v1::MoveMachineVcpuRequest& request) override;
  // At the I/O node. Returns within the limits, and soon after the link has ended.
  Crossing Cross(const VcpuMove& move, uint64_t number) override;

  // MoveMessages.
  absl::Status OnMoveMessage(NodeId from, const Message& message) override;

 private:
  // What the last PREPARE was for; move 0: nothing, or it is under way.
  struct Expected {
    uint64_t move = 0;
    VcpuId vcpu;
    NodeId from, to;
  };
  // A vCPU that is to leave, or that has come as these bytes.
  struct Job {
    uint64_t move = 0;
    VcpuId vcpu;
    std::optional<NodeId> leaves_to;
    std::vector<std::byte> bytes;
  };
  struct Kept {
    uint64_t move = 0;
    MovedVcpu vcpu;
  };
  // The I/O node's, of the last move.
  struct Words {
    uint64_t move = 0;
    NodeId from, to;
    std::optional<MoveWord> left, come;
    Monotonic came{};
  };

  absl::Status Try(const v1::MoveMachineVcpuRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(steps_mutex_);
  absl::Status Prepare(const v1::MoveMachineVcpuRequest& request);
  absl::Status TakeBack(const v1::MoveMachineVcpuRequest& request);
  absl::Status OnOrder(NodeId from, const Message& message);
  absl::Status OnPiece(NodeId from, const Message& message);
  absl::Status OnWord(NodeId from, const Message& message);
  absl::Status Take(NodeId from, uint64_t move, MoveWord word);
  void LetGo(const Job& job);
  void LetCome(const Job& job);
  void Say(uint64_t move, const MoveWord& word);
  void Run();

  MachineLink* const link_;
  const uint32_t vcpus_;
  const MoveLimits limits_;
  Mutex steps_mutex_;  // around a step of the control plane; before mutex_
  uint64_t last_number_ ABSL_GUARDED_BY(steps_mutex_) = 0;
  v1::MoveMachineVcpuResponse last_ ABSL_GUARDED_BY(steps_mutex_);
  Mutex mutex_;
  CondVar changed_;     // jobs_, stopping_
  CondVar word_taken_;  // words_
  VcpuMoveEndpoint* end_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  Expected expected_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::byte> coming_ ABSL_GUARDED_BY(mutex_);  // the pieces of the expected vCPU so far
  std::deque<Job> jobs_ ABSL_GUARDED_BY(mutex_);           // each was prepared: no more come than the I/O node asks for
  std::optional<Kept> kept_ ABSL_GUARDED_BY(mutex_);
  Words words_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace hk
