// What only verbs have of strangers and hostile peers: private data that is no hello, sends that end too soon, and
// writes into memory. Whatever they do, it ends their own connections, and nobody else's.
#include "tests/transport/verbs_hostile_test.h"

#include <cstdlib>
#include <functional>
#include <iterator>
#include <optional>
#include <string>

#include "rdma/slots.h"
#include "rdma/wire.h"
#include "tests/transport/frames.h"

namespace hk {
namespace {

using Bytes = std::vector<std::byte>;

constexpr std::byte kSpoiled{0xee};

Header OfType(MessageClass message_class, uint16_t type, uint64_t sequence) {
  Header header;
  header.message.message_class = message_class;
  header.message.type = type;
  header.sequence = sequence;
  return header;
}

// An answer with payload as it lies in memory: header, then payload.
Bytes Answer(MessageClass message_class, SlotId slot, size_t payload_bytes) {
  Header header = OfType(message_class, kFirstUserType, 1);
  header.message.answer = true;
  header.message.slot_node = NodeId(1);
  header.message.slot = slot;
  header.payload_bytes = static_cast<uint32_t>(payload_bytes);
  const auto encoded = EncodeHeader(header);
  Bytes bytes(encoded.begin(), encoded.end());
  bytes.resize(bytes.size() + payload_bytes, kSpoiled);
  return bytes;
}

SlotId Slot(MessageClass message_class, uint32_t index, uint64_t counter) {
  return SlotName{.message_class = message_class, .use = SlotUse::kReceive, .index = index, .counter = counter}
      .Encode();
}

// Node 0 towards node 1, whose every connection is a stranger's: it can say and write what it likes.
class HostilePeer {
 public:
  HostilePeer(BackEnd* back_end, uint64_t session) : back_end_(back_end), session_(session) {}

  Hello FirstHello(MessageClass message_class) const {
    return GoodHello(NodeId(0), NodeId(1), message_class, session_, peer_session_);
  }
  // The network loses the last word of each handshake.
  void OmitLastWords() { last_words_ = false; }
  // All three classes, with their Setups.
  void Connect() {
    for (size_t i = 0; i < kMessageClasses; ++i) {
      const auto message_class = static_cast<MessageClass>(i);
      links_[i] = OpenStranger(back_end_);
      if (!last_words_) links_[i]->OmitLastWord();
      links_[i]->Write(EncodeHello(FirstHello(message_class)));
      Hello reply;
      ASSERT_EQ(DecodeHello(links_[i]->Read(), &reply), WireError::kNone);
      ASSERT_EQ(reply.kind, HelloKind::kAcceptFresh) << HelloKindName(reply.kind);
      peer_session_ = reply.session;
      const SetupBody own{.window_messages = 8, .heartbeat_ms = 100};
      links_[i]->Write(Frame(OfType(message_class, static_cast<uint16_t>(OwnType::kSetup), 0), EncodeSetup(own)));
      ASSERT_TRUE(back_end_->RunUntil([&] { return !links_[i]->FirstMessage().empty(); }));
      ASSERT_EQ(DecodeSetup(links_[i]->FirstMessage().subspan(kHeaderBytes), &setups_[i]), WireError::kNone);
    }
  }
  VerbsStranger& Link(MessageClass message_class) { return *links_[static_cast<size_t>(message_class)]; }
  const SetupBody& Setup(MessageClass message_class) const { return setups_[static_cast<size_t>(message_class)]; }

 private:
  static std::unique_ptr<VerbsStranger> OpenStranger(BackEnd* back_end) {
    return std::unique_ptr<VerbsStranger>(static_cast<VerbsStranger*>(back_end->Connect(NodeId(1)).release()));
  }

