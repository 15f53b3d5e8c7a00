// Conformance: order, exactly once, independence of classes and peers, back-pressure, broken connections.

#include <map>
#include <vector>

#include "tests/transport/conformance.h"

namespace hk {
namespace {

// One direction of one class between two nodes: sends messages numbered from 0 as fast as they are taken.
struct Stream {
  Node* from;
  Node* to;
  MessageClass message_class;
  uint64_t sent = 0;
};

// Sends what is taken now. True when all `count` messages were taken.
bool Pump(std::vector<Stream>* streams, uint64_t count) {
  bool all = true;
  for (Stream& stream : *streams) {
    while (stream.sent < count) {
      Message message;
      message.message_class = stream.message_class;
      message.type = kFirstUserType;
      message.transaction = stream.sent;
      const absl::Status sent = (*stream.from)->Send(stream.to->id(), message);
      if (!sent.ok()) {
        EXPECT_EQ(sent.code(), absl::StatusCode::kResourceExhausted) << sent;
        break;
      }
      ++stream.sent;
    }
    all = all && stream.sent == count;
  }
  return all;
}

// Everything of the stream arrived, in order and once.
void ExpectWhole(const Stream& stream, uint64_t count) {
  const std::vector<Seen> messages = stream.to->Messages(stream.from->id(), stream.message_class);
  ASSERT_EQ(messages.size(), count);
  for (uint64_t i = 0; i < count; ++i) ASSERT_EQ(messages[i].message.transaction, i);
}

}  // namespace

TEST_P(TransportConformance, MessagesArriveUnchanged) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Join(a, b);
  std::vector<std::byte> body(kMaxBodyBytes);
  for (size_t i = 0; i < body.size(); ++i) body[i] = static_cast<std::byte>(i * 7);
  for (const MessageClass message_class : kClasses) {
    Message message = Plain(message_class, ~uint64_t{0});
    message.type = 0xfff0;
    message.flags = 0xa5;
    message.guest = GuestId(~uint64_t{0});
    message.generation = ~uint32_t{0};
    message.epoch = Epoch(~uint64_t{0});
    message.gfn = Gfn(~uint64_t{0});
    message.body = body;
    ASSERT_TRUE(a->Send(b.id(), message).ok());
    message.body = std::span(body).first(1);
    ASSERT_TRUE(a->Send(b.id(), message).ok());
    ASSERT_TRUE(b->Send(a.id(), Plain(message_class, 1)).ok());
  }
  for (const MessageClass message_class : kClasses) {
    ASSERT_TRUE(AwaitMessages(b, a.id(), message_class, 2));
    ASSERT_TRUE(AwaitMessages(a, b.id(), message_class, 1));
    const std::vector<Seen> seen = b.Messages(a.id(), message_class);
    const Message& message = seen[0].message;
    EXPECT_EQ(message.type, 0xfff0);
    EXPECT_EQ(message.flags, 0xa5);
    EXPECT_FALSE(message.answer);
    EXPECT_EQ(message.guest, GuestId(~uint64_t{0}));
    EXPECT_EQ(message.generation, ~uint32_t{0});
    EXPECT_EQ(message.epoch, Epoch(~uint64_t{0}));
    EXPECT_EQ(message.transaction, ~uint64_t{0});
    EXPECT_EQ(message.gfn, Gfn(~uint64_t{0}));
    EXPECT_EQ(message.slot, SlotId());
    EXPECT_EQ(seen[0].body, std::string(reinterpret_cast<const char*>(body.data()), body.size()));
    EXPECT_EQ(seen[1].body.size(), 1u);
    EXPECT_TRUE(seen[0].payload.empty());
    EXPECT_FALSE(seen[0].late);
    EXPECT_EQ(a.Messages(b.id(), message_class)[0].body, "");
  }
}

