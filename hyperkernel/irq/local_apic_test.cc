#include "hyperkernel/irq/local_apic.h"

#include "gtest/gtest.h"

namespace hk {
namespace {

using Kind = VcpuWork::Kind;
using std::chrono::nanoseconds;

constexpr uint32_t Msr(uint32_t offset) {
  return 0x800 + (offset >> 4);
}

class LocalApicTest : public testing::Test {
 protected:
  LocalApicTest() { EXPECT_TRUE(Write(LocalApic::kSvr, 0x1ff)); }
  bool Write(uint32_t offset, uint64_t value) {
    effects_ = {};
    return apic_.WriteMsr(Msr(offset), value, now_, &effects_);
  }
  uint64_t Read(uint32_t offset) { return apic_.ReadMsr(Msr(offset), now_).value_or(~uint64_t{0}); }
  bool Fixed(uint8_t vector, bool level = false) { return apic_.Accept({.vector = vector, .level = level}); }

  LocalApic apic_{18, false};
  Monotonic now_{std::chrono::hours(1)};
  ApicEffects effects_;
};

TEST_F(LocalApicTest, StartsAsAnX2apicWithItsIdAndLogicalId) {
  EXPECT_EQ(apic_.ReadMsr(0x1b, now_), 0xfee00c00u);
  EXPECT_EQ(LocalApic(0, true).ReadMsr(0x1b, now_), 0xfee00d00u);
  EXPECT_EQ(Read(LocalApic::kId), 18u);
  EXPECT_EQ(Read(LocalApic::kLdr), 1u << 16 | 1u << 2);
  EXPECT_EQ(Read(LocalApic::kVersion), 0x60014u);
}

TEST_F(LocalApicTest, ReservedRegistersAndBitsFault) {
  for (const uint32_t offset : {0x0u, 0x40u, 0x90u, 0xc0u, 0xe0u, 0x310u, 0x3f0u, 0xb0u, 0x400u}) {
    EXPECT_FALSE(apic_.ReadMsr(Msr(offset), now_).has_value()) << std::hex << offset;
  }
  for (const uint32_t offset : {uint32_t{LocalApic::kId}, uint32_t{LocalApic::kVersion}, uint32_t{LocalApic::kPpr},
                                uint32_t{LocalApic::kLdr}, uint32_t{LocalApic::kCurrentCount}}) {
    EXPECT_FALSE(Write(offset, 0)) << std::hex << offset;
  }
  EXPECT_FALSE(Write(LocalApic::kEoi, 1));
  EXPECT_FALSE(Write(LocalApic::kTpr, 0x100));
  EXPECT_FALSE(Write(LocalApic::kIcrLow, 1u << 13));
  EXPECT_FALSE(Write(LocalApic::kSvr, uint64_t{1} << 32));
}

TEST_F(LocalApicTest, ApicBaseFollowsTheTransitionTable) {
  EXPECT_FALSE(apic_.WriteMsr(0x1b, 0xfee00800, now_, &effects_)) << "x2APIC to xAPIC";
  EXPECT_FALSE(apic_.WriteMsr(0x1b, 0xfee00400, now_, &effects_)) << "extended without enabled";
  EXPECT_FALSE(apic_.WriteMsr(0x1b, 0xfed00c00, now_, &effects_)) << "moved";
  EXPECT_TRUE(apic_.WriteMsr(0x1b, 0xfee00000, now_, &effects_));
  EXPECT_FALSE(apic_.ReadMsr(Msr(LocalApic::kTpr), now_).has_value()) << "disabled";
  EXPECT_FALSE(apic_.WriteMsr(0x1b, 0xfee00c00, now_, &effects_)) << "disabled to x2APIC";
  EXPECT_TRUE(apic_.WriteMsr(0x1b, 0xfee00800, now_, &effects_));
  EXPECT_EQ(apic_.ReadMmio(LocalApic::kId, now_), 18u << 24);
  EXPECT_TRUE(apic_.WriteMsr(0x1b, 0xfee00c00, now_, &effects_));
}

TEST_F(LocalApicTest, PrioritiesNestAndEoiEndsTheHighest) {
  EXPECT_TRUE(Fixed(0x31));
  EXPECT_EQ(apic_.Acknowledge(), 0x31);
  EXPECT_TRUE(Fixed(0x35));
  EXPECT_EQ(apic_.Peek().kind, Kind::kNone) << "same class as what is in service";
  EXPECT_TRUE(Fixed(0x52));
  EXPECT_EQ(apic_.Acknowledge(), 0x52);
  EXPECT_EQ(apic_.Ppr(), 0x50);
  EXPECT_TRUE(Write(LocalApic::kEoi, 0));
  EXPECT_FALSE(effects_.eoi.has_value()) << "edge";
  EXPECT_EQ(apic_.Peek().kind, Kind::kNone);
  EXPECT_TRUE(Write(LocalApic::kEoi, 0));
  EXPECT_EQ(apic_.Acknowledge(), 0x35);
}

TEST_F(LocalApicTest, TaskPriorityHoldsBackAndIsCr8) {
  EXPECT_TRUE(Fixed(0x45));
  EXPECT_TRUE(Write(LocalApic::kTpr, 0x40));
  EXPECT_EQ(apic_.Cr8(), 4);
  EXPECT_FALSE(apic_.Acknowledge().has_value());
  apic_.SetCr8(3);
  EXPECT_EQ(Read(LocalApic::kTpr), 0x30u);
  EXPECT_EQ(apic_.Acknowledge(), 0x45);
}

TEST_F(LocalApicTest, LevelInterruptsTellTheIoApicAtTheirEnd) {
  EXPECT_TRUE(Fixed(0x61, true));
  EXPECT_EQ(apic_.Acknowledge(), 0x61);
  EXPECT_TRUE(Write(LocalApic::kEoi, 0));
  EXPECT_EQ(effects_.eoi, 0x61);
}

TEST_F(LocalApicTest, IllegalVectorsGoToTheErrorRegister) {
  EXPECT_FALSE(Fixed(15));
  EXPECT_TRUE(Write(LocalApic::kIcrLow, 3));
  EXPECT_FALSE(effects_.message.has_value());
  EXPECT_EQ(Read(LocalApic::kEsr), 0u) << "shown only after a write";
  EXPECT_TRUE(Write(LocalApic::kEsr, 0));
  EXPECT_EQ(Read(LocalApic::kEsr), 0x60u);
}

TEST_F(LocalApicTest, SoftwareDisabledMasksAndDrops) {
  EXPECT_TRUE(Write(LocalApic::kLvtTimer, 0x40));
  EXPECT_TRUE(Write(LocalApic::kSvr, 0xff));
  EXPECT_EQ(Read(LocalApic::kLvtTimer), 0x10040u);
  EXPECT_FALSE(Fixed(0x50));
}

TEST_F(LocalApicTest, EventsKeepTheirOrder) {
  apic_.Accept({.mode = DeliveryMode::kNmi});
  apic_.Accept({.mode = DeliveryMode::kInit});
  apic_.Accept({.vector = 0x9a, .mode = DeliveryMode::kStartup});
  apic_.Accept({.vector = 0x9b, .mode = DeliveryMode::kStartup});
  EXPECT_EQ(apic_.Peek().kind, Kind::kInit) << "INIT drops what came before it";
  apic_.Take(apic_.Peek());
  EXPECT_EQ(apic_.Peek().kind, Kind::kSipi);
  EXPECT_EQ(apic_.Peek().vector, 0x9a);
  apic_.Take(apic_.Peek());
  EXPECT_EQ(apic_.Peek().kind, Kind::kNone) << "a second SIPI adds nothing";
  for (int i = 0; i < 5; i++) apic_.Accept({.mode = DeliveryMode::kNmi});
  apic_.Take(apic_.Peek());
  apic_.Take(apic_.Peek());
  EXPECT_EQ(apic_.Peek().kind, Kind::kNone) << "at most two NMIs wait";
}

TEST_F(LocalApicTest, InitKeepsOnlyIdAndBase) {
  EXPECT_TRUE(Fixed(0x50));
  EXPECT_TRUE(Write(LocalApic::kInitialCount, 1000));
  apic_.Accept({.mode = DeliveryMode::kInit});
  apic_.Take(apic_.Peek());
  EXPECT_EQ(Read(LocalApic::kSvr), 0xffu);
  EXPECT_FALSE(apic_.Deadline().has_value());
  EXPECT_EQ(apic_.ReadMsr(0x1b, now_), 0xfee00c00u);
}

TEST_F(LocalApicTest, OneShotFiresOnceAfterTheDividedCount) {
  EXPECT_TRUE(Write(LocalApic::kDivide, 0xb));
  EXPECT_TRUE(Write(LocalApic::kLvtTimer, 0x40));
  EXPECT_TRUE(Write(LocalApic::kInitialCount, 1000));
  EXPECT_EQ(apic_.Deadline(), now_ + nanoseconds(1000));
  EXPECT_TRUE(Write(LocalApic::kDivide, 0x3));
  EXPECT_EQ(apic_.Deadline(), now_ + nanoseconds(16000));
  now_ += nanoseconds(4000);
  EXPECT_EQ(Read(LocalApic::kCurrentCount), 750u);
  EXPECT_FALSE(apic_.OnTime(now_));
  now_ += nanoseconds(12000);
  EXPECT_TRUE(apic_.OnTime(now_));
  EXPECT_EQ(apic_.Acknowledge(), 0x40);
  EXPECT_FALSE(apic_.Deadline().has_value());
  EXPECT_EQ(Read(LocalApic::kCurrentCount), 0u);
}

TEST_F(LocalApicTest, PeriodicFiresAgainAndMissedTicksAreOne) {
  EXPECT_TRUE(Write(LocalApic::kDivide, 0xb));
  EXPECT_TRUE(Write(LocalApic::kLvtTimer, 0x20040));
  EXPECT_TRUE(Write(LocalApic::kInitialCount, 100));
  now_ += nanoseconds(100);
  EXPECT_TRUE(apic_.OnTime(now_));
  EXPECT_EQ(apic_.Deadline(), now_ + nanoseconds(100));
  now_ += nanoseconds(1000);
  EXPECT_TRUE(apic_.OnTime(now_));
  EXPECT_EQ(apic_.Deadline(), now_ + nanoseconds(100));
  EXPECT_TRUE(Write(LocalApic::kInitialCount, 0));
  EXPECT_FALSE(apic_.Deadline().has_value());
}

TEST_F(LocalApicTest, AMaskedTimerCountsButDoesNotFire) {
  EXPECT_TRUE(Write(LocalApic::kLvtTimer, 0x10040));
  EXPECT_TRUE(Write(LocalApic::kInitialCount, 100));
  EXPECT_FALSE(apic_.OnTime(now_ + std::chrono::seconds(1)));
}

TEST_F(LocalApicTest, DestinationsOfBothModes) {
  const auto matches = [&](bool logical, bool x2apic, uint32_t destination) {
    return apic_.Matches({.logical = logical, .x2apic = x2apic, .destination = destination});
  };
  EXPECT_TRUE(matches(false, true, 18));
  EXPECT_FALSE(matches(false, true, 17));
  EXPECT_FALSE(matches(false, true, 0xff)) << "0xff is broadcast for 8-bit destinations only";
  EXPECT_TRUE(matches(false, false, 0xff));
  EXPECT_TRUE(matches(false, true, 0xffffffff));
  EXPECT_TRUE(matches(true, true, 1u << 16 | 0xf));
  EXPECT_FALSE(matches(true, true, 2u << 16 | 0xf));
  EXPECT_FALSE(matches(true, true, 1u << 16 | 0x8));
  ASSERT_TRUE(apic_.WriteMsr(0x1b, 0xfee00000, now_, &effects_));
  ASSERT_TRUE(apic_.WriteMsr(0x1b, 0xfee00800, now_, &effects_));
  apic_.WriteMmio(LocalApic::kLdr, 0x24000000, now_, &effects_);
  EXPECT_TRUE(matches(true, false, 0x04));
  EXPECT_FALSE(matches(true, false, 0x08));
  apic_.WriteMmio(LocalApic::kDfr, 0x0fffffff, now_, &effects_);
  EXPECT_TRUE(matches(true, false, 0x2c));
  EXPECT_FALSE(matches(true, false, 0x3c)) << "another cluster";
}

}  // namespace
}  // namespace hk
