// Nodes that join a space: engines over simulated transports, whose steps the test calls as their coordinator does.
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/memory/space_recovery_testing.h"

namespace hk::recovery_testing {
namespace {

using testing::HasSubstr;

// Nodes a, b and c; d joins.
class JoinTest : public SpaceRecoveryTest {
 protected:
  JoinTest() : SpaceRecoveryTest({kA, kB, kC, kD}, 3) {}
  // By epoch `epoch`, with all that live; `history`: who took part in the epochs before.
  void Join(uint64_t epoch, const std::vector<uint16_t>& survivors, std::vector<NodeSet> history) {
    config_.self = kD;
    config_.epoch = Epoch(epoch - 1);
    config_.live = history.back();
    config_.committed = std::move(history);
    nodes_.push_back(std::make_unique<Node>(&simulation_, &network_, config_));
    Settle();
    for (Node* node : Left()) {
      const absl::Status begun = node->engine->BeginEpoch(
          {.epoch = Epoch(epoch), .survivors = Set(survivors), .committed = Epoch(epoch - 1), .joined = Set({3})});
      EXPECT_TRUE(begun.ok()) << begun;
    }
    Rebuild(epoch);
    for (Node* node : Left()) EXPECT_TRUE(node->engine->Commit(Epoch(epoch)).ok());
    for (Node* node : Left()) EXPECT_TRUE(node->engine->Run(Epoch(epoch)).ok());
  }
};

TEST_F(JoinTest, ANodeTakesPartAndIsHome) {
  for (uint64_t extent = 0; extent < 8; ++extent) {
    Write(extent % 2 == 0 ? kB : kC, PageOf(extent), static_cast<char>('a' + extent));
    EXPECT_EQ(Read(kA, PageOf(extent, 9)), std::string(1, '\0'));
  }
  Join(2, {0, 1, 2, 3}, {Set({0, 1, 2})});
  size_t homes = 0;
  for (uint64_t extent = 0; extent < 8; ++extent) homes += At(kA).engine->HomeOf(PageOf(extent)) == kD ? 1 : 0;
  EXPECT_EQ(homes, 2u);
  for (uint64_t extent = 0; extent < 8; ++extent) {
    EXPECT_EQ(Read(kD, PageOf(extent)), std::string(1, static_cast<char>('a' + extent)));
    EXPECT_EQ(Read(kB, PageOf(extent, 10)), std::string(1, '\0'));
    Write(kD, PageOf(extent), static_cast<char>('A' + extent));
    EXPECT_EQ(Read(kC, PageOf(extent)), std::string(1, static_cast<char>('A' + extent)));
  }
  for (Node* node : Left()) {
    EXPECT_TRUE(node->stopped.ok()) << node->stopped;
    EXPECT_EQ(node->engine->EpochState().pages_lost, 0u);
  }
}

// What was lost before stays so, also where the new node is the home now, and it knows with whom.
TEST_F(JoinTest, WhatIsLostIsHandedOver) {
  for (uint64_t extent = 0; extent < 12; ++extent) {
    Write(kC, PageOf(extent), 'c');
    Write(kB, PageOf(extent, 4), 'b');
  }
  Lose(kC);
  GoOn(2, {0, 1});
  Join(3, {0, 1, 3}, {Set({0, 1, 2}), Set({0, 1})});
  size_t homes = 0;
  for (uint64_t extent = 0; extent < 12; ++extent) {
    Node& home = At(At(kA).engine->HomeOf(PageOf(extent)));
    homes += &home == &At(kD) ? 1 : 0;
    EXPECT_TRUE(home.engine->IsLost(PageOf(extent))) << extent;
    EXPECT_EQ(Read(kD, PageOf(extent, 4)), "b");
    EXPECT_EQ(Read(kD, PageOf(extent, 5)), std::string(1, '\0'));
  }
  EXPECT_GT(homes, 2u);
  uint64_t lost = 0;
  for (Node* node : Left()) lost += node->engine->EpochState().pages_lost;
  EXPECT_EQ(lost, 12u);
  EXPECT_THAT(Read(kB, PageOf(3)), HasSubstr("node 2 had its only copy"));
}

}  // namespace
}  // namespace hk::recovery_testing
