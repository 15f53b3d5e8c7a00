// Spaces over several nodes on virtual time: production engines, protocol and transport; programs that load and store;
// an oracle that sees it all.
//
// HK_SEED=N runs one seed twice, HK_TRACE=FILE writes its trace. HK_SOAK=1 runs many.

#include <cstdlib>
#include <fstream>

#include "fmt/format.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/log.h"
#include "tests/sim/space_world.h"

namespace hk::sim {
namespace {

constexpr uint64_t kSeeds = 800, kSoakSeeds = 4000;
// In how many of them one is run twice.
constexpr uint64_t kTwice = 10;

void RunSeed(uint64_t seed, const SpaceWorld::Options& options, bool twice, const char* trace,
             SpaceWorld::Totals* totals) {
  SpaceWorld::Options traced = options;
  traced.keep_trace = trace != nullptr;
  SpaceWorld world(seed, traced);
  world.Run();
  if (trace != nullptr) std::ofstream(trace) << world.simulation().trace();
  for (const std::string& violation : world.violations()) ADD_FAILURE() << violation;
  if (!world.violations().empty()) {
    ADD_FAILURE() << "seed " << seed << "; to run it alone, with its trace: HK_SEED=" << seed
                  << " HK_TRACE=trace.txt tests/run sim -R space\n"
                  << world.simulation().Tail();
  }
  world.AddTo(totals);
  if (!twice) return;
  SpaceWorld again(seed, options);
  again.Run();
  EXPECT_EQ(again.simulation().trace_hash(), world.simulation().trace_hash()) << "seed " << seed << ", run twice";
}

SpaceWorld::Totals RunSeeds(const SpaceWorld::Options& options, uint64_t seeds) {
  log::Init("sim", log::Level::kError);
  SpaceWorld::Totals totals;
  if (const char* const seed = std::getenv("HK_SEED")) {
    RunSeed(std::strtoull(seed, nullptr, 10), options, true, std::getenv("HK_TRACE"), &totals);
  } else {
    for (uint64_t s = 1; s <= seeds && !testing::Test::HasFailure(); ++s) {
      RunSeed(s, options, s % kTwice == 0, nullptr, &totals);
    }
  }
  fmt::print(
      "{} seeds: {} loads, {} stores, {} pages served, {} revoked, {} dropped, {} adopted, {} zero, {} swapped, {} "
      "read back, "
      "{} swap failures, {} upgrades; queues full {} "
      "times, slots gone "
      "{} times, {} connections broken, {} stalls; {} batches, {} pages without bytes; {} peeks, {} used, {} refused\n",
      totals.seeds, totals.loads, totals.stores, totals.served, totals.revoked, totals.dropped, totals.adopted,
      totals.zeroed, totals.swap_writes, totals.swap_reads, totals.swap_failures, totals.upgrades, totals.refused_full,
      totals.waited_for_slots, totals.broken, totals.stalls, totals.batches, totals.empties, totals.peeks,
      totals.peeks_used, totals.peeks_refused);
  return totals;
}

bool Soak() {
  return std::getenv("HK_SOAK") != nullptr;
}

TEST(SpaceSim, WhoNeedsTwoPagesAtOnceGetsBoth) {
  const SpaceWorld::Totals totals = RunSeeds({.both = true}, Soak() ? kSoakSeeds / 4 : kSeeds / 8);
  if (HasFailure() || std::getenv("HK_SEED") != nullptr) return;
  EXPECT_LT(totals.both_faults, totals.both);
  fmt::print("two pages at once {} times, {} faults, at most {} for one\n", totals.both, totals.both_faults,
             totals.most_faults);
}

// As many as a guest's page tables are, on a slow network.
TEST(SpaceSim, WhoNeedsManyPagesAtOnceGetsThem) {
  const SpaceWorld::Totals totals = RunSeeds({.both = true, .gather = true}, Soak() ? kSoakSeeds / 4 : kSeeds / 8);
  if (HasFailure() || std::getenv("HK_SEED") != nullptr) return;
  EXPECT_GT(totals.both, totals.seeds);
  fmt::print("all pages at once {} times, {} faults, at most {} for one\n", totals.both, totals.both_faults,
             totals.most_faults);
}

TEST(SpaceSim, EveryLoadSeesTheLastStore) {
  const uint64_t seeds = Soak() ? kSoakSeeds : kSeeds;
  const SpaceWorld::Totals totals = RunSeeds({}, seeds);
  if (HasFailure() || std::getenv("HK_SEED") != nullptr) return;
  // The runs are what they should be.
  EXPECT_GT(totals.loads, seeds * 200);
  EXPECT_GT(totals.stores, seeds * 200);
  EXPECT_GT(totals.served, seeds * 100);
  EXPECT_GT(totals.revoked, seeds * 100);
  EXPECT_GT(totals.upgrades, seeds * 10);
  EXPECT_GT(totals.dropped, seeds);
  EXPECT_GT(totals.adopted, seeds);
  EXPECT_GT(totals.pins, seeds * 10);
  EXPECT_GT(totals.zeroed, seeds / 10);
  EXPECT_GT(totals.batches, seeds);
  EXPECT_GT(totals.empties, seeds / 20);
  EXPECT_GT(totals.peeks_used, seeds / 10);
  EXPECT_GT(totals.peeks_refused, seeds / 10);
  EXPECT_GT(totals.swap_writes, seeds);
  EXPECT_GT(totals.swap_reads, seeds);
  EXPECT_GT(totals.swap_failures, seeds / 20);
  EXPECT_GT(totals.refused_full, seeds);
  EXPECT_GT(totals.waited_for_slots, seeds);
  EXPECT_GT(totals.broken, seeds);
  EXPECT_GT(totals.stalls, seeds);
}

TEST(SpaceSim, ALostNodeStopsTheSpaceAndEveryWishEnds) {
  RunSeeds({.crash = true}, Soak() ? kSoakSeeds / 4 : kSeeds / 5);
}

TEST(SpaceSim, ASpaceGoesOnWithoutTheNodesThatAreLost) {
  const uint64_t seeds = Soak() ? kSoakSeeds : kSeeds / 2;
  const SpaceWorld::Totals totals = RunSeeds({.lose = true}, seeds);
  fmt::print("{} went on, in {} epochs, with {} pages lost and {} loads after; {} needed a lost page\n", totals.went_on,
             totals.epochs, totals.lost_pages, totals.later_loads, totals.stopped_by_lost);
  if (HasFailure() || std::getenv("HK_SEED") != nullptr) return;
  EXPECT_GT(totals.went_on, seeds / 3);
  EXPECT_GT(totals.later_loads, seeds * 20);
  EXPECT_GT(totals.lost_pages, seeds / 20);
  EXPECT_GT(totals.stopped_by_lost, seeds / 20);
}

TEST(SpaceSim, NothingIsLostWithANodeThatLeaves) {
  const uint64_t seeds = Soak() ? kSoakSeeds : kSeeds / 4;
  const SpaceWorld::Totals totals = RunSeeds({.lose = true, .leave = true}, seeds);
  fmt::print("{} left, {} went on, in {} epochs, with {} pages lost with others and {} loads after\n", totals.left,
             totals.went_on, totals.epochs, totals.lost_pages, totals.later_loads);
  if (HasFailure() || std::getenv("HK_SEED") != nullptr) return;
  EXPECT_GT(totals.left, seeds / 2);
  EXPECT_GT(totals.went_on, seeds / 3);
}

TEST(SpaceSim, ANodeJoinsASpaceInUse) {
  const uint64_t seeds = Soak() ? kSoakSeeds : kSeeds / 4;
  const SpaceWorld::Totals totals = RunSeeds({.lose = true, .join = true}, seeds);
  fmt::print(
      "{} joined after {} refusals, {} in trouble, {} died as members; {} went on, in {} epochs, with {} pages lost "
      "and "
      "{} loads after\n",
      totals.joined, totals.joiners_refused, totals.joiners_troubled, totals.joiners_lost, totals.went_on,
      totals.epochs, totals.lost_pages, totals.later_loads);
  if (HasFailure() || std::getenv("HK_SEED") != nullptr) return;
  // Each world in which nothing is lost has checked that its node joined.
  EXPECT_GT(totals.joined, seeds / 2);
  EXPECT_GT(totals.joiners_refused, seeds / 20);
  EXPECT_GT(totals.joiners_troubled, seeds / 3);
  EXPECT_GT(totals.joiners_lost, seeds / 50);
  EXPECT_GT(totals.went_on, seeds / 2);
}

TEST(SpaceSim, ANodeThatLeftComesAgain) {
  const uint64_t seeds = Soak() ? kSoakSeeds : kSeeds / 4;
  const SpaceWorld::Totals totals = RunSeeds({.lose = true, .leave = true, .again = true}, seeds);
  fmt::print("{} left, {} joined after {} refusals, {} died as members; {} went on\n", totals.left, totals.joined,
             totals.joiners_refused, totals.joiners_lost, totals.went_on);
  if (HasFailure() || std::getenv("HK_SEED") != nullptr) return;
  EXPECT_EQ(totals.left, seeds);
  EXPECT_GT(totals.joined, seeds * 9 / 10);
  EXPECT_GT(totals.joiners_refused, seeds / 25);
}

}  // namespace
}  // namespace hk::sim