  BackEnd* const back_end_;
  const uint64_t session_;
  uint64_t peer_session_ = 0;
  bool last_words_ = true;
  std::array<std::unique_ptr<VerbsStranger>, kMessageClasses> links_;
  std::array<SetupBody, kMessageClasses> setups_;
};

}  // namespace

TEST_P(VerbsHostile, PrivateDataThatIsNoHelloIsRejected) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Join(a, b);
  HostilePeer peer(back_end_.get(), 5);
  const auto good = EncodeHello(peer.FirstHello(kFault));
  uint64_t refused = 0;
  for (const size_t size : {size_t{0}, size_t{1}, kHelloBytes / 2, kHelloBytes - 1}) {
    const auto stranger = back_end_->Connect(b.id());
    stranger->Write(std::span(good).first(size));
    EXPECT_TRUE(stranger->Closed()) << size;
    ++refused;
    ASSERT_TRUE(Await([&] { return b->Statistics().malformed == refused; })) << size;
  }
  ASSERT_TRUE(Settle(a, b));
  EXPECT_EQ(a.Count(Seen::Kind::kFailed) + b.Count(Seen::Kind::kFailed), 0u);
}

// The handshake's deadline is far, and rdma_cm on its own would wait for 4 s and more.
TEST_P(VerbsHostile, AFirstMessageMakesAConnectionWhoseLastWordWasLost) {
  Node& b = StartNode(1);
  ASSERT_TRUE(b->AddPeer(NodeId(0), back_end_->Address(NodeId(1), NodeId(0))).ok());
  HostilePeer peer(back_end_.get(), 5);
  peer.OmitLastWords();
  peer.Connect();
  ASSERT_TRUE(Await([&] { return b.IsUp(NodeId(0)); }));
}

TEST_P(VerbsHostile, AFloodOfStrangersTouchesNoPeer) {
  const uint64_t count = std::getenv("HK_SOAK") != nullptr ? 10'000 : 60;
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Join(a, b);
  Hello hello = HostilePeer(back_end_.get(), 5).FirstHello(kFault);
  hello.from = NodeId(7);
  const auto bytes = EncodeHello(hello);
  for (uint64_t i = 0; i < count; ++i) {
    const auto stranger = back_end_->Connect(b.id());
    stranger->Write(bytes);
    ASSERT_TRUE(stranger->Closed());
  }
  ASSERT_TRUE(Await([&] { return b->Statistics().handshakes_refused >= count; }));
  ASSERT_TRUE(Settle(a, b));
  ASSERT_TRUE(Settle(b, a));
  EXPECT_EQ(a.Count(Seen::Kind::kFailed) + b.Count(Seen::Kind::kFailed), 0u);
}

