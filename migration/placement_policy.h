// Which node a virtual CPU should run on, by what it waits for (DESIGN 7). A policy sees every wait of a machine's
// vCPUs for other nodes, and says now and then which vCPU is to be moved. Nothing depends on its being right: a machine
// whose policy says nonsense, or nothing, is slow and correct.
//
// Pure: no clock, thread or file of its own. The same calls give the same answers, so that what was recorded can be
// replayed (policy_replay.h). Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/types.h"
#include "migration/stall_event.h"

namespace hk {

// A node that may have vCPUs of the machine, and how many at most. Plain value.
struct PolicyNode {
  NodeId number;
  uint32_t most_vcpus = 0;  // as many as it has cores for; 0: it takes none
};

// The machine as it is at first. Plain value.
struct PolicyMachine {
  std::vector<PolicyNode> nodes;
  std::vector<NodeId> vcpus;  // by vCPU: where it is; one of `nodes`
  std::optional<NodeId> io_node = std::nullopt;
};

// A vCPU is to go to another node. Plain value.
struct PolicyMove {
  VcpuId vcpu;
  NodeId to;
  double waited = 0;  // of its time, for `to`: why
  double ready = 0;   // or: of its time, for a core, beside too many others
};

// One machine's policy. Times of calls do not go back, but those in events may, by seconds: nodes tell late. Events of
// vCPUs or nodes that the machine does not have are ignored.
class PlacementPolicy {
 public:
  // What may go past between two calls of Decide. More often is of no use; more seldom, it is slow to see.
  static constexpr std::chrono::seconds kInterval{1};

  virtual ~PlacementPolicy() = default;
  // As vm specifications have it. Constant.
  virtual std::string_view name() const = 0;
  virtual void OnStall(const StallEvent& stall) = 0;
  // So many more stalls were on this node than it was told of.
  virtual void OnDropped(NodeId node, uint64_t stalls) = 0;
  // Since the last call of Decide the vCPU has had so much of a processor's time, and was so long ready for one that
  // others had.
  virtual void OnRan(VcpuId vcpu, std::chrono::nanoseconds running, std::chrono::nanoseconds ready) = 0;
  // The vCPU runs there from now on, whoever has moved it.
  virtual void OnMoved(VcpuId vcpu, NodeId to, Monotonic now) = 0;
  // What Decide asked for was not done.
  virtual void OnRefused(VcpuId vcpu, NodeId to, Monotonic now) = 0;
  // What is to be done now; for each follows OnMoved or OnRefused before the next call.
  virtual std::vector<PolicyMove> Decide(Monotonic now) = 0;
};

// The policies, by name, and the one of machines whose specification names none.
inline constexpr std::string_view kFetchPolicy = "fetch", kBalancePolicy = "balance";
inline constexpr std::string_view kDefaultPolicy = kBalancePolicy;
bool IsPolicy(std::string_view name);

// Errors: kInvalidArgument: no policy of this name; a vCPU on a node that is not there, or a node that is there twice.
absl::StatusOr<std::unique_ptr<PlacementPolicy>> MakePolicy(std::string_view name, const PolicyMachine& machine);

}  // namespace hk
