#include "hyperkernel/node/space_rules.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <map>
#include <set>

#include "fmt/format.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/space_version.h"
#include "hyperkernel/node/names.h"
#include "proto/fault_latency.h"

namespace hk {
namespace {

absl::Status Bad(std::string_view field, std::string_view what) {
  return absl::InvalidArgumentError(fmt::format("{}: {}", field, what));
}

absl::Status CheckNameAndBytes(const std::string& name, uint64_t bytes) {
  if (!IsValidName(name)) return Bad("name", fmt::format("'{}' is not [a-z0-9-]{{1,63}}", name));
  constexpr uint64_t kMaxBytes = kMaxSpacePages * kPageSize;
  if (bytes == 0 || bytes > kMaxBytes)
    return Bad("memory_bytes", fmt::format("{} is not from {} to {} (4 PiB)", bytes, kPageSize, kMaxBytes));
  if (bytes % kPageSize != 0)
    return Bad("memory_bytes", fmt::format("{} is not a multiple of {} (a page)", bytes, kPageSize));
  return absl::OkStatus();
}

// Pages change places only where there are frames to spare; fewer, and a wish takes as long as it takes to find one.
constexpr uint64_t kSpareShare = 16;

absl::Status CheckNodeSwap(uint64_t swap_bytes, uint64_t frame_bytes, uint64_t bytes) {
  if (swap_bytes == 0) return absl::OkStatus();
  if (frame_bytes == 0 || frame_bytes == bytes)
    return Bad("node_swap_bytes", "without a bound of frames (node_frames_bytes, --frames) nothing is ever swapped");
  if (swap_bytes % kPageSize != 0)
    return Bad("node_swap_bytes", fmt::format("{} is not a multiple of {} (a page)", swap_bytes, kPageSize));
  if (swap_bytes > bytes)
    return Bad("node_swap_bytes", fmt::format("{} is more than the space's {} bytes", swap_bytes, bytes));
  return absl::OkStatus();
}

// What `nodes` nodes give together, with their swap, must hold the space, and some more; and what each gives alone must
// be enough for one instruction of each of its virtual CPUs.
absl::Status CheckNodeFrames(uint64_t frame_bytes, uint64_t swap_bytes, uint32_t vcpus, uint64_t bytes,
                             uint64_t nodes) {
  if (vcpus > kMaxSpaceVcpus) return Bad("node_vcpus", fmt::format("{} is more than {}", vcpus, kMaxSpaceVcpus));
  HK_RETURN_IF_ERROR(CheckNodeSwap(swap_bytes, frame_bytes, bytes));
  if (frame_bytes == 0) return absl::OkStatus();
  if (frame_bytes % kPageSize != 0)
    return Bad("node_frames_bytes", fmt::format("{} is not a multiple of {} (a page)", frame_bytes, kPageSize));
  if (frame_bytes > bytes)
    return Bad("node_frames_bytes", fmt::format("{} is more than the space's {} bytes", frame_bytes, bytes));
  const uint64_t share = (bytes + bytes / kSpareShare + nodes - 1) / nodes;
  const uint64_t pool = std::min(share - std::min(share, swap_bytes), bytes);
  const uint64_t running = std::min(std::max(vcpus, 1U) * kLeastFrames * kPageSize, bytes);
  const uint64_t least = (std::max(pool, running) + kPageSize - 1) / kPageSize * kPageSize;
  if (frame_bytes < pool && !HK_MUTANT(space_frames_unchecked)) {
    return Bad("node_frames_bytes",
               fmt::format("{} on each of {} nodes{} cannot hold {} bytes and a sixteenth more, which pages "
                           "need to change places: give at least {}",
                           frame_bytes, nodes, swap_bytes == 0 ? "" : fmt::format(" and {} of swap", swap_bytes), bytes,
                           least));
  }
  if (frame_bytes < running && !HK_MUTANT(space_vcpus_unchecked)) {
    return Bad(
        "node_frames_bytes",
        fmt::format("{} ({} pages) on each node are too few for {}, of which one instruction may need {} pages "
                    "at once: give at least {}",
                    frame_bytes, frame_bytes / kPageSize,
                    vcpus > 1 ? fmt::format("{} virtual CPUs each", vcpus) : "a virtual CPU", kLeastFrames, least));
  }
  return absl::OkStatus();
}

absl::Status CheckNodes(std::string_view field, const std::vector<SpaceMemberId>& nodes) {
  const auto not_ascending = [](const auto& a, const auto& b) { return a.number >= b.number; };
  if (std::adjacent_find(nodes.begin(), nodes.end(), not_ascending) != nodes.end())
    return Bad(field, "not ascending by number");
  std::set<std::string_view> names;
  for (const SpaceMemberId& node : nodes) {
    if (node.number.value() >= kMaxNodes)
      return Bad(field, fmt::format("'{}' has a number that is no node's", node.name));
    if (!names.insert(node.name).second) return Bad(field, fmt::format("'{}' is there twice", node.name));
  }
  return absl::OkStatus();
}

// Who may ever take part; and for a node that joins, who did so far: not this one.
absl::Status CheckJoins(const SpaceIdentity& space, std::string_view from, std::string_view self) {
  HK_RETURN_IF_ERROR(CheckNodes("cluster", space.cluster));
  for (const SpaceMemberId& member : space.cluster.empty() ? std::vector<SpaceMemberId>() : space.members) {
    const auto same = [&](const SpaceMemberId& node) {
      return node.name == member.name && node.number == member.number;
    };
    if (std::none_of(space.cluster.begin(), space.cluster.end(), same))
      return Bad("cluster", fmt::format("the member '{}' is not among them", member.name));
  }
  if (space.committed.empty()) {
    if (space.epoch > 1) return Bad("epoch", fmt::format("{} without who took part in it", space.epoch));
    return absl::OkStatus();
  }
  if (space.epoch == 0 || space.epoch > kMaxSpaceEpoch) return Bad("epoch", fmt::format("{} is none", space.epoch));
  if (space.committed.size() > kMaxCommittedSets)
    return Bad("committed", fmt::format("{} sets are more than {}", space.committed.size(), kMaxCommittedSets));
  const NodeSet ever = NumbersOf(space.cluster.empty() ? space.members : space.cluster);
  for (const NodeSet nodes : space.committed) {
    if (nodes.empty() || !Without(nodes, ever).empty())
      return Bad("committed", "has nodes that are none of the cluster");
  }
  const NodeSet last = space.committed.back();
  if (!Without(last, NumbersOf(space.members)).empty())
    return Bad("committed", "the last has nodes that are no members");
  if (!last.Contains(space.Find(from)->number) || last.Contains(space.Find(self)->number))
    return Bad("committed", fmt::format("'{}' must be in the last, and '{}', which joins, not", from, self));
  return absl::OkStatus();
}

}  // namespace

NodeSet NumbersOf(const std::vector<SpaceMemberId>& nodes) {
  NodeSet all;
  for (const SpaceMemberId& node : nodes) all.Add(node.number);
  return all;
}

absl::Status CheckSpaceMembers(const std::vector<SpaceMemberId>& members, std::string_view from,
                               std::string_view self) {
  HK_RETURN_IF_ERROR(CheckNodes("members", members));
  for (const std::string_view needed : {from, self}) {
    const auto is = [needed](const SpaceMemberId& member) { return member.name == needed; };
    if (std::none_of(members.begin(), members.end(), is))
      return Bad("members", fmt::format("'{}' is not among them", needed));
  }
  return absl::OkStatus();
}

const SpaceMemberId* SpaceIdentity::Find(std::string_view node) const {
  const auto found = std::find_if(members.begin(), members.end(), [&](const auto& m) { return m.name == node; });
  return found == members.end() ? nullptr : &*found;
}

absl::Status CheckCreateSpace(const v1::CreateSpaceRequest& request, std::string_view self) {
  HK_RETURN_IF_ERROR(CheckNameAndBytes(request.name(), request.memory_bytes()));
  std::set<std::string_view> names;
  for (const std::string& node : request.nodes()) {
    if (!names.insert(node).second) return Bad("nodes", fmt::format("'{}' is there twice", node));
  }
  if (!names.contains(self)) {
    return Bad("nodes", fmt::format("'{0}', the node that is asked, is not among them: add it, or ask one of them "
                                    "(--endpoint)",
                                    self));
  }
  return CheckNodeFrames(request.node_frames_bytes(), request.node_swap_bytes(), request.node_vcpus(),
                         request.memory_bytes(), names.size());
}

absl::Status CheckSpaceIdentity(const SpaceIdentity& space, std::string_view from, std::string_view self) {
  HK_RETURN_IF_ERROR(CheckNameAndBytes(space.name, space.bytes));
  if (space.id == 0) return Bad("id", "0 is no space's");
  HK_RETURN_IF_ERROR(CheckSpaceMembers(space.members, from, self));
  HK_RETURN_IF_ERROR(CheckJoins(space, from, self));
  return CheckNodeFrames(space.node_frame_bytes, space.node_swap_bytes, space.node_vcpus, space.bytes,
                         space.members.size());
}

absl::Status CheckLeaves(const SpaceIdentity& space, size_t others) {
  if (space.node_frame_bytes == 0 || space.node_frame_bytes >= space.bytes) return absl::OkStatus();
  const uint64_t each =
      space.node_frame_bytes - FramesKept(space.node_frame_bytes / kPageSize) * kPageSize + space.node_swap_bytes;
  if (others * each >= space.bytes || HK_MUTANT(space_drain_unchecked)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      fmt::format("the others ({} node{}) have room for {} of the space's {} bytes, {} each: it cannot be emptied",
                  others, others == 1 ? "" : "s", others * each, space.bytes, each));
}

absl::Status CheckSpaceProtocol(uint32_t theirs, std::string_view who) {
  if (theirs == kSpaceProtocolVersion || HK_MUTANT(space_protocol_unchecked)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      fmt::format("{} speaks {} in spaces, this node version {}: run the same release on all nodes of a space", who,
                  theirs == 0 ? "an unnumbered version" : fmt::format("version {}", theirs), kSpaceProtocolVersion));
}

absl::Status CheckSpaceRange(uint64_t space_bytes, uint64_t address, uint64_t bytes) {
  if (bytes == 0 || bytes > kMaxSpaceIoBytes)
    return Bad("bytes", fmt::format("{} is not from 1 to {}", bytes, kMaxSpaceIoBytes));
  // Not address + bytes > space_bytes: that wraps.
  if ((address >= space_bytes || bytes > space_bytes - address) && !HK_MUTANT(space_end_unchecked)) {
    return absl::OutOfRangeError(
        fmt::format("{} bytes at {:#x} are not within the space, which ends at {:#x}", bytes, address, space_bytes));
  }
  return absl::OkStatus();
}

absl::Status At(const std::string& node, const absl::Status& status) {
  if (status.ok() || status.message().rfind("node '", 0) == 0) return status;
  return WithContext(status, fmt::format("node '{}'", node));
}

std::string WithNodeNames(std::string_view reason, const std::vector<SpaceMemberId>& members) {
  constexpr std::string_view kNode = "node ";
  std::string out;
  while (true) {
    const size_t at = reason.find(kNode);
    if (at == std::string_view::npos) return out.append(reason);
    out += reason.substr(0, at + kNode.size());
    const bool word = at == 0 || reason[at - 1] == ' ' || reason[at - 1] == '(';
    reason.remove_prefix(at + kNode.size());
    uint16_t number = 0;
    const auto [end, error] = std::from_chars(reason.data(), reason.data() + reason.size(), number);
    const auto member =
        std::find_if(members.begin(), members.end(), [&](const auto& m) { return m.number.value() == number; });
    if (!word || error != std::errc() || member == members.end()) continue;
    out += fmt::format("'{}'", member->name);
    reason.remove_prefix(static_cast<size_t>(end - reason.data()));
  }
}

v1::FaultLatency LatencyOf(const std::array<uint64_t, SpaceStatistics::kLatencyBuckets>& buckets) {
  v1::FaultLatency latency;
  if (std::all_of(buckets.begin(), buckets.end(), [](uint64_t bucket) { return bucket == 0; })) return latency;
  latency.mutable_buckets()->Assign(buckets.begin(), buckets.end());
  SummarizeBuckets(&latency);
  return latency;
}

v1::SpaceCounters CountersOf(const SpaceStatistics& statistics) {
  v1::SpaceCounters counters;
  counters.set_pages_shared(statistics.pages_shared);
  counters.set_pages_owned(statistics.pages_owned);
  counters.set_pages_exclusive(statistics.pages_exclusive);
  counters.set_pages_swapped(statistics.pages_swapped);
  counters.set_swap_writes(statistics.swap_writes);
  counters.set_swap_reads(statistics.swap_reads);
  counters.set_swap_failures(statistics.swap_failures);
  counters.set_read_faults(statistics.read_faults);
  counters.set_write_faults(statistics.write_faults);
  counters.set_upgrades(statistics.upgrades);
  counters.set_fetched(statistics.fetched);
  counters.set_served(statistics.served);
  counters.set_revoked(statistics.revoked);
  counters.set_retries(statistics.retries);
  counters.set_stale_messages(statistics.stale_messages);
  counters.set_prefetched(statistics.prefetched);
  counters.set_prefetch_useful(statistics.prefetch_useful);
  counters.set_prefetch_wasted(statistics.prefetch_wasted);
  *counters.mutable_read_latency() = LatencyOf(statistics.read_latency);
  *counters.mutable_write_latency() = LatencyOf(statistics.write_latency);
  return counters;
}

uint64_t MergeExtents(const std::vector<NodeExtents>& nodes, v1::SpaceMapResponse* response) {
  uint64_t last = std::numeric_limits<uint64_t>::max();
  for (const NodeExtents& node : nodes) {
    if (node.extents.size() >= kMaxExtentsPerCall) last = std::min(last, node.extents.back().extent());
  }
  std::map<uint64_t, v1::SpaceExtent> merged;
  for (const NodeExtents& node : nodes) {
    for (const v1::ExtentHolding& holding : node.extents) {
      if (holding.extent() > last) continue;
      v1::SpaceExtent& extent = merged[holding.extent()];
      extent.set_extent(holding.extent());
      v1::ExtentHolding& holder = *extent.add_holders();
      holder = holding;
      holder.set_node(node.node);
    }
  }
  for (auto& [number, extent] : merged) *response->add_extents() = std::move(extent);
  return last == std::numeric_limits<uint64_t>::max() ? 0 : last + 1;
}

}  // namespace hk
