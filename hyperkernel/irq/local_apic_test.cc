#include "hyperkernel/irq/local_apic.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace hk {
namespace {

using Kind = VcpuWork::Kind;

constexpr Monotonic kNow{std::chrono::hours(1)};

uint32_t Msr(ApicRegister reg) {
  return kMsrX2ApicFirst + static_cast<uint32_t>(reg);
}

// A bootstrap processor in x2APIC mode, software-enabled.
class LocalApicTest : public testing::Test {
 protected:
  LocalApicTest() { Write(ApicRegister::kSpurious, 0x1ff); }

  ApicEffects Write(ApicRegister reg, uint64_t value) {
    const ApicEffects effects = apic_.WriteMsr(Msr(reg), value, kNow);
    EXPECT_FALSE(effects.fault);
    return effects;
  }
  uint64_t Read(ApicRegister reg) { return apic_.ReadMsr(Msr(reg), kNow).value(); }
  Acceptance Fixed(uint8_t vector) { return apic_.Accept({.vector = vector}); }
  Acceptance Level(uint8_t vector, uint8_t pin, uint32_t generation) {
    return apic_.Accept({.vector = vector, .level = true, .pin = pin, .generation = generation});
  }
  uint32_t Eoi() { return Write(ApicRegister::kEoi, 0).eoi_pins; }
  uint64_t LatchedErrors() {
    Write(ApicRegister::kErrorStatus, 0);
    return Read(ApicRegister::kErrorStatus);
  }

