#include "hyperkernel/kvm/tick_pace.h"

#include "gtest/gtest.h"

namespace hk {
namespace {

using std::chrono::milliseconds;

constexpr Monotonic kStart{std::chrono::hours(1)};

Monotonic At(int ms) {
  return kStart + milliseconds(ms);
}

TEST(TickPaceTest, AVcpuThatNeverWaitsIsInterruptedWhenItsTimerIsDue) {
  TickPace pace;
  EXPECT_EQ(pace.Next(At(0), milliseconds(500)), At(0)) << "the first";
  pace.Interrupted(At(0), milliseconds(500));
  EXPECT_EQ(pace.Next(At(1), milliseconds(500)), At(1));
}

TEST(TickPaceTest, OneThatWaitsHasTimeForMoreThanItsTicks) {
  TickPace pace;
  pace.Interrupted(At(0), milliseconds(7));
  // 3 of 4 ms were spent on pages: it gets 6 of its own.
  EXPECT_EQ(pace.Next(At(4), milliseconds(10)), At(9));
  EXPECT_EQ(pace.Next(At(9), milliseconds(10)), At(9));
  // It was stalled meanwhile, too.
  EXPECT_EQ(pace.Next(At(9), milliseconds(11)), At(12));
  // Only what was since the last one counts, and it is not looked at all the time.
  pace.Interrupted(At(12), milliseconds(11));
  EXPECT_EQ(pace.Next(At(16), milliseconds(12)), At(16));
  EXPECT_EQ(pace.Next(At(14), milliseconds(12)), At(16));
}

TEST(TickPaceTest, ItsTimerStillComes) {
  TickPace pace;
  pace.Interrupted(At(0), milliseconds(0));
  EXPECT_EQ(pace.Next(At(50), milliseconds(50)), At(100));
  EXPECT_EQ(pace.Next(At(99), milliseconds(99)), At(100));
  EXPECT_EQ(pace.Next(At(100), milliseconds(100)), At(100));
  // What is known of it may go back, or run ahead.
  EXPECT_EQ(pace.Next(At(10), milliseconds(-5)), At(10));
  EXPECT_EQ(pace.Next(At(10), std::chrono::hours(1)), At(30));
}

}  // namespace
}  // namespace hk
