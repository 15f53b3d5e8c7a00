// Litmus tests of x86-TSO over four nodes: every test, in every placement, plain and locked. Over TCP on this host, or
// over the verbs device that has the address HK_VERBS_ADDRESS. 10^6 runs each in a soak (HK_LITMUS_RUNS: another
// number).
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/host/space_cluster.h"
#include "tests/host/space_litmus.h"

namespace hk {
namespace {

uint64_t NumberOr(const char* name, uint64_t otherwise) {
  const char* const set = std::getenv(name);
  return set != nullptr ? std::strtoull(set, nullptr, 0) : otherwise;
}

using Case = std::tuple<Placement, Access, size_t>;  // index in AllLitmus()

// "MP_one_line_plain".
std::string NameOf(const testing::TestParamInfo<Case>& info) {
  const auto& [placement, access, which] = info.param;
  std::string name = fmt::format("{}_{}_{}", AllLitmus()[which].name, Name(placement), Name(access));
  for (char& letter : name) {
    if (letter == ' ' || letter == '+') letter = '_';
  }
  return name;
}

// One cluster for all: devices in the lab are slow to be set up.
class SpaceLitmus : public testing::TestWithParam<Case> {
 public:
  static void SetUpTestSuite() {
    const char* const device = std::getenv("HK_VERBS_ADDRESS");
    cluster_ = std::make_unique<SpaceCluster>(SpaceCluster::Settings{.nodes = 4,
                                                                     .pages = kLitmusPages,
                                                                     .hold = std::chrono::microseconds(20),
                                                                     .verbs_address = device != nullptr ? device : ""});
  }
  static void TearDownTestSuite() { cluster_.reset(); }

 protected:
  static std::unique_ptr<SpaceCluster> cluster_;
};
std::unique_ptr<SpaceCluster> SpaceLitmus::cluster_;

TEST_P(SpaceLitmus, HasNoForbiddenOutcome) {
  const auto& [placement, access, which] = GetParam();
  const Litmus& litmus = AllLitmus()[which];
  const uint64_t seed = NumberOr("HK_SEED", std::random_device()() % 1'000'000);
  const uint64_t runs = NumberOr("HK_LITMUS_RUNS", std::getenv("HK_SOAK") != nullptr ? 1'000'000 : 1000);
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::byte*> views;
  for (size_t node = 0; node < cluster_->size(); node++) views.push_back(cluster_->view(node));
  const LitmusResult result = RunLitmus(views, litmus, placement, access, runs, seed, [](size_t) {});
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  std::string outcomes;
  for (const auto& [outcome, count] : result.outcomes) outcomes += fmt::format("  {}: {}", outcome, count);
  fmt::print("{:10} {:12} {:6} {:8} runs {:7.1f} s  HK_SEED={}{}\n", litmus.name, Name(placement), Name(access),
             result.runs, took.count(), seed, outcomes);
  std::fflush(stdout);  // a soak takes hours: what is done is seen
  EXPECT_EQ(result.forbidden, 0u) << result.first_forbidden;
  EXPECT_EQ(result.torn, 0u);
  for (size_t node = 0; node < 4; node++)
    EXPECT_TRUE(cluster_->space(node).state().ok()) << cluster_->space(node).state();
}

INSTANTIATE_TEST_SUITE_P(InPages, SpaceLitmus,
                         testing::Combine(testing::Values(Placement::kLine, Placement::kPage, Placement::kPages),
                                          testing::Values(Access::kPlain, Access::kLocked),
                                          testing::Range(size_t{0}, AllLitmus().size())),
                         NameOf);
// A locked access across two lines stops the machine's buses, and hosts forbid it.
INSTANTIATE_TEST_SUITE_P(AcrossPages, SpaceLitmus,
                         testing::Combine(testing::Values(Placement::kStraddle), testing::Values(Access::kPlain),
                                          testing::Range(size_t{0}, AllLitmus().size())),
                         NameOf);

}  // namespace
}  // namespace hk
