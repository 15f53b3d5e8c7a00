// The placement policy of one machine over several nodes, at its I/O node: takes what its nodes tell of their vCPUs'
// waits, shows it to the policy (migration/placement_policy.h) and to whoever records it, and has done what the policy
// wants.
//
// Invariants:
//  1. Nobody keeps waits, at any node, unless the policy can move something or somebody records.
//  2. A move that the policy wants is asked for once, with no lock held; what becomes of it is told to the policy
//  before
//     it is asked again. Between two moves kMovePause passes.
//  3. Where vCPUs are says who moves them: moves of others are seen by the next Tick.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/fault_meter.h"
#include "hyperkernel/node/stall_recording.h"
#include "migration/placement_policy.h"
#include "proto/node.pb.h"
#include "proto/trace.pb.h"
#include "proto/vm.pb.h"

namespace hk {

// One machine's. Thread-safe, but for what says otherwise.
class MachinePolicy {
 public:
  // A node of the machine.
  struct Node {
    NodeId number;
    std::string name;
    uint32_t most_vcpus = 0;  // that the policy has there
  };
  struct Options {
    std::string machine, policy;
    NodeId self;
    std::vector<Node> nodes;
    std::vector<NodeId> vcpus;     // by vCPU: where it is at first
    const Clock* clock = nullptr;  // outlives it
  };
  // Moves a running machine's vCPU, or says why not: for people. Called by the thread that calls Tick, beside any order
  // of an operator, the machine's end among them, which waits for that thread: it takes its turn itself, or refuses,
  // and ends within seconds.
  using Mover = std::function<absl::Status(VcpuId vcpu, NodeId to)>;

  // After a move the vCPU and those that it shared pages with fetch what they need.
  static constexpr std::chrono::seconds kMovePause{2};
  // Recorders at a time: each has memory of its own.
  static constexpr size_t kMostRecordings = 4;

  // Errors: MakePolicy's.
  static absl::StatusOr<std::shared_ptr<MachinePolicy>> Make(Options options);

  // What moves vCPUs; without it nothing is moved, and the policy is not asked. A Tick that is under way
  // during End may still call it; no later one does.
  void SetMover(Mover mover);
  // What vCPUs of this node wait for; null: not any more. It outlives its being set.
  void SetLocal(FaultMeter* meter);
  // How all vCPUs have spent their time since the machine's start; called by the thread that calls Tick. Without it the
  // policy does not know who runs.
  using Times = std::function<std::vector<v1::VcpuTimes>()>;
  void SetTimes(Times times);

  // True: the other nodes are to tell what they see (MACHINE_ORDER_STALLS).
  bool wanted() const;
  // What another node told.
  void Take(NodeId from, const v1::MachineStalls& stalls);
  // What this node sees is taken now. Who records calls it as often as it wants to see something.
  void Collect();
  // About once a second, by one thread at a time: decides, and moves. `where`: by vCPU, the node that it runs on.
  void Tick(const std::vector<NodeId>& where);

  // Of a node of the machine.
  std::string NameOf(NodeId node) const;

  // Begins to record; the result going is its end. Errors: kResourceExhausted.
  absl::StatusOr<std::shared_ptr<StallRecording>> Record();
  // The machine's run is over: recordings end, and Tick does nothing any more.
  void End();

 private:
  MachinePolicy(Options options, std::unique_ptr<PlacementPolicy> policy);
  bool WantedLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ListenLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CollectLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TakeLocked(NodeId from, const v1::MachineStalls& stalls) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TickLocked(Monotonic now, std::span<const v1::TraceRan> ran) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What has been run since the last time that it was asked.
  std::vector<v1::TraceRan> Ran(const std::vector<v1::VcpuTimes>& times) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void NoteMove(VcpuId vcpu, NodeId to, Monotonic now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::vector<std::shared_ptr<StallRecording>> Recordings() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Log(const PolicyMove& move, const absl::Status& status) const;

  const Options options_;
  mutable Mutex mutex_;
  const std::unique_ptr<PlacementPolicy> policy_ ABSL_PT_GUARDED_BY(mutex_);
  Mover mover_ ABSL_GUARDED_BY(mutex_);
  FaultMeter* local_ ABSL_GUARDED_BY(mutex_) = nullptr;
  Times times_ ABSL_GUARDED_BY(mutex_);
  struct HostTimes {
    bool known = false;
    uint64_t running_ns = 0, ready_ns = 0;
  };
  std::vector<HostTimes> before_ ABSL_GUARDED_BY(mutex_);  // by vCPU
  std::vector<NodeId> where_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::weak_ptr<StallRecording>> recordings_ ABSL_GUARDED_BY(mutex_);
  Monotonic last_tick_ ABSL_GUARDED_BY(mutex_), next_decision_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

// Of a machine with this specification, which is complete and placed; node `self` is its I/O node. `members`: where
// cores are known from, and `number_of` numbers. Errors: a node that nobody knows.
absl::StatusOr<MachinePolicy::Options> PolicyOptions(
    const v1::VmSpec& spec, const std::string& self, const std::vector<v1::Member>& members,
    const std::function<absl::StatusOr<NodeId>(const std::string&)>& number_of, const Clock& clock);

}  // namespace hk
