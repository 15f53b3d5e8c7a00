#include "hyperkernel/irq/apic_timer.h"

#include <gtest/gtest.h>

#include "hyperkernel/irq/local_apic.h"

namespace hk {
namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;

constexpr Monotonic kStart{std::chrono::hours(1)};

TEST(ApicTimer, DivideConfigurations) {
  // SDM 3A figure 11-10.
  const std::pair<uint32_t, int> table[] = {{0x0, 2},  {0x1, 4},  {0x2, 8},   {0x3, 16},
                                            {0x8, 32}, {0x9, 64}, {0xa, 128}, {0xb, 1}};
  for (const auto& [value, divide] : table) {
    ApicTimer timer;
    timer.WriteDivide(value, kStart);
    timer.WriteInitial(1000, kStart);
    EXPECT_EQ(timer.deadline(), kStart + nanoseconds(1000 * divide)) << value;
    EXPECT_EQ(timer.Current(kStart + nanoseconds(10 * divide)), 990u);
    EXPECT_EQ(timer.divide_register(), value);
  }
}

TEST(ApicTimer, OneShot) {
  ApicTimer timer;
  timer.WriteDivide(0xb, kStart);
  EXPECT_EQ(timer.Current(kStart), 0u);
  timer.WriteInitial(100, kStart);
  EXPECT_EQ(timer.Current(kStart), 100u);
  EXPECT_FALSE(timer.Expire(kStart + nanoseconds(99)));
  EXPECT_EQ(timer.Current(kStart + nanoseconds(99)), 1u);
  EXPECT_EQ(timer.Current(kStart + nanoseconds(150)), 0u);
  EXPECT_TRUE(timer.Expire(kStart + nanoseconds(100)));
  EXPECT_FALSE(timer.Expire(kStart + nanoseconds(1000)));
  EXPECT_EQ(timer.deadline(), std::nullopt);
  EXPECT_EQ(timer.initial(), 100u);
}

TEST(ApicTimer, PeriodicStaysInPhase) {
  ApicTimer timer;
  timer.WriteDivide(0xb, kStart);
  timer.SetPeriodic(true);
  timer.WriteInitial(1000000, kStart);
  EXPECT_TRUE(timer.Expire(kStart + nanoseconds(1000700)));
  EXPECT_EQ(timer.deadline(), kStart + nanoseconds(2000000));
  EXPECT_TRUE(timer.Expire(kStart + nanoseconds(5500000))) << "late: missed expiries are one";
  EXPECT_FALSE(timer.Expire(kStart + nanoseconds(5500000)));
  EXPECT_EQ(timer.deadline(), kStart + nanoseconds(6000000));
  EXPECT_EQ(timer.Current(kStart + nanoseconds(5500000)), 500000u);
  EXPECT_EQ(timer.Current(kStart + nanoseconds(6250000)), 750000u) << "overdue, not yet seen";
}

TEST(ApicTimer, ZeroStops) {
  ApicTimer timer;
  timer.SetPeriodic(true);
  timer.WriteInitial(100, kStart);
  timer.WriteInitial(0, kStart);
  EXPECT_EQ(timer.deadline(), std::nullopt);
  EXPECT_FALSE(timer.Expire(kStart + std::chrono::hours(1)));
}

TEST(ApicTimer, DivideChangesTheRateOfACountdown) {
  ApicTimer timer;
  timer.WriteDivide(0xb, kStart);
  timer.WriteInitial(1000, kStart);
  timer.WriteDivide(0x0, kStart + nanoseconds(400));
  EXPECT_EQ(timer.Current(kStart + nanoseconds(400)), 600u);
  EXPECT_EQ(timer.deadline(), kStart + nanoseconds(400 + 1200));
}

TEST(ApicTimer, ModeAppliesFromTheNextExpiry) {
  ApicTimer timer;
  timer.WriteDivide(0xb, kStart);
  timer.SetPeriodic(true);
  timer.WriteInitial(1000000, kStart);
  timer.SetPeriodic(false);
  EXPECT_TRUE(timer.Expire(kStart + microseconds(1000)));
  EXPECT_EQ(timer.deadline(), std::nullopt);
  timer.SetPeriodic(true);
  EXPECT_EQ(timer.deadline(), std::nullopt) << "a timer at rest stays at rest";
}

TEST(ApicTimer, PeriodsHaveAFloor) {
  ApicTimer timer;
  timer.WriteDivide(0xb, kStart);
  timer.SetPeriodic(true);
  timer.WriteInitial(1, kStart);
  EXPECT_EQ(timer.deadline(), kStart + kMinTimerPeriod);
  EXPECT_EQ(timer.Current(kStart), 1u);
  EXPECT_TRUE(timer.Expire(kStart + std::chrono::hours(24)));
}

// The timer as the local APIC drives it.
class ApicTimerLvt : public testing::Test {
 protected:
  ApicTimerLvt() {
    Write(0x80f, 0x1ff);
    Write(0x83e, 0xb);
  }
  void Write(uint32_t msr, uint64_t value) { EXPECT_FALSE(apic_.WriteMsr(msr, value, now_).fault); }
  LocalApic apic_{0, true, true};
  Monotonic now_ = kStart;
};

TEST_F(ApicTimerLvt, OneShotInterrupts) {
  Write(0x832, 0xec);
  Write(0x838, 1000);
  EXPECT_EQ(apic_.NextTimerDeadline(), kStart + nanoseconds(1000));
  EXPECT_FALSE(apic_.OnTime(kStart + nanoseconds(999)));
  EXPECT_TRUE(apic_.OnTime(kStart + nanoseconds(1000)));
  EXPECT_EQ(apic_.Acknowledge(), 0xec);
  EXPECT_EQ(apic_.NextTimerDeadline(), std::nullopt);
}

TEST_F(ApicTimerLvt, AMaskedTimerRunsUnnoticed) {
  Write(0x832, 0x100ec);
  Write(0x838, 1000);
  EXPECT_EQ(apic_.NextTimerDeadline(), std::nullopt) << "nobody would notice";
  now_ += nanoseconds(400);
  EXPECT_EQ(apic_.ReadMsr(0x839, now_), 600u);
  Write(0x832, 0xec);
  EXPECT_EQ(apic_.NextTimerDeadline(), kStart + nanoseconds(1000)) << "unmasked in time";
  Write(0x832, 0x100ec);
  now_ += nanoseconds(700);
  Write(0x832, 0xec);
  EXPECT_EQ(apic_.NextTimerDeadline(), std::nullopt) << "expired while masked: lost";
  EXPECT_EQ(apic_.Acknowledge(), std::nullopt);
}

TEST_F(ApicTimerLvt, ALateReadSeesTheInterrupt) {
  Write(0x832, 0xec);
  Write(0x838, 1000);
  EXPECT_EQ(apic_.ReadMsr(0x839, now_ + nanoseconds(2000)), 0u);
  EXPECT_EQ(apic_.Acknowledge(), 0xec);
}

TEST_F(ApicTimerLvt, PeriodicInterruptsAgain) {
  Write(0x832, 0x200ec);
  Write(0x838, 1000000);
  for (int i = 1; i <= 3; ++i) {
    EXPECT_TRUE(apic_.OnTime(kStart + nanoseconds(1000000) * i));
    EXPECT_EQ(apic_.Acknowledge(), 0xec);
    Write(0x80b, 0);
  }
}

}  // namespace
}  // namespace hk
