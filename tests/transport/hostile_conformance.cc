// Conformance: strangers, and a peer whose bytes break the format. Only for back ends that let a stranger connect.

#include <cstring>
#include <optional>

#include "rdma/slots.h"
#include "rdma/wire.h"
#include "tests/transport/conformance.h"
#include "tests/transport/frames.h"

namespace hk {
namespace {

using Bytes = std::vector<std::byte>;

// Speaks the protocol byte by byte as node 0 to node 1, so that it can break it.
class Impostor {
 public:
  static constexpr uint32_t kSlots = 4;  // of a class, as its Setup says

  explicit Impostor(BackEnd* back_end) : back_end_(back_end) {}

  Hello FirstHello(MessageClass message_class) const {
    return GoodHello(NodeId(0), NodeId(1), message_class, session_, peer_session_);
  }
  // Connects and says hello; the reply, if one came before the connection was closed.
  std::optional<Hello> SayHello(MessageClass message_class, const Hello& hello) {
    return SayBytes(message_class, EncodeHello(hello));
  }
  std::optional<Hello> SayBytes(MessageClass message_class, std::span<const std::byte> bytes) {
    std::unique_ptr<Stranger>& link = links_[static_cast<size_t>(message_class)];
    link = back_end_->Connect(NodeId(1));
    link->Write(bytes);
    EXPECT_TRUE(back_end_->RunUntil([&] { return link->Read().size() >= kHelloBytes || link->Closed(); }));
    Hello reply;
    if (DecodeHello(link->Read(), &reply) != WireError::kNone) return std::nullopt;
    return reply;
  }
  // All three classes with their Setups: the node takes us for a peer that is up.
  void Connect(uint64_t session) {
    session_ = session;
    peer_session_ = 0;
    for (size_t i = 0; i < kMessageClasses; ++i) {
      const auto message_class = static_cast<MessageClass>(i);
      const std::optional<Hello> reply = SayHello(message_class, FirstHello(message_class));
      ASSERT_TRUE(reply.has_value());
      ASSERT_EQ(reply->kind, HelloKind::kAcceptFresh) << HelloKindName(reply->kind);
      peer_session_ = reply->session;
      SendSetup(message_class);
    }
  }
  void SendSetup(MessageClass message_class) {
    Header header;
    header.message.message_class = message_class;
    header.message.type = static_cast<uint16_t>(OwnType::kSetup);
    SetupBody setup;
    setup.window_messages = 8;
    setup.heartbeat_ms = 100;
    setup.slot_count = message_class == MessageClass::kInvalidate ? 0 : kSlots;
    Write(message_class, Frame(header, EncodeSetup(setup)));
  }
  void Write(MessageClass message_class, std::span<const std::byte> bytes) { Link(message_class).Write(bytes); }
  Stranger& Link(MessageClass message_class) { return *links_[static_cast<size_t>(message_class)]; }
  void Close(MessageClass message_class) { links_[static_cast<size_t>(message_class)].reset(); }
  uint64_t session() const { return session_; }
  uint64_t peer_session() const { return peer_session_; }

 private:
  BackEnd* const back_end_;
  uint64_t session_ = 1;
  uint64_t peer_session_ = 0;
  std::array<std::unique_ptr<Stranger>, kMessageClasses> links_;
};

}  // namespace

TEST_P(TransportConformance, ASilentStrangerIsClosed) {
  TransportSettings settings = Patient(1);
  settings.handshake_ms = 20;
  Node& node = StartNode(settings);
  auto stranger = back_end_->Connect(node.id());
  HK_NEEDS(stranger != nullptr);
  ASSERT_TRUE(Await([&] { return stranger->Closed(); }));
  EXPECT_TRUE(stranger->Read().empty());
  ASSERT_TRUE(Await([&] { return node->Statistics().strangers_closed == 1; }));
  // Half a hello is no more than none.
  stranger = back_end_->Connect(node.id());
  stranger->Write(Bytes(kHelloBytes / 2));
  ASSERT_TRUE(Await([&] { return stranger->Closed(); }));
}

TEST_P(TransportConformance, StrangersAreBoundedAndPeersStillComeUp) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Node& c = StartNode(2);
  Join(a, b);
  HK_NEEDS(back_end_->Connect(b.id()) != nullptr);
  std::vector<std::unique_ptr<Stranger>> strangers;
  for (int i = 0; i < 40; ++i) strangers.push_back(back_end_->Connect(b.id()));
  const uint64_t kept = b.settings().strangers;
  ASSERT_TRUE(Await([&] { return b->Statistics().strangers_closed >= strangers.size() - kept; }));
  Join(b, c);  // c is the accepting one; and a dials
  Node& d = StartNode(3);
  Join(a, d);
  ASSERT_TRUE(Settle(a, b));
  EXPECT_EQ(a.Count(Seen::Kind::kFailed) + b.Count(Seen::Kind::kFailed), 0u);
}

