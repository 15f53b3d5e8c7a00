// What other nodes send and no correct node would: refused where it can be told, harmless where it cannot.
#include "hyperkernel/irq/interrupt_exchange.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "hyperkernel/irq/irq_nodes_testing.h"

namespace hk {
namespace {

using Kind = InterruptItem::Kind;

constexpr uint32_t kIcr = 0x830;
constexpr auto kBad = absl::StatusCode::kInvalidArgument;

PendingInterrupts Fixed(uint8_t vector) {
  PendingInterrupts content;
  content.Add({.vector = vector});
  return content;
}

// vCPU i on node i % 3; the I/O APIC on node 2. The test is node 1, and what it says arrives at node 0.
class Hostile : public testing::Test {
 protected:
  Hostile() {
    for (uint32_t i = 0; i < 6; ++i) {
      if (i != 0) {
        cluster.vcpu(0).WriteMsr(kIcr, uint64_t{i} << 32 | 0x4608);
        cluster.network.Drain();
        cluster.vcpu(i).Take({VcpuWork::Kind::kSipi, 8});
      }
      cluster.vcpu(i).WriteMsr(0x80f, 0x1ff);
    }
    cluster.network.Drain();
  }
  absl::StatusCode Say(const InterruptItem& item, uint16_t from = 1, uint16_t to = 0) {
    InterruptWriter writer;
    HK_CHECK(writer.Put(item));
    const uint64_t before = cluster.controllers[to]->ExchangeStatistics().refused;
    const absl::Status status = cluster.controllers[to]->OnMessage(NodeId(from), writer.bytes());
    EXPECT_EQ(cluster.controllers[to]->ExchangeStatistics().refused - before, status.ok() ? 0u : 1u);
    return status.code();
  }
  // All that is on its way arrives, whatever is thought of it.
  void Settle() {
    for (int rounds = 0; !cluster.network.idle() && rounds < 1000; ++rounds) {
      for (uint16_t from = 0; from < 3; ++from) {
        for (uint16_t to = 0; to < 3; ++to) {
          if (cluster.network.waiting(from, to) == 0) continue;
          const InterruptBytes bytes = cluster.network.Take(from, to);
          static_cast<void>(cluster.controllers[to]->OnMessage(NodeId(from), bytes));
        }
      }
    }
    EXPECT_TRUE(cluster.network.idle());
  }
  // Interrupts between correct nodes still arrive.
  void ExpectAlive() {
    Settle();
    cluster.vcpu(0).WriteMsr(kIcr, uint64_t{2} << 32 | 0xe0);
    cluster.vcpu(2).WriteMsr(kIcr, uint64_t{0} << 32 | 0xe1);
    Settle();
    cluster.vcpu(2).SetCr8(0xd);
    cluster.vcpu(0).SetCr8(0xd);
    EXPECT_EQ(cluster.vcpu(2).Acknowledge(), 0xe0);
    EXPECT_EQ(cluster.vcpu(0).Acknowledge(), 0xe1);
  }

