#include "rdma/engine.h"

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "hyperkernel/base/log.h"
#include "rdma/engine_fixture.h"
#include "rdma/slots.h"

namespace hk {
namespace {

using std::chrono::milliseconds;

TEST_F(EngineTest, RoomThatIsThereBeforeOnPeerUpReturnsIsTold) {
  for (const MessageClass message_class : kClasses) ASSERT_TRUE(Connect(kPeer, message_class));
  handler_.inside = [&](const std::string& call) {
    if (call != "up 0") return;
    uint64_t transaction = 0;
    while (engine_->Send(kPeer, Plain(++transaction), {}).ok()) {
    }
    EXPECT_EQ(transaction, settings_.queue_messages + 1);
    // Meanwhile, on the class's thread:
    AcknowledgeAll(kPeer, kFault);
    engine_->RunClass(kFault);
  };
  engine_->RunControl();
  engine_->RunClass(kFault);
  EXPECT_EQ(handler_.Count("writable 0 0"), 1u);
}

TEST_F(EngineTest, NothingIsDeliveredBeforeOnPeerUpReturns) {
  for (const MessageClass message_class : kClasses) ASSERT_TRUE(Connect(kPeer, message_class));
  const Header first = Numbered(kPeer, Plain(1));
  EXPECT_EQ(engine_->Deliver(Fault().ticket, first, {}, {}), Engine::Fate::kHold);
  handler_.inside = [&](const std::string& call) {
    ASSERT_EQ(call, handler_.calls.size() == 1 ? "up 0" : "message 1");
    if (call == "up 0") {
      EXPECT_EQ(engine_->Deliver(Fault().ticket, first, {}, {}), Engine::Fate::kHold);
    }
  };
  engine_->RunControl();
  EXPECT_EQ(Fault().link->resumed, 1);
  EXPECT_EQ(engine_->Deliver(Fault().ticket, first, {}, {}), Engine::Fate::kTaken);
  EXPECT_EQ(handler_.calls, (std::vector<std::string>{"up 0", "message 1"}));
}

TEST_F(EngineTest, AFailureIsToldAfterTheHandlersThatAreUnderWay) {
  Up(kPeer);
  handler_.inside = [&](const std::string& call) {
    if (call != "message 1") return;
    engine_->ResetPeer(kPeer, Epoch(1));
    EXPECT_EQ(engine_->Deliver(Fault().ticket, Numbered(kPeer, Plain(2)), {}, {}), Engine::Fate::kClosed);
    engine_->RunControl();
    EXPECT_EQ(handler_.Count("failed 0"), 0u);
  };
  EXPECT_EQ(engine_->Deliver(Fault().ticket, Numbered(kPeer, Plain(1)), {}, {}), Engine::Fate::kTaken);
  engine_->RunControl();
  EXPECT_EQ(handler_.calls, (std::vector<std::string>{"up 0", "message 1", "failed 0"}));
}

TEST_F(EngineTest, AConnectionThatWasReplacedIsReadNoMore) {
  Up(kPeer);
  EXPECT_EQ(engine_->Deliver(Fault().ticket, Numbered(kPeer, Plain(1)), {}, {}), Engine::Fate::kTaken);
  const End before = Fault();
  ASSERT_TRUE(Connect(kPeer, kFault));
  EXPECT_TRUE(before.link->closed);
  // It was read before the new one came, and is handed over now. The peer was told that it had not arrived.
  const Header second = Numbered(kPeer, Plain(2));
  EXPECT_EQ(engine_->Deliver(before.ticket, second, {}, {}), Engine::Fate::kClosed);
  EXPECT_EQ(engine_->Deliver(Fault().ticket, second, {}, {}), Engine::Fate::kTaken);
  EXPECT_EQ(handler_.calls, (std::vector<std::string>{"up 0", "message 1", "message 2"}));
}

// An end that only waits for answers would never learn that the other end has lost their connection.
TEST_F(EngineTest, IdleClassesAreProbedSeveralTimesInALease) {
  Up(kPeer);
  for (const MessageClass message_class : kClasses) Of(kPeer, message_class).link->sent.clear();
  const Monotonic end = simulation_.Now() + milliseconds(settings_.lease_ms);
  while (simulation_.Now() < end) {
    simulation_.RunUntil(simulation_.Now() + milliseconds(settings_.heartbeat_ms));
    engine_->RunControl();
    Say(kPeer, kInvalidate, OwnType::kHeartbeat);
  }
  for (const MessageClass idle : {kFault, kBulk}) EXPECT_GE(Of(kPeer, idle).link->Count(OwnType::kAck), 4u);
  EXPECT_EQ(handler_.calls, std::vector<std::string>{"up 0"});
}

TEST_F(EngineTest, TheEndOfARequestIsToldBeforeItsLateAnswer) {
  Up(kPeer);
  const Message answer = Ask(5);
  Wait(milliseconds(100));  // its time is over; its class's thread is busy with the answer
  EXPECT_EQ(engine_->Deliver(Fault().ticket, Numbered(kPeer, answer), {}, {}), Engine::Fate::kTaken);
  engine_->RunClass(kFault);
  EXPECT_EQ(handler_.calls, (std::vector<std::string>{"up 0", "expired 5 0", "late 5"}));
}

TEST_F(EngineTest, ASlotThatAPayloadWasArrivingInTakesAnothersAnswerWhenTheConnectionBreaks) {
  Up(kPeer);
  Up(kOther);
  NodeSet writers = NodeSet::Of(kPeer);
  writers.Add(kOther);
  const Message answer = Ask(5, writers);
  Header header = Numbered(kPeer, answer);
  header.payload_bytes = 4096;
  std::span<std::byte> destination;
  ASSERT_EQ(engine_->Destination(Fault().ticket, header, &destination), Engine::Fate::kTaken);
  ASSERT_EQ(destination.size(), 4096u);
  engine_->OnBroken(Fault().ticket, "test");
  EXPECT_EQ(engine_->Deliver(Of(kOther, kFault).ticket, Numbered(kOther, answer), {}, {}), Engine::Fate::kTaken);
  EXPECT_EQ(handler_.Count("message 5"), 1u);
}

TEST_F(EngineTest, APayloadThatIsRepeatedLandsNowhere) {
  Up(kPeer);
  Up(kOther);
  NodeSet writers = NodeSet::Of(kPeer);
  writers.Add(kOther);
  // Two answers begin to arrive; the first to begin is the one, so the second is dropped. Then the first breaks off.
  const Message answer = Ask(5, writers);
  Header first = Numbered(kPeer, answer), second = Numbered(kOther, answer);
  first.payload_bytes = second.payload_bytes = 4096;
  std::span<std::byte> destination;
  ASSERT_EQ(engine_->Destination(Fault().ticket, first, &destination), Engine::Fate::kTaken);
  ASSERT_EQ(engine_->Destination(Of(kOther, kFault).ticket, second, &destination), Engine::Fate::kTaken);
  ASSERT_TRUE(destination.empty());
  ASSERT_EQ(engine_->Deliver(Of(kOther, kFault).ticket, second, {}, {}), Engine::Fate::kTaken);
  engine_->OnBroken(Fault().ticket, "test");
  // The second comes again, and would be dropped as a replay when it is there.
  ASSERT_EQ(engine_->Destination(Of(kOther, kFault).ticket, second, &destination), Engine::Fate::kTaken);
  EXPECT_TRUE(destination.empty());
}

TEST_F(EngineTest, ASessionBeginsWithTheFloors) {
  ASSERT_TRUE(engine_->SetEpoch(kGuest, 3, Epoch(4)).ok());
  Up(kPeer);
  ASSERT_TRUE(engine_->Send(kPeer, Plain(1), {}).ok());
  for (const MessageClass message_class : kClasses) {
    const std::vector<Header>& sent = Of(kPeer, message_class).link->sent;
    ASSERT_GE(sent.size(), 2u);
    EXPECT_EQ(sent[1].message.type, static_cast<uint16_t>(OwnType::kBarrier)) << "after the Setup";
    EXPECT_EQ(sent[1].sequence, 1u);
    EXPECT_EQ(sent[1].message.generation, 3u);
    EXPECT_EQ(sent[1].message.epoch, Epoch(4));
  }
}

TEST_F(EngineTest, BarriersThatFindNoRoomAreSentLater) {
  Up(kPeer);
  Fault().link->full = true;
  const uint64_t raises = settings_.queue_messages + 2 * Lane::kBarrierReserve;
  for (uint64_t epoch = 1; epoch <= raises; ++epoch) ASSERT_TRUE(engine_->SetEpoch(kGuest, 1, Epoch(epoch)).ok());
  Fault().link->full = false;
  engine_->OnSendable(Fault().ticket);
  for (size_t sent = 0; sent != Fault().link->sent.size();) {
    sent = Fault().link->sent.size();
    AcknowledgeAll(kPeer, kFault);
  }
  EXPECT_EQ(Fault().link->sent.back().message.epoch, Epoch(raises));
}

TEST_F(EngineTest, WhatAPeerWasToldHoldsForAnswersAlsoWhenTheGuestIsForgotten) {
  Up(kPeer);
  ASSERT_TRUE(engine_->SetEpoch(kGuest, 1, Epoch(2)).ok());
  // The peer has heard it, and given the slot of its request to another.
  AcknowledgeAll(kPeer, kFault);
  engine_->ForgetGuest(kGuest);
  Message message = Plain(1);
  message.guest = kGuest;
  message.generation = 1;
  message.epoch = Epoch(1);
  EXPECT_TRUE(engine_->Send(kPeer, message, {}).ok()) << "no answer: the check has ended";
  message.answer = true;
  message.slot = SlotName{kFault, SlotUse::kReceive, 0, 5}.Encode();
  message.slot_node = kPeer;
  EXPECT_EQ(engine_->Send(kPeer, message, {}).code(), absl::StatusCode::kAborted);
  // In another session it has no such slot.
  engine_->ResetPeer(kPeer, Epoch());
  engine_->RunControl();
  ends_.clear();
  sessions_.clear();
  for (const MessageClass message_class : kClasses) ASSERT_TRUE(Connect(kPeer, message_class, 501));
  engine_->RunControl();
  EXPECT_TRUE(engine_->Send(kPeer, message, {}).ok());
}

TEST_F(EngineTest, AnAnswerIntoASlotThatThePeerDoesNotHaveIsAborted) {
  Up(kPeer);
  // Forwarded by another: what it names is not the caller's to know.
  Message message = Plain(1);
  message.answer = true;
  message.slot = SlotName{kFault, SlotUse::kReceive, 2, 5}.Encode();
  message.slot_node = kPeer;
  EXPECT_EQ(engine_->Send(kPeer, message, {}).code(), absl::StatusCode::kAborted);
  message.slot = SlotName{kFault, SlotUse::kReceive, 1, 5}.Encode();
  EXPECT_TRUE(engine_->Send(kPeer, message, {}).ok());
}

TEST_F(EngineTest, ARequestIntoASlotThatItMayNotNameFailsThePeer) {
  const auto ends = [&](NodeId slot_node, uint32_t index, Engine::Fate fate) {
    ends_.clear();
    sessions_.clear();
    ++last_session_;
    for (const MessageClass message_class : kClasses) ASSERT_TRUE(Connect(kPeer, message_class, last_session_));
    engine_->RunControl();
    Message message = Plain(1);
    message.slot = SlotName{kFault, SlotUse::kReceive, index, 5}.Encode();
    message.slot_node = slot_node;
    handler_.calls.clear();
    EXPECT_EQ(engine_->Deliver(Fault().ticket, Numbered(kPeer, message), {}, {}), fate);
    engine_->RunControl();
    EXPECT_EQ(handler_.calls, std::vector<std::string>({fate == Engine::Fate::kTaken ? "message 1" : "failed 0"}));
    engine_->ResetPeer(kPeer, Epoch());
    engine_->RunControl();
  };
  ends(kPeer, 1, Engine::Fate::kTaken);
  ends(kOther, 3, Engine::Fate::kTaken);  // forwarded: how many slots it has, or had, is not this peer's to know
  ends(kPeer, 2, Engine::Fate::kClosed);
  ends(kSelf, 1, Engine::Fate::kClosed);
  EXPECT_EQ(engine_->Statistics().malformed, 2u);
}

TEST_F(EngineTest, ARefusedHelloIsLoggedWithItsAddressAndWhatItClaimed) {
  log::Init("test", log::Level::kWarning);
  testing::internal::CaptureStderr();
  Hello hello;
  hello.cluster = ClusterHash("another");
  hello.from = NodeId(9);
  hello.to = kSelf;
  hello.session = 1;
  for (int i = 0; i < 100; ++i) {
    EXPECT_FALSE(engine_->OnHello(hello, "192.0.2.7:" + std::to_string(i)).ticket.has_value());
  }
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_NE(log.find("192.0.2.7:0"), std::string::npos) << log;
  EXPECT_NE(log.find("node 9"), std::string::npos) << log;
  EXPECT_EQ(log.find("192.0.2.7:1"), std::string::npos) << log;
  EXPECT_EQ(engine_->Statistics().handshakes_refused, 100u);
  log::Init("test", log::Level::kError);
}

// A window of which a few messages are not a quarter, which is acknowledged at once.
class WideEngineTest : public EngineTest {
 protected:
  WideEngineTest() : EngineTest(16 * kMinWindow) {}
};

// What may wait goes with the next message, with the acknowledgement, or when the peer says something.
TEST_F(WideEngineTest, WhatMayWaitIsNotSentAlone) {
  Up(kPeer);
  const SendOptions can_wait{.payload = {}, .writers = {}, .when = SendWhen::kWithNext};
  const auto sent = [this] { return Fault().link->sent.size(); };
  const size_t before = sent();
  // Nothing is owed to the peer that would take it along: the class's thread sends it.
  ASSERT_TRUE(engine_->Send(kPeer, Plain(1), can_wait).ok());
  EXPECT_EQ(sent(), before);
  const Monotonic first_due = engine_->RunClass(kFault);
  ASSERT_LE(first_due, simulation_.Now() + std::chrono::milliseconds(1));
  simulation_.RunUntil(first_due);
  engine_->RunClass(kFault);
  EXPECT_EQ(sent(), before + 1);
  // A write's worth of them does not wait.
  for (uint64_t i = 0; i < 16; ++i) ASSERT_TRUE(engine_->Send(kPeer, Plain(100 + i), can_wait).ok());
  EXPECT_EQ(sent(), before + 17);

  const auto receive = [&](const Message& message) {
    ASSERT_EQ(engine_->Deliver(Fault().ticket, Numbered(kPeer, message), {}, {}), Engine::Fate::kTaken);
    if (message.answer) engine_->ReleaseSlot(message.slot);
  };
  // As the handler of an answer does.
  handler_.inside = [&](const std::string&) { ASSERT_TRUE(engine_->Send(kPeer, Plain(2), can_wait).ok()); };
  Message answer = Ask(10);
  const size_t asked = sent();
  receive(answer);
  EXPECT_EQ(sent(), asked);
  handler_.inside = nullptr;
  // An answer does not hurry it, and the next message takes it along, in order.
  Message second = Ask(11);
  ASSERT_EQ(sent(), asked + 2);
  EXPECT_EQ(Fault().link->sent[asked].message.transaction, 2u);
  EXPECT_EQ(Fault().link->sent[asked + 1].message.transaction, 11u);

  // The acknowledgement does, after its time.
  handler_.inside = [&](const std::string&) { ASSERT_TRUE(engine_->Send(kPeer, Plain(3), can_wait).ok()); };
  receive(second);
  handler_.inside = nullptr;
  EXPECT_EQ(sent(), asked + 2);
  const Monotonic due = engine_->RunClass(kFault);
  ASSERT_LE(due, simulation_.Now() + std::chrono::milliseconds(1));
  simulation_.RunUntil(due);
  engine_->RunClass(kFault);
  ASSERT_EQ(sent(), asked + 3);
  EXPECT_EQ(Fault().link->sent.back().message.transaction, 3u);
  EXPECT_EQ(Fault().link->sent.back().acknowledged, Fault().sequence);

  // Whoever says something other than an answer may be waiting for it.
  Message third = Ask(12);
  handler_.inside = [&](const std::string&) { ASSERT_TRUE(engine_->Send(kPeer, Plain(4), can_wait).ok()); };
  receive(third);
  handler_.inside = nullptr;
  EXPECT_EQ(Fault().link->sent.back().message.transaction, 12u);
  receive(Plain(20));
  EXPECT_EQ(Fault().link->sent.back().message.transaction, 4u);
}

TEST_F(WideEngineTest, WhatMayWaitIsSentOnTheNextConnection) {
  Up(kPeer);
  Message answer = Ask(10);
  handler_.inside = [&](const std::string&) {
    ASSERT_TRUE(engine_->Send(kPeer, Plain(2), {.payload = {}, .writers = {}, .when = SendWhen::kWithNext}).ok());
  };
  ASSERT_EQ(engine_->Deliver(Fault().ticket, Numbered(kPeer, answer), {}, {}), Engine::Fate::kTaken);
  handler_.inside = nullptr;
  engine_->OnBroken(Fault().ticket, "test");
  ASSERT_TRUE(Connect(kPeer, kFault));
  EXPECT_EQ(Fault().link->sent.back().message.transaction, 2u);
}

TEST_F(EngineTest, StatisticsAreOfTheUsersMessagesOnly) {
  Up(kPeer);
  ASSERT_TRUE(engine_->SetEpoch(kGuest, 1, Epoch(1)).ok());
  ASSERT_TRUE(engine_->Send(kPeer, Plain(1), {}).ok());
  auto of_fault = [&] { return engine_->Statistics(kPeer)->classes[static_cast<size_t>(kFault)]; };
  EXPECT_EQ(of_fault().sent_messages, 1u);
  EXPECT_EQ(of_fault().sent_bytes, kHeaderBytes);
  EXPECT_EQ(Fault().link->Count(OwnType::kBarrier), 1u);

  // Both go again.
  engine_->OnBroken(Fault().ticket, "test");
  ASSERT_TRUE(Connect(kPeer, kFault));
  EXPECT_EQ(Fault().link->Count(OwnType::kBarrier), 1u);
  EXPECT_EQ(of_fault().sent_messages, 1u);
  EXPECT_EQ(of_fault().resent_messages, 1u);
  EXPECT_EQ(of_fault().reconnects, 1u);

  // A Barrier comes twice, then a message twice.
  Message barrier = Plain(0);
  barrier.type = static_cast<uint16_t>(OwnType::kBarrier);
  for (const Message& message : {barrier, Plain(2)}) {
    const Header header = Numbered(kPeer, message);
    for (int i = 0; i < 2; ++i) EXPECT_EQ(engine_->Deliver(Fault().ticket, header, {}, {}), Engine::Fate::kTaken);
  }
  EXPECT_EQ(of_fault().received_messages, 1u);
  EXPECT_EQ(of_fault().received_bytes, kHeaderBytes);
  EXPECT_EQ(of_fault().dropped[static_cast<size_t>(DropReason::kDuplicate)], 1u);

  // Neither arrived.
  engine_->ResetPeer(kPeer, Epoch());
  EXPECT_EQ(of_fault().dropped[static_cast<size_t>(DropReason::kPeerFailed)], 1u);
}

TEST_F(EngineTest, LatencyIsFromSendToAnswer) {
  Up(kPeer);
  const Message answer = Ask(5);
  simulation_.RunUntil(simulation_.Now() + std::chrono::microseconds(50));  // 2^15 ns to 2^16 ns
  ASSERT_EQ(engine_->Deliver(Fault().ticket, Numbered(kPeer, answer), {}, {}), Engine::Fate::kTaken);
  const auto statistics = engine_->Statistics(kPeer)->classes[static_cast<size_t>(kFault)];
  for (size_t i = 0; i < ClassStatistics::kLatencyBuckets; ++i) {
    EXPECT_EQ(statistics.latency[i], i == 15 ? 1u : 0u) << i;
  }
}

}  // namespace
}  // namespace hk
