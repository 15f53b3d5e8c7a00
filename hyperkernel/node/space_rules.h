// What a space may be, and how its parts are told of. Pure functions; thread-safe.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/node_set.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/space_engine.h"
#include "proto/admin.pb.h"
#include "proto/peer.pb.h"
#include "proto/space.pb.h"

namespace hk {

// Limits, each with its reason.
inline constexpr uint32_t kMaxSpaceVcpus = 255;           // of one node: as many as a machine may have
inline constexpr size_t kMaxCommittedSets = 64;           // AddSet keeps those after which two were lost at once
inline constexpr uint64_t kMaxSpaceEpoch = 1ULL << 40;    // one a millisecond for 30 years: no epoch comes near it
inline constexpr size_t kMaxSpaces = 128;                 // a transport keeps 256 guests' epochs; machines need some
inline constexpr uint64_t kMaxSpaceIoBytes = 64 << 10;    // a reply stays far below what a request may be (1 MiB)
inline constexpr uint32_t kMaxHotPages = 1024;            // all that an engine notices: of fewer, rates would be wrong
inline constexpr uint32_t kMaxHotPagesTogether = 32768;   // of all nodes: with the longest names 3 MiB, gRPC takes 4
inline constexpr uint32_t kMaxExtentsPerCall = 1024;      // with 64 holders each: 1.5 MiB, gRPC takes 4
inline constexpr std::chrono::seconds kSpaceIoLimit(40);  // above the engine's own limit (30 s), which has the reason
// A member waits for the data plane, then makes its part; the coordinator waits a little longer.
inline constexpr std::chrono::milliseconds kDataPlaneLimit(3000);
inline constexpr std::chrono::milliseconds kAttachLimit(6000);
inline constexpr std::chrono::milliseconds kPeerAnswerLimit(2500);  // detach, status, leave: nothing there takes long
inline constexpr std::chrono::milliseconds kCloseLimit(1500);       // for users of a space that was told to stop

// Steps of a change of epoch: one that tells of what the space has is given most of the memory's own limit (30 s).
inline constexpr std::chrono::milliseconds kEpochStepLimit(5000);
inline constexpr std::chrono::milliseconds kRebuildLimit(20'000);

// A node of a space. Plain value.
struct SpaceMemberId {
  std::string name;
  NodeId number{};
  uint64_t frame_bytes = 0;  // most there; 0: as the space's node_frame_bytes says
};

// What a space is, the same on all its nodes. Plain value.
struct SpaceIdentity {
  std::string name;
  uint64_t id = 0;
  uint64_t bytes = 0;
  uint64_t node_frame_bytes = 0;       // most on each node without a bound of its own; 0: all of it
  uint64_t node_swap_bytes = 0;        // most swap of each node that has a bound
  uint32_t node_vcpus = 0;             // of each node; 0: as 1
  bool homes_at_coordinator = false;   // it alone uses most of the space
  std::vector<SpaceMemberId> members;  // that take part, or did: ascending by number
  std::string coordinator;
  WallTime created;
  std::vector<SpaceMemberId> cluster{};  // that may ever take part: ascending by number; empty: the members
  // For the attachment of a node that joins: the epoch, and who took part in those committed, the last one last.
  uint64_t epoch = 1;
  std::vector<NodeSet> committed{};

  // Null if the node is none of them.
  const SpaceMemberId* Find(std::string_view node) const;
  // Most frames of a member, bytes; 0: it can hold all of the space.
  uint64_t FramesOf(const SpaceMemberId& member) const;
};

// As it is sent to peers.
v1::SpaceMember ToProto(const SpaceMemberId& member);
// Their numbers.
NodeSet NumbersOf(const std::vector<SpaceMemberId>& nodes);
inline NodeSet Without(NodeSet nodes, NodeSet others) {
  return NodeSet(nodes.bits() & ~others.bits());
}

// The bounds of nodes that have their own, by node. Errors: kInvalidArgument, naming the field.
absl::StatusOr<std::map<std::string, uint64_t>> OwnFrames(const v1::CreateSpaceRequest& request);
// What can be said of a request without knowing the cluster. `self`: the node that is asked. Errors: kInvalidArgument,
// naming the field.
absl::Status CheckCreateSpace(const v1::CreateSpaceRequest& request, std::string_view self);
// What a peer says are a space's members: ascending, each once, `from` (the peer) and `self` among them.
absl::Status CheckSpaceMembers(const std::vector<SpaceMemberId>& members, std::string_view from, std::string_view self);
// The same of what a peer sends; `from` is the peer.
absl::Status CheckSpaceIdentity(const SpaceIdentity& space, std::string_view from, std::string_view self);
// The other node of a space speaks version `theirs` of what its nodes say to each other. `who`: as the error begins,
// for people: kFailedPrecondition, if that is not this node's.
absl::Status CheckSpaceProtocol(uint32_t theirs, std::string_view who);
// `bytes` at `address` are within the space. Errors: kInvalidArgument (none, too many), kOutOfRange.
absl::Status CheckSpaceRange(uint64_t space_bytes, uint64_t address, uint64_t bytes);

// The members that stay can hold all of the space. Errors: kFailedPrecondition.
absl::Status CheckLeaves(const SpaceIdentity& space, const std::vector<SpaceMemberId>& staying);

// Errors begin with the node they happened at, as those of peers do.
absl::Status At(const std::string& node, const absl::Status& status);

// A reason as the memory has it, which knows nodes by number only ("node 2 failed"), for people ("node 'c' failed").
std::string WithNodeNames(std::string_view reason, const std::vector<SpaceMemberId>& members);

// From a histogram: bucket [i] holds times from 2^i ns to 2^(i+1) ns, and is told as its middle.
v1::FaultLatency LatencyOf(const std::array<uint64_t, SpaceStatistics::kLatencyBuckets>& buckets);
v1::SpaceCounters CountersOf(const SpaceStatistics& statistics);

// One node's answer to SpaceMap: its extents, ascending, the first `kMaxExtentsPerCall` of them at most.
struct NodeExtents {
  std::string node;
  std::vector<v1::ExtentHolding> extents;
};
// Joins them by extent. Returns where the next part begins, 0 if all was told: a node that was cut off may have more
// after its last extent, and what others have after that is left for the next part.
uint64_t MergeExtents(const std::vector<NodeExtents>& nodes, v1::SpaceMapResponse* response);

}  // namespace hk
