#include "hyperkernel/irq/interrupt_controller.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "hyperkernel/irq/irq_testing.h"

namespace hk {
namespace {

using Kind = VcpuWork::Kind;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr uint32_t kIcr = 0x830;

class InterruptControllerTest : public testing::Test {
 protected:
  InterruptControllerTest() {
    for (uint32_t i = 0; i < 4; ++i) {
      Start(i);
    }
    waker_.woken.clear();
  }
  VcpuInterrupts& Vcpu(uint32_t i) { return controller_.vcpu(VcpuId(i)); }
  void Start(uint32_t i) {
    if (i != 0) {
      Vcpu(0).WriteMsr(kIcr, uint64_t{i} << 32 | 0x4500);
      Vcpu(i).Take(Vcpu(i).Peek());
      Vcpu(0).WriteMsr(kIcr, uint64_t{i} << 32 | 0x4608);
      Vcpu(i).Take(Vcpu(i).Peek());
    }
    EXPECT_TRUE(Vcpu(i).WriteMsr(0x80f, 0x1ff));
  }
  void Program(uint8_t pin, uint32_t low, uint32_t high) {
    controller_.IoApicWrite(0, 0x11u + 2 * pin);
    controller_.IoApicWrite(0x10, high);
    controller_.IoApicWrite(0, 0x10u + 2 * pin);
    controller_.IoApicWrite(0x10, low);
  }
  bool RemoteIrr(uint8_t pin) { return (controller_.SaveIoApic().entries[pin] & 1 << 14) != 0; }
  std::vector<uint32_t> Woken() { return std::exchange(waker_.woken, {}); }

