// Random lives of a guest against a plain model of its memory and disks: no read that is served from a frame has other
// bytes than the disk had while it was under way; and every entry that says so is true (replica_world.h).
//
// HK_SEED=N runs one seed of each. HK_SOAK=1 runs many.
#include <cstdint>
#include <cstdlib>

#include "fmt/format.h"
#include "gtest/gtest.h"
#include "tests/sim/replica_world.h"

namespace hk {
namespace {

// A form of the table, and how much of it is played.
struct Lives {
  bool durable = false;
  uint64_t steps = 0;  // of one life
  uint64_t seeds = 0;
  uint64_t soak_seeds = 0;
};

void Play(const Lives& lives) {
  const char* const only = std::getenv("HK_SEED");
  const uint64_t first = only != nullptr ? std::strtoull(only, nullptr, 10) : 1;
  const uint64_t seeds = only != nullptr ? 1 : std::getenv("HK_SOAK") != nullptr ? lives.soak_seeds : lives.seeds;
  uint64_t served = 0, checked = 0, after_crash = 0;
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    ReplicaWorld world(seed, lives.durable);
    for (uint64_t step = 0; step < lives.steps; ++step) {
      ASSERT_TRUE(world.Step()) << world.error() << "; repeat with HK_SEED=" << seed;
    }
    served += world.served();
    checked += world.served_checked();
    after_crash += world.served_after_crash();
  }
  fmt::print("{} seeds of {} steps: {} half pages served, {} of them of an earlier process, {} after a host's crash\n",
             seeds, lives.steps, served, checked, after_crash);
  if (only != nullptr) return;
  // The runs are what they should be.
  EXPECT_GT(served, seeds * lives.steps / 100);
  EXPECT_GT(checked, seeds / 2);
  // How many depends on RocksDB's threads too.
  if (lives.durable) {
    EXPECT_GT(after_crash, seeds / 30);
  }
}

TEST(ReplicaSim, MemoryForm) {
  Play({.durable = false, .steps = 400, .seeds = 1000, .soak_seeds = 40'000});
}

TEST(ReplicaSim, DurableForm) {
  Play({.durable = true, .steps = 600, .seeds = 30, .soak_seeds = 1500});
}

}  // namespace
}  // namespace hk