TEST_P(TransportConformance, EachClassIsInOrderAndExactlyOnce) {
  constexpr uint64_t kCount = 300;  // many windows
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Node& c = StartNode(2);
  Join(a, b);
  Join(c, b);
  std::vector<Stream> streams;
  for (const MessageClass message_class : kClasses) {
    streams.push_back({&a, &b, message_class});
    streams.push_back({&b, &a, message_class});
    streams.push_back({&c, &b, message_class});
  }
  ASSERT_TRUE(Await([&] { return Pump(&streams, kCount); }));
  for (const Stream& stream : streams) {
    ASSERT_TRUE(AwaitMessages(*stream.to, stream.from->id(), stream.message_class, kCount));
  }
  Settle(a, b);
  for (const Stream& stream : streams) ExpectWhole(stream, kCount);
}

TEST_P(TransportConformance, BrokenConnectionsLoseAndRepeatNothing) {
  constexpr uint64_t kCount = 400;
  constexpr size_t kBreaks = 12;
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Join(a, b);
  std::vector<Stream> streams;
  for (const MessageClass message_class : kClasses) {
    streams.push_back({&a, &b, message_class});
    streams.push_back({&b, &a, message_class});
  }
  HK_NEEDS(back_end_->Break(a.id(), b.id()));
  size_t breaks = 0;
  ASSERT_TRUE(Await([&] {
    const bool all = Pump(&streams, kCount);
    if (b.Count(Seen::Kind::kMessage) > breaks * kCount * 3 / kBreaks) {
      ++breaks;
      back_end_->Break(a.id(), b.id());
    }
    return all;
  }));
  for (const Stream& stream : streams) {
    ASSERT_TRUE(AwaitMessages(*stream.to, stream.from->id(), stream.message_class, kCount));
  }
  ASSERT_TRUE(Settle(a, b));
  ASSERT_TRUE(Settle(b, a));
  for (const Stream& stream : streams) ExpectWhole(stream, kCount);
  EXPECT_EQ(a.Count(Seen::Kind::kFailed) + b.Count(Seen::Kind::kFailed), 0u) << "resumed, not failed";
  uint64_t reconnects = 0;
  const PeerStatistics statistics = Of(a, b.id());
  for (const ClassStatistics& one : statistics.classes) reconnects += one.reconnects;
  EXPECT_GT(reconnects, 0u);
}

TEST_P(TransportConformance, SendTakesMessagesWhileAConnectionIsResumed) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Join(a, b);
  HK_NEEDS(back_end_->Cut(a.id(), b.id()));
  for (uint64_t i = 0; i < a.settings().queue_messages; ++i) {
    ASSERT_TRUE(a->Send(b.id(), Plain(kFault, i)).ok());
    ASSERT_TRUE(b->Send(a.id(), Plain(kFault, i)).ok());
  }
  EXPECT_EQ(a->Send(b.id(), Plain(kFault, 0)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(a->Send(b.id(), Plain(kBulk, 0)).ok()) << "another class has its own queue";
  back_end_->Heal(a.id(), b.id());
  ASSERT_TRUE(AwaitCount(a, Seen::Kind::kWritable, 1));
  ASSERT_TRUE(AwaitMessages(b, a.id(), kFault, a.settings().queue_messages));
  ASSERT_TRUE(AwaitMessages(a, b.id(), kFault, a.settings().queue_messages));
  EXPECT_EQ(a.Count(Seen::Kind::kFailed), 0u);
  Stream stream{&a, &b, kFault};
  ExpectWhole(stream, a.settings().queue_messages);
}

TEST_P(TransportConformance, AFullQueueIsRefusedAndWritableIsToldOnce) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Join(a, b);
  const uint64_t queue = a.settings().queue_messages;
  b.Hold(kBulk);
  std::vector<Stream> streams = {{&a, &b, kBulk}};
  // The one that is held in its handler may or may not be acknowledged: so more are offered than the queue holds.
  EXPECT_FALSE(Pump(&streams, 2 * queue));
  ASSERT_TRUE(AwaitMessages(b, a.id(), kBulk, 1));
  ASSERT_TRUE(Await([&] { return Of(a, b.id()).classes[2].refused_full > 0; }));
  EXPECT_FALSE(Pump(&streams, 2 * queue + 2));
  EXPECT_EQ(a.Count(Seen::Kind::kWritable), 0u) << "nothing has become free";
  b.Release(kBulk);
  ASSERT_TRUE(AwaitCount(a, Seen::Kind::kWritable, 1));
  ASSERT_TRUE(AwaitMessages(b, a.id(), kBulk, streams[0].sent));
  ASSERT_TRUE(Settle(a, b));
  ASSERT_TRUE(Settle(b, a));
  EXPECT_EQ(a.Count(Seen::Kind::kWritable), 1u) << "once for all refusals before it";
  EXPECT_EQ(a.All(Seen::Kind::kWritable)[0].message_class, kBulk);
  ExpectWhole(streams[0], streams[0].sent);
}

