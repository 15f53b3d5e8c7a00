#include "hyperkernel/node/guest_end.h"

#include "gtest/gtest.h"

namespace hk {
namespace {

constexpr Monotonic kStart{std::chrono::hours(1)};

AfterEnd Crash(GuestEndRule& rule, Monotonic now, v1::OnCrash on_crash = v1::ON_CRASH_RESET) {
  return rule.Decide(MachineEnd::kCrash, "triple fault", on_crash, now);
}

TEST(GuestEndRule, APowerOffIsTheEnd) {
  GuestEndRule rule;
  const AfterEnd after = rule.Decide(MachineEnd::kPowerOff, "", v1::ON_CRASH_RESET, kStart);
  EXPECT_EQ(after.state, v1::VM_STATE_STOPPED);
  EXPECT_EQ(after.reason, "powered off by the guest");
  EXPECT_FALSE(after.restart.has_value());
}

TEST(GuestEndRule, ACrashIsTheEndUnlessResetIsAskedFor) {
  GuestEndRule rule;
  const AfterEnd after = Crash(rule, kStart, v1::ON_CRASH_STOP);
  EXPECT_EQ(after.state, v1::VM_STATE_CRASHED);
  EXPECT_EQ(after.reason, "triple fault");
  EXPECT_FALSE(after.restart.has_value());
  EXPECT_EQ(rule.crashes(), 1u);
}

TEST(GuestEndRule, CrashesThatAreResetsEndInTheWindow) {
  GuestEndRule rule;
  for (size_t crash = 1; crash < GuestEndRule::kMaxCrashes; crash++) {
    EXPECT_EQ(Crash(rule, kStart).restart, "reset after a crash: triple fault") << crash;
  }
  const AfterEnd last = Crash(rule, kStart + GuestEndRule::kCrashWindow / 2);
  EXPECT_FALSE(last.restart.has_value());
  EXPECT_EQ(last.reason, "triple fault; not reset any more: 5 crashes within 5 minutes");
  EXPECT_EQ(rule.crashes(), GuestEndRule::kMaxCrashes);
  EXPECT_TRUE(Crash(rule, kStart + 2 * GuestEndRule::kCrashWindow).restart.has_value());
  rule.Forget();
  EXPECT_EQ(rule.crashes(), 0u);
}

TEST(GuestEndRule, AGuestMayResetItselfButNotAgainAndAgain) {
  GuestEndRule rule;
  const auto reset = [&] { return rule.Decide(MachineEnd::kReset, "", v1::ON_CRASH_STOP, kStart); };
  for (size_t count = 1; count < GuestEndRule::kMaxOwnResets; count++) {
    const AfterEnd after = reset();
    EXPECT_EQ(after.state, v1::VM_STATE_STOPPED);
    EXPECT_EQ(after.restart, "reset by the guest");
  }
  const AfterEnd last = reset();
  EXPECT_EQ(last.state, v1::VM_STATE_CRASHED);
  EXPECT_EQ(last.reason, "resets itself again and again: 30 times within a minute");
  EXPECT_FALSE(last.restart.has_value());
  EXPECT_EQ(rule.crashes(), 0u);
  rule.Forget();
  EXPECT_TRUE(reset().restart.has_value());
}

}  // namespace
}  // namespace hk
