#include "hyperkernel/kvm/tick_pace.h"

#include "gtest/gtest.h"

namespace hk {
namespace {

using std::chrono::milliseconds;

constexpr Monotonic kStart{std::chrono::hours(1)};

TEST(TickPaceTest, AVcpuThatNeverWaitsIsInterruptedWhenItsTimerIsDue) {
  TickPace pace;
  EXPECT_LT(pace.until(), kStart);
  pace.Interrupted(kStart, milliseconds(0));
  EXPECT_LE(pace.until(), kStart);
}

TEST(TickPaceTest, OneThatWaitsHasTimeForMoreThanItsTicks) {
  TickPace pace;
  pace.Interrupted(kStart, milliseconds(0));
  pace.Interrupted(kStart + milliseconds(4), milliseconds(3));
  EXPECT_EQ(pace.until(), kStart + milliseconds(4 + 12));
  // Only what was since.
  pace.Interrupted(kStart + milliseconds(20), milliseconds(4));
  EXPECT_EQ(pace.until(), kStart + milliseconds(20 + 4));
}

TEST(TickPaceTest, ItsTimerStillComes) {
  TickPace pace;
  pace.Interrupted(kStart, std::chrono::hours(1));
  EXPECT_EQ(pace.until(), kStart + milliseconds(40));
  // What is known of it may go back.
  pace.Interrupted(kStart + milliseconds(50), milliseconds(0));
  EXPECT_EQ(pace.until(), kStart + milliseconds(50));
}

}  // namespace
}  // namespace hk