TEST_P(TransportConformance, ClassesDoNotWaitForOneAnother) {
  for (const MessageClass stuck : kClasses) {
    nodes_.clear();
    back_end_ = GetParam().make();
    Node& a = StartNode(0);
    Node& b = StartNode(1);
    Join(a, b);
    b.Hold(stuck);
    std::vector<Stream> filled = {{&a, &b, stuck}};
    EXPECT_FALSE(Pump(&filled, 3 * a.settings().queue_messages)) << "it is full";
    constexpr uint64_t kCount = 100;
    std::vector<Stream> streams;
    for (const MessageClass message_class : kClasses) {
      if (message_class == stuck) continue;
      streams.push_back({&a, &b, message_class});
      streams.push_back({&b, &a, message_class});
    }
    ASSERT_TRUE(Await([&] { return Pump(&streams, kCount); }));
    for (const Stream& stream : streams) {
      ASSERT_TRUE(AwaitMessages(*stream.to, stream.from->id(), stream.message_class, kCount));
      ExpectWhole(stream, kCount);
    }
    EXPECT_LE(b.Messages(a.id(), stuck).size(), 1u);
    // The stuck class itself goes the other way; only its sender hears of it when the handler is done.
    std::vector<Stream> back = {{&b, &a, stuck}};
    const uint64_t window = a.settings().window_messages;
    ASSERT_TRUE(Pump(&back, window));
    ASSERT_TRUE(AwaitMessages(a, b.id(), stuck, window));
    b.Release(stuck);
    ASSERT_TRUE(AwaitMessages(b, a.id(), stuck, filled[0].sent));
  }
}

TEST_P(TransportConformance, PeersDoNotWaitForOneAnother) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Node& c = StartNode(2);
  Join(a, b);
  Join(a, c);
  for (const MessageClass message_class : kClasses) c.Hold(message_class);
  std::vector<Stream> filled = {{&a, &c, kFault}, {&a, &c, kInvalidate}, {&a, &c, kBulk}};
  EXPECT_FALSE(Pump(&filled, 3 * a.settings().queue_messages));
  std::vector<Stream> streams = {{&a, &b, kFault}, {&b, &a, kInvalidate}, {&a, &b, kBulk}};
  ASSERT_TRUE(Await([&] { return Pump(&streams, 200); }));
  for (const Stream& stream : streams) {
    ASSERT_TRUE(AwaitMessages(*stream.to, stream.from->id(), stream.message_class, 200));
  }
  for (const MessageClass message_class : kClasses) c.Release(message_class);
  for (const Stream& stream : filled) ASSERT_TRUE(AwaitMessages(c, a.id(), stream.message_class, stream.sent));
}

