// The policies, by rules.
#include "migration/balance_policy.h"

#include <chrono>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "migration/policy_testing.h"

namespace hk {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

// A policy that is told one thing after another.
class BalanceTest : public testing::Test {
 protected:
  explicit BalanceTest(const PolicyMachine& machine = Machine({kA, kB})) : policy_(machine) { Decide(); }

  // Each a wait of 1 ms for another page.
  void Stall(VcpuId vcpu, NodeId node, std::optional<NodeId> holder, int stalls, uint64_t pages = 1000) {
    for (int i = 0; i < stalls; ++i) {
      policy_.OnStall({.end = now_,
                       .vcpu = vcpu,
                       .node = node,
                       .page = Gfn(next_page_++ % pages),
                       .kind = StallKind::kWrite,
                       .holder = holder,
                       .waited = milliseconds(1)});
    }
  }
  std::vector<PolicyMove> Decide() {
    now_ += PlacementPolicy::kInterval;
    return policy_.Decide(now_);
  }
  // For so many windows vCPU 0 waits for pages of b. True: it is to go there at the end of one.
  bool Lacks(int windows, int stalls, uint64_t pages = 1000) {
    for (int i = 0; i < windows; ++i) {
      Stall(kFirst, kA, kB, stalls, pages);
      for (const PolicyMove& move : Decide()) {
        EXPECT_EQ(move.vcpu, kFirst);
        EXPECT_EQ(move.to, kB);
        return true;
      }
    }
    return false;
  }