TEST_P(TransportConformance, HellosAreRefusedWithTheReason) {
  Node& node = StartNode(1);
  HK_NEEDS(back_end_->Connect(node.id()) != nullptr && !back_end_->ProvesNames());
  ASSERT_TRUE(node->AddPeer(NodeId(0), back_end_->Address(NodeId(1), NodeId(0))).ok());
  ASSERT_TRUE(node->AddPeer(NodeId(5), back_end_->Address(NodeId(1), NodeId(0))).ok());
  Impostor impostor(back_end_.get());
  const Hello good = impostor.FirstHello(kFault);
  uint64_t refused = 0;
  const auto expect_reject = [&](const Hello& hello, HelloKind why) {
    const std::optional<Hello> reply = impostor.SayHello(kFault, hello);
    ASSERT_TRUE(reply.has_value()) << HelloKindName(why);
    EXPECT_EQ(HelloKindName(reply->kind), HelloKindName(why));
    ASSERT_TRUE(Await([&] { return impostor.Link(kFault).Closed(); }));
    ASSERT_TRUE(Await([&] { return node->Statistics().handshakes_refused == refused + 1; }));
    ++refused;
  };
  Hello hello = good;
  hello.version = kWireVersion + 1;
  expect_reject(hello, HelloKind::kRejectVersion);
  hello = good;
  hello.cluster ^= 1;
  expect_reject(hello, HelloKind::kRejectCluster);
  hello = good;
  hello.to = NodeId(2);
  expect_reject(hello, HelloKind::kRejectNode);
  hello = good;
  hello.from = NodeId(7);
  expect_reject(hello, HelloKind::kRejectNode);
  hello = good;
  hello.from = NodeId(1);
  expect_reject(hello, HelloKind::kRejectNode);
  hello = good;
  hello.from = NodeId(5);
  expect_reject(hello, HelloKind::kRejectRole);
  hello = good;
  hello.kind = HelloKind::kAcceptFresh;
  expect_reject(hello, HelloKind::kRejectRole);
  hello = good;
  hello.peer_session = 1234;
  expect_reject(hello, HelloKind::kRejectSession);
  node->ResetPeer(NodeId(0), Epoch(9));
  expect_reject(good, HelloKind::kRejectEpoch);
  EXPECT_EQ(node.Count(Seen::Kind::kUp), 0u);
}

TEST_P(TransportConformance, MalformedHellosCloseOnlyTheirConnection) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Join(a, b);
  HK_NEEDS(back_end_->Connect(b.id()) != nullptr);
  Impostor impostor(back_end_.get());
  const auto good = EncodeHello(impostor.FirstHello(kFault));
  for (size_t bit = 0; bit < kHelloBytes * 8; bit += 7) {
    auto bad = good;
    bad[bit / 8] ^= std::byte{1} << (bit % 8);
    impostor.SayBytes(kFault, bad);
    ASSERT_TRUE(Await([&] { return impostor.Link(kFault).Closed(); })) << "bit " << bit;
  }
  ASSERT_TRUE(Settle(a, b));
  EXPECT_EQ(a.Count(Seen::Kind::kFailed) + b.Count(Seen::Kind::kFailed), 0u);
}