  ManualClock clock_;
  RecordingWaker waker_;
  InterruptController controller_{{.vcpus = 4}, &clock_, &waker_};
};

TEST_F(InterruptControllerTest, AnIpiReachesItsTargetAndWakesIt) {
  Vcpu(0).WriteMsr(kIcr, 0x200000030);
  EXPECT_THAT(Woken(), ElementsAre(2));
  EXPECT_EQ(Vcpu(2).Peek(), (VcpuWork{Kind::kInterrupt, 0x30}));
  EXPECT_EQ(Vcpu(2).Acknowledge(), 0x30);
  EXPECT_EQ(Vcpu(1).Peek().kind, Kind::kNone);
}

TEST_F(InterruptControllerTest, BroadcastsAndClusters) {
  Vcpu(1).WriteMsr(kIcr, 0xc0031);  // all but self
  EXPECT_THAT(Woken(), ElementsAre(0, 2, 3));
  Vcpu(1).WriteMsr(kIcr, 0xffffffff00000032);
  EXPECT_THAT(Woken(), ElementsAre(0, 2, 3)) << "the sender looks by itself";
  EXPECT_EQ(Vcpu(1).Acknowledge(), 0x32);
  Vcpu(1).WriteMsr(kIcr, 0x0000000a00000840 | 0x0);  // logical, cluster 0, vCPUs 1 and 3
  EXPECT_THAT(Woken(), ElementsAre(3));
  EXPECT_EQ(Vcpu(3).Acknowledge(), 0x40);
}

TEST_F(InterruptControllerTest, NobodyIsWokenForWhatIsBelowItsPriority) {
  Vcpu(2).SetCr8(5);
  Vcpu(0).WriteMsr(kIcr, 0x200000050);
  EXPECT_THAT(Woken(), IsEmpty());
  Vcpu(2).SetCr8(4);
  EXPECT_EQ(Vcpu(2).Peek(), (VcpuWork{Kind::kInterrupt, 0x50}));
}

TEST_F(InterruptControllerTest, AStoppedApplicationProcessorStartsAgain) {
  Vcpu(0).WriteMsr(kIcr, 0x100004500);
  EXPECT_THAT(Woken(), ElementsAre(1));
  Vcpu(0).WriteMsr(kIcr, 0x100004699);
  EXPECT_EQ(Vcpu(1).Peek().kind, Kind::kInit);
  Vcpu(1).Take({Kind::kInit, 0});
  EXPECT_EQ(Vcpu(1).Peek(), (VcpuWork{Kind::kSipi, 0x99}));
}

TEST_F(InterruptControllerTest, ALevelInterruptComesAgainUntilTheDeviceIsServed) {
  Program(9, 0x8059, 0x03000000);
  controller_.SetLine(9, true);
  EXPECT_THAT(Woken(), ElementsAre(3));
  EXPECT_EQ(Vcpu(3).Acknowledge(), 0x59);
  EXPECT_EQ(Vcpu(3).Peek().kind, Kind::kNone);
  Vcpu(3).WriteMsr(0x80b, 0);
  EXPECT_THAT(Woken(), IsEmpty()) << "it is about its own EOI";
  EXPECT_EQ(Vcpu(3).Acknowledge(), 0x59);
  controller_.SetLine(9, false);
  Vcpu(3).WriteMsr(0x80b, 0);
  EXPECT_EQ(Vcpu(3).Peek().kind, Kind::kNone);
  EXPECT_FALSE(RemoteIrr(9));
}

TEST_F(InterruptControllerTest, DirectedEoi) {
  Vcpu(3).WriteMsr(0x80f, 0x11ff);
  Program(9, 0x8059, 0x03000000);
  controller_.SetLine(9, true);
  EXPECT_EQ(Vcpu(3).Acknowledge(), 0x59);
  controller_.SetLine(9, false);
  Vcpu(3).WriteMsr(0x80b, 0);
  EXPECT_TRUE(RemoteIrr(9));
  controller_.IoApicWrite(0x40, 0x59);
  EXPECT_FALSE(RemoteIrr(9));
}

TEST_F(InterruptControllerTest, ALevelThatNobodyTookComesWhenSomebodyCan) {
  Vcpu(3).WriteMsr(0x80f, 0xff);
  Program(9, 0x8059, 0x03000000);
  controller_.SetLine(9, true);
  EXPECT_FALSE(RemoteIrr(9));
  EXPECT_EQ(Vcpu(3).Peek().kind, Kind::kNone);
  Vcpu(3).WriteMsr(0x80f, 0x1ff);
  EXPECT_EQ(Vcpu(3).Acknowledge(), 0x59);
  EXPECT_TRUE(RemoteIrr(9));
}

TEST_F(InterruptControllerTest, Msi) {
  EXPECT_TRUE(controller_.SendMsi(0xfee02000, 0x41));
  EXPECT_THAT(Woken(), ElementsAre(2));
  EXPECT_EQ(Vcpu(2).Acknowledge(), 0x41);
  EXPECT_FALSE(controller_.SendMsi(0xfed02000, 0x41));
  EXPECT_TRUE(controller_.SendMsi(0xfee09000, 0x41)) << "a destination that is nobody is dropped";
  EXPECT_THAT(Woken(), IsEmpty());
}

TEST_F(InterruptControllerTest, LowestPriorityAvoidsTheBusyAndTheDisabled) {
  Vcpu(0).SetCr8(3);
  Vcpu(1).WriteMsr(0x80f, 0xff);
  std::vector<uint32_t> got;
  for (int i = 0; i < 4; ++i) {
    controller_.SendMsi(0xfee0f00c, 0x40);  // logical 0x0f with the redirection hint
    const auto woken = Woken();
    ASSERT_EQ(woken.size(), 1u);
    got.push_back(woken[0]);
    Vcpu(woken[0]).Acknowledge();
    Vcpu(woken[0]).WriteMsr(0x80b, 0);
  }
  EXPECT_THAT(got, ElementsAre(2, 3, 2, 3));
}

TEST_F(InterruptControllerTest, AnOperatorsNmi) {
  EXPECT_TRUE(controller_.InjectNmi(VcpuId(1)));
  EXPECT_THAT(Woken(), ElementsAre(1));
  EXPECT_EQ(Vcpu(1).Peek().kind, Kind::kNmi);
  EXPECT_FALSE(controller_.InjectNmi(VcpuId(4)));
}

TEST_F(InterruptControllerTest, TimersAreRunByTheirVcpus) {
  EXPECT_EQ(Vcpu(1).TimerDeadline(), Monotonic::max());
  const Monotonic start = clock_.Now();
  for (uint32_t i : {1, 2}) {
    Vcpu(i).WriteMsr(0x83e, 0xb);
    Vcpu(i).WriteMsr(0x832, 0xec);
    Vcpu(i).WriteMsr(0x838, 3000 / i);
  }
  EXPECT_EQ(Vcpu(1).TimerDeadline(), start + std::chrono::nanoseconds(3000));
  EXPECT_EQ(Vcpu(2).TimerDeadline(), start + std::chrono::nanoseconds(1500));
  clock_.Advance(std::chrono::nanoseconds(1500));
  for (uint32_t i : {1, 2}) Vcpu(i).RunTimer(clock_.Now());
  EXPECT_THAT(Woken(), IsEmpty()) << "it is the vCPU itself that looks";
  EXPECT_EQ(Vcpu(1).Peek().kind, Kind::kNone);
  EXPECT_EQ(Vcpu(2).Acknowledge(), 0xec);
  EXPECT_EQ(Vcpu(2).TimerDeadline(), Monotonic::max());
  Vcpu(1).WriteMsr(0x838, 0);
  EXPECT_EQ(Vcpu(1).TimerDeadline(), Monotonic::max());
}

TEST_F(InterruptControllerTest, ADisabledApicHearsNothing) {
  Vcpu(3).WriteMsr(0x1b, 0xfee00000);
  Vcpu(0).WriteMsr(kIcr, 0xffffffff00000030);
  EXPECT_THAT(Woken(), ElementsAre(1, 2));
  EXPECT_FALSE(controller_.InjectNmi(VcpuId(3)));
}

TEST_F(InterruptControllerTest, InitOfAnXApicTakesItsLogicalIdAway) {
  InterruptController xapic({.vcpus = 2, .x2apic = false}, &clock_, &waker_);
  xapic.vcpu(VcpuId(0)).WriteMmio(0xd0, 1u << 24);
  xapic.vcpu(VcpuId(0)).WriteMmio(0xf0, 0x1ff);
  xapic.SendMsi(0xfee01004, 0x400);  // NMI to logical 1
  EXPECT_EQ(xapic.vcpu(VcpuId(0)).Peek().kind, Kind::kNmi);
  xapic.SendMsi(0xfee00000, 0x500);
  xapic.vcpu(VcpuId(0)).Take({Kind::kInit, 0});
  xapic.SendMsi(0xfee01004, 0x400);
  EXPECT_EQ(xapic.SaveVcpu(VcpuId(0)).event_count, 0);
}

TEST_F(InterruptControllerTest, ResetIsPowerUp) {
  Program(9, 0x8059, 0x03000000);
  controller_.SetLine(9, true);
  controller_.Reset();
  InterruptController fresh({.vcpus = 4}, &clock_, &waker_);
  for (uint32_t i = 0; i < 4; ++i) {
    EXPECT_EQ(controller_.SaveVcpu(VcpuId(i)), fresh.SaveVcpu(VcpuId(i)));
  }
  EXPECT_EQ(controller_.SaveIoApic().entries, fresh.SaveIoApic().entries);
}

TEST_F(InterruptControllerTest, ARestoredVcpuIsWokenAndRefusedOnesAreNot) {
  Vcpu(0).WriteMsr(kIcr, 0x200000030);
  Woken();
  LocalApicState state = controller_.SaveVcpu(VcpuId(2));
  EXPECT_TRUE(controller_.RestoreVcpu(VcpuId(2), state).ok());
  EXPECT_THAT(Woken(), ElementsAre(2));
  EXPECT_EQ(Vcpu(2).Acknowledge(), 0x30);
  EXPECT_FALSE(controller_.RestoreVcpu(VcpuId(1), state).ok());
  EXPECT_THAT(Woken(), IsEmpty());
}

TEST(InterruptController, TwoHundredAndFiftyFiveVcpus) {
  ManualClock clock;
  RecordingWaker waker;
  InterruptController controller({.vcpus = kMaxVcpus}, &clock, &waker);
  controller.vcpu(VcpuId(0)).WriteMsr(kIcr, 0xc4500);
  EXPECT_EQ(waker.woken.size(), 254u);
  for (uint32_t i = 1; i < kMaxVcpus; ++i) {
    EXPECT_EQ(controller.vcpu(VcpuId(i)).Peek().kind, Kind::kInit);
  }
}

}  // namespace
}  // namespace hk
