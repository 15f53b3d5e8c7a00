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

absl::Status CheckNodeSwap(const SpaceIdentity& space) {
  const uint64_t swap_bytes = space.node_swap_bytes;
  if (swap_bytes == 0) return absl::OkStatus();
  const auto bounded = [&](const SpaceMemberId& member) { return space.FramesOf(member) != 0; };
  if (std::none_of(space.members.begin(), space.members.end(), bounded))
    return Bad("node_swap_bytes", "without a bound of frames (node_frames_bytes, --frames) nothing is ever swapped");
  if (swap_bytes % kPageSize != 0)
    return Bad("node_swap_bytes", fmt::format("{} is not a multiple of {} (a page)", swap_bytes, kPageSize));
  if (swap_bytes > space.bytes)
    return Bad("node_swap_bytes", fmt::format("{} is more than the space's {} bytes", swap_bytes, space.bytes));
  return absl::OkStatus();
}

absl::Status CheckFrameBytes(std::string_view field, uint64_t frame_bytes, uint64_t bytes) {
  if (frame_bytes % kPageSize != 0)
    return Bad(field, fmt::format("{} is not a multiple of {} (a page)", frame_bytes, kPageSize));
  if (frame_bytes > bytes) return Bad(field, fmt::format("{} is more than the space's {} bytes", frame_bytes, bytes));
  return absl::OkStatus();
}

uint64_t WholePages(uint64_t bytes) {
  return (bytes + kPageSize - 1) / kPageSize * kPageSize;
}

// Enough for one instruction of each virtual CPU of a node.
uint64_t RunningBytes(const SpaceIdentity& space) {
  return std::min(std::max(space.node_vcpus, 1U) * kLeastFrames * kPageSize, space.bytes);
}

// `least`: what is said to be enough.
absl::Status CheckRunning(const SpaceIdentity& space, std::string_view field, std::string_view where,
                          uint64_t frame_bytes, uint64_t least) {
  if (frame_bytes >= RunningBytes(space) || HK_MUTANT(space_vcpus_unchecked)) return absl::OkStatus();
  const uint32_t vcpus = space.node_vcpus;
  return Bad(field, fmt::format("{} ({} pages) {} are too few for {}, of which one instruction may need {} pages at "
                                "once: give at least {}",
                                frame_bytes, frame_bytes / kPageSize, where,
                                vcpus > 1 ? fmt::format("{} virtual CPUs each", vcpus) : "a virtual CPU", kLeastFrames,
                                least));
}