  ManualClock clock;
  RecordingWaker waker;
  InterruptCluster cluster{3, {.vcpus = 6}, &clock, &waker};
};

TEST_F(Hostile, StrangersAndOneself) {
  EXPECT_EQ(Say({.kind = Kind::kKnown, .vcpu = VcpuId(0), .version = 1}, 9), kBad);
  EXPECT_EQ(Say({.kind = Kind::kKnown, .vcpu = VcpuId(0), .version = 1}, 63), kBad);
  EXPECT_EQ(Say({.kind = Kind::kKnown, .vcpu = VcpuId(0), .version = 1}, 0xffff), kBad);
  EXPECT_EQ(Say({.kind = Kind::kKnown, .vcpu = VcpuId(0), .version = 1}, 0), kBad) << "itself";
  ExpectAlive();
}

TEST_F(Hostile, VcpusNodesAndVersionsThatDoNotExist) {
  for (uint32_t vcpu : {6u, 254u, 255u, 0xffffu}) {
    EXPECT_EQ(
        Say({.kind = Kind::kDeliver, .vcpu = VcpuId(vcpu), .version = 1, .origin = NodeId(1), .content = Fixed(0x40)}),
        kBad);
    EXPECT_EQ(Say({.kind = Kind::kAnswer, .vcpu = VcpuId(vcpu), .version = 1}), kBad);
    EXPECT_EQ(Say({.kind = Kind::kVcpu, .vcpu = VcpuId(vcpu), .version = 1}), kBad);
    EXPECT_EQ(Say({.kind = Kind::kKnown, .vcpu = VcpuId(vcpu), .version = 1}), kBad);
  }
  EXPECT_EQ(Say({.kind = Kind::kVcpu, .vcpu = VcpuId(1), .version = kLastVersion + 1}), kBad);
  for (uint16_t origin : {3, 63, 64, 0xffff}) {
    EXPECT_EQ(Say({.kind = Kind::kDeliver,
                   .vcpu = VcpuId(0),
                   .version = 1,
                   .origin = NodeId(origin),
                   .content = Fixed(0x40)}),
              kBad);
  }
  ExpectAlive();
}

TEST_F(Hostile, PinsAndEoisWhereNoIoApicIs) {
  PendingInterrupts pin;
  pin.Add({.vector = 0x50, .level = true, .pin = 3, .generation = 1});
  EXPECT_EQ(Say({.kind = Kind::kDeliver, .vcpu = VcpuId(0), .version = 1, .origin = NodeId(1), .content = pin}), kBad);
  EXPECT_EQ(Say({.kind = Kind::kEoi, .eoi = {.pin = 3, .generation = 1}}), kBad);
  EXPECT_EQ(Say({.kind = Kind::kEoi, .eoi = {.pin = 3, .generation = 77}}, 1, 2), absl::StatusCode::kOk)
      << "one too many";
  ExpectAlive();
}

TEST_F(Hostile, AMessageWithSomethingBadInItDoesNotCount) {
  InterruptWriter writer;
  ASSERT_TRUE(writer.Put(
      {.kind = Kind::kDeliver, .vcpu = VcpuId(0), .version = 1, .origin = NodeId(1), .content = Fixed(0x40)}));
  ASSERT_TRUE(writer.Put({.kind = Kind::kKnown, .vcpu = VcpuId(99), .version = 1}));
  EXPECT_EQ(cluster.controllers[0]->OnMessage(NodeId(1), writer.bytes()).code(), kBad);
  EXPECT_EQ(cluster.vcpu(0).Acknowledge(), std::nullopt);
  EXPECT_TRUE(cluster.network.idle());
  ExpectAlive();
}

TEST_F(Hostile, AnswersToWhatWasNeverSent) {
  EXPECT_EQ(Say({.kind = Kind::kAnswer, .vcpu = VcpuId(1), .version = 1, .serial = 0}), kBad);
  cluster.vcpu(0).WriteMsr(kIcr, uint64_t{2} << 32 | 0x40);
  EXPECT_EQ(Say({.kind = Kind::kAnswer, .vcpu = VcpuId(2), .version = 1, .serial = 77}), kBad);
  EXPECT_EQ(Say({.kind = Kind::kAnswer, .vcpu = VcpuId(0), .version = 1, .serial = 1}), kBad);
  Settle();
  EXPECT_EQ(cluster.vcpu(2).Acknowledge(), 0x40);
  ExpectAlive();
}

TEST_F(Hostile, AVcpuThatIsNotItsOwn) {
  EXPECT_EQ(Say({.kind = Kind::kVcpu, .vcpu = VcpuId(0), .version = 9, .serial = 1}), kBad) << "it is here";
  EXPECT_EQ(Say({.kind = Kind::kVcpu, .vcpu = VcpuId(2), .version = 1, .serial = 9}), kBad) << "it is node 2's";
  EXPECT_EQ(cluster.controllers[0]->PlaceOf(VcpuId(0)), (VcpuPlace{NodeId(0), 1}));
  EXPECT_EQ(cluster.controllers[0]->PlaceOf(VcpuId(2)), (VcpuPlace{NodeId(2), 1}));
  // With a version of the future it is believed, of what is not here: it can take what is sent to that vCPU, not more.
  EXPECT_EQ(Say({.kind = Kind::kVcpu, .vcpu = VcpuId(5), .version = kLastVersion, .serial = 9}), absl::StatusCode::kOk);
  EXPECT_EQ(cluster.controllers[0]->PlaceOf(VcpuId(5)), (VcpuPlace{NodeId(1), kLastVersion}));
  cluster.vcpu(0).WriteMsr(kIcr, uint64_t{5} << 32 | 0x40);
  ExpectAlive();
}

TEST_F(Hostile, OldNewsAndTheSameAgain) {
  cluster.Move(1, 2);
  Settle();
  EXPECT_EQ(Say({.kind = Kind::kVcpu, .vcpu = VcpuId(1), .version = 1, .serial = 50}), absl::StatusCode::kOk);
  EXPECT_EQ(cluster.controllers[0]->PlaceOf(VcpuId(1)), (VcpuPlace{NodeId(2), 2}));
  const InterruptItem ipi{.kind = Kind::kDeliver,
                          .vcpu = VcpuId(0),
                          .version = 1,
                          .serial = 9,
                          .origin = NodeId(1),
                          .content = Fixed(0x40)};
  EXPECT_EQ(Say(ipi), absl::StatusCode::kOk);
  EXPECT_EQ(Say(ipi), absl::StatusCode::kOk) << "as if it had sent two interrupts";
  EXPECT_EQ(cluster.vcpu(0).Acknowledge(), 0x40);
  EXPECT_EQ(cluster.vcpu(0).Acknowledge(), std::nullopt);
  ExpectAlive();
}

TEST_F(Hostile, DeliveriesForAVcpuThatNeverComes) {
  for (uint8_t i = 0; i < 200; ++i) {
    const absl::StatusCode code = Say({.kind = Kind::kDeliver,
                                       .vcpu = VcpuId(2),
                                       .version = 1000,
                                       .serial = i,
                                       .origin = NodeId(1),
                                       .content = Fixed(0x40)});
    EXPECT_EQ(code, i == 0 ? absl::StatusCode::kOk : kBad) << "one is held, and what comes after it with it";
  }
  EXPECT_TRUE(cluster.network.idle());
  ExpectAlive();
}

TEST_F(Hostile, InTheNameOfOthers) {
  // Of this node itself, which has sent nothing; and of a third.
  EXPECT_EQ(Say({.kind = Kind::kDeliver,
                 .vcpu = VcpuId(0),
                 .version = 1,
                 .serial = 1,
                 .origin = NodeId(0),
                 .content = Fixed(0x40)}),
            absl::StatusCode::kOk);
  EXPECT_EQ(cluster.vcpu(0).Acknowledge(), std::nullopt);
  EXPECT_EQ(Say({.kind = Kind::kDeliver,
                 .vcpu = VcpuId(0),
                 .version = 1,
                 .serial = 1,
                 .origin = NodeId(2),
                 .content = Fixed(0x41)}),
            absl::StatusCode::kOk);
  EXPECT_EQ(cluster.vcpu(0).Acknowledge(), 0x41);
  cluster.vcpu(0).WriteMsr(0x80b, 0);
  ExpectAlive();  // the answer that node 2 gets for it is refused there
}

// Whatever arrives: no crash, no message without end, and no more on its way than there are subjects.
TEST_F(Hostile, AnythingAtAll) {
  std::mt19937 random(3);
  for (int i = 0; i < 30000; ++i) {
    InterruptWriter writer;
    for (uint32_t n = 1 + random() % 3; n != 0; --n) {
      InterruptItem item{
          .kind = static_cast<Kind>(1 + random() % 5),
          .vcpu = VcpuId(random() % 7),
          .version = static_cast<uint32_t>(1 + random() % 3),
          .serial = static_cast<uint32_t>(random() % 6),
          .origin = NodeId(random() % 4),
          .hint = static_cast<uint16_t>(random() % 0x101),
          .addressing = {.mode = static_cast<ApicAddressing::Mode>(random() % 3),
                         .model = static_cast<ApicAddressing::Model>(random() % 3),
                         .logical_id = static_cast<uint8_t>(random())},
          .eoi = {.pin = static_cast<uint8_t>(random() % 24), .generation = static_cast<uint32_t>(random() % 4)},
          .content = Fixed(static_cast<uint8_t>(random()))};
      if (random() % 4 == 0) item.content.Add({.mode = static_cast<DeliveryMode>(4 + random() % 3)});
      if (random() % 8 == 0) {
        item.content.Add({.vector = 0x50,
                          .level = true,
                          .pin = static_cast<uint8_t>(random() % 24),
                          .generation = static_cast<uint32_t>(random() % 4)});
      }
      static_cast<void>(writer.Put(item));
    }
    const auto to = static_cast<uint16_t>(random() % 3), from = static_cast<uint16_t>(random() % 3);
    InterruptBytes bytes(writer.bytes().begin(), writer.bytes().end());
    if (random() % 4 == 0) bytes[random() % bytes.size()] ^= static_cast<std::byte>(1u << random() % 8);
    static_cast<void>(cluster.controllers[to]->OnMessage(NodeId(from), bytes));
    cluster.vcpu(random() % 6).WriteMsr(kIcr, uint64_t{random() % 6} << 32 | (0x40 + random() % 64));
    if (random() % 8 == 0) cluster.io().SendMsi(0xfee00000 | 0xff << 12 | 0xc, 0x100 | (0x40 + random() % 64));
    for (uint16_t a = 0; a < 3; ++a) {
      for (uint16_t b = 0; b < 3; ++b) {
        ASSERT_LT(cluster.network.waiting(a, b), 1000u) << i;
        if (cluster.network.waiting(a, b) != 0) {
          const InterruptBytes next = cluster.network.Take(a, b);
          static_cast<void>(cluster.controllers[b]->OnMessage(NodeId(a), next));
        }
      }
    }
  }
}

}  // namespace
}  // namespace hk
