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

TEST_F(TwoNodes, ALevelInterruptEndsByItsEoiOnly) {
  Start();
  Entry(5, 0, 0x8000 | 0x50);  // to vCPU 0, on the other node
  cluster.io().SetLine(5, true);
  cluster.network.Drain();
  VcpuInterrupts& vcpu = cluster.vcpu(0);
  EXPECT_EQ(vcpu.Acknowledge(), 0x50);
  const auto waits = [this] { return (cluster.io().SaveIoApic().entries[5] >> 14 & 1) != 0; };
  EXPECT_TRUE(waits());
  // The EOI is under way when software ends the pin by hand, and it delivers again.
  vcpu.WriteMsr(kEoi, 0);
  EXPECT_EQ(cluster.network.waiting(0, 1), 1u);
  cluster.io().IoApicWrite(0x40, 0x50);
  EXPECT_TRUE(waits());
  cluster.network.Deliver(0, 1);
  EXPECT_TRUE(waits()) << "the EOI was of the delivery before";
  cluster.network.Drain();
  EXPECT_EQ(vcpu.Acknowledge(), 0x50);
  cluster.io().SetLine(5, false);
  vcpu.WriteMsr(kEoi, 0);
  cluster.network.Drain();
  EXPECT_FALSE(waits());
  EXPECT_EQ(vcpu.Acknowledge(), std::nullopt);
}

TEST_F(TwoNodes, APinThatNobodyAcceptsIsTriedAgainWhenSomebodyDoes) {
  Start(false);
  Entry(5, 0xff, 0x8000 | 0x800 | 0x50);  // to everybody
  cluster.io().SetLine(5, true);
  cluster.network.Drain();
  EXPECT_EQ(cluster.io().SaveIoApic().entries[5] >> 14 & 1, 0u);
  cluster.vcpu(2).WriteMsr(kSvr, 0x1ff);
  EXPECT_FALSE(cluster.Of(2).Settled(VcpuId(2)));
  cluster.network.Drain();
  EXPECT_TRUE(cluster.Of(2).Settled(VcpuId(2)));
  EXPECT_EQ(cluster.vcpu(2).Acknowledge(), 0x50);
  EXPECT_EQ(cluster.vcpu(0).Acknowledge(), std::nullopt);
}

TEST_F(TwoNodes, LowestPriorityTriesAnotherIfItsChoiceHasCeasedToAccept) {
  Start(false);
  cluster.vcpu(0).WriteMsr(kSvr, 0x1ff);
  cluster.vcpu(3).WriteMsr(kSvr, 0x1ff);
  cluster.network.Drain();
  // vCPU 3 of the I/O node is busy, as everybody sees there; vCPU 0 ceases to accept, which nobody sees yet.
  cluster.vcpu(3).SetCr8(9);
  cluster.vcpu(0).WriteMsr(kSvr, 0xff);
  cluster.io().SendMsi(0xfee00000 | 0xff << 12 | 0xc, 0x1c1);
  EXPECT_EQ(cluster.vcpu(3).Acknowledge(), std::nullopt);
  EXPECT_EQ(cluster.network.waiting(1, 0), 1u) << "vCPU 0 was chosen";
  cluster.network.Drain();
  EXPECT_EQ(cluster.vcpu(3).Acknowledge(), 0xc1);
  EXPECT_EQ(cluster.vcpu(0).Acknowledge(), std::nullopt);
  EXPECT_EQ(cluster.io().ExchangeStatistics().retried, 1u);
}

