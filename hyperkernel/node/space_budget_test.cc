// What a space is refused for that its nodes could not run: too few frames for the virtual CPUs, other releases.
#include <string>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/space_version.h"
#include "hyperkernel/node/space_part.h"
#include "hyperkernel/node/space_rules.h"

namespace hk {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr uint64_t kBytes = 1 << 20;  // 256 pages

std::string Refusal(uint64_t frames, uint32_t vcpus, uint64_t swap = 0, uint64_t bytes = kBytes) {
  v1::CreateSpaceRequest request;
  request.set_name("pool");
  request.set_memory_bytes(bytes);
  request.set_node_frames_bytes(frames);
  request.set_node_swap_bytes(swap);
  request.set_node_vcpus(vcpus);
  for (const char* node : {"a", "b"}) request.add_nodes(node);
  const absl::Status status = CheckCreateSpace(request, "a");
  // A peer that sends the same is told the same.
  SpaceIdentity identity{.name = "pool",
                         .id = 7,
                         .bytes = bytes,
                         .node_frame_bytes = frames,
                         .node_swap_bytes = swap,
                         .node_vcpus = vcpus,
                         .members = {{"a", NodeId(0)}, {"b", NodeId(1)}},
                         .coordinator = "a",
                         .created = {}};
  EXPECT_EQ(CheckSpaceIdentity(identity, "a", "b"), status);
  EXPECT_THAT(MessageOf(status), Not(HasSubstr("\n")));
  return status.ok() ? "" : MessageOf(status);
}

TEST(SpaceBudget, EachVirtualCpuHasItsFrames) {
  // The swap could hold everything: it is the CPUs that need frames.
  EXPECT_EQ(Refusal(8 * kPageSize, 0, kBytes), "");
  EXPECT_EQ(Refusal(8 * kPageSize, 1, kBytes), "");
  EXPECT_EQ(Refusal(7 * kPageSize, 1, kBytes),
            "node_frames_bytes: 28672 (7 pages) on each node are too few for a virtual CPU, of which one instruction "
            "may need 8 pages at once: give at least 32768");
  EXPECT_EQ(Refusal(7 * kPageSize, 0, kBytes), Refusal(7 * kPageSize, 1, kBytes));
  EXPECT_EQ(Refusal(31 * kPageSize, 4, kBytes),
            "node_frames_bytes: 126976 (31 pages) on each node are too few for 4 virtual CPUs each, of which one "
            "instruction may need 8 pages at once: give at least 131072");
  EXPECT_EQ(Refusal(32 * kPageSize, 4, kBytes), "");
  // Without a bound, or with frames for all of it, each page is there.
  EXPECT_EQ(Refusal(0, 255), "");
  EXPECT_EQ(Refusal(kBytes, 255), "");
  EXPECT_EQ(Refusal(0, 255, 0, kPageSize), "");
  // Also where the CPUs could use more than there is.
  EXPECT_THAT(Refusal(kBytes - kPageSize, 64, kBytes), HasSubstr("give at least 1048576"));
  // What is said to be enough is: for the whole space too, which is the first thing that is looked at.
  EXPECT_THAT(Refusal(16 * kPageSize, 20), HasSubstr("and a sixteenth more, which pages need to change places: give at "
                                                     "least 655360"));
  EXPECT_EQ(Refusal(655360, 20), "");
  EXPECT_EQ(Refusal(0, 256), "node_vcpus: 256 is more than 255");
  EXPECT_EQ(Refusal(8 * kPageSize, ~0U, kBytes), "node_vcpus: 4294967295 is more than 255");
}

TEST(SpaceBudget, TheMemoryKnowsTheVirtualCpus) {
  const SpaceIdentity identity{.name = "pool",
                               .id = 7,
                               .bytes = kBytes,
                               .node_frame_bytes = kBytes / 2,
                               .node_vcpus = 5,
                               .members = {{"a", NodeId(0)}},
                               .coordinator = "a",
                               .created = {}};
  uint32_t vcpus = 0;
  const auto factory = [&vcpus](GuestSpace::Options options) -> absl::StatusOr<std::unique_ptr<GuestSpace>> {
    vcpus = options.config.vcpus;
    return absl::CancelledError("");
  };
  EXPECT_FALSE(SpacePart::Attach(identity, NodeId(0), factory, RealClock()).ok());
  EXPECT_EQ(vcpus, 5u);
}

TEST(SpaceBudget, NodesHaveBoundsOfTheirOwn) {
  const auto refusal = [](uint64_t frames, const std::vector<std::pair<std::string, uint64_t>>& own,
                          uint64_t swap = 0) -> std::string {
    v1::CreateSpaceRequest request;
    request.set_name("pool");
    request.set_memory_bytes(kBytes);
    request.set_node_frames_bytes(frames);
    request.set_node_swap_bytes(swap);
    for (const char* node : {"a", "b"}) request.add_nodes(node);
    for (const auto& [node, bytes] : own) {
      v1::SpaceNodeFrames& frames_of = *request.add_own_frames();
      frames_of.set_node(node);
      frames_of.set_frames_bytes(bytes);
    }
    const absl::Status status = CheckCreateSpace(request, "a");
    return status.ok() ? "" : MessageOf(status);
  };
  EXPECT_EQ(refusal(kBytes / 4, {{"b", kBytes}}), "");
  EXPECT_EQ(refusal(0, {{"b", 8 * kPageSize}}), "") << "the other can hold all of it";
  EXPECT_EQ(refusal(kBytes / 4, {{"a", kBytes / 2}, {"b", kBytes / 2}}, kBytes / 16), "");
  EXPECT_EQ(refusal(0, {{"b", kBytes / 2}}, kBytes / 16), "") << "one that has a bound may swap";
  const struct {
    uint64_t frames;
    std::vector<std::pair<std::string, uint64_t>> own;
    uint64_t swap;
    const char* says;
  } cases[] = {
      {kBytes / 2, {{"c", kBytes}}, 0, "own_frames: node 'c' is not among the nodes"},
      {kBytes / 2, {{"b", 0}}, 0, "own_frames: node 'b' would give nothing"},
      {kBytes / 2, {{"b", kBytes}, {"b", kBytes}}, 0, "own_frames: 'b' is there twice"},
      {kBytes / 2, {{"b", kBytes + kPageSize}}, 0, "own_frames of node 'b': 1052672 is more than the space's"},
      {kBytes / 2, {{"b", kBytes / 2 + 1}}, 0, "own_frames of node 'b': 524289 is not a multiple of 4096"},
      {kBytes / 2, {{"b", ~uint64_t{0} - 4095}}, 0, "is more than the space's"},
      {kBytes / 2,
       {{"b", kBytes / 4}},
       0,
       "own_frames: 786432 on 2 nodes together cannot hold 1048576 bytes and a sixteenth more, which pages need to "
       "change places: give 327680 more"},
      {kBytes / 2, {{"b", kBytes / 4}}, kPageSize, "on 2 nodes together and 4096 of swap on each cannot hold"},
      {kBytes, {{"b", kPageSize}}, 0, "own_frames: 4096 (1 pages) on node 'b' are too few for a virtual CPU"},
      {kPageSize, {{"b", kBytes}}, 0, "node_frames_bytes: 4096 (1 pages) on each node are too few for a virtual CPU"},
  };
  for (const auto& c : cases) EXPECT_THAT(refusal(c.frames, c.own, c.swap), HasSubstr(c.says));
}

TEST(SpaceBudget, EachPartHasItsOwnBound) {
  const SpaceIdentity identity{.name = "pool",
                               .id = 7,
                               .bytes = kBytes,
                               .node_frame_bytes = kBytes / 2,
                               .members = {{"a", NodeId(0)}, {"b", NodeId(1), kBytes / 4}, {"c", NodeId(2), kBytes}},
                               .coordinator = "a",
                               .created = {}};
  std::vector<uint64_t> pages;
  const auto factory = [&pages](GuestSpace::Options options) -> absl::StatusOr<std::unique_ptr<GuestSpace>> {
    pages.push_back(options.config.max_pages);
    return absl::CancelledError("");
  };
  for (const uint16_t node : {0, 1, 2})
    EXPECT_FALSE(SpacePart::Attach(identity, NodeId(node), factory, RealClock()).ok());
  EXPECT_THAT(pages, testing::ElementsAre(kBytes / 2 / kPageSize, kBytes / 4 / kPageSize, 0)) << "0: no bound";
}

TEST(SpaceRules, ANodeLeavesIfTheOthersHaveRoom) {
  SpaceIdentity space;
  space.bytes = 16 << 20;
  const std::vector<SpaceMemberId> one{{"a", NodeId(0)}}, two{{"a", NodeId(0)}, {"b", NodeId(1)}};
  EXPECT_TRUE(CheckLeaves(space, one).ok()) << "each can hold all of it";
  space.node_frame_bytes = 16 << 20;
  EXPECT_TRUE(CheckLeaves(space, one).ok()) << "the same";
  space.node_frame_bytes = 8 << 20;
  EXPECT_TRUE(CheckLeaves(space, {two[0], two[1], {"c", NodeId(2)}}).ok());
  const absl::Status refused = CheckLeaves(space, two);  // a thirty-second of each is kept
  EXPECT_TRUE(absl::IsFailedPrecondition(refused));
  EXPECT_THAT(refused.ToString(), HasSubstr("(2 nodes) have room for 16252928 of the space's 16777216 bytes"));
  // A node's own bound counts: a little more of one, or all of it.
  EXPECT_TRUE(CheckLeaves(space, {two[0], {"b", NodeId(1), 9 << 20}}).ok());
  EXPECT_TRUE(CheckLeaves(space, {{"b", NodeId(1), 16 << 20}}).ok());
  EXPECT_FALSE(CheckLeaves(space, {two[0], {"b", NodeId(1), 4 << 20}}).ok());
  space.node_swap_bytes = 1 << 20;
  EXPECT_TRUE(CheckLeaves(space, two).ok());
}

TEST(SpaceProtocol, NodesOfASpaceSpeakTheSameVersion) {
  EXPECT_TRUE(CheckSpaceProtocol(kSpaceProtocolVersion, "node 'b'").ok());
  const absl::Status newer = CheckSpaceProtocol(kSpaceProtocolVersion + 1, "node 'b'");
  EXPECT_EQ(newer.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(
      MessageOf(newer),
      fmt::format("node 'b' speaks version {} in spaces, this node version {}: run the same release on all nodes of "
                  "a space",
                  kSpaceProtocolVersion + 1, kSpaceProtocolVersion));
  EXPECT_THAT(MessageOf(CheckSpaceProtocol(0, "node 'b'")), HasSubstr("node 'b' speaks an unnumbered version"));
  EXPECT_FALSE(CheckSpaceProtocol(kSpaceProtocolVersion - 1, "node 'b'").ok());
}

}  // namespace
}  // namespace hk
