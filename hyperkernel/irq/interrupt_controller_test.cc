#include "hyperkernel/irq/interrupt_controller.h"

#include <atomic>
#include <set>
#include <thread>

#include "gtest/gtest.h"
#include "hyperkernel/irq/apic_timer_thread.h"

namespace hk {
namespace {

constexpr uint32_t kMsrIcr = 0x830, kMsrSvr = 0x80f, kMsrEoi = 0x80b;

class Waker final : public VcpuWaker {
 public:
  void Wake(VcpuId vcpu) override { woken[vcpu.value()].fetch_add(1); }
  std::array<std::atomic<int>, 4> woken{};
};

class InterruptControllerTest : public testing::Test {
 protected:
  InterruptControllerTest() {
    for (uint32_t i = 0; i < 4; i++) EXPECT_TRUE(Cpu(i)->WriteMsr(kMsrSvr, 0x1ff));
  }
  VcpuInterrupts* Cpu(uint32_t i) { return controller_.vcpu(VcpuId(i)); }
  // vCPUs that were given this vector.
  std::set<uint32_t> Got(uint8_t vector) {
    std::set<uint32_t> got;
    for (uint32_t i = 0; i < 4; i++) {
      const VcpuWork work = Cpu(i)->Peek();
      if (work.kind != VcpuWork::Kind::kInterrupt || work.vector != vector) continue;
      got.insert(i);
      EXPECT_GT(waker_.woken[i].load(), 0);
      Cpu(i)->Acknowledge();
      EXPECT_TRUE(Cpu(i)->WriteMsr(kMsrEoi, 0));
    }
    return got;
  }
  using Set = std::set<uint32_t>;

  Waker waker_;
  InterruptController controller_{4, &waker_, RealClock()};
};

TEST_F(InterruptControllerTest, IpisReachEveryFormOfDestination) {
  ASSERT_TRUE(Cpu(1)->WriteMsr(kMsrIcr, uint64_t{2} << 32 | 0x40));
  EXPECT_EQ(Got(0x40), Set{2});
  ASSERT_TRUE(Cpu(1)->WriteMsr(kMsrIcr, uint64_t{0xffffffff} << 32 | 0x41));
  EXPECT_EQ(Got(0x41), (Set{0, 1, 2, 3}));
  ASSERT_TRUE(Cpu(1)->WriteMsr(kMsrIcr, uint64_t{0x9} << 32 | 1 << 11 | 0x42));
  EXPECT_EQ(Got(0x42), (Set{0, 3}));
  ASSERT_TRUE(Cpu(1)->WriteMsr(kMsrIcr, 1 << 18 | 0x43));
  EXPECT_EQ(Got(0x43), Set{1});
  ASSERT_TRUE(Cpu(1)->WriteMsr(kMsrIcr, 2 << 18 | 0x44));
  EXPECT_EQ(Got(0x44), (Set{0, 1, 2, 3}));
  ASSERT_TRUE(Cpu(1)->WriteMsr(kMsrIcr, 3 << 18 | 0x45));
  EXPECT_EQ(Got(0x45), (Set{0, 2, 3}));
  ASSERT_TRUE(Cpu(1)->WriteMsr(0x83f, 0x46));
  EXPECT_EQ(Got(0x46), Set{1});
  ASSERT_TRUE(Cpu(1)->WriteMsr(kMsrIcr, uint64_t{77} << 32 | 0x47));
  EXPECT_EQ(Got(0x47), Set{}) << "nobody";
}

TEST_F(InterruptControllerTest, LowestPriorityPicksOneWhoIsLeastBusy) {
  Cpu(0)->SetCr8(5);
  Cpu(1)->SetCr8(2);
  Cpu(2)->SetCr8(9);
  Cpu(3)->SetCr8(7);
  ASSERT_TRUE(Cpu(0)->WriteMsr(kMsrIcr, uint64_t{0xf} << 32 | 1 << 11 | 1 << 8 | 0xf0));
  EXPECT_EQ(Got(0xf0), Set{1});
}

TEST_F(InterruptControllerTest, ALevelComesBackAfterItsEndUntilTheLineFalls) {
  controller_.WriteIoApic(0x00, 0x10 + 2 * 9 + 1);
  controller_.WriteIoApic(0x10, 3u << 24);
  controller_.WriteIoApic(0x00, 0x10 + 2 * 9);
  controller_.WriteIoApic(0x10, 1 << 15 | 0x60);
  controller_.SetLine(9, true);
  EXPECT_EQ(Got(0x60), Set{3});
  EXPECT_EQ(Cpu(3)->Peek().vector, 0x60) << "still high";
  controller_.SetLine(9, false);
  EXPECT_EQ(Got(0x60), Set{3});
  EXPECT_EQ(Got(0x60), Set{});
  controller_.SetLine(200, true);
}

TEST_F(InterruptControllerTest, MsisAreWritesToTheirMebibyteOnly) {
  controller_.SendMsi(0xfee02000, 0x51);
  EXPECT_EQ(Got(0x51), Set{2});
  controller_.SendMsi(0xfee05004, 0x52);
  EXPECT_EQ(Got(0x52), (Set{0, 2})) << "logical 5";
  controller_.SendMsi(0xfed02000, 0x53);
  controller_.SendMsi(0x1fee02000, 0x53);
  EXPECT_EQ(Got(0x53), Set{});
}

TEST_F(InterruptControllerTest, TheTimerThreadFiresAndNoticesEarlierTimers) {
  ApicTimerThread timers(&controller_, RealClock());
  ASSERT_TRUE(Cpu(2)->WriteMsr(0x83e, 0xb));
  ASSERT_TRUE(Cpu(2)->WriteMsr(0x832, 0x70));
  ASSERT_TRUE(Cpu(2)->WriteMsr(0x838, 0xffffffff));
  ASSERT_TRUE(Cpu(3)->WriteMsr(0x83e, 0xb));
  ASSERT_TRUE(Cpu(3)->WriteMsr(0x832, 0x71));
  ASSERT_TRUE(Cpu(3)->WriteMsr(0x838, 1000000));
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (waker_.woken[3].load() == 0 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  EXPECT_EQ(Got(0x71), Set{3});
}

TEST_F(InterruptControllerTest, ManyThreadsLoseNoInterrupt) {
  constexpr int kRounds = 2000;
  std::vector<std::thread> threads;
  std::atomic<int> taken{0};
  for (uint32_t i = 0; i < 4; i++) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < kRounds; round++) {
        // Ping the next vCPU and wait for the ping of the one before.
        Cpu(i)->WriteMsr(kMsrIcr, uint64_t{(i + 1) % 4} << 32 | 0x80);
        while (!Cpu(i)->Acknowledge().has_value()) std::this_thread::yield();
        Cpu(i)->WriteMsr(kMsrEoi, 0);
        taken.fetch_add(1);
        while (taken.load() < (round + 1) * 4) std::this_thread::yield();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(taken.load(), 4 * kRounds);
}

}  // namespace
}  // namespace hk