TEST_F(TwoNodes, WhatIsSentToAVcpuFollowsItAndNothingOvertakes) {
  Start();
  cluster.vcpu(0).WriteMsr(kIcr, Ipi(1, 0x40));  // on its way to node 1
  cluster.vcpu(0).WriteMsr(kIcr, Ipi(1, 0x41));  // gathers behind it
  ASSERT_TRUE(cluster.Of(1).Drained(VcpuId(1)));
  const auto moved = cluster.controllers[1]->TakeVcpu(VcpuId(1), NodeId(0));
  ASSERT_TRUE(moved.ok());
  EXPECT_EQ(moved->version, 2u);
  cluster.controllers[1]->SendMsi(0xfee00000 | 1 << 12, 0x60);  // knows already: to node 0, where it waits
  cluster.network.Deliver(1, 0);
  EXPECT_EQ(cluster.controllers[0]->ExchangeStatistics().held, 1u);
  ASSERT_TRUE(cluster.controllers[0]->PutVcpu(VcpuId(1), *moved).ok());
  cluster.where[1] = 0;
  VcpuInterrupts& vcpu = cluster.vcpu(1);
  EXPECT_EQ(vcpu.Acknowledge(), 0x60);
  vcpu.WriteMsr(kEoi, 0);
  cluster.vcpu(0).WriteMsr(kIcr, Ipi(1, 0x42));  // both are here, and 0x40 is not yet
  EXPECT_EQ(vcpu.Acknowledge(), std::nullopt);
  vcpu.WriteMsr(kIcr, 0x40000 | 0x43);  // what it sends itself waits for nobody
  EXPECT_EQ(vcpu.Acknowledge(), 0x43);
  vcpu.WriteMsr(kEoi, 0);
  cluster.network.Deliver(0, 1);  // 0x40 has missed it
  EXPECT_EQ(cluster.controllers[1]->ExchangeStatistics().forwarded, 1u);
  cluster.network.Drain();
  for (uint8_t vector : {0x42, 0x41, 0x40}) {
    EXPECT_EQ(vcpu.Acknowledge(), vector);
    vcpu.WriteMsr(kEoi, 0);
  }
  EXPECT_EQ(vcpu.Acknowledge(), std::nullopt);
  const uint64_t before = cluster.network.delivered;
  cluster.vcpu(0).WriteMsr(kIcr, Ipi(1, 0x44));  // directly from now on
  EXPECT_EQ(vcpu.Acknowledge(), 0x44);
  cluster.network.Drain();
  EXPECT_EQ(cluster.network.delivered, before);
}

