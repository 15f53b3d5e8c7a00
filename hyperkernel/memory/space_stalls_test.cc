// Whom a program's wait is said to have been for: nodes 0 to 2, of which 0 runs the program; messages are delivered
// when the test says so.
#include <cstdint>

#include "gtest/gtest.h"
#include "hyperkernel/memory/space_network_testing.h"

namespace hk {
namespace {

class SpaceStallsTest : public SpaceNetworkTest {
 protected:
  static constexpr uint64_t kOfNode1 = kExtentPages;  // first page of an extent whose home is node 1
  static constexpr uint32_t kNobody = ~uint32_t{0}, kNone = 77;

  void SetUp() override { Make(3); }
  // Whom a program of node 0 that touches the page waits for; kNone: no other node.
  uint32_t HolderOf(uint64_t page, bool write) {
    auto& holders = nodes_[0]->frames.holders;
    holders.clear();
    nodes_[0]->engine->OnFault(Gfn(page), write);
    DeliverAll();
    Pass(std::chrono::milliseconds(20));
    EXPECT_NE(nodes_[0]->engine->RightOf(Gfn(page)), PageRight::kNone);
    const auto found = holders.find(page);
    return found == holders.end() ? kNone : found->second;
  }
};

TEST_F(SpaceStallsTest, APageIsItsOwners) {
  Write(2, kOfNode1, 4);
  EXPECT_EQ(HolderOf(kOfNode1, false), 2u);
  EXPECT_EQ(HolderOf(kOfNode1 + 2, true), 2u);
  // Of an extent whose home is here, and one whose owner is its home.
  Write(2, 0, 1);
  EXPECT_EQ(HolderOf(0, false), 2u);
  Write(1, kOfNode1 + 9, 1);
  EXPECT_EQ(HolderOf(kOfNode1 + 9, false), 1u);
}

TEST_F(SpaceStallsTest, WhatIsPeekedIsThePeekedOwners) {
  Write(2, kOfNode1, 200);
  for (const uint64_t page : {3, 90, 41, 160}) EXPECT_EQ(HolderOf(kOfNode1 + page, false), 2u) << page;
  EXPECT_GT(Of(0).peeks_used, 0u);
}

TEST_F(SpaceStallsTest, ARightToWriteIsTheirsWhoHaveThePage) {
  Write(2, kOfNode1, 1);
  EXPECT_EQ(HolderOf(kOfNode1, false), 2u);
  EXPECT_EQ(HolderOf(kOfNode1, true), 2u) << "the owner";
  for (const size_t reader : {1, 2}) {
    nodes_[reader]->engine->OnFault(Gfn(kOfNode1), false);
    DeliverAll();
    Pass(std::chrono::milliseconds(20));
    ASSERT_EQ(nodes_[0]->engine->RightOf(Gfn(kOfNode1)), PageRight::kOwner);
    EXPECT_EQ(HolderOf(kOfNode1, true), reader) << "who has a copy, also the home";
  }
}

TEST_F(SpaceStallsTest, WhatNobodyHadIsNobodys) {
  EXPECT_EQ(HolderOf(kOfNode1, true), kNobody);
  EXPECT_EQ(HolderOf(kOfNode1 + 1, false), kNobody);
}

TEST_F(SpaceStallsTest, WhatNoOtherNodeHasToDoWithIsNoWait) {
  EXPECT_EQ(HolderOf(0, true), kNone);
  EXPECT_EQ(HolderOf(0, false), kNone);
  // Nor what no program waits for.
  Write(2, kOfNode1, 1);
  nodes_[0]->frames.holders.clear();
  nodes_[0]->engine->Want(Gfn(kOfNode1), PageAccess::kRead, [](const absl::Status&) {});
  DeliverAll();
  EXPECT_TRUE(nodes_[0]->frames.holders.empty());
}

TEST_F(SpaceStallsTest, InAScanToo) {
  Write(2, kOfNode1, kExtentPages);
  nodes_[0]->frames.holders.clear();
  // Each page is touched before what was asked for with it is here.
  for (uint64_t page = kOfNode1; page < kOfNode1 + kExtentPages; ++page) {
    if (!nodes_[0]->frames.pages.contains(page)) nodes_[0]->engine->OnFault(Gfn(page), false);
    if (page % 3 == 0) DeliverAll();
  }
  DeliverAll();
  Pass(std::chrono::milliseconds(20));
  EXPECT_GT(Of(0).batches, 3u);
  EXPECT_GT(nodes_[0]->frames.holders.size(), 5u);
  for (const auto& [page, holder] : nodes_[0]->frames.holders) EXPECT_EQ(holder, 2u) << page;
}

}  // namespace
}  // namespace hk
