#include "hyperkernel/node/restart_guard.h"

#include "gtest/gtest.h"
#include "hyperkernel/node/rate_meter.h"

namespace hk {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Monotonic kStart{std::chrono::hours(1)};

TEST(RestartGuard, TheLastOfTooManyWithinTheWindowIsRefused) {
  RestartGuard guard(3, seconds(10));
  EXPECT_TRUE(guard.Allow(kStart));
  EXPECT_TRUE(guard.Allow(kStart + seconds(1)));
  EXPECT_FALSE(guard.Allow(kStart + seconds(2)));
  EXPECT_FALSE(guard.Allow(kStart + seconds(3)));
  guard.Clear();
  EXPECT_TRUE(guard.Allow(kStart + seconds(4)));
}

TEST(RestartGuard, TheWindowSlides) {
  RestartGuard guard(3, seconds(10));
  for (int i = 0; i < 20; i++) EXPECT_TRUE(guard.Allow(kStart + seconds(5) * i)) << i;
  EXPECT_TRUE(guard.Allow(kStart + seconds(200)));
  EXPECT_TRUE(guard.Allow(kStart + seconds(201)));
  EXPECT_FALSE(guard.Allow(kStart + seconds(202)));
  EXPECT_TRUE(guard.Allow(kStart + seconds(211)));
}

TEST(RateMeter, IsTheGrowthSinceTheLastSample) {
  RateMeter meter;
  meter.Begin(kStart);
  EXPECT_EQ(meter.per_second(), 0u);
  meter.Sample(500, kStart + milliseconds(500));
  EXPECT_EQ(meter.per_second(), 1000u);
  meter.Sample(600, kStart + milliseconds(500));
  EXPECT_EQ(meter.per_second(), 1000u) << "no time has passed";
  meter.Sample(700, kStart + milliseconds(1500));
  EXPECT_EQ(meter.per_second(), 200u);
  meter.Sample(10, kStart + milliseconds(2500));
  EXPECT_EQ(meter.per_second(), 0u) << "a counter that goes back has begun anew";
}

}  // namespace
}  // namespace hk
