#include "hyperkernel/node/tsc_estimate.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

namespace hk {
namespace {

TEST(TscEstimateTest, TheShortestRoundTripCounts) {
  TscEstimate estimate;
  EXPECT_TRUE(estimate.Add(1000, 51000, 1200));
  EXPECT_EQ(estimate.best().offset, 51000 - 1100);
  EXPECT_EQ(estimate.best().error, 100u);
  EXPECT_TRUE(estimate.Add(2000, 52050, 2080));
  EXPECT_TRUE(estimate.Add(3000, 59000, 8000));
  EXPECT_EQ(estimate.best().offset, 52050 - 2040);
  EXPECT_EQ(estimate.best().error, 40u);
  EXPECT_EQ(estimate.best().exchanges, 3u);
}

TEST(TscEstimateTest, AnOddRoundTripIsRoundedToTheSafeSide) {
  TscEstimate estimate;
  EXPECT_TRUE(estimate.Add(10, 20, 13));
  EXPECT_EQ(estimate.best().offset, 9);
  EXPECT_EQ(estimate.best().error, 2u);  // the other counter was at 20 when this one was at 10 to 13
}

TEST(TscEstimateTest, CountersThatAreBehindOrWrap) {
  TscEstimate behind;
  EXPECT_TRUE(behind.Add(1'000'000, 10, 1'000'002));
  EXPECT_EQ(behind.best().offset, 10 - 1'000'001);
  TscEstimate wraps;
  const uint64_t end = ~uint64_t{0};
  EXPECT_TRUE(wraps.Add(end - 1, 5, 2));
  EXPECT_EQ(wraps.best().error, 2u);
  EXPECT_EQ(static_cast<uint64_t>(wraps.best().offset) + (end - 1 + 2), 5u);
}

TEST(TscEstimateTest, ACounterThatSteppedBackDoesNotCount) {
  TscEstimate estimate;
  EXPECT_FALSE(estimate.Add(1000, 2000, 999));
  EXPECT_EQ(estimate.exchanges(), 0u);
  EXPECT_TRUE(estimate.Add(1000, 2000, 1000));
  EXPECT_EQ(estimate.best().offset, 1000);
  EXPECT_EQ(estimate.best().error, 0u);
}

TEST(TscEstimateTest, TheErrorIsABoundHoweverUnlikeTheWaysAre) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 2000; ++round) {
    const auto offset = static_cast<int64_t>(random());
    TscEstimate estimate;
    uint64_t now = random();
    for (int i = 0; i < 20; ++i) {
      const uint64_t there = random() % 100'000, back = random() % (round % 2 == 0 ? 10 : 1'000'000);
      EXPECT_TRUE(estimate.Add(now, now + there + static_cast<uint64_t>(offset), now + there + back));
      now += there + back + random() % 1000;
    }
    const auto wrong =
        static_cast<int64_t>(static_cast<uint64_t>(estimate.best().offset) - static_cast<uint64_t>(offset));
    EXPECT_LE(static_cast<uint64_t>(std::abs(wrong)), estimate.best().error);
  }
}

}  // namespace
}  // namespace hk