TEST_F(TwoNodes, AVcpuMovesOnlyWhenWhatItHasSentHasArrived) {
  Start();
  cluster.vcpu(0).WriteMsr(kIcr, Ipi(1, 0x40));
  EXPECT_FALSE(cluster.controllers[0]->Drained(VcpuId(0)));
  EXPECT_EQ(cluster.controllers[0]->TakeVcpu(VcpuId(0), NodeId(1)).status().code(),
            absl::StatusCode::kFailedPrecondition);
  cluster.network.Drain();
  EXPECT_TRUE(cluster.controllers[0]->Drained(VcpuId(0)));
  EXPECT_EQ(cluster.controllers[0]->TakeVcpu(VcpuId(0), NodeId(0)).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cluster.controllers[0]->TakeVcpu(VcpuId(0), NodeId(7)).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cluster.controllers[0]->TakeVcpu(VcpuId(1), NodeId(1)).status().code(),
            absl::StatusCode::kFailedPrecondition);
  auto moved = cluster.controllers[0]->TakeVcpu(VcpuId(0), NodeId(1));
  ASSERT_TRUE(moved.ok());
  MovedVcpuInterrupts bad = *moved;
  bad.apic.svr = 0xffffffff;
  EXPECT_EQ(cluster.controllers[1]->PutVcpu(VcpuId(0), bad).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cluster.controllers[0]->PutVcpu(VcpuId(0), *moved).code(), absl::StatusCode::kFailedPrecondition)
      << "where it comes from, it needs a later version";
  EXPECT_EQ(cluster.controllers[1]->PutVcpu(VcpuId(9), *moved).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(cluster.controllers[1]->PutVcpu(VcpuId(0), *moved).ok());
  EXPECT_EQ(cluster.controllers[1]->PutVcpu(VcpuId(0), *moved).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(cluster.controllers[1]->PlaceOf(VcpuId(0)), (VcpuPlace{NodeId(1), 2}));
}

TEST_F(TwoNodes, AResetForgetsWhatWasUnderWay) {
  Start();
  cluster.vcpu(0).WriteMsr(kIcr, Ipi(1, 0x40));
  cluster.vcpu(0).WriteMsr(kIcr, Ipi(1, 0x41));
  cluster.Move(2, 1);
  while (!cluster.network.idle()) {
    if (cluster.network.waiting(0, 1) != 0) cluster.network.Take(0, 1);
    if (cluster.network.waiting(1, 0) != 0) cluster.network.Take(1, 0);
  }
  for (auto& controller : cluster.controllers) controller->Reset();
  EXPECT_TRUE(cluster.network.idle());
  Start();
  EXPECT_EQ(cluster.vcpu(1).Acknowledge(), std::nullopt);
  cluster.vcpu(0).WriteMsr(kIcr, Ipi(1, 0x42));
  cluster.vcpu(2).WriteMsr(kIcr, Ipi(0, 0x43));
  cluster.network.Drain();
  EXPECT_EQ(cluster.vcpu(1).Acknowledge(), 0x42);
  EXPECT_EQ(cluster.vcpu(0).Acknowledge(), 0x43);
}

// As many vCPUs as there can be: everything for one node shares messages.
TEST(ManyVcpus, ABroadcastToAllOverFourNodes) {
  ManualClock clock;
  RecordingWaker waker;
  InterruptCluster cluster(4, {.vcpus = kMaxVcpus}, &clock, &waker);
  cluster.vcpu(7).WriteMsr(kIcr, 0xc4400);  // an NMI to all but itself
  uint64_t sent = 0;
  for (auto& controller : cluster.controllers) sent += controller->ExchangeStatistics().sent_messages;
  cluster.network.Drain();
  EXPECT_LE(sent, 3u * 5);
  for (uint32_t i = 0; i < kMaxVcpus; ++i) {
    const LocalApicState state = cluster.Of(i).SaveVcpu(VcpuId(i));
    EXPECT_EQ(state.event_count, i == 7 ? 0 : 1) << "vCPU " << i;
  }
  EXPECT_EQ(cluster.refused(), 0u);
}

// What was known of an APIC's addressing before a reset must not hide that it changes after.
TEST(TwoXApicNodes, AfterAResetAddressingIsToldAnew) {
  ManualClock clock;
  RecordingWaker waker;
  InterruptCluster cluster(2, {.vcpus = 2, .x2apic = false}, &clock, &waker);
  for (int life = 0; life < 2; ++life) {
    cluster.vcpu(0).WriteMmio(0xf0, 0x1ff);
    cluster.network.Drain();
    cluster.io().IoApicWrite(0, 0x11);
    cluster.io().IoApicWrite(0x10, 0x20000000);
    cluster.io().IoApicWrite(0, 0x10);
    cluster.io().IoApicWrite(0x10, 0x8000 | 0x800 | 0x50);  // pin 0, to logical id 0x20
    cluster.io().SetLine(0, true);
    cluster.network.Drain();
    EXPECT_EQ(cluster.vcpu(0).Acknowledge(), std::nullopt) << "nobody has that id yet";
    cluster.vcpu(0).WriteMmio(0xd0, 0x20000000);
    cluster.network.Drain();
    EXPECT_EQ(cluster.vcpu(0).Acknowledge(), 0x50) << "life " << life;
    for (auto& controller : cluster.controllers) controller->Reset();
  }
}

TEST_F(TwoNodes, ARestoredVcpuIsToldOf) {
  Start(false);
  cluster.vcpu(0).WriteMsr(kSvr, 0x1ff);
  cluster.network.Drain();
  const LocalApicState accepting = cluster.Of(0).SaveVcpu(VcpuId(0));
  cluster.vcpu(0).WriteMsr(kSvr, 0xff);
  Entry(5, 0, 0x8000 | 0x50);
  cluster.io().SetLine(5, true);
  cluster.network.Drain();
  ASSERT_TRUE(cluster.Of(0).RestoreVcpu(VcpuId(0), accepting).ok());
  EXPECT_FALSE(cluster.Of(0).Settled(VcpuId(0)));
  cluster.network.Drain();
  EXPECT_EQ(cluster.vcpu(0).Acknowledge(), 0x50);
}

TEST(ThreeNodes, APinRefusedBeforeAMoveIsTriedAgainAfterIt) {
  ManualClock clock;
  RecordingWaker waker;
  InterruptCluster cluster(3, {.vcpus = 3}, &clock, &waker);
  InterruptController& io = cluster.io();
  io.IoApicWrite(0, 0x10);
  io.IoApicWrite(0x10, 0x8000 | 0x50);  // pin 0, to vCPU 0 on node 0, which does not accept
  io.SetLine(0, true);
  cluster.network.Deliver(2, 0);
  ASSERT_EQ(cluster.network.waiting(0, 2), 1u);  // its refusal, which is slow
  const auto moved = cluster.controllers[0]->TakeVcpu(VcpuId(0), NodeId(1));
  ASSERT_TRUE(moved.ok());
  ASSERT_TRUE(cluster.controllers[1]->PutVcpu(VcpuId(0), *moved).ok());
  cluster.where[0] = 1;
  cluster.vcpu(0).WriteMsr(kSvr, 0x1ff);
  while (cluster.network.waiting(1, 2) != 0) cluster.network.Deliver(1, 2);
  cluster.network.Deliver(0, 2);
  cluster.network.Drain();
  EXPECT_EQ(cluster.vcpu(0).Acknowledge(), 0x50);
}

}  // namespace
}  // namespace hk
