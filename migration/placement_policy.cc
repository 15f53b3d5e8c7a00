#include "migration/placement_policy.h"

#include <algorithm>

#include "fmt/format.h"
#include "hyperkernel/base/node_set.h"
#include "migration/balance_policy.h"

namespace hk {
namespace {

// Pages come to their vCPUs, which stay where they are.
class FetchPolicy final : public PlacementPolicy {
 public:
  std::string_view name() const override { return kFetchPolicy; }
  void OnStall(const StallEvent&) override {}
  void OnDropped(NodeId, uint64_t) override {}
  void OnRan(VcpuId, std::chrono::nanoseconds, std::chrono::nanoseconds) override {}
  void OnMoved(VcpuId, NodeId, Monotonic) override {}
  void OnRefused(VcpuId, NodeId, Monotonic) override {}
  std::vector<PolicyMove> Decide(Monotonic) override { return {}; }
};

absl::Status Check(const PolicyMachine& machine) {
  NodeSet nodes;
  for (const PolicyNode& node : machine.nodes) {
    if (node.number.value() >= kMaxNodes || nodes.Contains(node.number)) {
      return absl::InvalidArgumentError(
          fmt::format("node {} is no node's number, or is there twice", node.number.value()));
    }
    nodes.Add(node.number);
  }
  for (size_t i = 0; i < machine.vcpus.size(); ++i) {
    const NodeId node = machine.vcpus[i];
    if (node.value() >= kMaxNodes || !nodes.Contains(node)) {
      return absl::InvalidArgumentError(fmt::format("vCPU {} is on node {}, which is not there", i, node.value()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

bool IsPolicy(std::string_view name) {
  return name == kFetchPolicy || name == kBalancePolicy;
}

absl::StatusOr<std::unique_ptr<PlacementPolicy>> MakePolicy(std::string_view name, const PolicyMachine& machine) {
  if (const absl::Status status = Check(machine); !status.ok()) return status;
  if (name == kFetchPolicy) return std::make_unique<FetchPolicy>();
  if (name == kBalancePolicy) return std::make_unique<BalancePolicy>(machine);
  return absl::InvalidArgumentError(fmt::format("policy '{}' is not {} or {}", name, kFetchPolicy, kBalancePolicy));
}

}  // namespace hk