  BalancePolicy policy_;
  Monotonic now_{seconds(1000)};
  uint64_t next_page_ = 0;
};

TEST_F(BalanceTest, WhoWaitsForOneNodeGoesThere) {
  EXPECT_TRUE(Lacks(10, 500));
}

TEST_F(BalanceTest, NotBeforeItHasLastedForSomeTime) {
  EXPECT_FALSE(Lacks(BalancePolicy::kSustained - 1, 900));
  EXPECT_TRUE(Lacks(1, 900));
}

TEST_F(BalanceTest, ALittleWaitingIsNoReason) {
  EXPECT_FALSE(Lacks(30, 150));
  EXPECT_TRUE(Lacks(10, 300));
}

TEST_F(BalanceTest, AFewPagesAreNoReason) {
  EXPECT_FALSE(Lacks(30, 900, 12));
}

TEST_F(BalanceTest, WhoWaitsForTwoNodesStays) {
  for (int i = 0; i < 30; ++i) {
    Stall(kFirst, kA, kB, 400, 1'000'000);
    Stall(kFirst, kA, kC, 400, 1'000'000);
    EXPECT_THAT(Decide(), IsEmpty());
  }
}

TEST_F(BalanceTest, WhoWaitsForTwoNodesForTheSamePagesGoesToOneOfThem) {
  int windows = 0;
  std::vector<PolicyMove> moves;
  for (; moves.empty() && windows < 10; ++windows) {
    for (int page = 0; page < 400; ++page) Stall(kFirst, kA, page % 2 == windows % 2 ? kB : kC, 2, 200);
    moves = Decide();
  }
  ASSERT_THAT(moves, SizeIs(1));
  EXPECT_LE(windows, 5);
}

class BalanceCrowdTest : public BalanceTest {
 protected:
  BalanceCrowdTest() : BalanceTest(Machine({kA, kB}, 1)) {}
  // Each second vCPU 1 waits for pages of a; both run for so long, and are ready.
  std::vector<PolicyMove> Second(milliseconds first, milliseconds second, milliseconds ready = {}) {
    Stall(kSecond, where_, kA, 800, pages_);
    policy_.OnRan(kFirst, first, ready);
    policy_.OnRan(kSecond, second, ready);
    return Decide();
  }
  NodeId where_ = kB;
  uint64_t pages_ = 64;
};

TEST_F(BalanceCrowdTest, ThoseThatHardlyRunShareACore) {
  std::vector<PolicyMove> moves;
  for (int i = 0; i < 10 && moves.empty(); ++i) moves = Second(milliseconds(100), milliseconds(100));
  ASSERT_THAT(moves, SizeIs(1));
  EXPECT_EQ(moves[0].vcpu, kSecond);
  EXPECT_EQ(moves[0].to, kA);
}

TEST_F(BalanceCrowdTest, AndWithOneThatRunsIfItGetsMuchMore) {
  for (int i = 0; i < 30; ++i) EXPECT_THAT(Second(milliseconds(900), milliseconds(200)), IsEmpty());
  std::vector<PolicyMove> moves;
  for (int i = 0; i < 10 && moves.empty(); ++i) moves = Second(milliseconds(900), milliseconds(100));
  EXPECT_THAT(moves, SizeIs(1));
}

// Its pages will have come to it some day.
TEST_F(BalanceCrowdTest, NotIfItWaitsForPagesOnce) {
  pages_ = 1'000'000;
  for (int i = 0; i < 30; ++i) EXPECT_THAT(Second(milliseconds(100), milliseconds(100)), IsEmpty());
}

TEST_F(BalanceCrowdTest, NotIfNobodySaysWhatTheyRun) {
  for (int i = 0; i < 30; ++i) {
    Stall(kSecond, kB, kA, 800, 64);
    EXPECT_THAT(Decide(), IsEmpty());
  }
}

// Something else has it, and may be everywhere.
TEST_F(BalanceCrowdTest, NotIfTheyAreNotThoseWhoHaveTheCore) {
  policy_.OnMoved(kSecond, kA, now_);
  for (int second = 0; second < 300; ++second) {
    policy_.OnRan(kFirst, milliseconds(300), milliseconds(700));
    policy_.OnRan(kSecond, milliseconds(300), milliseconds(700));
    EXPECT_THAT(Decide(), IsEmpty());
  }
}

TEST_F(BalanceCrowdTest, WhoLacksACoreGoesBackEverMoreSeldom) {
  std::vector<int> partings;
  bool here = false;  // at a, with the other one
  for (int second = 0; second < 3000; ++second) {
    if (!here) Stall(kSecond, kB, kA, 800, 64);
    const milliseconds ran(here ? 500 : 100), ready(here ? 500 : 0);
    policy_.OnRan(kFirst, ran, ready);
    policy_.OnRan(kSecond, ran, ready);
    for (const PolicyMove& move : Decide()) {
      EXPECT_EQ(move.vcpu, kSecond);
      EXPECT_EQ(move.to, here ? kB : kA);
      if (here) partings.push_back(second);
      here = !here;
      policy_.OnMoved(move.vcpu, move.to, now_);
    }
  }
  EXPECT_TRUE(here || !partings.empty());
  ASSERT_GE(partings.size(), 3u);
  EXPECT_LE(partings.size(), 6u);
  EXPECT_LE(partings[0], 30);
  EXPECT_GT(partings[2] - partings[1], 2 * (partings[1] - partings[0]));
}

// Its devices would be far from it.
TEST(BalanceIoNode, OfTwoTheOneThatIsNotThereMoves) {
  for (const NodeId io : {kA, kB}) {
    PolicyMachine machine = Machine({kA, kB});
    machine.io_node = io;
    PolicyWorld world("balance", machine);
    world.programs[0] = Wander(0, 64, 1);
    world.programs[1] = Wander(0, 64, 2);
    world.Run(60);
    ASSERT_THAT(world.moves, SizeIs(1));
    EXPECT_EQ(world.moves[0].to, io);
  }
}

TEST_F(BalanceTest, PagesThatNobodyHadAreNoReason) {
  for (int i = 0; i < 30; ++i) {
    Stall(kFirst, kA, std::nullopt, 900);
    Stall(kFirst, kA, kA, 900);
    EXPECT_THAT(Decide(), IsEmpty());
  }
}

TEST_F(BalanceTest, WhatItHasFromThirdNodesHoldsIt) {
  for (int i = 0; i < 30; ++i) {
    // Short waits, many pages.
    Stall(kFirst, kA, kB, 600, 100);
    Stall(kFirst, kA, kC, 150, 100'000);
    EXPECT_THAT(Decide(), IsEmpty());
  }
}

TEST_F(BalanceTest, DroppedStallsCount) {
  for (int i = 0; i < 2; ++i) {
    Stall(kFirst, kA, kB, 100);
    policy_.OnDropped(kA, 500);
    EXPECT_THAT(Decide(), IsEmpty());
  }
  Stall(kFirst, kA, kB, 100);
  policy_.OnDropped(kA, 500);
  EXPECT_THAT(Decide(), SizeIs(1));
}

TEST_F(BalanceTest, WhatItWaitedForWhereItWasIsOver) {
  policy_.OnMoved(kFirst, kC, now_);
  for (int i = 0; i < 30; ++i) {
    Stall(kFirst, kA, kB, 900);  // told late, by the node that it has left
    EXPECT_THAT(Decide(), IsEmpty());
  }
}

TEST_F(BalanceTest, WhoWasMovedByAnybodyStaysAWhile) {
  policy_.OnMoved(kFirst, kC, now_);
  int windows = 0;
  std::vector<PolicyMove> moves;
  for (; moves.empty() && windows < 100; ++windows) {
    Stall(kFirst, kC, kB, 900);
    moves = Decide();
  }
  EXPECT_EQ(windows, BalancePolicy::kLeastStay);
}

TEST_F(BalanceTest, NobodyGoesWhereOneHasJustComeFrom) {
  policy_.OnMoved(kSecond, kA, now_);
  EXPECT_FALSE(Lacks(BalancePolicy::kComeAfter - 1, 900));
  EXPECT_TRUE(Lacks(5, 900)) << "it lasts";
  // Elsewhere it may go, and the same way.
  policy_.OnMoved(kFirst, kA, now_);
  for (uint64_t i = 0; i < BalancePolicy::kComeAfter; ++i) Decide();
  policy_.OnMoved(kSecond, kB, now_);
  EXPECT_TRUE(Lacks(BalancePolicy::kSettle + 3, 900)) << "after the other";
}

TEST_F(BalanceTest, OthersFollowAtOnceToWhereOneHasGone) {
  const VcpuId third(2);
  for (const NodeId wanted : {kA, kB}) {  // where it was going to, or who has gone from there
    BalancePolicy policy(Machine({kA, kB, kC}));
    Monotonic now = now_;
    const auto decide = [&](NodeId second_lacks, NodeId third_lacks) {
      for (uint64_t page = 0; page < 600; ++page) {
        StallEvent stall{.end = now, .vcpu = third, .node = kC, .page = Gfn(page), .kind = StallKind::kWrite};
        stall.holder = third_lacks;
        stall.waited = milliseconds(1);
        policy.OnStall(stall);
        if (second_lacks == kB) continue;
        stall.vcpu = kSecond, stall.node = kB, stall.holder = second_lacks, stall.waited = microseconds(1500);
        policy.OnStall(stall);
      }
      now += PlacementPolicy::kInterval;
      return policy.Decide(now);
    };
    decide(kA, wanted);
    std::vector<PolicyMove> moves;
    for (int i = 0; i < 10 && moves.empty(); ++i) moves = decide(kA, wanted);
    ASSERT_THAT(moves, SizeIs(1));
    ASSERT_EQ(moves[0].vcpu, kSecond);
    policy.OnMoved(kSecond, kA, now);
    // What it had from b comes from a now.
    uint64_t windows = 0;
    for (moves.clear(); moves.empty() && windows < 20; ++windows) moves = decide(kB, kA);
    ASSERT_THAT(moves, SizeIs(1));
    EXPECT_EQ(moves[0].vcpu, third);
    EXPECT_EQ(moves[0].to, kA);
    EXPECT_LE(windows, wanted == kA ? 1 : BalancePolicy::kSettle);
  }
}

// Of those that take pages from each other the others come to where the devices are. For data alone it goes.
TEST(BalanceIoNode, WhoIsThereDoesNotGoToThoseThatMayCome) {
  for (const uint64_t pages : {64, 1'000'000}) {
    PolicyMachine machine = Machine({kA, kB});
    machine.io_node = kA;
    BalancePolicy policy(machine);
    Monotonic now{seconds(1000)};
    std::vector<PolicyMove> moves;
    uint64_t next = 0;
    for (int i = 0; i < 20 && moves.empty(); ++i) {
      for (int stall = 0; stall < 900; ++stall) {
        policy.OnStall({.end = now,
                        .vcpu = kFirst,
                        .node = kA,
                        .page = Gfn(next++ % pages),
                        .kind = StallKind::kWrite,
                        .holder = kB,
                        .waited = milliseconds(1)});
      }
      now += PlacementPolicy::kInterval;
      moves = policy.Decide(now);
    }
    EXPECT_THAT(moves, SizeIs(pages == 64 ? 0 : 1));
  }
}

TEST_F(BalanceTest, WhoIsRefusedIsNotAskedAgainSoon) {
  ASSERT_TRUE(Lacks(10, 900));
  policy_.OnRefused(kFirst, kB, now_);
  EXPECT_FALSE(Lacks(BalancePolicy::kRefused - 1, 900));
  EXPECT_TRUE(Lacks(1, 900));
}

TEST_F(BalanceTest, OneAtATimeWhoGainsMostFirst) {
  for (int i = 0; i < 2; ++i) {
    Stall(kFirst, kA, kC, 500);
    Stall(kSecond, kB, kC, 900);
    EXPECT_THAT(Decide(), IsEmpty());
  }
  Stall(kFirst, kA, kC, 500);
  Stall(kSecond, kB, kC, 900);
  const std::vector<PolicyMove> moves = Decide();
  ASSERT_THAT(moves, SizeIs(1));
  EXPECT_EQ(moves[0].vcpu, kSecond);
  EXPECT_NEAR(moves[0].waited, 0.8, 0.1);
}

TEST_F(BalanceTest, NonsenseIsIgnored) {
  StallEvent stall{.end = now_, .vcpu = VcpuId(77), .node = kA, .page = Gfn(1), .holder = kB, .waited = seconds(1)};
  policy_.OnStall(stall);
  stall.vcpu = kFirst;
  stall.node = NodeId(63);
  policy_.OnStall(stall);
  stall.node = kA;
  stall.holder = NodeId(63);
  stall.end = Monotonic::max();
  policy_.OnStall(stall);
  for (int i = 0; i < 100; ++i) {
    stall.page = Gfn(~uint64_t{0} - static_cast<uint64_t>(i));
    stall.waited = i % 2 == 0 ? std::chrono::nanoseconds::max() : std::chrono::nanoseconds::min();
    stall.holder = NodeId(static_cast<uint16_t>(i % 64));
    policy_.OnStall(stall);
  }
  policy_.OnDropped(NodeId(63), 1);
  policy_.OnDropped(kA, ~uint64_t{0});
  policy_.OnMoved(VcpuId(77), kB, now_);
  policy_.OnMoved(kFirst, NodeId(63), now_);
  policy_.OnRefused(VcpuId(77), kB, now_);
  policy_.OnRefused(kFirst, NodeId(63), now_);
  EXPECT_THAT(Decide(), IsEmpty());
  EXPECT_THAT(policy_.Decide(now_ - seconds(100)), IsEmpty());
}

TEST(MakePolicy, RefusesWhatItDoesNotKnow) {
  EXPECT_TRUE(IsPolicy("fetch") && IsPolicy("balance") && IsPolicy(kDefaultPolicy));
  EXPECT_FALSE(IsPolicy("guess") || IsPolicy(""));
  EXPECT_THAT(MakePolicy("guess", Machine({kA})).status().ToString(), HasSubstr("'guess' is not fetch or balance"));
  EXPECT_THAT(MakePolicy("fetch", Machine({NodeId(9)})).status().ToString(), HasSubstr("vCPU 0 is on node 9"));
  PolicyMachine twice = Machine({kA});
  twice.nodes.push_back({kA, 1});
  EXPECT_THAT(MakePolicy("balance", twice).status().ToString(), HasSubstr("twice"));
}

TEST(FetchPolicy, NeverMoves) {
  PolicyWorld world("fetch", Machine({kA, kB}));
  world.Home(0, 1'000'000, kA);
  world.programs[1] = Wander(0, 1'000'000, 1);
  world.Run(60);
  EXPECT_THAT(world.moves, IsEmpty());
}

// The figure that the policy is for: a single thread whose data is elsewhere runs as if all were local once it has
// settled.

}  // namespace
}  // namespace hk