TEST_P(TransportConformance, AMalformedMessageFailsThatPeerOnly) {
  Node& b = StartNode(1);
  Node& c = StartNode(2);
  HK_NEEDS(back_end_->Connect(b.id()) != nullptr);
  Join(b, c);
  ASSERT_TRUE(b->AddPeer(NodeId(0), back_end_->Address(NodeId(1), NodeId(0))).ok());
  Bytes body(16, std::byte{7});

  std::vector<std::pair<std::string, Bytes>> bad;
  const Bytes good = Frame(Numbered(kFault, 1), body);
  bad.push_back({"flipped bit in the header", good});
  bad.back().second[33] ^= std::byte{4};
  bad.push_back({"flipped bit in the body", good});
  bad.back().second[kHeaderBytes + 3] ^= std::byte{4};
  bad.push_back({"another magic", good});
  bad.back().second[0] ^= std::byte{1};
  Reseal(&bad.back().second);
  bad.push_back({"unknown version", good});
  bad.back().second[4] = std::byte{kWireVersion + 1};
  Reseal(&bad.back().second);
  bad.push_back({"another class", Frame(Numbered(kBulk, 1), body)});
  bad.push_back({"reserved flag", good});
  bad.back().second[8] |= std::byte{0x10};
  Reseal(&bad.back().second);
  bad.push_back({"oversized body", good});
  bad.back().second[73] = std::byte{0xff};
  Reseal(&bad.back().second);
  bad.push_back({"oversized payload", good});
  bad.back().second[79] = std::byte{0x7f};
  Reseal(&bad.back().second);
  Header header = Numbered(kFault, 1);
  header.message.type = kFirstUserType - 1;
  bad.push_back({"unknown type of the transport's own", Frame(header)});
  header = Numbered(kFault, 1);
  header.acknowledged = 5;
  bad.push_back({"acknowledges what was never sent", Frame(header)});
  bad.push_back({"a gap", Frame(Numbered(kFault, 2), body)});
  bad.push_back({"no number", Frame(Numbered(kFault, 0), body)});
  header = Numbered(kFault, 1);
  header.message.answer = true;
  header.message.slot_node = NodeId(1);
  header.message.slot = SlotId(uint64_t{1} << 63);
  bad.push_back({"answer into a slot that was never given out", Frame(header)});
  header.message.slot = SlotName{kFault, SlotUse::kReceive, 9999, 1}.Encode();
  bad.push_back({"answer into a slot that there is not", Frame(header)});
  header = Numbered(kFault, 1);
  header.message.slot_node = NodeId(1);
  header.message.slot = SlotName{kFault, SlotUse::kReceive, 0, 1}.Encode();
  bad.push_back({"a request into a slot of the node that it is sent to", Frame(header)});
  header.message.slot_node = NodeId(0);
  header.message.slot = SlotName{kFault, SlotUse::kReceive, Impostor::kSlots, 1}.Encode();
  bad.push_back({"a request into a slot that its sender does not have", Frame(header)});
  header = Numbered(kFault, 0);
  header.message.type = static_cast<uint16_t>(OwnType::kHeartbeat);
  bad.push_back({"a heartbeat on another class", Frame(header)});
  bad.push_back({"no message at all", Bytes(kHeaderBytes, std::byte{0x55})});

  Impostor impostor(back_end_.get());
  size_t times = 0;
  for (const auto& [what, bytes] : bad) {
    SCOPED_TRACE(what);
    ++times;
    impostor.Connect(1000 + times);
    if (HasFatalFailure()) return;
    ASSERT_TRUE(Await([&] { return b.Count(Seen::Kind::kUp, NodeId(0)) == times; }));
    impostor.Write(kFault, bytes);
    ASSERT_TRUE(Await([&] { return b.Count(Seen::Kind::kFailed, NodeId(0)) == times; }));
    EXPECT_EQ(b.All(Seen::Kind::kFailed).back().failure, PeerFailure::kMalformed);
    EXPECT_EQ(b->Statistics().malformed, times);
    EXPECT_EQ(b.Messages(NodeId(0), kFault).size(), 0u) << "nothing of it was delivered";
    ASSERT_TRUE(Await([&] { return impostor.Link(kFault).Closed() && impostor.Link(kBulk).Closed(); }));
  }
  ASSERT_TRUE(Settle(b, c));
  EXPECT_EQ(b.Count(Seen::Kind::kFailed, c.id()) + c.Count(Seen::Kind::kFailed), 0u);
}