// What the nodes give together, with their swap, must hold the space, and some more; and what each gives alone must be
// enough for one instruction of each of its virtual CPUs. Each has a bound of its own, or the same.
absl::Status CheckNodeFrames(const SpaceIdentity& space) {
  const uint64_t bytes = space.bytes, swap_bytes = space.node_swap_bytes, frame_bytes = space.node_frame_bytes;
  if (space.node_vcpus > kMaxSpaceVcpus)
    return Bad("node_vcpus", fmt::format("{} is more than {}", space.node_vcpus, kMaxSpaceVcpus));
  HK_RETURN_IF_ERROR(CheckNodeSwap(space));
  HK_RETURN_IF_ERROR(CheckFrameBytes("node_frames_bytes", frame_bytes, bytes));
  bool own = false, whole = false;
  uint64_t together = 0;
  for (const SpaceMemberId& member : space.members) {
    own |= member.frame_bytes != 0;
    HK_RETURN_IF_ERROR(CheckFrameBytes(fmt::format("own_frames of node '{}'", member.name), member.frame_bytes, bytes));
    const uint64_t here = space.FramesOf(member);
    whole |= here == 0 || here == bytes;
    together += here + swap_bytes;
  }
  const uint64_t nodes = space.members.size(), needed = bytes + bytes / kSpareShare,
                 share = (needed + nodes - 1) / nodes;
  const uint64_t pool = std::min(share - std::min(share, swap_bytes), bytes);
  const std::string swap = swap_bytes == 0 ? "" : fmt::format(" and {} of swap", swap_bytes);
  if (!whole && together < needed && !HK_MUTANT(space_frames_unchecked)) {
    constexpr std::string_view kWhy = "bytes and a sixteenth more, which pages need to change places";
    if (own) {
      return Bad(
          "own_frames",
          fmt::format("{} on {} nodes together{} cannot hold {} {}: give {} more", together - swap_bytes * nodes, nodes,
                      swap_bytes == 0 ? "" : swap + " on each", bytes, kWhy, WholePages(needed - together)));
    }
    return Bad("node_frames_bytes",
               fmt::format("{} on each of {} nodes{} cannot hold {} {}: give at least {}", frame_bytes, nodes, swap,
                           bytes, kWhy, WholePages(std::max(pool, RunningBytes(space)))));
  }
  for (const SpaceMemberId& member : space.members) {
    if (member.frame_bytes == 0) continue;
    HK_RETURN_IF_ERROR(CheckRunning(space, "own_frames", fmt::format("on node '{}'", member.name), member.frame_bytes,
                                    WholePages(RunningBytes(space))));
  }
  if (frame_bytes == 0) return absl::OkStatus();
  return CheckRunning(space, "node_frames_bytes", "on each node", frame_bytes,
                      WholePages(own ? RunningBytes(space) : std::max(pool, RunningBytes(space))));
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

v1::SpaceMember ToProto(const SpaceMemberId& member) {
  v1::SpaceMember out;
  out.set_name(member.name);
  out.set_number(member.number.value());
  out.set_frame_bytes(member.frame_bytes);
  return out;
}

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

uint64_t SpaceIdentity::FramesOf(const SpaceMemberId& member) const {
  return member.frame_bytes != 0 ? member.frame_bytes : node_frame_bytes;
}

absl::StatusOr<std::map<std::string, uint64_t>> OwnFrames(const v1::CreateSpaceRequest& request) {
  std::map<std::string, uint64_t> own;
  for (const v1::SpaceNodeFrames& frames : request.own_frames()) {
    const std::string& node = frames.node();
    if (std::find(request.nodes().begin(), request.nodes().end(), node) == request.nodes().end())
      return Bad("own_frames", fmt::format("node '{}' is not among the nodes", node));
    if (frames.frames_bytes() == 0) return Bad("own_frames", fmt::format("node '{}' would give nothing", node));
    if (!own.emplace(node, frames.frames_bytes()).second)
      return Bad("own_frames", fmt::format("'{}' is there twice", node));
  }
  return own;
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
  SpaceIdentity space;
  space.bytes = request.memory_bytes();
  space.node_frame_bytes = request.node_frames_bytes();
  space.node_swap_bytes = request.node_swap_bytes();
  space.node_vcpus = request.node_vcpus();
  HK_ASSIGN_OR_RETURN(const auto own, OwnFrames(request));
  for (const std::string& node : request.nodes()) {
    const auto found = own.find(node);
    space.members.push_back({.name = node, .frame_bytes = found == own.end() ? 0 : found->second});
  }
  return CheckNodeFrames(space);
}

absl::Status CheckSpaceIdentity(const SpaceIdentity& space, std::string_view from, std::string_view self) {
  HK_RETURN_IF_ERROR(CheckNameAndBytes(space.name, space.bytes));
  if (space.id == 0) return Bad("id", "0 is no space's");
  HK_RETURN_IF_ERROR(CheckSpaceMembers(space.members, from, self));
  HK_RETURN_IF_ERROR(CheckJoins(space, from, self));
  return CheckNodeFrames(space);
}

absl::Status CheckLeaves(const SpaceIdentity& space, const std::vector<SpaceMemberId>& staying) {
  uint64_t room = 0;
  for (const SpaceMemberId& member : staying) {
    const uint64_t frame_bytes = space.FramesOf(member);
    if (frame_bytes == 0 || frame_bytes >= space.bytes) return absl::OkStatus();
    room += frame_bytes - FramesKept(frame_bytes / kPageSize) * kPageSize + space.node_swap_bytes;
  }
  if (room >= space.bytes || HK_MUTANT(space_drain_unchecked)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      fmt::format("the others ({} node{}) have room for {} of the space's {} bytes: it cannot be emptied",
                  staying.size(), staying.size() == 1 ? "" : "s", room, space.bytes));
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
