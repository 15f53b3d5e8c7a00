// Controllers of several nodes, message by message.
#include <gtest/gtest.h>

#include "hyperkernel/irq/irq_nodes_testing.h"

namespace hk {
namespace {

using Kind = VcpuWork::Kind;

constexpr uint32_t kIcr = 0x830;
constexpr uint32_t kEoi = 0x80b;
constexpr uint32_t kSvr = 0x80f;

uint64_t Ipi(uint32_t to, uint32_t command) {
  return uint64_t{to} << 32 | command;
}

// vCPUs 0, 2 on node 0; 1, 3 on node 1, which has the I/O APIC.
class TwoNodes : public testing::Test {
 protected:
  void Start(bool everybody_accepts = true) {
    for (uint32_t i = 0; i < 4; ++i) {
      if (i != 0) {
        cluster.vcpu(0).WriteMsr(kIcr, Ipi(i, 0x4500));
        cluster.vcpu(0).WriteMsr(kIcr, Ipi(i, 0x4608));
        cluster.network.Drain();
        cluster.vcpu(i).Take(cluster.vcpu(i).Peek());
        cluster.vcpu(i).Take({Kind::kSipi, 8});
      }
      if (everybody_accepts) cluster.vcpu(i).WriteMsr(kSvr, 0x1ff);
    }
    cluster.network.Drain();
    waker.woken.clear();
  }
  void Entry(uint8_t pin, uint8_t destination, uint32_t low) {
    cluster.io().IoApicWrite(0, 0x11u + 2 * pin);
    cluster.io().IoApicWrite(0x10, uint32_t{destination} << 24);
    cluster.io().IoApicWrite(0, 0x10u + 2 * pin);
    cluster.io().IoApicWrite(0x10, low);
  }

  ManualClock clock;
  RecordingWaker waker;
  InterruptCluster cluster{2, {.vcpus = 4}, &clock, &waker};
};

TEST_F(TwoNodes, AFixedIpiReachesTheOtherNode) {
  Start();
  EXPECT_TRUE(cluster.vcpu(0).WriteMsr(kIcr, Ipi(1, 0x40)));
  EXPECT_EQ(cluster.vcpu(1).Peek().kind, Kind::kNone);
  EXPECT_TRUE(waker.woken.empty());
  cluster.network.Deliver(0, 1);
  EXPECT_EQ(waker.woken, std::vector<uint32_t>{1});
  EXPECT_EQ(cluster.vcpu(1).Acknowledge(), 0x40);
  EXPECT_EQ(cluster.vcpu(1).Acknowledge(), std::nullopt);
  EXPECT_EQ(cluster.network.waiting(1, 0), 1u);  // its answer
}

TEST_F(TwoNodes, InitSipiAndNmiArriveInOrder) {
  Start();
  cluster.vcpu(0).WriteMsr(kIcr, Ipi(1, 0x4400));
  cluster.vcpu(0).WriteMsr(kIcr, Ipi(1, 0x4500));
  cluster.vcpu(0).WriteMsr(kIcr, Ipi(1, 0x4609));
  cluster.vcpu(0).WriteMsr(kIcr, Ipi(1, 0x460a));
  cluster.vcpu(0).WriteMsr(kIcr, Ipi(1, 0x4400));
  cluster.network.Drain();
  VcpuInterrupts& vcpu = cluster.vcpu(1);
  EXPECT_EQ(vcpu.Peek(), (VcpuWork{Kind::kInit, 0}));
  vcpu.Take(vcpu.Peek());
  EXPECT_EQ(vcpu.Peek(), (VcpuWork{Kind::kSipi, 9}));
  vcpu.Take(vcpu.Peek());
  EXPECT_EQ(vcpu.Peek(), (VcpuWork{Kind::kNmi, 0}));
  vcpu.Take(vcpu.Peek());
  EXPECT_EQ(vcpu.Peek().kind, Kind::kNone);
}

TEST_F(TwoNodes, OneMessageIsUnderWayAndTheRestGathers) {
  Start();
  for (uint32_t i = 0; i < 1000; ++i) {
    cluster.vcpu(0).WriteMsr(kIcr, Ipi(1, 0x40 + i % 100));
    cluster.vcpu(2).WriteMsr(kIcr, Ipi(1, 0x4400));
  }
  EXPECT_EQ(cluster.network.waiting(0, 1), 1u);
  const uint64_t before = cluster.network.delivered;
  cluster.network.Drain();
  EXPECT_EQ(cluster.network.delivered - before, 4u);  // two, and their answers
  VcpuInterrupts& vcpu = cluster.vcpu(1);
  vcpu.Take({Kind::kNmi, 0});
  for (uint32_t i = 100; i-- > 0;) {
    if (i % 16 == 15 || i == 99) vcpu.SetCr8(0);
    EXPECT_EQ(vcpu.Acknowledge(), 0x40 + i);
    vcpu.WriteMsr(kEoi, 0);
  }
}

TEST_F(TwoNodes, ABroadcastIsOneMessageForANode) {
  Start();
  cluster.vcpu(0).WriteMsr(kIcr, 0xc0000 | 0x41);
  EXPECT_EQ(cluster.network.waiting(0, 1), 1u);
  cluster.network.Drain();
  for (uint32_t i : {1u, 2u, 3u}) {
    EXPECT_EQ(cluster.vcpu(i).Acknowledge(), 0x41);
  }
  EXPECT_EQ(cluster.vcpu(0).Acknowledge(), std::nullopt);
}

}  // namespace
}  // namespace hk
