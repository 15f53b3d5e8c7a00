#include "hyperkernel/node/machine_link.h"

#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "hyperkernel/irq/interrupt_wire.h"
#include "hyperkernel/node/machine_link_testing.h"

namespace hk {
namespace {

using testing::Test;
constexpr auto kFault = MessageClass::kFault;
constexpr auto kInvalidate = MessageClass::kInvalidate;
constexpr uint32_t kIcr = 0x830, kEoi = 0x80b, kSvr = 0x80f;

std::vector<std::byte> Bytes(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

// Three nodes, of which 2 is the I/O node.
class MachineLinkTest : public Test {
 protected:
  void Open(uint32_t vcpus = 3) { network_.Open({&exits_[0], &exits_[1], &exits_[2]}, vcpus); }
  void TearDown() override { network_.Close(); }

  std::array<NoExits, 3> exits_;
  MachineNetwork network_{3};
};

TEST_F(MachineLinkTest, WhatTheTransportRefusesIsSentInOrderWhenThereIsRoom) {
  Open();
  MachineLink* const link = network_.link(0);
  network_.SetRoom(0);
  EXPECT_FALSE(link->PostExit(NodeId(2), kMachineFailureType, 0, Bytes("1")));
  network_.SetRoom(100);
  // There is room for it, but not for the one before it.
  EXPECT_FALSE(link->PostExit(NodeId(2), kMachineFailureType, 0, Bytes("2")));
  EXPECT_TRUE(link->PostExit(NodeId(1), kMachineFailureType, 0, Bytes("another node's")));
  EXPECT_EQ(network_.waiting(0, 2, kFault), 0u);
  link->OnWritable(NodeId(2), kInvalidate);
  EXPECT_EQ(exits_[0].sent, 0);
  network_.Writable(0, 2, kFault);
  EXPECT_EQ(exits_[0].sent, 1);
  EXPECT_TRUE(link->PostExit(NodeId(2), kMachineFailureType, 0, Bytes("3")));
  for (const char* const expected : {"1", "2", "3"}) EXPECT_EQ(network_.Take(0, 2, kFault).body, Bytes(expected));
  EXPECT_EQ(exits_[0].sent, 1);
  EXPECT_EQ(network_.Failures(0), 0u);
}

TEST_F(MachineLinkTest, RefusedAgainItWaitsForTheNextTime) {
  Open();
  MachineLink* const link = network_.link(0);
  network_.SetRoom(0);
  EXPECT_FALSE(link->PostExit(NodeId(2), kMachineFailureType, 0, Bytes("1")));
  EXPECT_FALSE(link->PostExit(NodeId(2), kMachineFailureType, 0, Bytes("2")));
  network_.SetRoom(1);
  network_.Writable(0, 2, kFault);
  EXPECT_EQ(exits_[0].sent, 0);
  network_.SetRoom(100);
  EXPECT_EQ(network_.Take(0, 2, kFault).body, Bytes("1"));
  EXPECT_EQ(network_.Take(0, 2, kFault).body, Bytes("2"));
  EXPECT_EQ(exits_[0].sent, 1);
}

// Every vCPU interrupts every other, over queues that hold one message.
TEST_F(MachineLinkTest, InterruptsArriveThoughTheTransportRefuses) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  constexpr uint32_t kVcpus = 12;
  Open(kVcpus);
  const auto vcpu = [&](uint32_t which) -> VcpuInterrupts& {
    return network_.interrupts(static_cast<uint16_t>(which % 3)).vcpu(VcpuId(which));
  };
  network_.SetRoom(1);
  for (uint32_t i = 1; i < kVcpus; ++i) {
    vcpu(0).WriteMsr(kIcr, uint64_t{i} << 32 | 0x4500);
    vcpu(0).WriteMsr(kIcr, uint64_t{i} << 32 | 0x4608);
  }
  network_.DeliverAll();
  for (uint32_t i = 0; i < kVcpus; ++i) {
    if (i != 0) {
      EXPECT_EQ(vcpu(i).Peek().kind, VcpuWork::Kind::kInit);
      vcpu(i).Take(vcpu(i).Peek());
      EXPECT_EQ(vcpu(i).Peek().kind, VcpuWork::Kind::kSipi);
      vcpu(i).Take(vcpu(i).Peek());
    }
    vcpu(i).WriteMsr(kSvr, 0x1ff);
  }
  network_.DeliverAll();
  for (int round = 0; round < 100; ++round) {
    for (uint32_t from = 0; from < kVcpus; ++from) {
      vcpu(from).WriteMsr(kIcr, 0xc0000 | (0x40 + from));  // all but itself
      if (random() % 2 == 0) network_.DeliverOne(random());
    }
    while (network_.DeliverOne(random())) {
    }
    for (uint32_t to = 0; to < kVcpus; ++to) {
      for (uint32_t from = kVcpus; from-- > 0;) {
        if (from == to) continue;
        ASSERT_EQ(vcpu(to).Acknowledge(), 0x40 + from) << "round " << round << ", to " << to;
        vcpu(to).WriteMsr(kEoi, 0);
      }
      ASSERT_EQ(vcpu(to).Acknowledge(), std::nullopt);
    }
  }
  EXPECT_GT(network_.refused(), 0u);
  for (uint16_t node = 0; node < 3; ++node) EXPECT_EQ(network_.Failures(node), 0u);
}

TEST_F(MachineLinkTest, AFailureIsToldOnce) {
  Open();
  network_.router(0)->OnPeerFailed(NodeId(1), PeerFailure::kLeaseExpired, "nothing heard");
  network_.router(0)->OnPeerFailed(NodeId(2), PeerFailure::kLeft, "");
  EXPECT_EQ(network_.Failure(0), "1: is lost: nothing heard");
  network_.link(0)->Close();
  EXPECT_EQ(network_.Failures(0), 1u);
  // It is of no use any more, and harms nobody.
  EXPECT_TRUE(network_.link(0)->Send(NodeId(1), Bytes("x")));
  EXPECT_EQ(network_.waiting(0, 1, kInvalidate), 0u);
  EXPECT_EQ(network_.Failures(1), 0u);
}

TEST_F(MachineLinkTest, OthersFailuresAreNoneOfItsOwn) {
  Open();
  network_.router(0)->OnPeerFailed(NodeId(3), PeerFailure::kLeft, "");
  network_.router(0)->OnPeerFailed(NodeId(63), PeerFailure::kLeft, "");
  network_.router(0)->OnPeerFailed(NodeId(0xffff), PeerFailure::kLeft, "");
  network_.router(0)->OnWritable(NodeId(3), kFault);
  // Nor do those who have no part in the guest harm it.
  network_.Give(3, 0, kMachineInterruptType, 0, Bytes("nonsense"));
  network_.Give(0, 0, kMachineInterruptType, 0, Bytes("nonsense"));
  network_.router(0)->OnPeerFailed(NodeId(2), PeerFailure::kLeft, "");
  EXPECT_EQ(network_.Failure(0), "2: is lost");
}

TEST_F(MachineLinkTest, APeerThatIsNotUpFailsTheGuestUnderTheControllersLockToo) {
  Open();
  network_.SetDown(1);
  VcpuInterrupts& vcpu = network_.interrupts(0).vcpu(VcpuId(0));
  vcpu.WriteMsr(kIcr, uint64_t{1} << 32 | 0x4500);
  EXPECT_EQ(network_.Failure(0), "1: cannot be sent to: the peer is not up");
}

TEST_F(MachineLinkTest, WhatWasKeptForAPeerThatIsNotUpFailsTheGuest) {
  Open();
  network_.SetRoom(0);
  EXPECT_FALSE(network_.link(0)->Send(NodeId(1), Bytes("x")));
  network_.SetDown(1);
  network_.Writable(0, 1, kInvalidate);
  EXPECT_EQ(network_.Failure(0), "1: cannot be sent to: the peer is not up");
}

TEST_F(MachineLinkTest, MalformedMessagesFailTheGuest) {
  struct Case {
    const char* what;
    MemoryMessage message;
  };
  const auto make = [](uint16_t type, uint64_t transaction, std::span<const std::byte> body) {
    return MachineNetwork::Make(type, transaction, body);
  };
  MemoryMessage on_bulk = make(kMachinePingType, 1, EncodePing());
  on_bulk.message.message_class = MessageClass::kBulk;
  InterruptWriter answer;
  InterruptItem item;
  item.kind = InterruptItem::Kind::kAnswer;
  item.vcpu = VcpuId(1);
  item.version = 1;
  item.serial = 5;
  answer.Put(item);
  const std::vector<Case> cases = {
      {"interrupts of no format", make(kMachineInterruptType, 0, Bytes("nonsense"))},
      {"no interrupts", make(kMachineInterruptType, 0, {})},
      {"an answer to no interrupt", make(kMachineInterruptType, 0, answer.bytes())},
      {"a space's type", make(kFirstUserType + 1, 1, {})},
      {"a type to come", make(kMachinePongType + 1, 1, {})},
      {"a ping to a node that is not asked", make(kMachinePingType, 1, EncodePing())},
      {"a ping on another class", on_bulk},
      {"a short ping", make(kMachinePingType, 1, Bytes("x"))},
      {"a pong that nobody asked for", make(kMachinePongType, 1, EncodePong(1))},
      {"a short pong", make(kMachinePongType, 1, Bytes("x"))},
      {"what the exits do not take", make(kMachineExitType, 1, {})},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.what);
    std::array<NoExits, 3> exits;
    MachineNetwork network(3);
    network.Open({&exits[0], &exits[1], &exits[2]}, 3);
    network.Give(1, 0, each.message);
    EXPECT_EQ(network.Failure(0).substr(0, 27), "1: is not to be relied on: ") << network.Failure(0);
    network.Close();
  }
}

TEST_F(MachineLinkTest, AnAnswersSlotIsGivenBack) {
  Open();
  MemoryMessage message = MachineNetwork::Make(kMachineInterruptType, 0, Bytes("x"));
  message.message.answer = true;
  message.message.slot = SlotId(9);
  network_.Give(1, 0, message);
  EXPECT_EQ(network_.released(0), std::vector<uint64_t>{9});
  EXPECT_NE(network_.Failure(0), "");
}

TEST_F(MachineLinkTest, ALinkThatWasNotOpenedLeavesTheOtherAlone) {
  Open();
  {
    MachineLinkOptions options;
    options.guest = MachineNetwork::kGuest;
    options.nodes = {NodeId(0)};
    options.failed = [](NodeId, const std::string&) {};
    NotingTransport transport;
    MachineLink second(&transport, network_.router(0), std::move(options));
    second.Attach(&network_.interrupts(0), &exits_[0]);
    EXPECT_EQ(second.Open().code(), absl::StatusCode::kAlreadyExists);
  }
  network_.Give(1, 0, kMachineInterruptType, 0, Bytes("x"));
  EXPECT_NE(network_.Failure(0), "");
}

// Ways there and back that are as unlike as can be, and a node whose counter is far behind.
class MeasureTest : public MachineLinkTest {
 protected:
  static constexpr uint64_t kBehind = 1'000'000;
  void SetUp() override {
    network_.SetTicks(0, [this] { return now_.load(); });
    network_.SetTicks(2, [this] { return now_.load() + kBehind; });
    Open();
  }
  // Ticks pass on the way there and back: as many as `delays` says, by the number of the exchange.
  absl::StatusOr<TscOffset> Measure(const std::function<std::pair<uint64_t, uint64_t>(int)>& delays) {
    int exchange = 0;
    network_.before_delivery = [&](const MemoryMessage& message) {
      const bool ping = message.message.type == kMachinePingType;
      if (ping) last_ = message.message.transaction;
      now_ += ping ? delays(exchange).first : delays(exchange++).second;
    };
    absl::StatusOr<TscOffset> measured;
    std::atomic<bool> done{false};
    std::thread thread([&] {
      measured = network_.link(0)->MeasureTsc(std::chrono::steady_clock::now() + HangGuard());
      done = true;
    });
    network_.DeliverUntil([&] { return done.load(); });
    thread.join();
    network_.before_delivery = {};
    return measured;
  }

