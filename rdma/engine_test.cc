// The engine between a back end that does what the test says and a handler inside of which other threads go on: no
// lock is held while the handler runs, so what the test does there is what they could do at that moment.
#include "rdma/engine.h"

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "hyperkernel/base/log.h"
#include "rdma/simulation.h"
#include "rdma/slots.h"

namespace hk {
namespace {

using std::chrono::milliseconds;

constexpr MessageClass kFault = MessageClass::kFault, kInvalidate = MessageClass::kInvalidate,
                       kBulk = MessageClass::kBulk;
constexpr std::array<MessageClass, kMessageClasses> kClasses = {kFault, kInvalidate, kBulk};
constexpr NodeId kSelf{2};  // larger than the peers' numbers: they dial
constexpr GuestId kGuest{7};

// A connection that keeps what is sent.
struct FakeLink final : public Link {
  Sent Send(const Header& header, std::span<const std::byte> /*body*/, std::span<const std::byte> /*payload*/,
            bool /*more*/) override {
    if (full) return Sent::kFull;
    sent.push_back(header);
    return Sent::kTaken;
  }
  void Close(bool /*abort*/) override { closed = true; }
  void Resume() override { ++resumed; }

  size_t Count(OwnType type) const {
    size_t count = 0;
    for (const Header& header : sent) count += header.message.type == static_cast<uint16_t>(type) ? 1 : 0;
    return count;
  }

  std::vector<Header> sent;
  bool full = false, closed = false;
  int resumed = 0;
};

// Makes nothing by itself.
class FakeWire final : public Wire {
 public:
  absl::Status Start(Engine* /*engine*/) override { return absl::OkStatus(); }
  void Stop() override {}
  void Dial(NodeId /*peer*/, const std::string& /*address*/, const Hello& /*hello*/, uint64_t /*attempt*/) override {}
  absl::Status CheckAddress(const std::string& /*address*/) const override { return absl::OkStatus(); }
  void WakeClass(MessageClass /*message_class*/) override {}
  void WakeControl() override {}
  uint64_t Random() override { return ++last_random_; }

 private:
  uint64_t last_random_ = 1000;
};

// Writes down calls, and does inside of them what the test wants.
struct FakeHandler final : public TransportHandler {
  void OnMessage(NodeId /*from*/, const Message& message, std::span<const std::byte> /*payload*/, bool late) override {
    calls.push_back((late ? "late " : "message ") + std::to_string(message.transaction));
    if (inside) inside(calls.back());
  }
  void OnPeerUp(NodeId peer) override {
    calls.push_back("up " + std::to_string(peer.value()));
    if (inside) inside(calls.back());
  }
  void OnPeerFailed(NodeId peer, PeerFailure /*why*/, const std::string& /*detail*/) override {
    calls.push_back("failed " + std::to_string(peer.value()));
  }
  void OnWritable(NodeId peer, MessageClass message_class) override {
    calls.push_back("writable " + std::to_string(peer.value()) + " " + std::to_string(static_cast<int>(message_class)));
    if (inside) inside(calls.back());
  }
  void OnSlotsFree(MessageClass /*message_class*/, SlotUse /*use*/) override { calls.emplace_back("slots free"); }
  void OnRequestExpired(NodeId /*asked*/, MessageClass /*message_class*/, uint64_t transaction, SlotId /*slot*/,
                        RequestFailure why) override {
    calls.push_back("expired " + std::to_string(transaction) + " " + std::to_string(static_cast<int>(why)));
  }

  size_t Count(const std::string& call) const {
    size_t count = 0;
    for (const std::string& one : calls) count += one == call ? 1 : 0;
    return count;
  }

  std::vector<std::string> calls;
  std::function<void(const std::string&)> inside;
};

class EngineTest : public ::testing::Test {
 protected:
  EngineTest() {
    log::Init("test", log::Level::kError);
    settings_.cluster = "test";
    settings_.self = kSelf;
    settings_.window_messages = kMinWindow;
    settings_.queue_messages = kMinWindow;
    settings_.fault_receive_slots = settings_.fault_send_slots = 2;
    settings_.bulk_receive_slots = settings_.bulk_send_slots = 1;
    auto made = Engine::Create(settings_, &handler_, std::make_unique<FakeWire>(), 0, simulation_);
    EXPECT_TRUE(made.ok());
    engine_ = *std::move(made);
    EXPECT_TRUE(engine_->Start().ok());
    EXPECT_TRUE(engine_->AddPeer(kPeer, "somewhere").ok());
    EXPECT_TRUE(engine_->AddPeer(kOther, "somewhere").ok());
  }

