// Clusters of transports on virtual time, with every kind of fault by seed; the contract checker looks on.
//
// HK_SEED=N runs one seed, HK_TRACE=FILE writes its trace. HK_SOAK=1 runs many.

#include <cstdlib>
#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include "hyperkernel/base/log.h"
#include "tests/transport/sim_cluster.h"

namespace hk {
namespace {

constexpr uint64_t kSeeds = 80, kSoakSeeds = 1000;

// What was seen in all runs together.
struct Totals {
  uint64_t delivered = 0, pages = 0, expired = 0, late = 0;
  std::array<uint64_t, kSimFaults> faults{};
  std::array<uint64_t, 8> failures{};
};

void RunSeed(uint64_t seed, const char* trace, Totals* totals) {
  SimCluster cluster(seed, trace != nullptr);
  cluster.Run();
  if (trace != nullptr) std::ofstream(trace) << cluster.simulation().trace();
  for (const std::string& violation : cluster.violations()) ADD_FAILURE() << violation;
  if (!cluster.violations().empty()) {
    ADD_FAILURE() << "seed " << seed << "; to run it alone, with its trace: HK_SEED=" << seed
                  << " HK_TRACE=trace.txt tests/run sim -R transport";
  }
  totals->delivered += cluster.checker().delivered();
  totals->pages += cluster.checker().pages();
  totals->expired += cluster.expired();
  totals->late += cluster.late();
  for (size_t i = 0; i < kSimFaults; ++i) totals->faults[i] += cluster.faults()[i];
  for (size_t i = 0; i < totals->failures.size(); ++i) {
    totals->failures[i] += cluster.failures(static_cast<PeerFailure>(i));
  }
}

TEST(TransportSim, TheContractHoldsWhateverFails) {
  log::Init("sim", log::Level::kError);
  Totals totals;
  if (const char* const seed = std::getenv("HK_SEED")) {
    RunSeed(std::strtoull(seed, nullptr, 10), std::getenv("HK_TRACE"), &totals);
    return;
  }
  const uint64_t seeds = std::getenv("HK_SOAK") != nullptr ? kSoakSeeds : kSeeds;
  for (uint64_t seed = 1; seed <= seeds && !HasFailure(); ++seed) RunSeed(seed, nullptr, &totals);
  if (HasFailure()) return;
  // The runs are what they should be: nothing is held up that would make them say nothing.
  EXPECT_GT(totals.delivered, seeds * 1000);
  EXPECT_GT(totals.pages, seeds * 150);
  EXPECT_GT(totals.expired, seeds * 10);
  EXPECT_GT(totals.late, seeds);
  for (size_t i = 0; i < kSimFaults; ++i) EXPECT_GT(totals.faults[i], seeds / 16) << "fault " << i;
  for (const PeerFailure why : {PeerFailure::kLeaseExpired, PeerFailure::kMalformed, PeerFailure::kRejected,
                                PeerFailure::kFenced, PeerFailure::kRestarted, PeerFailure::kLeft}) {
    EXPECT_GT(totals.failures[static_cast<size_t>(why)], 0u) << "failure " << static_cast<int>(why);
  }
}

TEST(TransportSim, ASeedRunTwiceIsTheSameToTheByte) {
  log::Init("sim", log::Level::kError);
  std::string last;
  for (const uint64_t seed : {11, 12, 13, 14}) {
    std::string traces[2];
    for (std::string& trace : traces) {
      SimCluster cluster(seed, true);
      cluster.Run();
      trace = cluster.simulation().trace();
    }
    EXPECT_TRUE(traces[0] == traces[1]) << "seed " << seed;
    EXPECT_GT(traces[0].size(), 100'000u);
    EXPECT_NE(traces[0], last);
    last = traces[0];
  }
}

}  // namespace
}  // namespace hk