TEST_P(VerbsHostile, WhatBreaksARuleFailsThatPeerOnly) {
  TransportSettings settings = Patient(1);
  settings.lease_ms = 2000;  // ends in some cases; c's heartbeats are 50 ms apart
  Node& b = StartNode(settings);
  Node& c = StartNode(2);
  Join(b, c);
  ASSERT_TRUE(b->AddPeer(NodeId(0), back_end_->Address(NodeId(1), NodeId(0))).ok());
  // A slot that c was asked to fill: nobody else may.
  const SlotId asked = Acquire(b, kFault, SlotUse::kReceive);
  ASSERT_TRUE(b->Send(c.id(), RequestInto(b, asked, 77)).ok());
  const SlotName asked_name = SlotName::Decode(asked);

  // How it ends: a message that breaks a rule fails the peer; what the device refuses breaks the connection, and then
  // nobody resumes it.
  struct Case {
    std::string what;
    PeerFailure why;
    std::function<void(HostilePeer*)> attack;
  };
  const Bytes spoiled(300, kSpoiled);
  const auto into = [](HostilePeer* peer, SlotId slot, size_t control) {
    return WriteInto(peer->Setup(kFault), slot, control);
  };
  const std::vector<Case> cases = {
      {"a write before the first slot", PeerFailure::kLeaseExpired,
       [&](HostilePeer* peer) {
         SlotWrite where = into(peer, Slot(kFault, 0, 1), kHeaderBytes);
         where.address -= kSlotRoomBytes;
         peer->Link(kFault).WriteInto(where, spoiled);
       }},
      {"a write through a connection of another class", PeerFailure::kLeaseExpired,
       [&](HostilePeer* peer) { peer->Link(kBulk).WriteInto(into(peer, asked, kHeaderBytes), spoiled); }},
      {"a write on the invalidate class", PeerFailure::kLeaseExpired,
       [&](HostilePeer* peer) { peer->Link(kInvalidate).WriteInto(into(peer, asked, kHeaderBytes), spoiled); }},
      {"a send that ends within the header", PeerFailure::kMalformed,
       [](HostilePeer* peer) {
         const Bytes whole = Frame(OfType(kFault, kFirstUserType, 1));
         peer->Link(kFault).Write(std::span(whole).first(50));
       }},
      {"a send that ends within the body", PeerFailure::kMalformed,
       [](HostilePeer* peer) {
         const Bytes whole = Frame(OfType(kFault, kFirstUserType, 1), Bytes(40));
         peer->Link(kFault).Write(std::span(whole).first(whole.size() - 1));
       }},
      {"bytes that are no header, in a slot", PeerFailure::kMalformed,
       [&](HostilePeer* peer) { peer->Link(kFault).WriteInto(into(peer, asked, kHeaderBytes), Bytes(300)); }},
      {"an answer into a slot that another was asked to fill", PeerFailure::kMalformed,
       [&](HostilePeer* peer) {
         peer->Link(kFault).WriteInto(into(peer, asked, kHeaderBytes), Answer(kFault, asked, 64));
       }},
      {"an answer into a slot that was never given out", PeerFailure::kMalformed,
       [&](HostilePeer* peer) {
         const SlotId other = Slot(kFault, asked_name.index == 0 ? 1 : 0, asked_name.counter + 1000);
         peer->Link(kFault).WriteInto(into(peer, other, kHeaderBytes), Answer(kFault, other, 64));
       }},
      {"an immediate that names another slot", PeerFailure::kMalformed,
       [&](HostilePeer* peer) {
         SlotWrite where = into(peer, asked, kHeaderBytes);
         where.immediate ^= 1;
         peer->Link(kFault).WriteInto(where, Answer(kFault, asked, 64));
       }},
      {"an immediate that names no slot", PeerFailure::kMalformed,
       [&](HostilePeer* peer) {
         SlotWrite where = into(peer, asked, kHeaderBytes);
         where.immediate = 0xffff'ffff;
         peer->Link(kFault).WriteInto(where, Answer(kFault, asked, 64));
       }},
      {"a length other than the header's", PeerFailure::kMalformed,
       [&](HostilePeer* peer) {
         Bytes answer = Answer(kFault, asked, 64);
         answer.resize(answer.size() - 8);
         peer->Link(kFault).WriteInto(into(peer, asked, kHeaderBytes), answer);
       }},
  };
  size_t times = 0;
  for (const Case& one : cases) {
    SCOPED_TRACE(one.what);
    ++times;
    HostilePeer peer(back_end_.get(), 1000 + times);
    peer.Connect();
    if (HasFatalFailure()) return;
    ASSERT_TRUE(Await([&] { return b.Count(Seen::Kind::kUp, NodeId(0)) == times; }));
    one.attack(&peer);
    ASSERT_TRUE(Await([&] { return b.Count(Seen::Kind::kFailed, NodeId(0)) == times; }));
    EXPECT_EQ(b.All(Seen::Kind::kFailed).back().failure, one.why) << b.All(Seen::Kind::kFailed).back().detail;
    EXPECT_EQ(b.CountMessages(NodeId(0), kFault), 0u) << "nothing of it was delivered";
    if (one.why == PeerFailure::kLeaseExpired) {
      EXPECT_NE(b->SlotBytes(asked)[0], kSpoiled) << "nothing of it landed";
    }
  }
  // The request is still c's to answer, and the page is c's.
  ASSERT_TRUE(AwaitMessages(c, b.id(), kFault, 1));
  ASSERT_TRUE(SendPage(c, c.Messages(b.id(), kFault)[0].message, "right.", kFaultSlotBytes).ok());
  ASSERT_TRUE(AwaitMessages(b, c.id(), kFault, 1));
  EXPECT_EQ(b.Messages(c.id(), kFault)[0].payload.substr(0, 6), "right.");
  b->ReleaseSlot(asked);
  EXPECT_EQ(b.Count(Seen::Kind::kFailed, c.id()) + c.Count(Seen::Kind::kFailed), 0u);
}

}  // namespace hk
