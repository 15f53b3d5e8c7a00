#include "hyperkernel/node/auto_placement.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/node/vm_spec.h"

namespace hk {
namespace {

// That many nodes with memory enough, the I/O node first; fewer if there are not so many.
std::vector<PlacementCandidate> Choose(const std::string& io_node, const std::vector<PlacementCandidate>& candidates,
                                       uint64_t each_mib, size_t count) {
  std::vector<PlacementCandidate> fit;
  for (const PlacementCandidate& candidate : candidates) {
    if (candidate.free_mib >= each_mib || HK_MUTANT(auto_placement_beyond_free)) fit.push_back(candidate);
  }
  std::sort(fit.begin(), fit.end(), [&](const PlacementCandidate& a, const PlacementCandidate& b) {
    const auto key = [&](const PlacementCandidate& c) {
      return std::tuple(c.node != io_node, ~c.cpus, ~c.free_mib, c.node);
    };
    return key(a) < key(b);
  });
  if (fit.empty() || fit.front().node != io_node) return {};
  fit.resize(std::min(fit.size(), count));
  return fit;
}

uint64_t CoresOf(const std::vector<PlacementCandidate>& nodes) {
  uint64_t cores = 0;
  for (const PlacementCandidate& node : nodes) cores += node.cpus;
  return cores;
}

// A core for each while there are, then one after another; the I/O node has one in any case.
std::vector<uint32_t> SpreadVcpus(const std::vector<PlacementCandidate>& nodes, uint32_t vcpus) {
  std::vector<uint32_t> placed(nodes.size());
  for (size_t i = 0; i < nodes.size() && vcpus > 0; ++i) {
    placed[i] = std::min(vcpus, i == 0 ? std::max(nodes[i].cpus, 1U) : nodes[i].cpus);
    vcpus -= placed[i];
  }
  for (size_t i = 0; vcpus > 0; i = (i + 1) % nodes.size(), --vcpus) ++placed[i];
  return placed;
}

}  // namespace

absl::StatusOr<std::vector<v1::PlacementSpec>> PlaceAutomatically(const PlacementWish& wish, const std::string& io_node,
                                                                  const std::vector<PlacementCandidate>& candidates) {
  const size_t most = wish.max_nodes == 0 ? candidates.size() : std::min<size_t>(wish.max_nodes, candidates.size());
  for (const bool with_cores : {true, false}) {
    for (size_t count = 1; count <= most; ++count) {
      const uint64_t share = std::max(wish.least_mib, (wish.spread_mib + count - 1) / count);
      const uint64_t each = count == 1 ? wish.memory_mib : std::min(wish.memory_mib, share);
      const std::vector<PlacementCandidate> nodes = Choose(io_node, candidates, each, count);
      if (nodes.size() < count || (with_cores && CoresOf(nodes) < wish.vcpus)) continue;
      const std::vector<uint32_t> vcpus = SpreadVcpus(nodes, wish.vcpus);
      std::vector<v1::PlacementSpec> placement(count);
      for (size_t i = 0; i < count; ++i) {
        placement[i].set_node(nodes[i].node);
        placement[i].set_vcpus(vcpus[i]);
        if (count > 1) placement[i].set_memory_mib(each);
      }
      return placement;
    }
  }
  std::string free;
  for (const PlacementCandidate& candidate : candidates) {
    free += fmt::format("{}'{}' {} MiB", free.empty() ? "" : ", ", candidate.node, candidate.free_mib);
  }
  return absl::ResourceExhaustedError(
      fmt::format("automatic_placement: {} MiB do not fit on {}, as much on each and node '{}' among them; free in the "
                  "frame stores: {}",
                  wish.memory_mib, most <= 1 ? "one node" : fmt::format("up to {} nodes", most), io_node,
                  free.empty() ? "no node is up" : free));
}

absl::Status PlaceMachine(v1::VmSpec* spec, const std::string& self, const std::vector<v1::Member>& members) {
  if (!spec->has_automatic_placement()) return absl::OkStatus();
  if (spec->placement_size() > 0) {
    return absl::InvalidArgumentError(
        "automatic_placement: `placement` says where the machine is; leave out one of them");
  }
  const uint64_t memory = spec->memory_mib();
  if (memory < kMinVmMemoryMib || memory > kMaxVmMemoryMib || spec->vcpus() > kMaxVcpus) return absl::OkStatus();
  std::vector<PlacementCandidate> candidates;
  for (const v1::Member& member : members) {
    const bool up = member.state() == v1::MEMBER_STATE_UP && member.data_link().state() == v1::DATA_LINK_STATE_UP;
    if (!up && member.state() != v1::MEMBER_STATE_SELF) continue;
    const v1::NodeInfo& info = member.info();
    const uint64_t taken = std::max(info.frames_reserved_bytes(), info.frames_used_bytes());
    candidates.push_back({.node = member.name(),
                          .free_mib = (info.frame_budget_bytes() - std::min(taken, info.frame_budget_bytes())) >> 20,
                          .cpus = info.cpus()});
  }
  if (spec->vcpus() == 0) spec->set_vcpus(1);
  const absl::StatusOr<std::vector<v1::PlacementSpec>> placement =
      PlaceAutomatically({.memory_mib = memory,
                          .spread_mib = SpreadMib(*spec),
                          .least_mib = LeastPlacedMib(*spec),
                          .vcpus = spec->vcpus(),
                          .max_nodes = spec->automatic_placement().max_nodes()},
                         self, candidates);
  if (!placement.ok()) return placement.status();
  for (const v1::PlacementSpec& place : *placement) *spec->add_placement() = place;
  spec->clear_automatic_placement();
  return absl::OkStatus();
}

}  // namespace hk
