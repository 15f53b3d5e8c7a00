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
#include "hyperkernel/memory/engine_testing.h"
#include "hyperkernel/memory/recovery_wire.h"
#include "hyperkernel/memory/space_engine.h"
#include "hyperkernel/memory/space_placement.h"
#include "rdma/sim_network.h"
#include "rdma/sim_transport.h"
#include "rdma/simulation.h"

namespace hk {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

NodeSet Set(const std::vector<uint16_t>& nodes) {
  NodeSet set;
  for (const uint16_t node : nodes) set.Add(NodeId(node));
  return set;
}

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

class Node final : public TransportHandler, public Timers {
 public:
  Node(Simulation* simulation, SimNetwork* network, SpaceConfig config) : simulation_(simulation) {
    TransportSettings settings;
    settings.cluster = "sim";
    settings.self = config.self;
    settings.lease_ms = 200;
    settings.heartbeat_ms = 25;
    settings.backoff_ms = 2;
    settings.backoff_max_ms = 10;
    transport = *MakeSimTransport(network, settings, this);
    EXPECT_TRUE(transport->Start().ok());
    for (const NodeId other : config.nodes) {
      if (other == config.self) continue;
      EXPECT_TRUE(transport->AddPeer(other, SimNetwork::AddressOf(other)).ok());
    }
    engine = *SpaceEngine::Create(config, transport.get(), &frames, this, *simulation,
                                  [this](const absl::Status& why) { stopped = why; });
    engine->WatchLosses([this](NodeId node) { lost.push_back(node); });
  }
  ~Node() override {
    alive_.reset();
    transport->Stop();
    engine.reset();
  }
  void After(Monotonic::duration delay, std::function<void()> run) override {
    simulation_->After(delay, [alive = std::weak_ptr<bool>(alive_), run = std::move(run)] {
      if (!alive.expired()) run();
    });
  }
  void OnMessage(NodeId from, const Message& message, std::span<const std::byte> payload, bool late) override {
    engine->OnMessage(from, message, payload, late);
  }
  void OnPeerUp(NodeId) override { ++up; }
  void OnPeerFailed(NodeId peer, PeerFailure why, const std::string& detail) override {
    engine->OnPeerFailed(peer, why, detail);
  }
  void OnWritable(NodeId peer, MessageClass c) override { engine->OnWritable(peer, c); }
  void OnSlotsFree(MessageClass c, SlotUse use) override { engine->OnSlotsFree(c, use); }
  void OnRequestExpired(NodeId asked, MessageClass c, uint64_t transaction, SlotId slot, RequestFailure why) override {
    engine->OnRequestExpired(asked, c, transaction, slot, why);
  }

  FakeFrames frames;
  std::unique_ptr<Transport> transport;
  std::unique_ptr<SpaceEngine> engine;
  absl::Status stopped;
  std::vector<NodeId> lost;
  int up = 0;

