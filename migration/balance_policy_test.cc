// The policies, by rules and on machines that fight them.
#include "migration/balance_policy.h"

#include <chrono>
#include <memory>
#include <numeric>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "migration/policy_testing.h"

namespace hk {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr NodeId kA{1}, kB{2}, kC{3};
constexpr VcpuId kFirst{0}, kSecond{1};

PolicyMachine Machine(std::vector<NodeId> vcpus, uint32_t most = 8) {
  return {.nodes = {{kA, most}, {kB, most}, {kC, most}}, .vcpus = std::move(vcpus)};
}

// Writes to pages of [first, end), by chance.
PolicyWorld::Program Wander(uint64_t first, uint64_t end, uint64_t seed, int reads_of_4 = 2) {
  auto random = std::make_shared<TestRandom>(seed);
  return [=] {
    return PolicyWorld::Access{.page = first + random->Below(end - first),
                               .write = random->Below(4) >= static_cast<uint64_t>(reads_of_4)};
  };
}

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
TEST(BalanceWorld, AThreadGoesToItsDataAndStays) {
  PolicyWorld world("balance", Machine({kA, kB}));
  world.Home(0, 200'000, kA);
  world.programs[1] = Wander(0, 200'000, 1);
  world.Run(10);
  ASSERT_THAT(world.moves, SizeIs(1));
  EXPECT_EQ(world.where[1], kA);
  world.Run(300);
  EXPECT_THAT(world.moves, SizeIs(1));
  EXPECT_GE(static_cast<double>(world.accesses[1]), 0.9 * static_cast<double>(seconds(1) / PolicyWorld::kLocal));
}

TEST(BalanceWorld, OfTwoThatTakePagesFromEachOtherOneMovesOnce) {
  PolicyWorld world("balance", Machine({kA, kB}));
  world.programs[0] = Wander(0, 64, 1);
  world.programs[1] = Wander(0, 64, 2);
  world.Run(600);
  EXPECT_THAT(world.moves, SizeIs(1));
  EXPECT_EQ(world.where[0], world.where[1]);
}

// Half a core is more than what they have while each waits for the other.
TEST(BalanceWorld, ThoseThatTakePagesFromEachOtherShareACore) {
  for (const size_t nodes : {2, 3}) {
    PolicyMachine machine = Machine({kA, kB, kC}, 1);
    machine.io_node = kA;
    machine.vcpus.resize(nodes);
    PolicyWorld world("balance", machine);
    for (size_t i = 0; i < nodes; ++i) world.programs[i] = Wander(0, 64, i + 1);
    world.Run(20);
    EXPECT_EQ(std::count(world.where.begin(), world.where.end(), kA), static_cast<ptrdiff_t>(nodes));
    uint64_t together = 0, all = 0;
    for (int second = 0; second < 2000; ++second) {
      world.Run(1);
      all += std::accumulate(world.accesses.begin(), world.accesses.end(), uint64_t{0});
      together += std::count(world.where.begin(), world.where.end(), kA) == static_cast<ptrdiff_t>(nodes);
    }
    EXPECT_GE(together, 1850u) << "they try seldom whether it is better apart";
    EXPECT_GE(all, 1850u * 10'000) << "as much as one core does";
  }
}

// What ties them together is over: each has a core again.
TEST(BalanceWorld, ThoseThatShareACorePartWhenTheyRun) {
  PolicyMachine machine = Machine({kA, kB, kC}, 1);
  machine.io_node = kA;
  PolicyWorld world("balance", machine);
  for (uint32_t i = 0; i < 3; ++i) world.programs[i] = Wander(0, 64, i + 1);
  world.Run(20);
  ASSERT_EQ(std::count(world.where.begin(), world.where.end(), kA), 3);
  for (uint32_t i = 0; i < 3; ++i) world.programs[i] = Wander(1000 * i, 1000 * i + 64, i + 1);
  world.Run(60);
  EXPECT_EQ(world.where, machine.vcpus);
  const size_t moves = world.moves.size();
  world.Run(1000);
  EXPECT_EQ(world.moves.size(), moves);
}

// Each shares as much with one there as with one here: there is no better place.
TEST(BalanceWorld, WhoIsTornBetweenTwoIsMovedEverMoreSeldom) {
  PolicyWorld world("balance", Machine({kA, kB, kA}, 2));
  for (uint32_t vcpu = 0; vcpu < 2; ++vcpu) world.programs[vcpu] = Wander(1000 * vcpu, 1000 * vcpu + 400, vcpu, 0);
  auto random = std::make_shared<TestRandom>(9);
  world.programs[2] = [random] {
    const uint64_t page = random->Below(800);
    return PolicyWorld::Access{.page = page < 400 ? page : page + 600, .write = true};
  };
  world.Run(600);
  const size_t moves = world.moves.size();
  EXPECT_LE(moves, 16u);
  world.Run(600);
  EXPECT_LE(world.moves.size(), moves + 4);
}

TEST(BalanceWorld, AnIdleGuestsTicksMoveNothing) {
  PolicyWorld world("balance", Machine({kA, kA, kB, kB, kC, kC}));
  for (uint32_t vcpu = 0; vcpu < 6; ++vcpu) {
    auto random = std::make_shared<TestRandom>(vcpu + 1);
    world.programs[vcpu] = [random, idles = false]() mutable {
      idles = !idles;
      if (idles) return PolicyWorld::Access{.idle = milliseconds(10)};
      return PolicyWorld::Access{.page = random->Below(40), .write = random->Below(3) == 0};
    };
  }
  world.Run(600);
  EXPECT_THAT(world.moves, IsEmpty());
  EXPECT_GT(world.stalls, 600u * 100) << "or it is no test";
}

// Waits that no move changes: nothing that the policy can see is any better anywhere.
TEST(BalanceWorld, WhatNoMoveChangesMovesLittle) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    TestRandom random(seed);
    const PolicyMachine machine = Machine({kA, kB, kA, kB});
    BalancePolicy policy(machine);
    std::vector<NodeId> where = machine.vcpus;
    size_t moves = 0;
    Monotonic now{seconds(1000)};
    for (int second = 0; second < 600; ++second) {
      for (int i = 0; i < 1600; ++i) {
        const auto vcpu = static_cast<uint32_t>(random.Below(4));
        policy.OnStall({.end = now,
                        .vcpu = VcpuId(vcpu),
                        .node = where[vcpu],
                        .page = Gfn(random.Below(100'000)),
                        .kind = static_cast<StallKind>(random.Below(3)),
                        .holder = where[vcpu] == kA ? kB : kA,
                        .waited = milliseconds(1)});
      }
      now += seconds(1);
      for (const PolicyMove& move : policy.Decide(now)) {
        where[move.vcpu.value()] = move.to;
        policy.OnMoved(move.vcpu, move.to, now);
        ++moves;
      }
    }
    EXPECT_LE(moves, 4u * 5);
    EXPECT_GT(moves, 0u);
  }
}

TEST(BalanceWorld, NoNodeGetsMoreThanItHasRoomFor) {
  PolicyMachine machine = Machine({kA, kB, kB, kC, kC});
  machine.nodes[0].most_vcpus = 3;
  PolicyWorld world("balance", machine);
  for (uint32_t vcpu = 1; vcpu < 5; ++vcpu) {
    world.Home(100'000 * vcpu, 100'000 * (vcpu + 1), kA);
    world.programs[vcpu] = Wander(100'000 * vcpu, 100'000 * (vcpu + 1), vcpu);
  }
  world.Run(120);
  EXPECT_EQ(std::count(world.where.begin(), world.where.end(), kA), 3);
  EXPECT_THAT(world.moves, SizeIs(2));
}

TEST(BalanceWorld, WhoseDataGoesOnAnotherNodeLaterFollows) {
  PolicyWorld world("balance", Machine({kA}));
  world.Home(0, 200'000, kB);
  world.Home(200'000, 400'000, kC);
  world.programs[0] = Wander(0, 200'000, 1);
  world.Run(60);
  world.programs[0] = Wander(200'000, 400'000, 2);
  world.Run(60);
  ASSERT_THAT(world.moves, SizeIs(2));
  EXPECT_EQ(world.moves[0].to, kB);
  EXPECT_EQ(world.moves[1].to, kC);
}

}  // namespace
}  // namespace hk
