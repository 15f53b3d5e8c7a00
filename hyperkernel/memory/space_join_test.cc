// Nodes that join a space: engines over simulated transports, whose steps the test calls as their coordinator does.
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/memory/recovery_wire.h"
#include "hyperkernel/memory/space_placement.h"
#include "hyperkernel/memory/space_recovery_testing.h"

namespace hk::recovery_testing {
namespace {

using testing::HasSubstr;

// Nodes a, b and c; d joins. The last extent has twelve pages only, and d is to be its home.
class JoinTest : public SpaceRecoveryTest {
 protected:
  JoinTest() : SpaceRecoveryTest({kA, kB, kC, kD}, 3, 7 * kExtentPages + 12) {}
  // The node comes, to join after epoch `epoch`; `history`: who took part in the epochs before.
  void Come(NodeId node, uint64_t epoch, std::vector<NodeSet> history) {
    config_.self = node;
    config_.epoch = Epoch(epoch);
    config_.live = history.back();
    config_.committed = std::move(history);
    if (nodes_.size() <= node.value()) nodes_.resize(node.value() + 1);
    nodes_[node.value()] = std::make_unique<Node>(&simulation_, &network_, config_);
    Settle();
  }
  void BeginJoin(NodeId node, uint64_t epoch, const std::vector<uint16_t>& survivors, uint64_t committed) {
    for (Node* each : Left()) {
      const absl::Status begun = each->engine->BeginEpoch({.epoch = Epoch(epoch),
                                                           .survivors = Set(survivors),
                                                           .committed = Epoch(committed),
                                                           .joined = NodeSet::Of(node)});
      EXPECT_TRUE(begun.ok()) << begun;
    }
  }
  void Hold(uint64_t epoch) {
    Rebuild(epoch);
    for (Node* node : Left()) EXPECT_TRUE(node->engine->Commit(Epoch(epoch)).ok());
    for (Node* node : Left()) EXPECT_TRUE(node->engine->Run(Epoch(epoch)).ok());
  }
  // By epoch `epoch`, with all that live.
  void Join(uint64_t epoch, const std::vector<uint16_t>& survivors, std::vector<NodeSet> history, NodeId node = kD) {
    Come(node, epoch - 1, std::move(history));
    BeginJoin(node, epoch, survivors, epoch - 1);
    Hold(epoch);
  }
  // It goes, and the others go on without it by `epoch`; nothing is lost.
  void GoOnWithout(NodeId node, uint64_t epoch, const std::vector<uint16_t>& survivors, uint64_t committed) {
    network_.Crash(node, true);
    nodes_[node.value()].reset();
    Begin(epoch, survivors, committed, {node.value()});
    Hold(epoch);
  }
  uint64_t PagesLost() {
    uint64_t lost = 0;
    for (Node* node : Left()) lost += node->engine->EpochState().pages_lost;
    return lost;
  }
  void ExpectAllGoOn() {
    for (Node* node : Left()) EXPECT_TRUE(node->stopped.ok()) << node->stopped;
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
  for (uint64_t extent = 0; extent < 8; ++extent) {
    Write(kC, PageOf(extent), 'c');
    Write(kB, PageOf(extent, 4), 'b');
  }
  Lose(kC);
  GoOn(2, {0, 1});
  Join(3, {0, 1, 3}, {Set({0, 1, 2}), Set({0, 1})});
  size_t homes = 0;
  for (uint64_t extent = 0; extent < 8; ++extent) {
    Node& home = At(At(kA).engine->HomeOf(PageOf(extent)));
    homes += &home == &At(kD) ? 1 : 0;
    EXPECT_TRUE(home.engine->IsLost(PageOf(extent))) << extent;
    EXPECT_EQ(Read(kD, PageOf(extent, 4)), "b");
    EXPECT_EQ(Read(kD, PageOf(extent, 5)), std::string(1, '\0'));
  }
  EXPECT_GT(homes, 2u);
  EXPECT_EQ(PagesLost(), 8u);
  EXPECT_THAT(Read(kB, PageOf(3)), HasSubstr("node 2 had its only copy"));
}

// What was ever written is known to the new home, so that a later loss is none of zeroes.
TEST_F(JoinTest, WhatWasWrittenIsHandedOver) {
  for (uint64_t extent = 0; extent < 8; ++extent) Write(kC, PageOf(extent), 'c');
  Join(2, {0, 1, 2, 3}, {Set({0, 1, 2})});
  Lose(kC);
  Begin(3, {0, 1, 3}, 2);
  Hold(3);
  for (uint64_t extent = 0; extent < 8; ++extent) {
    EXPECT_TRUE(At(At(kA).engine->HomeOf(PageOf(extent))).engine->IsLost(PageOf(extent))) << extent;
  }
  EXPECT_EQ(PagesLost(), 8u);
  ExpectAllGoOn();
}

// Home and second of the last extent are lost together, so that all of it is Lost; and then its home moves to one that
// joins. It has fewer pages than others.
TEST_F(JoinTest, WhatIsForgottenIsHandedOverUpToTheEndOfTheSpace) {
  const Gfn last(config_.pages - 1);
  Write(kA, last, 'a');
  Lose(kB);
  Lose(kC);
  GoOn(2, {0});
  EXPECT_EQ(Read(kA, last), "a");
  Join(3, {0, 3}, {Set({0, 1, 2}), Set({0})});
  EXPECT_EQ(At(kA).engine->HomeOf(last), kD);
  EXPECT_EQ(Read(kD, last), "a");
  EXPECT_TRUE(At(kD).engine->IsLost(Gfn(config_.pages - 2)));
  ExpectAllGoOn();
  EXPECT_THAT(Read(kD, Gfn(config_.pages - 2)), HasSubstr("it is lost"));
}

// Before its epoch holds, a joiner's end is its own, whatever the reason.
TEST_F(JoinTest, AJoinersEndIsNobodyElses) {
  for (uint64_t extent = 0; extent < 8; ++extent) Write(extent % 2 == 0 ? kB : kC, PageOf(extent), 'x');
  Come(kD, 1, {Set({0, 1, 2})});
  BeginJoin(kD, 2, {0, 1, 2, 3}, 1);
  At(kD).engine->Stop(absl::InternalError("its frames fail"));
  Settle();
  for (const NodeId node : {kA, kB, kC}) EXPECT_TRUE(At(node).stopped.ok()) << At(node).stopped;
  GoOnWithout(kD, 3, {0, 1, 2}, 1);
  for (uint64_t extent = 0; extent < 8; ++extent) EXPECT_EQ(Read(kA, PageOf(extent)), "x");
  EXPECT_EQ(PagesLost(), 0u);
  // Another one of it, which loses the coordinator.
  Come(kD, 3, {Set({0, 1, 2})});
  BeginJoin(kD, 4, {0, 1, 2, 3}, 3);
  network_.Cut(kA, kD);
  EXPECT_TRUE(Until([&] { return !At(kD).stopped.ok() && !At(kA).lost.empty(); }));
  Settle();
  for (const NodeId node : {kA, kB, kC}) EXPECT_TRUE(At(node).stopped.ok()) << At(node).stopped;
  network_.Heal(kA, kD);
  GoOnWithout(kD, 5, {0, 1, 2}, 3);
  // And one that does.
  Join(6, {0, 1, 2, 3}, {Set({0, 1, 2})});
  for (uint64_t extent = 0; extent < 8; ++extent) EXPECT_EQ(Read(kD, PageOf(extent)), "x");
  ExpectAllGoOn();
}

// It is told of as a failure, and nothing else: the coordinator begins anew without it.
TEST_F(JoinTest, AJoinerThatSaysWhatItCannotIsAsGood) {
  Write(kB, PageOf(0), 'b');
  Come(kD, 1, {Set({0, 1, 2})});
  BeginJoin(kD, 2, {0, 1, 2, 3}, 1);
  Message message;
  message.message_class = MessageClass::kBulk;
  message.type = kReportType;
  message.guest = config_.guest;
  message.generation = config_.generation;
  message.epoch = Epoch(2);
  message.gfn = PageOf(0);
  const std::vector<PageRun> runs{{.first = 3, .count = 1, .right = PageRight::kExclusive}};
  const std::vector<std::string> bodies = EncodeRuns(runs);
  message.body = std::as_bytes(std::span(bodies[0]));
  const NodeId home = At(kA).engine->HomeOf(PageOf(0));
  Node& target = home == kD ? At(kB) : At(home);
  target.engine->OnMessage(kD, message, {}, false);
  EXPECT_TRUE(target.stopped.ok()) << target.stopped;
  EXPECT_THAT(target.lost, testing::ElementsAre(kD));
  GoOnWithout(kD, 3, {0, 1, 2}, 1);
  EXPECT_EQ(Read(kA, PageOf(0)), "b");
  ExpectAllGoOn();
}

// One that was lost and comes again: what was lost with it is so still, and with it; nothing else is.
TEST_F(JoinTest, ALostNodeComesAgain) {
  for (uint64_t extent = 0; extent < 8; ++extent) {
    Write(kC, PageOf(extent), 'c');
    Write(kB, PageOf(extent, 4), 'b');
  }
  Lose(kC);
  GoOn(2, {0, 1});
  // It does not join at first: it is no other loss for that.
  Come(kC, 2, {Set({0, 1, 2}), Set({0, 1})});
  BeginJoin(kC, 3, {0, 1, 2}, 2);
  GoOnWithout(kC, 4, {0, 1}, 2);
  EXPECT_EQ(PagesLost(), 8u);
  Join(5, {0, 1, 2}, {Set({0, 1, 2}), Set({0, 1})}, kC);
  EXPECT_EQ(PagesLost(), 8u);
  for (uint64_t extent = 0; extent < 8; ++extent) {
    EXPECT_EQ(Read(kC, PageOf(extent, 4)), "b");
    Write(kC, PageOf(extent, 5), 'C');
    EXPECT_EQ(Read(kA, PageOf(extent, 5)), "C");
    EXPECT_TRUE(At(At(kA).engine->HomeOf(PageOf(extent))).engine->IsLost(PageOf(extent))) << extent;
  }
  ExpectAllGoOn();
  EXPECT_THAT(Read(kB, PageOf(3)), HasSubstr("node 2 had its only copy"));
}

TEST(SpaceEngine, FramesAreReservedForAllPagesThatMayComeBack) {
  const TransportSettings settings;
  EXPECT_GE(kMostReturningPages, settings.fault_send_slots + settings.bulk_send_slots);
}

TEST(SpacePlacement, SetsThatSayNothingAreNotKept) {
  const auto all = [](const std::vector<NodeSet>& epochs) {
    std::vector<NodeSet> kept;
    for (const NodeSet epoch : epochs) AddSet(&kept, epoch);
    return kept;
  };
  const NodeSet abcd = Set({0, 1, 2, 3}), abc = Set({0, 1, 2}), ab = Set({0, 1}), a = Set({0});
  using testing::ElementsAre;
  EXPECT_THAT(all({abcd, abc, abcd, abc, abc, ab, abc, abcd}), ElementsAre(abcd)) << "one after another";
  EXPECT_THAT(all({abcd, ab}), ElementsAre(abcd, ab));
  EXPECT_THAT(all({abcd, ab, abc, abcd, abc, abcd}), ElementsAre(abcd, ab, abcd));
  EXPECT_THAT(all({ab, a}), ElementsAre(a));
  EXPECT_THAT(all({abc, abcd, abc, ab}), ElementsAre(ab)) << "never two at once";
  // It says of each extent what all of them say.
  const SpacePlacement placement({kA, kB, kC, kD});
  uint64_t random = 1;
  for (int turn = 0; turn < 2000; ++turn) {
    std::vector<NodeSet> epochs, kept;
    for (int i = 0; i < 12; ++i) {
      random = random * 6364136223846793005U + 1442695040888963407U;
      epochs.emplace_back(1 | (random >> 60));
      AddSet(&kept, epochs.back());
    }
    EXPECT_EQ(kept.back(), epochs.back());
    for (uint64_t extent = 0; extent < 12; ++extent) {
      ASSERT_EQ(placement.IsForgotten(extent, kept), placement.IsForgotten(extent, epochs)) << turn;
    }
  }
}

}  // namespace
}  // namespace hk::recovery_testing
