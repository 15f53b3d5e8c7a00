// The parts of recovery that are pure, and three engines over simulated transports, one of which is lost at a chosen
// moment. At any moment: tests/sim/space_sim_test.cc.
#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/memory/recovery_wire.h"
#include "hyperkernel/memory/space_placement.h"
#include "hyperkernel/memory/space_recovery_testing.h"

namespace hk::recovery_testing {
namespace {

using testing::HasSubstr;

TEST(SpacePlacement, AHomeMovesOnlyWhenItsNodeIsLostAndToItsSecond) {
  const std::vector<NodeId> nodes{NodeId(1), NodeId(4), NodeId(5), NodeId(9)};
  const SpacePlacement placement(nodes);
  const NodeSet all = Set({1, 4, 5, 9});
  std::map<uint16_t, int> homes, heirs;
  for (uint64_t extent = 0; extent < 1200; ++extent) {
    const NodeId home = placement.HomeOf(extent, all);
    const NodeId second = *placement.SecondOf(extent, all);
    ASSERT_NE(home, second);
    ++homes[home.value()];
    for (const NodeId lost : nodes) {
      NodeSet live = all;
      live.Remove(lost);
      const NodeId now = placement.HomeOf(extent, live);
      ASSERT_EQ(now, lost == home ? second : home);
      if (lost == home && home == NodeId(5)) ++heirs[now.value()];
      EXPECT_FALSE(placement.IsForgotten(extent, std::vector<NodeSet>{all, live}));
    }
    NodeSet neither = all;
    neither.Remove(home);
    neither.Remove(second);
    EXPECT_TRUE(placement.IsForgotten(extent, std::vector<NodeSet>{all, neither}));
    NodeSet one = all;
    one.Remove(home);
    EXPECT_FALSE(placement.IsForgotten(extent, std::vector<NodeSet>{all, one, neither}));
  }
  for (const NodeId node : nodes) EXPECT_EQ(homes[node.value()], 300);
  // What a lost node was home of is shared among the others.
  for (const uint16_t heir : {1, 4, 9}) EXPECT_EQ(heirs[heir], 100);
  EXPECT_FALSE(placement.SecondOf(3, Set({4})).has_value());
}

TEST(SpacePlacement, OneNodeMayBeTheFirstHomeOfAll) {
  const std::vector<NodeId> nodes{NodeId(1), NodeId(4), NodeId(5)};
  const SpacePlacement placement(nodes, NodeId(4));
  std::map<uint16_t, int> seconds;
  for (uint64_t extent = 0; extent < 600; ++extent) {
    EXPECT_EQ(placement.HomeOf(extent, Set({1, 4, 5})), NodeId(4));
    const NodeId second = *placement.SecondOf(extent, Set({1, 4, 5}));
    ++seconds[second.value()];
    EXPECT_EQ(placement.HomeOf(extent, Set({1, 5})), second);
    EXPECT_EQ(placement.HomeOf(extent, Set({4, 5})), NodeId(4));
    EXPECT_EQ(placement.SecondOf(extent, Set({4, 5})), NodeId(5));
    EXPECT_FALSE(placement.SecondOf(extent, Set({4})).has_value());
  }
  EXPECT_GE(seconds[1], 200);
  EXPECT_GE(seconds[5], 200);
  EXPECT_EQ(seconds[1] + seconds[5], 600);
}

TEST(RecoveryWire, RunsComeBackAsTheyWere) {
  std::vector<PageRun> runs;
  for (uint16_t page = 0; page < kExtentPages; page = static_cast<uint16_t>(page + 2)) {
    PageRun run{.first = page, .count = 1, .right = static_cast<PageRight>(page / 2 % 4)};
    if (page % 5 == 0) {
      run.retained = true;
      run.retained_serial = 0x123456789abcdef0 + page;
      run.retained_for = NodeId(static_cast<uint16_t>(page % 64));
    }
    if (page % 7 == 0) run.evicting = PageRight::kOwner;
    runs.push_back(run);
  }
  std::vector<PageRun> decoded;
  for (const std::string& body : EncodeRuns(runs)) {
    ASSERT_LE(body.size(), kMaxBodyBytes);
    const auto part = DecodeRuns(std::as_bytes(std::span(body)));
    ASSERT_TRUE(part.ok()) << part.status();
    decoded.insert(decoded.end(), part->begin(), part->end());
    // Every other length is refused, or is fewer runs.
    for (size_t size = 0; size < body.size(); ++size) {
      const auto cut = DecodeRuns(std::as_bytes(std::span(body)).first(size));
      EXPECT_TRUE(!cut.ok() || cut->size() < part->size());
    }
  }
  EXPECT_EQ(decoded, runs);
  const PageRun whole{.first = 0, .count = kExtentPages, .right = PageRight::kExclusive};
  const std::vector<std::string> one = EncodeRuns(std::span(&whole, 1));
  ASSERT_EQ(one.size(), 1u);
  EXPECT_EQ(one[0].size(), 4u);
  EXPECT_EQ(DecodeRuns(std::as_bytes(std::span(one[0])))->front(), whole);
  EXPECT_FALSE(DecodeRuns({}).ok());
  // Beyond the extent, not ascending, bits that mean nothing.
  for (const std::string& body :
       {std::string("\xff\x03\x00\x00", 4), std::string("\x05\0\0\0\x04\0\0\0", 8), std::string("\0\0\0\x80", 4)}) {
    EXPECT_FALSE(DecodeRuns(std::as_bytes(std::span(body))).ok());
  }
}

TEST_F(SpaceRecoveryTest, EachRowOfTheTable) {
  // With each home: written by b; the same and read by c; written by c and read by b; written by c; only read by c.
  for (uint64_t extent = 0; extent < 3; ++extent) {
    Write(kB, PageOf(extent, 1), 'b');
    Write(kB, PageOf(extent, 2), 'B');
    EXPECT_EQ(Read(kC, PageOf(extent, 2)), "B");
    Write(kC, PageOf(extent, 3), 'C');
    EXPECT_EQ(Read(kB, PageOf(extent, 3)), "C");
    Write(kC, PageOf(extent, 4), 'c');
    EXPECT_EQ(Read(kC, PageOf(extent, 5)), std::string(1, '\0'));
  }
  Lose(kC);
  GoOn(2, {0, 1});
  uint64_t lost = 0;
  for (Node* node : Left()) lost += node->engine->EpochState().pages_lost;
  EXPECT_EQ(lost, 3u);
  uint64_t with_c = 0;
  for (Node* node : Left()) {
    const std::map<NodeId, uint64_t> with = node->engine->EpochState().pages_lost_with;
    for (const auto& [who, pages] : with) with_c += who == kC ? pages : 100;
  }
  EXPECT_EQ(with_c, 3u);
  for (uint64_t extent = 0; extent < 3; ++extent) {
    EXPECT_NE(At(kA).engine->HomeOf(PageOf(extent)), kC);
    EXPECT_EQ(At(kA).engine->HomeOf(PageOf(extent)), At(kB).engine->HomeOf(PageOf(extent)));
    EXPECT_EQ(Read(kA, PageOf(extent, 1)), "b");
    EXPECT_EQ(Read(kA, PageOf(extent, 2)), "B");
    EXPECT_EQ(Read(kA, PageOf(extent, 3)), "C");
    EXPECT_EQ(Read(kA, PageOf(extent, 5)), std::string(1, '\0'));
    EXPECT_EQ(Read(kB, PageOf(extent, 6)), std::string(1, '\0'));
    Write(kA, PageOf(extent, 3), 'n');
    EXPECT_EQ(Read(kB, PageOf(extent, 3)), "n");
    EXPECT_TRUE(At(kA).engine->IsLost(PageOf(extent, 4)) || At(kB).engine->IsLost(PageOf(extent, 4)));
  }
  EXPECT_TRUE(At(kA).stopped.ok());
  const std::string what = fmt::format(
      "node 0, page at GPA {:#x}: it is lost: node 2 had its only copy, and is lost since 2026-01-01 00:00:",
      GpaOf(PageOf(2, 4)).value());
  EXPECT_THAT(Read(kA, PageOf(2, 4)), HasSubstr(what));
  EXPECT_TRUE(Until([&] { return !At(kB).stopped.ok(); }));
  EXPECT_THAT(At(kB).stopped.ToString(), HasSubstr(what));
}

// What is only fetched ahead stops nobody, alone or in a batch.
TEST_F(SpaceRecoveryTest, ALostPageIsNeededByWhoeverTouchesItOnly) {
  for (const uint64_t lost : {uint64_t{0}, uint64_t{8}, uint64_t{9}}) Write(kC, PageOf(1, lost), 'c');
  for (uint64_t page = 0; page < 12; ++page) Write(kB, PageOf(0, kExtentPages - 12 + page), 'b');
  Lose(kC);
  GoOn(2, {0, 1});
  for (uint64_t page = 0; page < 12; ++page) {
    At(kA).engine->OnFault(PageOf(0, kExtentPages - 12 + page), false);
    Settle();
  }
  for (uint64_t page = 1; page < 8; ++page) {
    At(kA).engine->OnFault(PageOf(1, page), false);
    Settle();
  }
  EXPECT_GT(At(kA).engine->Statistics().prefetched, 0u);
  EXPECT_TRUE(At(kA).stopped.ok()) << At(kA).stopped;
  EXPECT_EQ(At(kA).engine->Residue().prefetches, 0u);
  EXPECT_THAT(Read(kA, PageOf(1, 0)), HasSubstr("it is lost"));
}

// A home that was lost itself took its knowledge with it: then all that were lost are named, with the time of each.
class LostWithTest : public SpaceRecoveryTest, public testing::WithParamInterface<bool> {};

TEST_P(LostWithTest, ALostPageNamesTheNodeThatHadIt) {
  const bool known = GetParam();
  const Gfn kept = PageOf(0, 4), forgotten = PageOf(1, 4);  // their homes: a, b
  Write(kC, kept, 'c');
  Write(kC, forgotten, 'c');
  Lose(kC);
  GoOn(2, {0, 1});
  simulation_.RunUntil(simulation_.Now() + std::chrono::seconds(100));
  At(kA).lost.clear();
  Lose(kB);
  Begin(3, {0}, 2);
  Rebuild(3);
  EXPECT_TRUE(At(kA).engine->Commit(Epoch(3)).ok());
  EXPECT_TRUE(At(kA).engine->Run(Epoch(3)).ok());
  EXPECT_EQ(At(kA).engine->EpochState().pages_lost, 2u);
  EXPECT_EQ(At(kA).engine->EpochState().pages_lost_with, (std::map<NodeId, uint64_t>{{kC, 1}}));
  const std::string said = Read(kA, known ? kept : forgotten);
  if (known) {
    EXPECT_THAT(said, HasSubstr("it is lost: node 2 had its only copy, and is lost since 2026-01-01 00:00:"));
  } else {
    EXPECT_THAT(said, HasSubstr("it is lost: one of node 1 (lost since 2026-01-01 00:01:"));
    EXPECT_THAT(said, HasSubstr("Z), node 2 (lost since 2026-01-01 00:00:"));
  }
}
INSTANTIATE_TEST_SUITE_P(Known, LostWithTest, testing::Bool());

TEST_F(SpaceRecoveryTest, WhatLeftAndDidNotArriveIsStillWhereItWas) {
  const Gfn page = PageOf(2, 1);  // its home is c
  Write(kB, page, 'b');
  Settle();
  std::string end;
  At(kA).engine->Want(page, PageAccess::kWrite, [&](const absl::Status& status) { end = status.ToString(); });
  ASSERT_TRUE(Until([&] { return At(kB).engine->RightOf(page) == PageRight::kNone; }));
  ASSERT_EQ(At(kA).engine->RightOf(page), PageRight::kNone);
  network_.Crash(kC, true);
  nodes_[kC.value()].reset();
  GoOn(2, {0, 1});
  EXPECT_TRUE(Until([&] { return !end.empty(); }));
  EXPECT_EQ(end, "OK");
  EXPECT_EQ(Read(kB, page), "b");
}

TEST_F(SpaceRecoveryTest, WishesWaitForTheEpochAndThenAskAgain) {
  Write(kC, PageOf(1, 1), 'c');
  EXPECT_EQ(Read(kB, PageOf(1, 1)), "c");
  Lose(kC);
  // At a dead home, and for a page of a dead owner.
  std::vector<std::string> ends;
  for (const Gfn page : {PageOf(2, 9), PageOf(1, 1)}) {
    At(kA).engine->Want(page, PageAccess::kWrite,
                        [&](const absl::Status& status) { ends.push_back(status.ToString()); });
  }
  simulation_.RunUntil(simulation_.Now() + std::chrono::seconds(4));
  EXPECT_TRUE(ends.empty());
  GoOn(2, {0, 1});
  EXPECT_TRUE(Until([&] { return ends.size() == 2; }));
  EXPECT_THAT(ends, testing::Each("OK"));
  Settle();
  for (Node* node : Left()) {
    EXPECT_EQ(node->engine->Residue().active_pages + node->engine->Residue().busy_entries, 0u);
    const TransportStatistics slots = node->transport->Statistics();
    EXPECT_EQ(slots.slots_lent + slots.slots_in_flight + slots.slots_sending + slots.slots_quarantined, 0u);
  }
}

// As if it had been between the transport and the engine when the epoch changed.
TEST_F(SpaceRecoveryTest, WhatIsOfAnOldEpochIsDropped) {
  Lose(kC);
  GoOn(2, {0, 1});
  PageMessage done;
  done.type = PageMessageType::kDone;
  done.transaction = 5;
  Message message;
  SetPageHeader(done, &message);
  const PageBody body = EncodePageBody(done);
  message.body = body.span();
  message.guest = config_.guest;
  message.generation = config_.generation;
  message.gfn = PageOf(0);
  const auto stale = [&] { return At(kA).engine->Statistics().stale_messages; };
  message.epoch = Epoch(1);
  At(kA).engine->OnMessage(kB, message, {}, false);
  EXPECT_EQ(stale(), 0u);
  message.epoch = Epoch(2);
  At(kA).engine->OnMessage(kC, message, {}, false);
  EXPECT_EQ(stale(), 0u);
  At(kA).engine->OnMessage(kB, message, {}, false);
  EXPECT_EQ(stale(), 1u);
  EXPECT_TRUE(At(kA).stopped.ok());
}

// What no correct node sends.
TEST_F(SpaceRecoveryTest, WrongMessagesStopTheSpaceNamingTheSender) {
  Message message;
  message.message_class = MessageClass::kBulk;
  message.guest = config_.guest;
  message.generation = config_.generation;
  message.epoch = config_.epoch;
  const std::string run("\x05\0\0\0", 4);
  // A report while no epoch changes; a node that is not the home; not an extent; malformed.
  const std::vector<std::tuple<uint16_t, uint64_t, std::string, std::string>> wrong{
      {kReportType, 0, run, "no epoch changes"},
      {kReportType, 1, run, "the page's home is node 1"},
      {kReconcileType, 2, run, "the page's home is node 2"},
      {kReconcileType, 1, run, "no epoch changes"},
      {kWrittenType, 1, run, "malformed"},
      {kMirrorType, 1, run, "malformed"},
      {kMirroredType, 0, run, "malformed"},
      {kMirrorType, 1000, run, "not in the space"}};
  for (const auto& [type, extent, body, says] : wrong) {
    config_.self = kA;
    FakeFrames frames;
    absl::Status stopped;
    auto engine = *SpaceEngine::Create(config_, At(kA).transport.get(), &frames, &At(kA), simulation_,
                                       [&](const absl::Status& why) { stopped = why; });
    message.type = type;
    message.gfn = Gfn(extent * kExtentPages);
    message.body = std::as_bytes(std::span(body));
    engine->OnMessage(kB, message, {}, false);
    EXPECT_THAT(stopped.ToString(), HasSubstr("node 1 sent a message of type"));
    EXPECT_THAT(stopped.ToString(), HasSubstr(says));
  }
}

TEST_F(SpaceRecoveryTest, NoEpochComes) {
  Lose(kC);
  EXPECT_TRUE(Until([&] { return !At(kA).stopped.ok() && !At(kB).stopped.ok(); }));
  EXPECT_THAT(At(kA).stopped.ToString(), HasSubstr("node 2 failed"));
  EXPECT_THAT(At(kA).stopped.ToString(), HasSubstr("no new epoch came within 5000 ms"));
}

TEST_F(SpaceRecoveryTest, TheCoordinatorsLossStopsTheSpace) {
  Lose(kA);
  EXPECT_THAT(At(kB).stopped.ToString(), HasSubstr("node 0 failed"));
  EXPECT_THAT(At(kC).stopped.ToString(), HasSubstr("node 0 "));
}

TEST_F(SpaceRecoveryTest, WhoIsNoSurvivorStopsWithAReason) {
  EXPECT_FALSE(At(kB).engine->BeginEpoch({.epoch = Epoch(2), .survivors = Set({0, 2}), .committed = Epoch(1)}).ok());
  EXPECT_THAT(At(kB).stopped.ToString(), HasSubstr("node 1 was declared lost in epoch 2"));
  // It tells nobody: the others go on.
  Settle();
  EXPECT_TRUE(At(kA).stopped.ok());
  EXPECT_TRUE(At(kC).stopped.ok());
}

TEST_F(SpaceRecoveryTest, StepsOutOfOrder) {
  SpaceEngine& engine = *At(kA).engine;
  const auto begin = [&](uint64_t epoch, const std::vector<uint16_t>& survivors) {
    return engine.BeginEpoch({.epoch = Epoch(epoch), .survivors = Set(survivors), .committed = Epoch(1)}).code();
  };
  EXPECT_EQ(begin(1, {0, 1}), absl::StatusCode::kAborted);
  EXPECT_EQ(begin(2, {0, 1, 3}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(engine.Commit(Epoch(2)).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(begin(2, {0, 1}), absl::StatusCode::kOk);
  EXPECT_EQ(engine.Commit(Epoch(2)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(engine.Run(Epoch(2)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(begin(2, {0, 1}), absl::StatusCode::kAborted);
  // A lost node does not come back.
  EXPECT_EQ(begin(3, {0, 1, 2}), absl::StatusCode::kInvalidArgument);
  // A survivor that this node has lost.
  Lose(kB);
  EXPECT_EQ(begin(3, {0, 1}), absl::StatusCode::kUnavailable);
  EXPECT_EQ(begin(3, {0}), absl::StatusCode::kOk);
  EXPECT_TRUE(At(kA).stopped.ok());
}

TEST_F(SpaceRecoveryTest, ALossBeforeTheCommitBeginsAnewAndOneAfterItHolds) {
  for (const bool committed : {false, true}) {
    SCOPED_TRACE(committed);
    const uint64_t epoch = committed ? 4 : 2;
    if (!committed) {
      Write(kB, PageOf(2, 1), 'x');
      EXPECT_EQ(Read(kC, PageOf(2, 1)), "x");
      Lose(kC);
      Begin(epoch, {0, 1}, 1);
      Rebuild(epoch);
      // Nobody committed: as if it had not been.
      Begin(epoch + 1, {0, 1}, 1);
      Rebuild(epoch + 1);
      EXPECT_TRUE(At(kA).engine->Commit(Epoch(epoch + 1)).ok());
      // b had no word of it, and the next change says so.
      Begin(epoch + 2, {0, 1}, epoch + 1);
    }
    if (committed) {
      Rebuild(epoch);
      for (Node* node : Left()) EXPECT_TRUE(node->engine->Commit(Epoch(epoch)).ok());
      for (Node* node : Left()) EXPECT_TRUE(node->engine->Run(Epoch(epoch)).ok());
      EXPECT_EQ(Read(kA, PageOf(2, 1)), "x");
      Write(kA, PageOf(2, 1), 'y');
      EXPECT_EQ(Read(kB, PageOf(2, 1)), "y");
      // And the last but one.
      Lose(kB);
      Begin(5, {0}, 4);
      Rebuild(5);
      EXPECT_TRUE(At(kA).engine->Commit(Epoch(5)).ok());
      EXPECT_TRUE(At(kA).engine->Run(Epoch(5)).ok());
      EXPECT_EQ(Read(kA, PageOf(2, 1)), "y");
      for (uint64_t extent = 0; extent < 12; ++extent) EXPECT_EQ(Read(kA, PageOf(extent, 8)), std::string(1, '\0'));
    }
  }
}

// Its link to the coordinator alone is gone: that gives it up, and the others go on.
TEST_F(SpaceRecoveryTest, WhoLosesTheCoordinatorStopsAlone) {
  Write(kB, PageOf(0), 'b');
  network_.Cut(kA, kC);
  EXPECT_TRUE(Until([&] { return !At(kC).stopped.ok() && !At(kA).lost.empty(); }));
  Settle();
  EXPECT_TRUE(At(kA).stopped.ok()) << At(kA).stopped;
  EXPECT_TRUE(At(kB).stopped.ok()) << At(kB).stopped;
  // Nor does a step of an epoch that the coordinator began before it knew.
  const absl::Status step =
      At(kC).engine->BeginEpoch({.epoch = Epoch(2), .survivors = Set({0, 1, 2}), .committed = Epoch(1)});
  EXPECT_TRUE(absl::IsUnavailable(step)) << step;
  EXPECT_TRUE(At(kC).engine->EpochState().failed.Contains(kC));
  nodes_[kC.value()].reset();
  GoOn(2, {0, 1});
  EXPECT_EQ(Read(kA, PageOf(0)), "b");
}

// It lives on, and is connected to others whose requests it had.
TEST_F(SpaceRecoveryTest, WhoStopsAloneKeepsNobodysSlots) {
  Write(kC, PageOf(0), 'c');
  EXPECT_EQ(Read(kA, PageOf(0)), "c");
  Settle();
  network_.Cut(kA, kC);
  std::string read;
  At(kB).engine->Want(PageOf(0), PageAccess::kRead, [&](const absl::Status& status) {
    read = status.ok() ? std::string(1, At(kB).frames.First(PageOf(0))) : status.ToString();
  });
  EXPECT_TRUE(Until([&] { return !At(kC).stopped.ok() && !At(kA).lost.empty(); }));
  EXPECT_EQ(At(kB).transport->Statistics().slots_in_flight, 1u);
  const std::unique_ptr<Node> gone = std::move(nodes_[kC.value()]);
  GoOn(2, {0, 1});
  EXPECT_TRUE(Until([&] { return !read.empty(); }));
  EXPECT_EQ(read, "c");
  Settle();
  EXPECT_EQ(At(kB).transport->Statistics().slots_quarantined, 0u);
}

}  // namespace
}  // namespace hk::recovery_testing