TEST_P(TransportConformance, AReplayedMessageIsDropped) {
  Node& b = StartNode(1);
  HK_NEEDS(back_end_->Connect(b.id()) != nullptr);
  ASSERT_TRUE(b->AddPeer(NodeId(0), back_end_->Address(NodeId(1), NodeId(0))).ok());
  Impostor impostor(back_end_.get());
  impostor.Connect(1);
  if (HasFatalFailure()) return;
  ASSERT_TRUE(Await([&] { return b.IsUp(NodeId(0)); }));
  for (const uint64_t sequence : {1, 1, 2, 1, 2, 3}) impostor.Write(kBulk, Frame(Numbered(kBulk, sequence)));
  ASSERT_TRUE(AwaitMessages(b, NodeId(0), kBulk, 3));
  EXPECT_EQ(b.Messages(NodeId(0), kBulk).size(), 3u);
  EXPECT_EQ(Dropped(b, NodeId(0), DropReason::kDuplicate), 3u);
  EXPECT_TRUE(b.IsUp(NodeId(0)));
}

TEST_P(TransportConformance, ATruncatedMessageIsABrokenConnection) {
  Node& b = StartNode(1);
  HK_NEEDS(back_end_->Connect(b.id()) != nullptr);
  ASSERT_TRUE(b->AddPeer(NodeId(0), back_end_->Address(NodeId(1), NodeId(0))).ok());
  Impostor impostor(back_end_.get());
  impostor.Connect(1);
  if (HasFatalFailure()) return;
  ASSERT_TRUE(Await([&] { return b.IsUp(NodeId(0)); }));
  impostor.Write(kFault, Frame(Numbered(kFault, 1)));
  ASSERT_TRUE(AwaitMessages(b, NodeId(0), kFault, 1));
  const Bytes second = Frame(Numbered(kFault, 2));
  impostor.Write(kFault, std::span(second).first(50));
  impostor.Close(kFault);
  // The connection is made again: the node received one message, and waits for the second.
  const std::optional<Hello> reply = impostor.SayHello(kFault, impostor.FirstHello(kFault));
  ASSERT_TRUE(reply.has_value());
  EXPECT_EQ(reply->kind, HelloKind::kAcceptResumed);
  EXPECT_EQ(reply->received, 1u);
  impostor.SendSetup(kFault);
  impostor.Write(kFault, second);
  ASSERT_TRUE(AwaitMessages(b, NodeId(0), kFault, 2));
  EXPECT_EQ(b.Count(Seen::Kind::kFailed), 0u);
  EXPECT_EQ(b->Statistics().malformed, 0u);
}

TEST_P(TransportConformance, AReplayedHelloOfASessionThatIsOverIsRefused) {
  Node& b = StartNode(1);
  HK_NEEDS(back_end_->Connect(b.id()) != nullptr);
  ASSERT_TRUE(b->AddPeer(NodeId(0), back_end_->Address(NodeId(1), NodeId(0))).ok());
  Impostor before(back_end_.get()), now(back_end_.get());
  before.Connect(1);
  if (HasFatalFailure()) return;
  ASSERT_TRUE(Await([&] { return b.IsUp(NodeId(0)); }));
  now.Connect(2);
  if (HasFatalFailure()) return;
  ASSERT_TRUE(AwaitCount(b, Seen::Kind::kFailed, 1));
  EXPECT_EQ(b.All(Seen::Kind::kFailed)[0].failure, PeerFailure::kRestarted);
  ASSERT_TRUE(AwaitCount(b, Seen::Kind::kUp, 2));
  const std::optional<Hello> reply = before.SayHello(kFault, before.FirstHello(kFault));
  ASSERT_TRUE(reply.has_value());
  EXPECT_EQ(reply->kind, HelloKind::kRejectSession);
  EXPECT_TRUE(b.IsUp(NodeId(0)));
  now.Write(kFault, Frame(Numbered(kFault, 1)));
  ASSERT_TRUE(AwaitMessages(b, NodeId(0), kFault, 1));
}

TEST_P(TransportConformance, APeerThatSaysNothingFailsWhenItsLeaseEnds) {
  Node& b = StartNode(Short(1));
  HK_NEEDS(back_end_->Connect(b.id()) != nullptr);
  ASSERT_TRUE(b->AddPeer(NodeId(0), back_end_->Address(NodeId(1), NodeId(0))).ok());
  Impostor impostor(back_end_.get());
  impostor.Connect(1);
  if (HasFatalFailure()) return;
  ASSERT_TRUE(AwaitCount(b, Seen::Kind::kFailed, 1));
  EXPECT_EQ(b.All(Seen::Kind::kFailed)[0].failure, PeerFailure::kLeaseExpired);
  ASSERT_TRUE(Await([&] { return impostor.Link(kFault).Closed(); }));
}

}  // namespace hk
