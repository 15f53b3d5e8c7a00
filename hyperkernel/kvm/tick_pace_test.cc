#include "hyperkernel/kvm/tick_pace.h"

#include "gtest/gtest.h"

namespace hk {
namespace {

using std::chrono::milliseconds;

constexpr Monotonic kStart{std::chrono::hours(1)};

Monotonic At(int ms) {
  return kStart + milliseconds(ms);
}

ThreadWaits Waits(int stalled_ms, int ready_ms = 0) {
  return {.stalled = milliseconds(stalled_ms), .ready = milliseconds(ready_ms)};
}

TEST(TickPaceTest, AVcpuThatNeverWaitsIsInterruptedWhenItsTimerIsDue) {
  TickPace pace;
  EXPECT_EQ(pace.Next(At(0), Waits(500, 500)), At(0)) << "the first";
  pace.Interrupted(At(0), Waits(500, 500));
  EXPECT_EQ(pace.Next(At(1), Waits(500, 500)), At(1));
}

TEST(TickPaceTest, OneThatWaitsHasTimeForMoreThanItsTicks) {
  TickPace pace;
  pace.Interrupted(At(0), Waits(7));
  // 3 of 4 ms were spent on pages: it gets 6 of its own.
  EXPECT_EQ(pace.Next(At(4), Waits(10)), At(9));
  EXPECT_EQ(pace.Next(At(9), Waits(10)), At(9));
  // It was stalled meanwhile, too.
  EXPECT_EQ(pace.Next(At(10), Waits(11)), At(15)) << "half as long again as it has waited";
  // Only what was since the last one counts, and it is not looked at all the time.
  pace.Interrupted(At(12), Waits(11));
  EXPECT_EQ(pace.Next(At(16), Waits(12)), At(16));
  EXPECT_EQ(pace.Next(At(14), Waits(12)), At(16));
}

TEST(TickPaceTest, ABusyHostCountsBesideStallsAlone) {
  TickPace pace;
  pace.Interrupted(At(0), Waits(0));
  EXPECT_EQ(pace.Next(At(4), Waits(0, 4)), At(4)) << "others have the processors; no page is waited for";
  // A stall of 1 ms, and 3 ms in which the processors were busy with it: 8 ms of its own.
  EXPECT_EQ(pace.Next(At(4), Waits(1, 3)), At(12));
  // But 8 ms of a millisecond's stall.
  EXPECT_EQ(pace.Next(At(20), Waits(1, 20)), At(30)) << "9 of 20 ms; half as long again";
  EXPECT_EQ(pace.Next(At(27), Waits(1, 26)), At(27));
}

TEST(TickPaceTest, ItsTimerStillComes) {
  TickPace pace;
  pace.Interrupted(At(0), Waits(0));
  EXPECT_EQ(pace.Next(At(50), Waits(50)), At(150));
  EXPECT_EQ(pace.Next(At(400), Waits(400)), At(500));
  EXPECT_EQ(pace.Next(At(499), Waits(499)), At(500));
  EXPECT_EQ(pace.Next(At(500), Waits(500)), At(500));
  EXPECT_EQ(pace.Next(At(50), Waits(10, 40)), At(150));
  // What is known of it may go back, or run ahead.
  EXPECT_EQ(pace.Next(At(10), Waits(-5, -5)), At(10));
  EXPECT_EQ(pace.Next(At(10), Waits(3'600'000, 3'600'000)), At(30));
}

}  // namespace
}  // namespace hk