 private:
  Simulation* const simulation_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

constexpr NodeId kA(0), kB(1), kC(2), kD(3);

// Nodes a (which coordinates), b and c; extent N has home N modulo 3.
class SpaceRecoveryTest : public testing::Test {
 protected:
  explicit SpaceRecoveryTest(std::vector<NodeId> nodes = {kA, kB, kC}) {
    config_.guest = GuestId(7);
    config_.nodes = std::move(nodes);
    config_.pages = 12 * kExtentPages;
    config_.hold = std::chrono::microseconds(0);
    config_.request_limit = std::chrono::seconds(5);
    config_.coordinator = kA;
    for (const NodeId node : config_.nodes) {
      config_.self = node;
      nodes_.push_back(std::make_unique<Node>(&simulation_, &network_, config_));
    }
    EXPECT_TRUE(Until([&] {
      return std::all_of(nodes_.begin(), nodes_.end(),
                         [this](const auto& node) { return node->up == static_cast<int>(nodes_.size()) - 1; });
    }));
  }
  Node& At(NodeId node) { return *nodes_[node.value()]; }
  bool Until(const std::function<bool()>& condition) {
    const Monotonic limit = simulation_.Now() + std::chrono::seconds(20);
    while (!condition() && simulation_.Now() < limit && simulation_.Step()) {
    }
    return condition();
  }
  static Gfn PageOf(uint64_t extent, uint64_t page = 3) { return Gfn(extent * kExtentPages + page); }
  void Write(NodeId node, Gfn page, char value) {
    bool done = false;
    At(node).engine->Want(page, PageAccess::kWrite, [&](const absl::Status& status) {
      EXPECT_TRUE(status.ok()) << status;
      if (status.ok()) At(node).frames.First(page) = value;
      done = true;
    });
    EXPECT_TRUE(Until([&] { return done; }));
  }
  // Its first byte, or the error.
  std::string Read(NodeId node, Gfn page) {
    std::string result;
    At(node).engine->Want(page, PageAccess::kRead, [&](const absl::Status& status) {
      result = status.ok() ? std::string(1, At(node).frames.First(page)) : status.ToString();
    });
    EXPECT_TRUE(Until([&] { return !result.empty(); }));
    return result;
  }
  void Settle() { simulation_.RunUntil(simulation_.Now() + milliseconds(50)); }
  void Lose(NodeId node) {
    Settle();
    network_.Crash(node, true);
    nodes_[node.value()].reset();
    EXPECT_TRUE(Until([&] {
      return std::all_of(nodes_.begin(), nodes_.end(), [](const auto& left) {
        return left == nullptr || !left->lost.empty() || !left->stopped.ok();
      });
    }));
  }
  std::vector<Node*> Left() {
    std::vector<Node*> left;
    for (const auto& node : nodes_) {
      if (node != nullptr) left.push_back(node.get());
    }
    return left;
  }
  void Begin(uint64_t epoch, const std::vector<uint16_t>& survivors, uint64_t committed,
             const std::vector<uint16_t>& left = {}) {
    for (const auto& node : nodes_) {
      if (node == nullptr) continue;
      const absl::Status status = node->engine->BeginEpoch(
          {.epoch = Epoch(epoch), .survivors = Set(survivors), .committed = Epoch(committed), .left = Set(left)});
      const bool leaves = Set(left).Contains(NodeId(static_cast<uint16_t>(&node - nodes_.data())));
      EXPECT_EQ(status.ok(), !leaves) << status;
    }
  }
  void Rebuild(uint64_t epoch) {
    size_t done = 0;
    for (Node* node : Left()) {
      node->engine->Rebuild(Epoch(epoch), [&done](const absl::Status& status) {
        EXPECT_TRUE(status.ok()) << status;
        ++done;
      });
    }
    EXPECT_TRUE(Until([&] { return done == Left().size(); }));
  }
  void GoOn(uint64_t epoch, const std::vector<uint16_t>& survivors) {
    Begin(epoch, survivors, 1);
    Rebuild(epoch);
    for (Node* node : Left()) EXPECT_TRUE(node->engine->Commit(Epoch(epoch)).ok());
    for (Node* node : Left()) EXPECT_TRUE(node->engine->Run(Epoch(epoch)).ok());
  }

  Simulation simulation_{1};
  SimNetwork network_{&simulation_, {}};
  SpaceConfig config_;
  std::vector<std::unique_ptr<Node>> nodes_;
};

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

// Everything that the node has reaches the others, whoever is its home, and nothing is called lost.
TEST_F(SpaceRecoveryTest, ANodeThatLeavesGivesAwayAllItHas) {
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

TEST_F(SpaceRecoveryTest, ANodeThatStaysAfterAllGoesOn) {
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
TEST_F(SpaceRecoveryTest, PinsHoldBackANodeThatLeaves) {
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

}  // namespace
}  // namespace hk