TEST_P(TransportConformance, NothingOfBeforeArrivesInTheNextSession) {
  Node& a = StartNode(Short(0));
  Node& b = StartNode(Short(1));
  Join(a, b);
  HK_NEEDS(back_end_->Cut(a.id(), b.id()));
  for (uint64_t i = 0; i < 10; ++i) {
    ASSERT_TRUE(a->Send(b.id(), Plain(kFault, i)).ok());
    ASSERT_TRUE(a->Send(b.id(), Plain(kBulk, i)).ok());
  }
  ASSERT_TRUE(Await([&] { return !a.IsUp(b.id()) && !b.IsUp(a.id()); }));
  EXPECT_EQ(a->Send(b.id(), Plain(kFault, 10)).code(), absl::StatusCode::kUnavailable);
  back_end_->Heal(a.id(), b.id());
  ASSERT_TRUE(Await([&] { return a.IsUp(b.id()) && b.IsUp(a.id()); }));
  ASSERT_TRUE(Await([&] { return a->Send(b.id(), Plain(kFault, 100)).ok(); }));
  ASSERT_TRUE(Settle(a, b));
  const std::vector<Seen> messages = b.Messages(a.id(), kFault);
  ASSERT_FALSE(messages.empty());
  EXPECT_EQ(messages.back().message.transaction, 100u);
  for (size_t i = 0; i + 1 < messages.size(); ++i) {
    EXPECT_EQ(messages[i].message.transaction, i) << "of before only a prefix";
  }
}

TEST_P(TransportConformance, HandlersMaySendAndRelease) {
  constexpr uint64_t kRounds = 500;
  auto pong = [](std::unique_ptr<Node>* self) {
    return [self](const Seen& seen) {
      if (seen.kind != Seen::Kind::kMessage || seen.message.transaction >= kRounds) return;
      Message reply = seen.message;
      ++reply.transaction;
      if (reply.slot == SlotId()) {
        EXPECT_TRUE((**self)->Send(seen.peer, reply).ok());
      } else if (!reply.answer) {
        EXPECT_TRUE(SendPage(**self, reply, "page", 1024).ok());
      } else {  // the slot is asked for again, with another use of it
        (**self)->ReleaseSlot(reply.slot);
        auto slot = (**self)->AcquireSlot(reply.message_class, SlotUse::kReceive);
        ASSERT_TRUE(slot.ok());
        EXPECT_TRUE((**self)->Send(seen.peer, RequestInto(**self, *slot, reply.transaction)).ok());
      }
    };
  };
  Node& a = StartNode(Patient(0), pong(&nodes_[NodeId(0)]));
  Node& b = StartNode(Patient(1), pong(&nodes_[NodeId(1)]));
  Join(a, b);
  for (const MessageClass message_class : kClasses) ASSERT_TRUE(a->Send(b.id(), Plain(message_class, 1)).ok());
  ASSERT_TRUE(a->Send(b.id(), RequestInto(a, Acquire(a, kFault, SlotUse::kReceive), 1)).ok());
  ASSERT_TRUE(Await([&] {
    const size_t ended = a.EndedAt(kRounds) + b.EndedAt(kRounds);
    return ended == kMessageClasses + 1;
  }));
}

TEST_P(TransportConformance, SendsOfManyThreadsAreOrderedPerThread) {
  constexpr uint64_t kThreads = 4, kCount = 200;
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Join(a, b);
  // Each worker sends until the queue is full, then is started again: no thread waits for the transport.
  std::array<uint64_t, kThreads> next{};
  while (true) {
    std::vector<std::function<void()>> ends;
    for (uint64_t t = 0; t < kThreads; ++t) {
      ends.push_back(back_end_->Spawn([&, t] {
        while (next[t] < kCount && a->Send(b.id(), Plain(kFault, t << 32 | next[t])).ok()) ++next[t];
      }));
    }
    for (const auto& end : ends) end();
    uint64_t sent = 0;
    for (const uint64_t one : next) sent += one;
    ASSERT_TRUE(AwaitMessages(b, a.id(), kFault, sent));
    if (sent == kThreads * kCount) break;
  }
  std::array<uint64_t, kThreads> seen{};
  for (const Seen& message : b.Messages(a.id(), kFault)) {
    const uint64_t thread = message.message.transaction >> 32;
    ASSERT_EQ(message.message.transaction & 0xffffffff, seen[thread]++);
  }
}

}  // namespace hk