  // What the peer has of a class.
  struct End {
    LinkTicket ticket;
    std::shared_ptr<FakeLink> link;
    uint64_t sequence = 0;  // of the last numbered message
    uint64_t received = 0;
  };
  End& Of(NodeId peer, MessageClass message_class) { return ends_[{peer, message_class}]; }
  End& Fault() { return Of(kPeer, kFault); }

  // The peer dials the class. False: refused.
  bool Connect(NodeId peer, MessageClass message_class, uint64_t session = 500) {
    End& end = Of(peer, message_class);
    Hello hello;
    hello.message_class = message_class;
    hello.cluster = ClusterHash("test");
    hello.from = peer;
    hello.to = kSelf;
    hello.session = session;
    hello.peer_session = sessions_[peer];
    hello.received = end.received;
    const Engine::Admission admission = engine_->OnHello(hello, "somewhere");
    if (!admission.ticket) return false;
    sessions_[peer] = admission.reply.session;
    end.ticket = *admission.ticket;
    end.link = std::make_shared<FakeLink>();
    return engine_->Attach(end.ticket, end.link) && Say(peer, message_class, OwnType::kSetup) == Engine::Fate::kTaken;
  }
  // A message of the transport's own, not numbered.
  Engine::Fate Say(NodeId peer, MessageClass message_class, OwnType type) {
    End& end = Of(peer, message_class);
    Header header;
    header.message.message_class = message_class;
    header.message.type = static_cast<uint16_t>(type);
    header.acknowledged = end.received;
    if (type != OwnType::kSetup) return engine_->Deliver(end.ticket, header, {}, {});
    const auto body =
        EncodeSetup({.window_messages = kMinWindow, .slot_count = message_class == kInvalidate ? 0U : 2U});
    header.body_bytes = kSetupBytes;
    return engine_->Deliver(end.ticket, header, body, {});
  }
  // The peer received all that is on the wire.
  void AcknowledgeAll(NodeId peer, MessageClass message_class) {
    End& end = Of(peer, message_class);
    for (const Header& header : end.link->sent) end.received = std::max(end.received, header.sequence);
    Say(peer, message_class, OwnType::kAck);
  }
  Header Numbered(NodeId peer, const Message& message) {
    Header header;
    header.message = message;
    header.sequence = ++Of(peer, message.message_class).sequence;
    header.acknowledged = Of(peer, message.message_class).received;
    return header;
  }
  void Up(NodeId peer) {
    for (const MessageClass message_class : kClasses) ASSERT_TRUE(Connect(peer, message_class));
    engine_->RunControl();
    ASSERT_EQ(handler_.Count("up " + std::to_string(peer.value())), 1u);
  }

  static Message Plain(uint64_t transaction, MessageClass message_class = kFault) {
    Message message;
    message.message_class = message_class;
    message.type = kFirstUserType;
    message.transaction = transaction;
    return message;
  }
  // Asks the peer; gives the answer that it owes.
  Message Ask(uint64_t transaction, NodeSet writers = NodeSet::Of(kPeer)) {
    const auto slot = engine_->AcquireSlot(kFault, SlotUse::kReceive);
    EXPECT_TRUE(slot.ok());
    Message request = Plain(transaction);
    request.guest = kGuest;
    request.epoch = Epoch(1);
    request.slot = *slot;
    request.slot_node = kSelf;
    SendOptions options;
    options.writers = writers;
    options.deadline = milliseconds(100);
    EXPECT_TRUE(engine_->Send(kPeer, request, options).ok());
    request.answer = true;
    return request;
  }
  void Wait(milliseconds time) {
    simulation_.RunUntil(simulation_.Now() + time);
    engine_->RunControl();
  }

  static constexpr NodeId kPeer{0}, kOther{1};
  Simulation simulation_{1};
  TransportSettings settings_;
  FakeHandler handler_;
  std::unique_ptr<Engine> engine_;
  std::map<std::pair<NodeId, MessageClass>, End> ends_;
  std::map<NodeId, uint64_t> sessions_;
  uint64_t last_session_ = 600;
};

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
