// For tests: the engine between a back end that does what the test says and a handler inside of which other threads go
// on. No lock is held while the handler runs, so what a test does there is what they could do at that moment. Used by
// one thread.
#pragma once

#include <array>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "hyperkernel/base/log.h"
#include "rdma/engine.h"
#include "rdma/simulation.h"
#include "rdma/slots.h"
#include "rdma/tcp_link.h"

namespace hk {

inline constexpr MessageClass kFault = MessageClass::kFault, kInvalidate = MessageClass::kInvalidate,
                              kBulk = MessageClass::kBulk;
inline constexpr std::array<MessageClass, kMessageClasses> kClasses = {kFault, kInvalidate, kBulk};
inline constexpr NodeId kSelf{2};  // larger than the peers' numbers: they dial
inline constexpr GuestId kGuest{7};

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

// A node with two peers that dial it; every connection is a FakeLink unless `make_link_` makes another.
class EngineTest : public ::testing::Test {
 protected:
  explicit EngineTest(uint32_t window = kMinWindow) : window_(window) {
    log::Init("test", log::Level::kError);
    settings_.cluster = "test";
    settings_.self = kSelf;
    settings_.window_messages = window_;
    settings_.queue_messages = window_;
    settings_.fault_receive_slots = 2;
    settings_.fault_send_slots = 3;
    settings_.bulk_receive_slots = settings_.bulk_send_slots = 1;
    auto made = Engine::Create(settings_, &handler_, std::make_unique<FakeWire>(), kTcpSlotRoom, simulation_);
    EXPECT_TRUE(made.ok());
    engine_ = *std::move(made);
    EXPECT_TRUE(engine_->Start().ok());
    EXPECT_TRUE(engine_->AddPeer(kPeer, "somewhere").ok());
    EXPECT_TRUE(engine_->AddPeer(kOther, "somewhere").ok());
  }

  // What the peer has of a class; `link` is null if it is none of ours.
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
    std::shared_ptr<Link> link = make_link_ ? make_link_(end.ticket) : nullptr;
    if (link == nullptr) link = end.link = std::make_shared<FakeLink>();
    return engine_->Attach(end.ticket, std::move(link)) &&
           Say(peer, message_class, OwnType::kSetup) == Engine::Fate::kTaken;
  }
  // A message of the transport's own, not numbered.
  Engine::Fate Say(NodeId peer, MessageClass message_class, OwnType type) {
    End& end = Of(peer, message_class);
    Header header;
    header.message.message_class = message_class;
    header.message.type = static_cast<uint16_t>(type);
    header.acknowledged = end.received;
    if (type != OwnType::kSetup) return engine_->Deliver(end.ticket, header, {}, {});
    const auto body = EncodeSetup({.window_messages = window_, .slot_count = message_class == kInvalidate ? 0U : 2U});
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
    options.deadline = std::chrono::milliseconds(100);
    EXPECT_TRUE(engine_->Send(kPeer, request, options).ok());
    request.answer = true;
    return request;
  }
  void Wait(std::chrono::milliseconds time) {
    simulation_.RunUntil(simulation_.Now() + time);
    engine_->RunControl();
  }

  static constexpr NodeId kPeer{0}, kOther{1};
  const uint32_t window_;
  Simulation simulation_{1};
  TransportSettings settings_;
  FakeHandler handler_;
  std::unique_ptr<Engine> engine_;
  std::map<std::pair<NodeId, MessageClass>, End> ends_;
  std::map<NodeId, uint64_t> sessions_;
  uint64_t last_session_ = 600;
  std::function<std::shared_ptr<Link>(const LinkTicket&)> make_link_;
};

}  // namespace hk
