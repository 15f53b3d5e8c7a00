// The policies, on machines that fight them.
#include <chrono>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "migration/balance_policy.h"
#include "migration/policy_testing.h"

namespace hk {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::IsEmpty;
using testing::SizeIs;

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
