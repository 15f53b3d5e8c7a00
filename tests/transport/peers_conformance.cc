// Conformance: how peers come up, fail, are fenced and come back; statistics; the end.

#include <numeric>

#include "tests/transport/conformance.h"

namespace hk {

TEST_P(TransportConformance, PeersComeUpOnceOnBothSides) {
  Node& a = StartNode(0);
  EXPECT_EQ(a->Send(NodeId(1), Plain(kFault, 1)).code(), absl::StatusCode::kUnavailable) << "unknown";
  EXPECT_EQ(a->Statistics(NodeId(1)).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(a->AddPeer(NodeId(1), back_end_->Address(NodeId(0), NodeId(1))).ok());
  EXPECT_EQ(a->Send(NodeId(1), Plain(kFault, 1)).code(), absl::StatusCode::kUnavailable) << "not up";
  EXPECT_FALSE(Of(a, NodeId(1)).up);
  Node& b = StartNode(1);
  ASSERT_TRUE(b->AddPeer(a.id(), back_end_->Address(b.id(), a.id())).ok());
  ASSERT_TRUE(Await([&] { return a.IsUp(b.id()) && b.IsUp(a.id()); }));
  ASSERT_TRUE(Settle(a, b));
  ASSERT_TRUE(Settle(b, a));
  for (Node* node : {&a, &b}) {
    EXPECT_EQ(node->Count(Seen::Kind::kUp), 1u);
    EXPECT_EQ(node->Count(Seen::Kind::kFailed), 0u);
  }
  EXPECT_TRUE(Of(a, b.id()).up);
  EXPECT_EQ(Of(a, b.id()).sessions, 1u);
}

TEST_P(TransportConformance, SendWorksInsideOnPeerUp) {
  auto greet = [this](uint16_t self) {
    return [this, self](const Seen& seen) {
      if (seen.kind != Seen::Kind::kUp) return;
      EXPECT_TRUE((*nodes_[NodeId(self)])->Send(seen.peer, Plain(kBulk, self)).ok());
    };
  };
  Node& a = StartNode(Patient(0), greet(0));
  Node& b = StartNode(Patient(1), greet(1));
  Join(a, b);
  ASSERT_TRUE(AwaitMessages(a, b.id(), kBulk, 1));
  ASSERT_TRUE(AwaitMessages(b, a.id(), kBulk, 1));
}

TEST_P(TransportConformance, AStoppedNodeSaysThatItLeaves) {
  for (const uint16_t leaver : {0, 1}) {
    nodes_.clear();
    back_end_ = GetParam().make();
    Node& a = StartNode(0);
    Node& b = StartNode(1);
    Join(a, b);
    Node& left = leaver == 0 ? a : b;
    Node& stays = leaver == 0 ? b : a;
    left.Stop();
    ASSERT_TRUE(AwaitCount(stays, Seen::Kind::kFailed, 1));
    EXPECT_EQ(stays.All(Seen::Kind::kFailed)[0].failure, PeerFailure::kLeft);
    EXPECT_EQ(stays->Send(left.id(), Plain(kFault, 1)).code(), absl::StatusCode::kUnavailable);
    // It may come back: another process, another session.
    Node& again = StartNode(leaver);
    ASSERT_TRUE(again->AddPeer(stays.id(), back_end_->Address(again.id(), stays.id())).ok());
    ASSERT_TRUE(Await([&] { return again.IsUp(stays.id()) && stays.IsUp(again.id()); }));
  }
}

TEST_P(TransportConformance, ARemovedPeerHasLeft) {
  for (const uint16_t remover : {0, 1}) {
    nodes_.clear();
    back_end_ = GetParam().make();
    Node& a = StartNode(0);
    Node& b = StartNode(1);
    Join(a, b);
    Node& removes = remover == 0 ? a : b;
    Node& other = remover == 0 ? b : a;
    const SlotId slot = Acquire(removes, kFault, SlotUse::kReceive);
    ASSERT_TRUE(removes->Send(other.id(), RequestInto(removes, slot, 1)).ok());
    removes->RemovePeer(other.id());
    ASSERT_TRUE(AwaitCount(removes, Seen::Kind::kFailed, 1));
    EXPECT_EQ(removes.All(Seen::Kind::kFailed)[0].failure, PeerFailure::kLeft);
    ASSERT_TRUE(AwaitCount(removes, Seen::Kind::kExpired, 1));
    EXPECT_EQ(removes.All(Seen::Kind::kExpired)[0].expired, RequestFailure::kNobodyLeft);
    ASSERT_TRUE(AwaitCount(other, Seen::Kind::kFailed, 1));
    EXPECT_EQ(removes->Statistics(other.id()).status().code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(removes->Send(other.id(), Plain(kFault, 1)).code(), absl::StatusCode::kUnavailable);
    removes->RemovePeer(other.id());  // nothing to remove
    ASSERT_TRUE(removes->AddPeer(other.id(), back_end_->Address(removes.id(), other.id())).ok());
    ASSERT_TRUE(Await([&] { return a.IsUp(b.id()) && b.IsUp(a.id()); }));
    EXPECT_EQ(removes.Count(Seen::Kind::kFailed), 1u);
  }
}

TEST_P(TransportConformance, AFencedPeerComesBackOnlyWithTheNewEpoch) {
  for (const uint16_t fencer : {0, 1}) {
    nodes_.clear();
    back_end_ = GetParam().make();
    Node& a = StartNode(0);
    Node& b = StartNode(1);
    Join(a, b);
    Node& fences = fencer == 0 ? a : b;
    Node& fenced = fencer == 0 ? b : a;
    fences->ResetPeer(fenced.id(), Epoch(3));
    EXPECT_EQ(fences->Send(fenced.id(), Plain(kFault, 1)).code(), absl::StatusCode::kUnavailable);
    ASSERT_TRUE(AwaitCount(fences, Seen::Kind::kFailed, 1));
    EXPECT_EQ(fences.All(Seen::Kind::kFailed)[0].failure, PeerFailure::kFenced);
    ASSERT_TRUE(AwaitCount(fenced, Seen::Kind::kFailed, 1));
    fenced->SetNodeEpoch(Epoch(2));  // not enough
    if (fencer == 1) {
      const uint64_t refused = fences->Statistics().handshakes_refused;
      ASSERT_TRUE(Await([&] { return fences->Statistics().handshakes_refused >= refused + 3; }));
    }
    EXPECT_EQ(fences.Count(Seen::Kind::kUp), 1u);
    EXPECT_FALSE(fenced.IsUp(fences.id()));
    fenced->SetNodeEpoch(Epoch(3));
    ASSERT_TRUE(Await([&] { return a.IsUp(b.id()) && b.IsUp(a.id()); }));
    ASSERT_TRUE(Settle(a, b));
  }
}

TEST_P(TransportConformance, NothingOfAFencedPeerIsDelivered) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Join(a, b);
  // As many as may be under way when the fence falls.
  for (const MessageClass message_class : kClasses) {
    for (uint64_t i = 0; i < 20; ++i) ASSERT_TRUE(a->Send(b.id(), Plain(message_class, i)).ok());
  }
  b->ResetPeer(a.id(), Epoch(2));
  ASSERT_TRUE(AwaitCount(b, Seen::Kind::kFailed, 1));
  const size_t before = b.Count(Seen::Kind::kMessage);  // OnPeerFailed comes after the last message
  a->SetNodeEpoch(Epoch(2));
  ASSERT_TRUE(AwaitUpAgain(a, b));
  ASSERT_TRUE(Settle(a, b));
  EXPECT_EQ(b.Count(Seen::Kind::kMessage), before);
}

TEST_P(TransportConformance, ResetPeerMayBeCalledInAHandler) {
  auto fence = [this](const Seen& seen) {
    if (seen.kind == Seen::Kind::kMessage) (*nodes_[NodeId(1)])->ResetPeer(seen.peer, Epoch(2));
  };
  Node& a = StartNode(0);
  Node& b = StartNode(Patient(1), fence);
  Join(a, b);
  ASSERT_TRUE(a->Send(b.id(), Plain(kFault, 1)).ok());
  ASSERT_TRUE(a->Send(b.id(), Plain(kFault, 2)).ok());
  ASSERT_TRUE(AwaitCount(b, Seen::Kind::kFailed, 1));
  EXPECT_EQ(b.All(Seen::Kind::kFailed)[0].failure, PeerFailure::kFenced);
  EXPECT_EQ(b.Messages(a.id(), kFault).size(), 1u);
}

TEST_P(TransportConformance, ABrokenPeerFailsWhenItsLeaseEnds) {
  Node& a = StartNode(Short(0));
  Node& b = StartNode(Short(1));
  Join(a, b);
  const SlotId slot = Acquire(a, kFault, SlotUse::kReceive);
  HK_NEEDS(back_end_->Cut(a.id(), b.id()));
  ASSERT_TRUE(a->Send(b.id(), RequestInto(a, slot, 1)).ok()) << "taken while resumed";
  ASSERT_TRUE(AwaitCount(a, Seen::Kind::kFailed, 1));
  ASSERT_TRUE(AwaitCount(b, Seen::Kind::kFailed, 1));
  for (Node* node : {&a, &b}) {
    EXPECT_EQ(node->All(Seen::Kind::kFailed)[0].failure, PeerFailure::kLeaseExpired);
  }
  ASSERT_TRUE(AwaitCount(a, Seen::Kind::kExpired, 1));
  EXPECT_EQ(a.All(Seen::Kind::kExpired)[0].expired, RequestFailure::kNobodyLeft);
  EXPECT_EQ(a->Send(b.id(), Plain(kFault, 1)).code(), absl::StatusCode::kUnavailable);
  back_end_->Heal(a.id(), b.id());
  ASSERT_TRUE(Await([&] { return a.IsUp(b.id()) && b.IsUp(a.id()); }));
}

TEST_P(TransportConformance, ASilentPeerFailsWhenItsLeaseEnds) {
  Node& a = StartNode(Short(0));
  Node& b = StartNode(Short(1));
  Join(a, b);
  HK_NEEDS(back_end_->Silence(a.id(), b.id()));
  ASSERT_TRUE(AwaitCount(a, Seen::Kind::kFailed, 1));
  ASSERT_TRUE(AwaitCount(b, Seen::Kind::kFailed, 1));
  for (Node* node : {&a, &b}) {
    EXPECT_EQ(node->All(Seen::Kind::kFailed)[0].failure, PeerFailure::kLeaseExpired);
  }
  back_end_->Heal(a.id(), b.id());
  ASSERT_TRUE(Await([&] { return a.IsUp(b.id()) && b.IsUp(a.id()); }));
}

TEST_P(TransportConformance, ARestartedNodeIsAnother) {
  for (const uint16_t victim : {0, 1}) {
    nodes_.clear();
    back_end_ = GetParam().make();
    Node& a = StartNode(0);
    Node& b = StartNode(1);
    Join(a, b);
    Node& stays = victim == 0 ? b : a;
    const SlotId slot = Acquire(stays, kFault, SlotUse::kReceive);
    ASSERT_TRUE(stays->Send(NodeId(victim), RequestInto(stays, slot, 1)).ok());
    HK_NEEDS(Kill(NodeId(victim)));
    // Not found before it knows its peer: it would say that it is nobody's.
    HK_NEEDS(back_end_->Cut(stays.id(), NodeId(victim)));
    Node& again = StartNode(victim);
    ASSERT_TRUE(again->AddPeer(stays.id(), back_end_->Address(again.id(), stays.id())).ok());
    back_end_->Heal(stays.id(), again.id());
    ASSERT_TRUE(AwaitCount(stays, Seen::Kind::kFailed, 1));
    EXPECT_EQ(stays.All(Seen::Kind::kFailed)[0].failure, PeerFailure::kRestarted);
    ASSERT_TRUE(AwaitCount(stays, Seen::Kind::kExpired, 1));
    EXPECT_EQ(stays.All(Seen::Kind::kExpired)[0].expired, RequestFailure::kNobodyLeft);
    ASSERT_TRUE(Await([&] { return stays.IsUp(again.id()) && again.IsUp(stays.id()); }));
    ASSERT_TRUE(Settle(stays, again));
    ASSERT_TRUE(Settle(again, stays));
    EXPECT_EQ(again.Count(Seen::Kind::kMessage), 0u) << "nothing of the earlier session";
    EXPECT_EQ(Of(stays, again.id()).sessions, 2u);
  }
}

TEST_P(TransportConformance, AnotherClusterIsRefused) {
  TransportSettings other = Patient(1);
  other.cluster = "another";
  Node& a = StartNode(0);
  Node& b = StartNode(other);
  ASSERT_TRUE(a->AddPeer(b.id(), back_end_->Address(a.id(), b.id())).ok());
  ASSERT_TRUE(b->AddPeer(a.id(), back_end_->Address(b.id(), a.id())).ok());
  ASSERT_TRUE(Await([&] { return b->Statistics().handshakes_refused >= 3; }));
  EXPECT_EQ(a.Count(Seen::Kind::kUp) + b.Count(Seen::Kind::kUp), 0u);
}

TEST_P(TransportConformance, AWrongNodeIsRefused) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Node& c = StartNode(2);
  // Who proves names does not even say hello.
  const auto refused = [&](Node& node) {
    const TransportStatistics statistics = node->Statistics();
    return back_end_->ProvesNames() ? statistics.strangers_closed : statistics.handshakes_refused;
  };
  // b's address as c's; and a is no peer of c.
  ASSERT_TRUE(b->AddPeer(a.id(), back_end_->Address(b.id(), a.id())).ok());
  ASSERT_TRUE(a->AddPeer(c.id(), back_end_->Address(a.id(), b.id())).ok());
  ASSERT_TRUE(Await([&] { return refused(b) >= 3; }));
  ASSERT_TRUE(a->AddPeer(b.id(), back_end_->Address(a.id(), b.id())).ok());
  ASSERT_TRUE(Await([&] { return a.IsUp(b.id()) && b.IsUp(a.id()); }));
  a->RemovePeer(c.id());
  ASSERT_TRUE(a->AddPeer(c.id(), back_end_->Address(a.id(), c.id())).ok());
  ASSERT_TRUE(Await([&] { return c->Statistics().handshakes_refused >= 3; }));
  EXPECT_EQ(a.Count(Seen::Kind::kUp), 1u);
  EXPECT_EQ(c.Count(Seen::Kind::kUp), 0u);
}

TEST_P(TransportConformance, StatisticsCountUsersMessages) {
  constexpr uint64_t kCount = 50;
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Join(a, b);
  std::vector<std::byte> body(100);
  Message message = Plain(kInvalidate, 1);
  message.body = body;
  for (uint64_t i = 0; i < kCount; ++i) {
    ASSERT_TRUE(Await([&] { return a->Send(b.id(), message).ok(); }));
  }
  for (uint64_t i = 0; i < 10; ++i) {
    const SlotId slot = Acquire(a, kFault, SlotUse::kReceive);
    ASSERT_TRUE(a->Send(b.id(), RequestInto(a, slot, i)).ok());
    ASSERT_TRUE(AwaitMessages(b, a.id(), kFault, i + 1));
    ASSERT_TRUE(SendPage(b, RequestInto(a, slot, i), "page", kFaultSlotBytes).ok());
    ASSERT_TRUE(AwaitMessages(a, b.id(), kFault, i + 1));
    a->ReleaseSlot(slot);
  }
  ASSERT_TRUE(AwaitMessages(b, a.id(), kInvalidate, kCount));
  // What was put on the wire may be counted a moment after it arrived.
  ASSERT_TRUE(Await([&] {
    const PeerStatistics at_a = Of(a, b.id()), at_b = Of(b, a.id());
    return at_a.classes[1].sent_messages == kCount && at_a.classes[0].sent_messages == 10 &&
           at_b.classes[0].sent_messages == 10 && at_b.classes[1].received_messages == kCount &&
           at_b.classes[0].received_messages == 10 && at_a.classes[0].received_messages == 10;
  })) << "each user's message counted once, no others";
  const PeerStatistics at_a = Of(a, b.id()), at_b = Of(b, a.id());
  EXPECT_GE(at_a.classes[1].sent_bytes, kCount * (100 + 64)) << "with headers";
  EXPECT_EQ(at_a.classes[1].sent_bytes, at_b.classes[1].received_bytes);
  EXPECT_GE(at_b.classes[0].sent_bytes, 10 * kFaultSlotBytes);
  EXPECT_EQ(at_b.classes[0].sent_bytes, at_a.classes[0].received_bytes);
  EXPECT_EQ(at_a.classes[2].sent_messages, 0u);
  EXPECT_EQ(at_a.classes[0].resent_messages, 0u);
  const auto& latency = at_a.classes[0].latency;
  EXPECT_EQ(std::accumulate(latency.begin(), latency.end(), uint64_t{0}), 10u);
}

TEST_P(TransportConformance, StopEndsABusyTransport) {
  auto pong = [this](uint16_t self) {
    return [this, self](const Seen& seen) {
      if (seen.kind == Seen::Kind::kMessage)
        (void)(*nodes_[NodeId(self)])->Send(seen.peer, Plain(seen.message_class, 1));
    };
  };
  for (const uint16_t stops : {0, 1}) {
    nodes_.clear();
    back_end_ = GetParam().make();
    Node& a = StartNode(Patient(0), pong(0));
    Node& b = StartNode(Patient(1), pong(1));
    Join(a, b);
    for (const MessageClass message_class : kClasses) {
      for (int i = 0; i < 4; ++i) ASSERT_TRUE(a->Send(b.id(), Plain(message_class, 1)).ok());
    }
    ASSERT_TRUE(AwaitMessages(b, a.id(), kBulk, 20));
    const auto stopped = back_end_->Spawn([&] { (stops == 0 ? a : b).Stop(); });
    Node& stays = stops == 0 ? b : a;
    ASSERT_TRUE(AwaitCount(stays, Seen::Kind::kFailed, 1));
    stopped();
    EXPECT_EQ(stays.All(Seen::Kind::kFailed)[0].failure, PeerFailure::kLeft);
  }
}

TEST_P(TransportConformance, SettingsAreChecked) {
  Node sink(back_end_.get(), Patient(0));
  TransportSettings settings = Patient(0);
  settings.heartbeat_ms = settings.lease_ms;
  const auto made = back_end_->Make(settings, &sink);
  ASSERT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(made.status().message().find("heartbeat_ms"), std::string::npos) << made.status();
}

}  // namespace hk