  std::atomic<uint64_t> now_{50};
  uint64_t last_ = 0;  // ping's transaction
};

TEST_F(MeasureTest, TheOffsetIsThatOfTheQuickestExchange) {
  const auto measured = Measure([](int exchange) {
    return exchange == 40 ? std::pair<uint64_t, uint64_t>{30, 10} : std::pair<uint64_t, uint64_t>{500, 90'000};
  });
  ASSERT_TRUE(measured.ok()) << measured.status();
  EXPECT_EQ(measured->exchanges, kClockExchanges);
  EXPECT_EQ(measured->error, 20u);
  EXPECT_EQ(measured->offset, static_cast<int64_t>(kBehind) + 10);  // the way there took 10 more than half of both
  const auto again = Measure([](int) { return std::pair<uint64_t, uint64_t>{0, 0}; });
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->offset, static_cast<int64_t>(kBehind));
  EXPECT_EQ(again->error, 0u);
}

TEST_F(MeasureTest, TheIoNodeHasNoOffset) {
  const auto measured = network_.link(2)->MeasureTsc(std::chrono::steady_clock::now());
  ASSERT_TRUE(measured.ok());
  EXPECT_EQ(measured->offset, 0);
  EXPECT_EQ(measured->error, 0u);
}

TEST_F(MeasureTest, NobodyAnswers) {
  const auto soon = std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
  EXPECT_EQ(network_.link(0)->MeasureTsc(soon).status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(network_.waiting(0, 2, kInvalidate), 1u);
  // The pong of a ping that was given up: too late, and no harm.
  const auto later = std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
  EXPECT_EQ(network_.link(0)->MeasureTsc(later).status().code(), absl::StatusCode::kDeadlineExceeded);
  network_.Give(2, 0, kMachinePongType, 1, EncodePong(1));
  EXPECT_EQ(network_.Failures(0), 0u);
  network_.Give(2, 0, kMachinePongType, 99, EncodePong(1));
  EXPECT_EQ(network_.Failure(0), "2: is not to be relied on: a pong to no ping");
  EXPECT_EQ(network_.link(0)->MeasureTsc(std::chrono::steady_clock::now() + HangGuard()).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(MeasureTest, ASecondPongFailsTheGuest) {
  ASSERT_TRUE(Measure([](int) { return std::pair<uint64_t, uint64_t>{1, 1}; }).ok());
  network_.Give(2, 0, kMachinePongType, last_ - 1, EncodePong(1));
  EXPECT_EQ(network_.Failures(0), 0u) << "that of an earlier one may be late";
  network_.Give(2, 0, kMachinePongType, last_, EncodePong(1));
  EXPECT_EQ(network_.Failure(0), "2: is not to be relied on: a pong to no ping");
}

TEST_F(MeasureTest, APongOfAnotherNodeFailsTheGuest) {
  std::thread thread(
      [&] { EXPECT_FALSE(network_.link(0)->MeasureTsc(std::chrono::steady_clock::now() + HangGuard()).ok()); });
  const MemoryMessage ping = network_.Take(0, 2, kInvalidate);
  network_.Give(1, 0, kMachinePongType, ping.message.transaction, EncodePong(1));
  EXPECT_EQ(network_.Failure(0), "1: is not to be relied on: a pong to no ping");
  thread.join();
}

TEST_F(MeasureTest, AMeasurementEndsWithTheLink) {
  std::thread thread([&] {
    EXPECT_EQ(network_.link(0)->MeasureTsc(std::chrono::steady_clock::now() + HangGuard()).status().code(),
              absl::StatusCode::kUnavailable);
  });
  network_.Take(0, 2, kInvalidate);
  network_.link(0)->Close();
  thread.join();
}

}  // namespace
}  // namespace hk
