// For tests of policies: a machine whose vCPUs touch pages, which come to them as the page protocol has them come.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "hyperkernel/base/node_set.h"
#include "migration/placement_policy.h"
#include "proto/trace.pb.h"

namespace hk {

// Chance that comes again.
class TestRandom {
 public:
  explicit TestRandom(uint64_t seed) : state_(seed * 2 + 1) {}
  uint64_t Below(uint64_t end) {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_ % end;
  }

 private:
  uint64_t state_;
};

// Each second every vCPU runs its program, if it has a core (where more want to run than there are, all get less), one
// access after another, until the second is over; then the policy is asked. What it wants is done.
class PolicyWorld {
 public:
  static constexpr std::chrono::microseconds kLocal{100}, kRemote{1500};

  // An access: the page, and whether it is written. One to no page (`idle`) is time that passes.
  struct Access {
    uint64_t page = 0;
    bool write = false;
    std::chrono::microseconds idle{};
  };
  using Program = std::function<Access()>;

  PolicyWorld(std::string_view policy, const PolicyMachine& machine)
      : policy_(*MakePolicy(policy, machine)),
        ran_(machine.vcpus.size()),
        ready_(ran_.size()),
        where(machine.vcpus),
        programs(where.size()),
        accesses(where.size()) {
    for (const PolicyNode& node : machine.nodes) cores_[node.number] = node.most_vcpus;
  }

  // Pages that nobody has touched are there.
  void Home(uint64_t first, uint64_t end, NodeId node) {
    for (uint64_t page = first; page < end; ++page) pages_[page] = {node, NodeSet::Of(node)};
  }
  void Run(int seconds) {
    for (int i = 0; i < seconds; ++i) Second();
  }

 private:
  // Who owns a page, and who can read it.
  struct Place {
    NodeId owner;
    NodeSet readers;
  };

  // How much longer each access takes there than with a core of its own.
  double CrowdOn(NodeId node) const {
    double wanted = 0;
    for (size_t i = 0; i < where.size(); ++i) {
      if (where[i] == node) wanted += std::chrono::duration<double>(ran_[i] + ready_[i]).count();
    }
    return std::max(1.0, wanted / std::max<uint32_t>(1, cores_.at(node)));
  }
  void Second() {
    std::vector<double> crowd;
    for (size_t i = 0; i < where.size(); ++i) crowd.push_back(CrowdOn(where[i]));
    for (size_t i = 0; i < where.size(); ++i) accesses[i] = 0, ran_[i] = ready_[i] = {};
    // In turns of a millisecond, so that vCPUs take pages from each other.
    std::vector<std::chrono::microseconds> used(where.size());
    for (std::chrono::microseconds turn(1000); turn <= std::chrono::seconds(1);
         turn += std::chrono::microseconds(1000)) {
      for (size_t i = 0; i < where.size(); ++i) {
        while (programs[i] && used[i] < turn)
          used[i] += Do(static_cast<uint32_t>(i), programs[i](), now + used[i], crowd[i]);
      }
    }
    now += std::chrono::seconds(1);
    for (size_t i = 0; i < where.size(); ++i) policy_->OnRan(VcpuId(static_cast<uint32_t>(i)), ran_[i], ready_[i]);
    for (const PolicyMove& move : policy_->Decide(now)) {
      if (may_move && !may_move(move)) {
        policy_->OnRefused(move.vcpu, move.to, now);
        continue;
      }
      where[move.vcpu.value()] = move.to;
      moves.push_back(move);
      policy_->OnMoved(move.vcpu, move.to, now);
    }
  }
  std::chrono::microseconds Do(uint32_t vcpu, const Access& access, Monotonic at, double crowd) {
    if (access.idle.count() != 0) return access.idle;
    ++accesses[vcpu];
    const std::chrono::microseconds local(static_cast<int64_t>(crowd * kLocal.count()));
    ran_[vcpu] += kLocal;
    ready_[vcpu] += local - kLocal;
    const NodeId node = where[vcpu];
    Place& place = pages_.try_emplace(access.page, Place{node, NodeSet::Of(node)}).first->second;
    const bool here = place.readers.Contains(node);
    const bool alone = place.owner == node && place.readers == NodeSet::Of(node);
    if (access.write ? alone : here) return local;
    const NodeId holder = place.owner;
    StallEvent stall{.end = at + kRemote, .vcpu = VcpuId(vcpu), .node = node, .page = Gfn(access.page)};
    stall.kind = !access.write ? StallKind::kRead : here ? StallKind::kUpgrade : StallKind::kWrite;
    if (holder != node) stall.holder = holder;
    stall.waited = kRemote;
    place.readers.Add(node);
    if (access.write) place = {node, NodeSet::Of(node)};
    ++stalls;
    if (on_stall) on_stall(stall);
    policy_->OnStall(stall);
    return local + kRemote;
  }

  const std::unique_ptr<PlacementPolicy> policy_;
  std::unordered_map<uint64_t, Place> pages_;
  std::map<NodeId, uint32_t> cores_;
  std::vector<std::chrono::microseconds> ran_, ready_;  // in the last second

 public:
  Monotonic now{std::chrono::hours(1)};
  std::vector<NodeId> where;
  std::vector<Program> programs;   // by vCPU; empty: it does nothing
  std::vector<uint64_t> accesses;  // in the last second, by vCPU
  std::vector<PolicyMove> moves;
  uint64_t stalls = 0;
  std::function<bool(const PolicyMove&)> may_move;
  std::function<void(const StallEvent&)> on_stall;
  PlacementPolicy* policy() { return policy_.get(); }
};

inline constexpr NodeId kA{1}, kB{2}, kC{3};
inline constexpr VcpuId kFirst{0}, kSecond{1};

// Three nodes with so many cores each.
inline PolicyMachine Machine(std::vector<NodeId> vcpus, uint32_t most = 8) {
  return {.nodes = {{kA, most}, {kB, most}, {kC, most}}, .vcpus = std::move(vcpus)};
}

// Writes to pages of [first, end), by chance.
inline PolicyWorld::Program Wander(uint64_t first, uint64_t end, uint64_t seed, int reads_of_4 = 2) {
  auto random = std::make_shared<TestRandom>(seed);
  return [=] {
    return PolicyWorld::Access{.page = first + random->Below(end - first),
                               .write = random->Below(4) >= static_cast<uint64_t>(reads_of_4)};
  };
}

}  // namespace hk