  LocalApic apic_{5, true, true};
};

TEST_F(LocalApicTest, HigherVectorsComeFirst) {
  for (uint8_t vector : {0x31, 0xef, 0x20, 0x80, 0xee}) {
    EXPECT_TRUE(Fixed(vector).accepted);
  }
  std::vector<uint8_t> order;
  while (auto vector = apic_.Acknowledge()) {
    order.push_back(*vector);
    Eoi();
  }
  EXPECT_EQ(order, (std::vector<uint8_t>{0xef, 0xee, 0x80, 0x31, 0x20}));
}

TEST_F(LocalApicTest, OnlyAHigherClassInterruptsAService) {
  Fixed(0x45);
  EXPECT_EQ(apic_.Acknowledge(), 0x45);
  EXPECT_FALSE(Fixed(0x4f).wake) << "same class";
  EXPECT_EQ(apic_.Peek().kind, Kind::kNone);
  EXPECT_TRUE(Fixed(0x50).wake);
  EXPECT_EQ(apic_.Acknowledge(), 0x50);
  EXPECT_EQ(Read(ApicRegister::kProcessorPriority), 0x50u);
  Eoi();  // ends 0x50, the highest in service
  EXPECT_EQ(Read(ApicRegister::kProcessorPriority), 0x40u);
  EXPECT_EQ(apic_.Acknowledge(), std::nullopt);
  Eoi();
  EXPECT_EQ(apic_.Acknowledge(), 0x4f);
}

// The guest may end an interrupt without an access only if that changes nothing but the interrupt in service.
TEST_F(LocalApicTest, AnEoiIsOfferedOnlyIfNothingElseHangsOnIt) {
  EXPECT_FALSE(apic_.OfferEoi()) << "nothing in service";
  Fixed(0x45);
  ASSERT_EQ(apic_.Acknowledge(), 0x45);
  EXPECT_TRUE(apic_.OfferEoi());
  EXPECT_EQ(apic_.EndEoiOffer(true).eoi_pins, 0u);
  EXPECT_EQ(Read(ApicRegister::kProcessorPriority), 0u);
  Fixed(0x45);
  Fixed(0x31);
  ASSERT_EQ(apic_.Acknowledge(), 0x45);
  EXPECT_FALSE(apic_.OfferEoi()) << "another waits";
  Fixed(0x80);
  ASSERT_EQ(apic_.Acknowledge(), 0x80);
  Eoi();
  Eoi();
  ASSERT_EQ(apic_.Acknowledge(), 0x31);
  Fixed(0x80);
  ASSERT_EQ(apic_.Acknowledge(), 0x80);
  EXPECT_FALSE(apic_.OfferEoi()) << "nested";
  Eoi();
  Eoi();
  Level(0x50, 3, 7);
  ASSERT_EQ(apic_.Acknowledge(), 0x50);
  EXPECT_FALSE(apic_.OfferEoi()) << "level-triggered";
  EXPECT_EQ(Eoi(), 1u << 3);
}

TEST_F(LocalApicTest, WhileAnEoiIsOfferedEveryRequestWakes) {
  Fixed(0x45);
  ASSERT_EQ(apic_.Acknowledge(), 0x45);
  EXPECT_FALSE(Fixed(0x46).wake) << "not offered: the EOI will be seen";
  Eoi();
  ASSERT_EQ(apic_.Acknowledge(), 0x46);
  ASSERT_TRUE(apic_.OfferEoi());
  EXPECT_TRUE(Fixed(0x31).wake) << "the guest may have ended 0x46 without a word";
  EXPECT_EQ(apic_.EndEoiOffer(false).eoi_pins, 0u);
  EXPECT_EQ(apic_.Peek().kind, Kind::kNone) << "0x46 is still in service";
  EXPECT_FALSE(Fixed(0x32).wake);
  Eoi();
  EXPECT_EQ(apic_.Acknowledge(), 0x32);
}

TEST_F(LocalApicTest, EoiWithNothingInServiceDoesNothing) {
  Fixed(0x30);
  EXPECT_EQ(Eoi(), 0u);
  EXPECT_EQ(apic_.Acknowledge(), 0x30);
}

TEST_F(LocalApicTest, ProcessorPriorityIsTheHigherClass) {
  // SDM 3A 11.8.3.1: {TPR, vector in service, PPR}
  const std::vector<std::array<uint8_t, 3>> table = {{0x00, 0x00, 0x00}, {0x3a, 0x00, 0x3a}, {0x00, 0x57, 0x50},
                                                     {0x3a, 0x57, 0x50}, {0x5a, 0x57, 0x5a}, {0x7a, 0x57, 0x7a}};
  for (const auto& [tpr, in_service, ppr] : table) {
    LocalApic apic(0, true, true);
    apic.WriteMsr(Msr(ApicRegister::kSpurious), 0x1ff, kNow);
    if (in_service != 0) {
      apic.Accept({.vector = in_service});
      EXPECT_EQ(apic.Acknowledge(), in_service);
    }
    apic.WriteMsr(Msr(ApicRegister::kTaskPriority), tpr, kNow);
    EXPECT_EQ(apic.ProcessorPriority(), ppr) << int{tpr} << " " << int{in_service};
  }
}

TEST_F(LocalApicTest, Cr8IsTheUpperHalfOfTheTaskPriority) {
  Write(ApicRegister::kTaskPriority, 0x5a);
  EXPECT_EQ(apic_.Cr8(), 5);
  apic_.SetCr8(5);
  EXPECT_EQ(Read(ApicRegister::kTaskPriority), 0x5au) << "an unchanged CR8 must not lose bits 3:0";
  apic_.SetCr8(6);
  EXPECT_EQ(Read(ApicRegister::kTaskPriority), 0x60u);
  EXPECT_FALSE(Fixed(0x6f).wake);
  EXPECT_EQ(apic_.Acknowledge(), std::nullopt);
  apic_.SetCr8(0);
  EXPECT_EQ(apic_.Peek(), (VcpuWork{Kind::kInterrupt, 0x6f}));
}

TEST_F(LocalApicTest, ASecondRequestWhileInServiceIsKept) {
  Fixed(0x30);
  apic_.Acknowledge();
  Fixed(0x30);
  Fixed(0x30);
  Eoi();
  EXPECT_EQ(apic_.Acknowledge(), 0x30);
  Eoi();
  EXPECT_EQ(apic_.Acknowledge(), std::nullopt);
}

TEST_F(LocalApicTest, ARepeatedRequestWakesOnce) {
  EXPECT_TRUE(Fixed(0x30).wake);
  EXPECT_FALSE(Fixed(0x30).wake);
}

TEST_F(LocalApicTest, LevelEoiNamesPinAndGeneration) {
  Level(0x30, 3, 7);
  EXPECT_EQ(Read(static_cast<ApicRegister>(0x19)), 1u << 16) << "TMR";
  apic_.Acknowledge();
  EXPECT_EQ(Eoi(), 1u << 3);
  EXPECT_EQ(apic_.EoiOf(3), (LevelEoi{3, 7}));
  Fixed(0x30);
  EXPECT_EQ(Read(static_cast<ApicRegister>(0x19)), 0u);
  apic_.Acknowledge();
  EXPECT_EQ(Eoi(), 0u) << "an edge has no EOI message";
}

TEST_F(LocalApicTest, PinsThatShareAVectorAllEnd) {
  Level(0x30, 3, 7);
  Level(0x30, 9, 1);
  apic_.Acknowledge();
  EXPECT_EQ(Eoi(), 1u << 3 | 1u << 9);
}

TEST_F(LocalApicTest, AnOvertakenDeliveryDoesNotHideTheNewer) {
  Level(0x30, 3, 0xffffffff);
  Level(0x30, 3, 1);           // the counter has wrapped
  Level(0x30, 3, 0xfffffffe);  // was overtaken
  apic_.Acknowledge();
  Eoi();
  EXPECT_EQ(apic_.EoiOf(3).generation, 1u);
}

TEST_F(LocalApicTest, EoiBroadcastCanBeSuppressed) {
  Write(ApicRegister::kSpurious, 0x11ff);
  Level(0x30, 3, 7);
  apic_.Acknowledge();
  EXPECT_EQ(Eoi(), 0u);
}

TEST_F(LocalApicTest, SoftwareDisabledRefusesFixedAndMasksTheLvt) {
  Write(ApicRegister::kLvtTimer, 0x40);
  Fixed(0x30);
  Write(ApicRegister::kSpurious, 0xff);
  EXPECT_FALSE(Fixed(0x31).accepted);
  EXPECT_EQ(Read(ApicRegister::kLvtTimer), 0x40u | kLvtMasked);
  Write(ApicRegister::kLvtTimer, 0x40);
  EXPECT_EQ(Read(ApicRegister::kLvtTimer), 0x40u | kLvtMasked) << "the mask cannot be cleared";
  EXPECT_TRUE(apic_.Accept({.mode = DeliveryMode::kNmi}).accepted);
  apic_.Take({Kind::kNmi, 0});
  EXPECT_EQ(apic_.Acknowledge(), 0x30) << "what was pending is still to be handled (SDM 3A 11.4.7.2)";
  EXPECT_TRUE(Write(ApicRegister::kSpurious, 0x1ff).routing_changed);
  EXPECT_EQ(Read(ApicRegister::kLvtTimer), 0x40u | kLvtMasked);
}

TEST_F(LocalApicTest, LvtDecidesHowLocalInterruptsArrive) {
  EXPECT_FALSE(apic_.RaiseLocal(LocalSource::kLint1)) << "masked after reset";
  Write(ApicRegister::kLvtLint1, 0x400);
  EXPECT_TRUE(apic_.RaiseLocal(LocalSource::kLint1));
  EXPECT_EQ(apic_.Peek().kind, Kind::kNmi);
  apic_.Take(apic_.Peek());
  Write(ApicRegister::kLvtLint0, 0x700);
  EXPECT_FALSE(apic_.RaiseLocal(LocalSource::kLint0)) << "ExtINT: there is no PIC";
  Write(ApicRegister::kLvtThermal, 0x52);
  EXPECT_TRUE(apic_.RaiseLocal(LocalSource::kThermal));
  EXPECT_EQ(apic_.Acknowledge(), 0x52);
  Write(ApicRegister::kLvtCmci, 0x62);
  EXPECT_TRUE(apic_.RaiseLocal(LocalSource::kCmci));
  Write(ApicRegister::kLvtPerformance, 0x400);
  EXPECT_TRUE(apic_.RaiseLocal(LocalSource::kPerformance));
  EXPECT_EQ(Read(ApicRegister::kLvtPerformance), 0x400u | kLvtMasked) << "masks itself";
}

TEST_F(LocalApicTest, ErrorsAreLatchedByAWrite) {
  EXPECT_FALSE(Fixed(0x0f).accepted);
  EXPECT_EQ(Read(ApicRegister::kErrorStatus), 0u) << "not before a write";
  EXPECT_EQ(LatchedErrors(), kErrorReceiveIllegalVector);
  EXPECT_EQ(Read(ApicRegister::kErrorStatus), kErrorReceiveIllegalVector);
  EXPECT_EQ(LatchedErrors(), 0u);
}

TEST_F(LocalApicTest, IllegalVectors) {
  EXPECT_FALSE(Write(ApicRegister::kCommand, 0x500000005).ipi);
  EXPECT_EQ(LatchedErrors(), kErrorSendIllegalVector);
  Write(ApicRegister::kSelfIpi, 3);
  EXPECT_EQ(LatchedErrors(), kErrorSendIllegalVector | kErrorReceiveIllegalVector);
  Write(ApicRegister::kCommand, 0x40003);
  EXPECT_EQ(LatchedErrors(), kErrorSendIllegalVector | kErrorReceiveIllegalVector);
  EXPECT_TRUE(Write(ApicRegister::kCommand, 0x500000400).ipi) << "an NMI has no vector";
  Write(ApicRegister::kLvtThermal, 0x0f);
  apic_.RaiseLocal(LocalSource::kThermal);
  EXPECT_EQ(LatchedErrors(), kErrorReceiveIllegalVector);
  EXPECT_EQ(apic_.Acknowledge(), std::nullopt);
}

TEST_F(LocalApicTest, TheErrorInterruptComesOnceUntilTheStatusIsWritten) {
  Write(ApicRegister::kLvtError, 0xfe);
  EXPECT_TRUE(Fixed(1).wake);
  EXPECT_EQ(apic_.Acknowledge(), 0xfe);
  Eoi();
  EXPECT_FALSE(Fixed(2).wake);
  EXPECT_EQ(apic_.Acknowledge(), std::nullopt);
  Write(ApicRegister::kErrorStatus, 0);
  Fixed(3);
  EXPECT_EQ(apic_.Acknowledge(), 0xfe);
  Eoi();
  Write(ApicRegister::kErrorStatus, 0);
  Write(ApicRegister::kLvtError, 0x02);  // itself illegal
  Fixed(3);
  EXPECT_EQ(LatchedErrors(), kErrorReceiveIllegalVector);
}

TEST_F(LocalApicTest, CommandBecomesAMessage) {
  const auto message = Write(ApicRegister::kCommand, 0x0001000300000830).ipi;
  EXPECT_EQ(message,
            (InterruptMessage{
                .destination = 0x00010003, .width = DestinationWidth::kBits32, .logical = true, .vector = 0x30}));
  EXPECT_EQ(Read(ApicRegister::kCommand), 0x0001000300000830u) << "reads as one 64-bit register";
  Write(ApicRegister::kCommand, 0x500001031);
  EXPECT_EQ(Read(ApicRegister::kCommand), 0x500000031u) << "delivery status is idle";
}

TEST_F(LocalApicTest, CommandsThatSendNothing) {
  // Reserved modes, level de-assert, and self or all with what the table forbids (SDM 3A table 11-3).
  for (uint64_t icr : {0x330, 0x730, 0x8030, 0x8500, 0x40130, 0x40500, 0x40600, 0x80130, 0x80500, 0x80600, 0x80200}) {
    EXPECT_FALSE(Write(ApicRegister::kCommand, icr).ipi) << std::hex << icr;
  }
  for (uint64_t icr : {0x30, 0x130, 0x200, 0x400, 0x500, 0x608, 0xc500, 0xc030, 0x40030, 0x40400, 0xc0130, 0xc0500}) {
    const auto message = Write(ApicRegister::kCommand, icr).ipi;
    ASSERT_TRUE(message) << std::hex << icr;
    EXPECT_FALSE(message->level) << "an IPI is an edge";
  }
}

TEST_F(LocalApicTest, APacedTimerInterruptsWhenItIsRun) {
  apic_.PaceTimer();
  Write(ApicRegister::kLvtTimer, 0x40 | kLvtPeriodic);
  Write(ApicRegister::kTimerDivide, 0xb);
  Write(ApicRegister::kTimerInitial, 1'000'000);
  const Monotonic late = kNow + std::chrono::milliseconds(5);
  EXPECT_FALSE(apic_.WriteMsr(Msr(ApicRegister::kEoi), 0, late).fault);
  EXPECT_TRUE(apic_.ReadMsr(Msr(ApicRegister::kTimerCurrent), late).has_value());
  EXPECT_EQ(apic_.Acknowledge(), std::nullopt);
  EXPECT_TRUE(apic_.OnTime(late));
  EXPECT_EQ(apic_.Acknowledge(), 0x40);
}

TEST_F(LocalApicTest, APacedTimerThatIsSetAnewLosesNothing) {
  apic_.PaceTimer();
  Write(ApicRegister::kLvtTimer, 0x40);
  Write(ApicRegister::kTimerDivide, 0xb);
  Write(ApicRegister::kTimerInitial, 1'000'000);
  const Monotonic late = kNow + std::chrono::milliseconds(5);
  EXPECT_FALSE(apic_.WriteMsr(Msr(ApicRegister::kTimerInitial), 1'000'000, late).fault);
  EXPECT_EQ(apic_.Acknowledge(), 0x40);
}

TEST_F(LocalApicTest, SelfIpi) {
  Write(ApicRegister::kSelfIpi, 0x77);
  EXPECT_EQ(apic_.Acknowledge(), 0x77);
}

TEST_F(LocalApicTest, InitResetsAndWaitsForSipi) {
  Fixed(0x30);
  Write(ApicRegister::kTaskPriority, 0x20);
  Write(ApicRegister::kTimerDivide, 0xb);
  Write(ApicRegister::kTimerInitial, 1000);
  EXPECT_TRUE(apic_.Accept({.mode = DeliveryMode::kInit}).wake);
  EXPECT_EQ(apic_.Peek().kind, Kind::kInit);
  EXPECT_TRUE(apic_.Take({Kind::kInit, 0}));
  EXPECT_EQ(apic_.Peek().kind, Kind::kNone);
  EXPECT_EQ(Read(ApicRegister::kId), 5u);
  EXPECT_EQ(apic_.ReadMsr(kMsrApicBase, kNow), 0xfee00d00u) << "still x2APIC mode";
  const std::vector<std::pair<ApicRegister, uint64_t>> after = {
      {ApicRegister::kTaskPriority, 0},   {ApicRegister::kSpurious, 0xff},        {ApicRegister::kCommand, 0},
      {ApicRegister::kTimerInitial, 0},   {ApicRegister::kTimerCurrent, 0},       {ApicRegister::kTimerDivide, 0},
      {ApicRegister::kLvtTimer, 0x10000}, {ApicRegister::kLvtLint0, 0x10000},     {ApicRegister::kLvtError, 0x10000},
      {ApicRegister::kErrorStatus, 0},    {ApicRegister::kVersion, kApicVersion}, {static_cast<ApicRegister>(0x21), 0}};
  for (const auto& [reg, value] : after) {
    EXPECT_EQ(Read(reg), value) << std::hex << static_cast<uint32_t>(reg);
  }
}

TEST_F(LocalApicTest, SipiSipiStartsOnce) {
  apic_.Accept({.mode = DeliveryMode::kInit});
  EXPECT_TRUE(apic_.Accept({.mode = DeliveryMode::kStartup, .vector = 0x9a}).accepted);
  apic_.Accept({.mode = DeliveryMode::kStartup, .vector = 0x9b});
  apic_.Take(apic_.Peek());
  EXPECT_EQ(apic_.Peek(), (VcpuWork{Kind::kSipi, 0x9a}));
  apic_.Take(apic_.Peek());
  EXPECT_EQ(apic_.Peek().kind, Kind::kNone);
  EXPECT_FALSE(apic_.Accept({.mode = DeliveryMode::kStartup, .vector = 0x9c}).wake) << "not waiting any more";
  EXPECT_EQ(apic_.Peek().kind, Kind::kNone);
}

TEST_F(LocalApicTest, ApplicationProcessorsWaitFromTheStart) {
  LocalApic other(6, false, true);
  EXPECT_FALSE(other.Accept({.mode = DeliveryMode::kNmi}).wake);
  EXPECT_TRUE(other.Accept({.mode = DeliveryMode::kStartup, .vector = 8}).wake);
  EXPECT_EQ(other.Peek(), (VcpuWork{Kind::kSipi, 8})) << "before the NMI, which stays pending";
  other.Take(other.Peek());
  EXPECT_EQ(other.Peek().kind, Kind::kNmi);
}

TEST_F(LocalApicTest, SmiAndExtIntAreNotAccepted) {
  EXPECT_FALSE(apic_.Accept({.mode = DeliveryMode::kSmi}).accepted);
  EXPECT_FALSE(apic_.Accept({.mode = DeliveryMode::kExtInt, .vector = 0x30}).accepted);
  EXPECT_EQ(apic_.Peek().kind, Kind::kNone);
}

TEST(LocalApicBase, Transitions) {
  // SDM 3A 11.12.5, figure 11-29. D: disabled, X: xAPIC, 2: x2APIC, I: invalid.
  constexpr uint64_t kBase = 0xfee00000;
  const uint64_t value[] = {kBase, kBase | 0x800, kBase | 0xc00, kBase | 0x400};
  const bool allowed[3][4] = {{true, true, false, false}, {true, true, true, false}, {true, false, true, false}};
  for (int from = 0; from < 3; ++from) {
    for (int to = 0; to < 4; ++to) {
      LocalApic apic(1, true, from == 2);
      if (from == 0) {
        EXPECT_FALSE(apic.WriteMsr(kMsrApicBase, value[0], kNow).fault);
      }
      const auto before = apic.Save(kNow);
      const ApicEffects effects = apic.WriteMsr(kMsrApicBase, value[to], kNow);
      EXPECT_EQ(effects.fault, !allowed[from][to]) << from << " to " << to;
      EXPECT_EQ(effects.routing_changed, allowed[from][to] && from != to) << from << " to " << to;
      if (effects.fault) {
        EXPECT_EQ(apic.Save(kNow), before);
      } else {
        EXPECT_EQ(apic.ReadMsr(kMsrApicBase, kNow), value[to]);
      }
    }
  }
}

TEST(LocalApicBase, ReservedBitsAndRelocationFault) {
  LocalApic apic(1, true, false);
  for (uint64_t bad : {0xfee00801ull, 0xfee00a00ull, 0xfed00800ull, 0x1fee00800ull, 0x80000000fee00800ull}) {
    EXPECT_TRUE(apic.WriteMsr(kMsrApicBase, bad, kNow).fault) << std::hex << bad;
  }
}

TEST(LocalApicBase, DisablingLosesTheState) {
  LocalApic apic(1, true, true);
  apic.WriteMsr(Msr(ApicRegister::kSpurious), 0x1ff, kNow);
  apic.Accept({.vector = 0x30});
  apic.WriteMsr(kMsrApicBase, 0xfee00000, kNow);
  EXPECT_EQ(apic.Peek().kind, Kind::kNone);
  EXPECT_FALSE(apic.Accept({.mode = DeliveryMode::kInit}).accepted);
  EXPECT_EQ(apic.ReadMmio(0x20, kNow), 0xffffffffu);
  EXPECT_EQ(apic.ReadMsr(0x802, kNow), std::nullopt);
  apic.WriteMsr(kMsrApicBase, 0xfee00800, kNow);
  EXPECT_EQ(apic.ReadMmio(0xf0, kNow), 0xffu);
}

// xAPIC mode.
class XApicTest : public testing::Test {
 protected:
  XApicTest() { apic_.WriteMmio(0xf0, 0x1ff, kNow); }
  LocalApic apic_{5, true, false};
};

TEST_F(XApicTest, Registers) {
  EXPECT_EQ(apic_.ReadMmio(0x20, kNow), 5u << 24);
  apic_.WriteMmio(0x20, 7u << 24, kNow);
  EXPECT_EQ(apic_.ReadMmio(0x20, kNow), 5u << 24) << "the id is fixed";
  EXPECT_EQ(apic_.ReadMmio(0x30, kNow), kApicVersion);
  EXPECT_EQ(apic_.ReadMmio(0xe0, kNow), 0xffffffffu);
  EXPECT_TRUE(apic_.WriteMmio(0xd0, 0x12345678, kNow).routing_changed);
  EXPECT_EQ(apic_.ReadMmio(0xd0, kNow), 0x12000000u);
  EXPECT_TRUE(apic_.WriteMmio(0xe0, 0, kNow).routing_changed);
  EXPECT_EQ(apic_.ReadMmio(0xe0, kNow), 0x0fffffffu);
  EXPECT_FALSE(apic_.WriteMmio(0xe0, 0, kNow).routing_changed);
  apic_.WriteMmio(0x80, 0x12345, kNow);
  EXPECT_EQ(apic_.ReadMmio(0x80, kNow), 0x45u) << "reserved bits are dropped, nothing faults";
  EXPECT_EQ(apic_.ReadMsr(0x802, kNow), std::nullopt);
  EXPECT_TRUE(apic_.WriteMsr(0x80b, 0, kNow).fault);
}

TEST_F(XApicTest, CommandIsSentByItsLowHalf) {
  EXPECT_FALSE(apic_.WriteMmio(0x310, 0x02ffffff, kNow).ipi);
  EXPECT_EQ(apic_.ReadMmio(0x310, kNow), 0x02000000u);
  const auto message = apic_.WriteMmio(0x300, 0x31, kNow).ipi;
  EXPECT_EQ(message, (InterruptMessage{.destination = 2, .width = DestinationWidth::kBits8, .vector = 0x31}));
  EXPECT_EQ(apic_.ReadMmio(0x300, kNow), 0x31u);
}

TEST_F(XApicTest, RegistersThatAreNotThereAreAnError) {
  for (uint32_t offset : {0x000u, 0x010u, 0x040u, 0x070u, 0x290u, 0x2e0u, 0x3a0u, 0x3d0u, 0x3f0u, 0x400u, 0xff0u}) {
    EXPECT_EQ(apic_.ReadMmio(offset, kNow), 0u);
    apic_.WriteMmio(0x280, 0, kNow);
    EXPECT_EQ(apic_.ReadMmio(0x280, kNow), kErrorIllegalRegister) << std::hex << offset;
    apic_.WriteMmio(offset, 0, kNow);
    apic_.WriteMmio(0x280, 0, kNow);
    EXPECT_EQ(apic_.ReadMmio(0x280, kNow), kErrorIllegalRegister) << std::hex << offset;
  }
  for (uint32_t offset : {0x90u, 0xc0u, 0xb0u, 0x84u, 0x88u}) {
    EXPECT_EQ(apic_.ReadMmio(offset, kNow), 0u);
  }
  apic_.WriteMmio(0x280, 0, kNow);
  EXPECT_EQ(apic_.ReadMmio(0x280, kNow), 0u);
}

TEST_F(XApicTest, EoiTakesAnyValue) {
  apic_.Accept({.vector = 0x30, .level = true, .pin = 1, .generation = 1});
  apic_.Acknowledge();
  EXPECT_EQ(apic_.WriteMmio(0xb0, 0xdead, kNow).eoi_pins, 2u);
}

TEST_F(XApicTest, StateStaysWhenX2ApicIsEnabled) {
  apic_.Accept({.vector = 0x30});
  apic_.WriteMmio(0x80, 0x10, kNow);
  EXPECT_TRUE(apic_.WriteMsr(kMsrApicBase, 0xfee00d00, kNow).routing_changed);
  EXPECT_EQ(apic_.ReadMsr(0x808, kNow), 0x10u);
  EXPECT_EQ(apic_.ReadMsr(0x802, kNow), 5u);
  EXPECT_EQ(apic_.ReadMsr(0x80d, kNow), 1u << 5) << "derived (SDM 3A 11.12.10.2)";
  EXPECT_EQ(apic_.Acknowledge(), 0x30);
  EXPECT_EQ(apic_.ReadMmio(0x20, kNow), 0xffffffffu);
}

}  // namespace
}  // namespace hk
