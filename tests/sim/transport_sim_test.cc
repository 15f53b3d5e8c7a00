// Clusters of transports on virtual time, with every kind of fault by seed; the contract checker looks on.
//
// HK_SEED=N runs one seed twice, HK_TRACE=FILE writes its trace. HK_SOAK=1 runs many.

#include <array>
#include <cstdlib>
#include <fstream>
#include <string>

#include "fmt/format.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/log.h"
#include "tests/transport/sim_cluster.h"

namespace hk {
namespace {

constexpr uint64_t kSeeds = 80, kSoakSeeds = 1000;
// In how many of them one is run twice. All with HK_SOAK.
constexpr uint64_t kTwice = 8;

// What was seen in all runs together.
struct Totals {
  uint64_t seeds = 0, delivered = 0, pages = 0, expired = 0, late = 0, overtaken = 0, duplicates = 0;
  SimNetworkCounters network;
  std::array<uint64_t, kSimFaults> faults{};
  std::array<uint64_t, 8> failures{};
};

void Add(SimCluster* cluster, Totals* totals) {
  ++totals->seeds;
  totals->delivered += cluster->checker().delivered();
  totals->pages += cluster->checker().pages();
  totals->overtaken += cluster->checker().overtaken();
  totals->duplicates += cluster->checker().duplicates();
  totals->expired += cluster->expired();
  totals->late += cluster->late();
  totals->network.broken += cluster->network().broken;
  totals->network.lost_bytes += cluster->network().lost_bytes;
  totals->network.refused += cluster->network().refused;
  totals->network.held += cluster->network().held;
  for (size_t i = 0; i < kSimFaults; ++i) totals->faults[i] += cluster->faults()[i];
  for (size_t i = 0; i < totals->failures.size(); ++i) {
    totals->failures[i] += cluster->failures(static_cast<PeerFailure>(i));
  }
}

void Print(const Totals& totals) {
  std::string faults, failures;
  for (size_t i = 0; i < kSimFaults; ++i) {
    faults += fmt::format(" {} {}", NameOf(static_cast<SimFault>(i)), totals.faults[i]);
  }
  for (size_t i = 1; i < totals.failures.size(); ++i) failures += fmt::format(" {}", totals.failures[i]);
  fmt::print(
      "{} seeds: {} messages delivered, {} of them before an earlier one of another class, {} pages, {} requests "
      "expired, {} late answers, {} replays dropped\nfaults:{}\nconnections: {} broken with {} bytes, {} refused, {} "
      "held up by silence\nfailures of peers by reason:{}\n",
      totals.seeds, totals.delivered, totals.overtaken, totals.pages, totals.expired, totals.late, totals.duplicates,
      faults, totals.network.broken, totals.network.lost_bytes, totals.network.refused, totals.network.held, failures);
}

void RunSeed(uint64_t seed, bool twice, const char* trace, Totals* totals) {
  SimCluster cluster(seed, trace != nullptr);
  cluster.Run();
  if (trace != nullptr) std::ofstream(trace) << cluster.simulation().trace();
  for (const std::string& violation : cluster.violations()) ADD_FAILURE() << violation;
  if (!cluster.violations().empty()) {
    ADD_FAILURE() << "seed " << seed << "; to run it alone, with its trace: HK_SEED=" << seed
                  << " HK_TRACE=trace.txt tests/run sim -R transport\nbefore the first violation:\n"
                  << cluster.checker().before_violation();
  }
  Add(&cluster, totals);
  if (!twice) return;
  SimCluster again(seed, false);
  again.Run();
  EXPECT_EQ(again.simulation().trace_hash(), cluster.simulation().trace_hash()) << "seed " << seed << ", run twice";
}

TEST(TransportSim, TheContractHoldsWhateverFails) {
  log::Init("sim", log::Level::kError);
  Totals totals;
  if (const char* const seed = std::getenv("HK_SEED")) {
    RunSeed(std::strtoull(seed, nullptr, 10), true, std::getenv("HK_TRACE"), &totals);
    return Print(totals);
  }
  const bool soak = std::getenv("HK_SOAK") != nullptr;
  const uint64_t seeds = soak ? kSoakSeeds : kSeeds;
  for (uint64_t seed = 1; seed <= seeds && !testing::Test::HasFailure(); ++seed) {
    RunSeed(seed, soak || seed % kTwice == 0, nullptr, &totals);
  }
  Print(totals);
  if (HasFailure()) return;
  // The runs are what they should be: nothing is held up that would make them say nothing.
  EXPECT_GT(totals.delivered, seeds * 1000);
  EXPECT_GT(totals.overtaken, seeds * 100);
  EXPECT_GT(totals.pages, seeds * 150);
  EXPECT_GT(totals.expired, seeds * 10);
  EXPECT_GT(totals.late, seeds);
  EXPECT_GT(totals.duplicates, seeds);
  EXPECT_GT(totals.network.broken, seeds);
  EXPECT_GT(totals.network.lost_bytes, seeds * 100);
  EXPECT_GT(totals.network.refused, seeds);
  EXPECT_GT(totals.network.held, seeds);
  for (size_t i = 0; i < kSimFaults; ++i) {
    EXPECT_GT(totals.faults[i], seeds / 16) << NameOf(static_cast<SimFault>(i));
  }
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
