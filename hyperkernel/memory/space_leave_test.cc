// A node that leaves a space while it lives: it gives away what it has, and nothing is lost. At any moment, beside
// losses: tests/sim/space_sim_test.cc.
#include <optional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/memory/space_placement.h"
#include "hyperkernel/memory/space_recovery_testing.h"

namespace hk::recovery_testing {
namespace {

using testing::HasSubstr;

using SpaceLeaveTest = SpaceRecoveryTest;

// Everything that the node has reaches the others, whoever is its home, and nothing is called lost.
TEST_F(SpaceLeaveTest, ANodeThatLeavesGivesAwayAllItHas) {
  for (uint64_t extent = 0; extent < 6; ++extent) {
    for (uint64_t page = 0; page < 40; ++page) Write(kC, PageOf(extent, page), static_cast<char>('a' + page % 26));
    EXPECT_EQ(Read(kB, PageOf(extent, 7)), "h");
    Write(kB, PageOf(extent, 41), 'B');
    EXPECT_EQ(Read(kC, PageOf(extent, 41)), "B");
    Write(kC, PageOf(extent, 42), '\0');
  }
  const auto left = [&] { return At(kC).engine->LeavingState(); };
  EXPECT_FALSE(left().leaving);
  EXPECT_EQ(left().pages_left, 6 * 41u);
  Settle();  // holds end
  const auto go = [&](uint64_t epoch) {
    return At(kC).engine->BeginEpoch(
        {.epoch = Epoch(epoch), .survivors = Set({0, 1}), .committed = Epoch(1), .left = Set({2})});
  };
  EXPECT_THAT(go(2).ToString(), HasSubstr("FAILED_PRECONDITION: node 2 is not leaving"));
  At(kC).engine->Leave(true);
  EXPECT_THAT(go(2).ToString(), HasSubstr("FAILED_PRECONDITION: node 2 has "));
  EXPECT_TRUE(At(kC).stopped.ok());
  EXPECT_TRUE(Until([&] { return left().empty(); }));
  EXPECT_THAT(Read(kC, PageOf(9)), HasSubstr("this node is leaving the space"));
  // It is a home still, and gets nothing any more.
  Write(kA, PageOf(8), 'n');
  EXPECT_TRUE(left().empty());
  Begin(2, {0, 1}, 1, {2});
  EXPECT_THAT(At(kC).stopped.ToString(), HasSubstr("node 2 has left the space"));
  nodes_[kC.value()].reset();
  Rebuild(2);
  for (Node* node : Left()) EXPECT_TRUE(node->engine->Commit(Epoch(2)).ok());
  for (Node* node : Left()) EXPECT_TRUE(node->engine->Run(Epoch(2)).ok());
  for (Node* node : Left()) EXPECT_EQ(node->engine->EpochState().pages_lost, 0u);
  for (uint64_t extent = 0; extent < 6; ++extent) {
    for (uint64_t page = 0; page < 40; ++page)
      EXPECT_EQ(Read(kA, PageOf(extent, page)), std::string(1, static_cast<char>('a' + page % 26)));
    EXPECT_EQ(Read(kA, PageOf(extent, 41)), "B");
    EXPECT_EQ(Read(kB, PageOf(extent, 42)), std::string(1, '\0'));
  }
  EXPECT_EQ(Read(kB, PageOf(8)), "n");
  EXPECT_TRUE(At(kA).stopped.ok() && At(kB).stopped.ok());
}

class FourNodesTest : public SpaceRecoveryTest {
 protected:
  FourNodesTest() : SpaceRecoveryTest({kA, kB, kC, kD}) {}
};

// Who becomes a home after two losses has no Lost pages of extents that it never heard of: so it cannot vouch for them.
TEST_F(FourNodesTest, WhatNobodyRemembersStaysLostWhenItsHomeLeaves) {
  const SpacePlacement placement(config_.nodes);
  const NodeSet all = Set({0, 1, 2, 3});
  std::vector<uint64_t> extents;
  for (uint64_t extent = 0; extent < 12; ++extent) {
    const NodeId home = placement.HomeOf(extent, all), second = *placement.SecondOf(extent, all);
    const bool both = Set({1, 3}).Contains(home) && Set({1, 3}).Contains(second);
    if (both && placement.HomeOf(extent, Set({0, 2})) == kC) extents.push_back(extent);
  }
  ASSERT_FALSE(extents.empty());
  for (const uint64_t extent : extents) {
    Write(kA, PageOf(extent), 'a');
    Write(kB, PageOf(extent), 'b');
  }
  Lose(kB);
  Lose(kD);
  GoOn(2, {0, 2});
  At(kC).engine->Leave(true);
  EXPECT_TRUE(Until([&] { return At(kC).engine->LeavingState().empty(); }));
  Begin(3, {0}, 2, {2});
  nodes_[kC.value()].reset();
  Rebuild(3);
  EXPECT_TRUE(At(kA).engine->Commit(Epoch(3)).ok());
  EXPECT_TRUE(At(kA).engine->Run(Epoch(3)).ok());
  for (const uint64_t extent : extents) EXPECT_TRUE(At(kA).engine->IsLost(PageOf(extent))) << extent;
  EXPECT_THAT(Read(kA, PageOf(extents[0])), HasSubstr("it is lost"));
}

TEST_F(SpaceLeaveTest, ANodeThatStaysAfterAllGoesOn) {
  Write(kC, PageOf(0), 'c');
  Write(kA, PageOf(1), 'a');
  Settle();
  At(kC).engine->Leave(true);
  // A program touches a page meanwhile: it waits, also longer than a wish may.
  At(kC).engine->OnFault(PageOf(1), false);
  simulation_.RunUntil(simulation_.Now() + 3 * config_.request_limit);
  EXPECT_TRUE(At(kC).engine->LeavingState().empty());
  EXPECT_TRUE(At(kC).stopped.ok()) << At(kC).stopped;
  EXPECT_EQ(At(kC).engine->RightOf(PageOf(1)), PageRight::kNone);
  At(kC).engine->Leave(false);
  EXPECT_TRUE(Until([&] { return At(kC).engine->RightOf(PageOf(1)) == PageRight::kShared; }));
  EXPECT_EQ(Read(kC, PageOf(0)), "c");
  Write(kC, PageOf(0), 'C');
  EXPECT_EQ(Read(kA, PageOf(0)), "C");
}

// A device has a page as long as it wants.
TEST_F(SpaceLeaveTest, PinsHoldBackANodeThatLeaves) {
  const auto pin = [&](Gfn first, uint64_t count, absl::Status* end) {
    At(kC).engine->Pin(first, count, [end](const absl::Status& status) { *end = status; });
  };
  absl::Status pinned = absl::UnknownError(""), waits = absl::UnknownError("");
  pin(PageOf(0), 2, &pinned);
  ASSERT_TRUE(Until([&] { return pinned.ok(); }));
  // The second of these pages is another node's device's.
  absl::Status other = absl::UnknownError("");
  At(kB).engine->Pin(PageOf(1, 5), 1, [&](const absl::Status& status) { other = status; });
  ASSERT_TRUE(Until([&] { return other.ok(); }));
  pin(PageOf(1, 4), 2, &waits);
  Settle();
  At(kC).engine->Leave(true);
  simulation_.RunUntil(simulation_.Now() + config_.request_limit * 3 / 4);
  EXPECT_EQ(At(kC).engine->LeavingState().pages_left, 4u) << "with the one that is on its way";
  EXPECT_EQ(At(kC).engine->LeavingState().pages_pinned, 3u);
  At(kC).engine->Unpin(PageOf(0), 2);
  // What was asked for before still comes, and a device has it then.
  At(kB).engine->Unpin(PageOf(1, 5), 1);
  ASSERT_TRUE(Until([&] { return waits.ok(); }));
  EXPECT_EQ(At(kC).engine->LeavingState().pages_pinned, 2u);
  absl::Status after;
  At(kC).engine->Pin(PageOf(1, 6), 1, [&](const absl::Status& status) { after = status; });
  EXPECT_TRUE(Until([&] { return !after.ok(); }));
  EXPECT_THAT(after.ToString(), HasSubstr("this node is leaving the space"));
  // Longer than anybody may wait for a page: nobody asks for it.
  simulation_.RunUntil(simulation_.Now() + 3 * config_.request_limit);
  EXPECT_TRUE(At(kA).stopped.ok() && At(kB).stopped.ok() && At(kC).stopped.ok());
  At(kC).engine->Unpin(PageOf(1, 4), 2);
  EXPECT_TRUE(Until([&] { return At(kC).engine->LeavingState().empty(); }));
}

}  // namespace
}  // namespace hk::recovery_testing
