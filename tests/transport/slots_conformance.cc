// Conformance: slots as credits, requests and their one answer, forwarding, deadlines, quarantine.

#include <algorithm>
#include <cstring>
#include <vector>

#include "rdma/slots.h"
#include "tests/transport/conformance.h"

namespace hk {
namespace {

constexpr SlotUse kReceive = SlotUse::kReceive;
constexpr SlotUse kSend = SlotUse::kSend;

size_t BytesOf(MessageClass message_class) {
  return message_class == MessageClass::kBulk ? kBulkSlotBytes : kFaultSlotBytes;
}

SendOptions Deadline(int milliseconds) {
  SendOptions options;
  options.deadline = std::chrono::milliseconds(milliseconds);
  return options;
}

SendOptions Writers(std::initializer_list<const Node*> nodes, int deadline_ms = 0) {
  SendOptions options = Deadline(deadline_ms);
  for (const Node* node : nodes) options.writers.Add(node->id());
  return options;
}

absl::StatusCode Code(const absl::Status& status) {
  return status.code();
}

}  // namespace

TEST_P(TransportConformance, ARequestIsAnsweredIntoItsSlot) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Join(a, b);
  size_t asked = 0;
  for (const MessageClass message_class : {kFault, kBulk}) {
    for (const size_t bytes : {size_t{1}, size_t{1000}, BytesOf(message_class), size_t{0}}) {
      const SlotId slot = Acquire(a, message_class, kReceive);
      EXPECT_EQ(a->SlotBytes(slot).size(), BytesOf(message_class));
      EXPECT_EQ(reinterpret_cast<uintptr_t>(a->SlotBytes(slot).data()) % 64, 0u);
      ASSERT_TRUE(a->Send(b.id(), RequestInto(a, slot, ++asked)).ok());
      ASSERT_TRUE(Await([&] { return b.EndedAt(asked) == 1; }));
      const Message request = b.Messages(a.id(), message_class).back().message;
      EXPECT_EQ(request.slot, slot);
      EXPECT_EQ(request.slot_node, a.id());
      if (bytes == 0) {
        ASSERT_TRUE(b->Send(a.id(), AnswerTo(request)).ok());
      } else {
        ASSERT_TRUE(SendPage(b, request, "x", bytes).ok());
      }
      ASSERT_TRUE(Await([&] { return a.EndedAt(asked) == 1; }));
      const Seen answer = a.Messages(b.id(), message_class).back();
      EXPECT_TRUE(answer.message.answer);
      EXPECT_EQ(answer.message.slot, slot);
      EXPECT_FALSE(answer.late);
      ASSERT_EQ(answer.payload.size(), bytes);
      if (bytes != 0) {
        EXPECT_EQ(answer.payload, "x" + std::string(bytes - 1, '.'));
        EXPECT_EQ(answer.payload_at, a->SlotBytes(slot).data()) << "in the slot, not in a copy";
      }
      EXPECT_EQ(Code(a->CancelRequest(slot)), absl::StatusCode::kNotFound) << "answered already";
      a->ReleaseSlot(slot);
    }
  }
  ASSERT_TRUE(Await([&] {
    const TransportStatistics now = a->Statistics(), there = b->Statistics();
    return now.slots_lent + now.slots_in_flight + there.slots_sending + there.slots_lent == 0;
  }));
}

TEST_P(TransportConformance, SlotsAreTheCredits) {
  Node& a = StartNode(0);
  for (const MessageClass message_class : {kFault, kBulk}) {
    for (const SlotUse use : {kReceive, kSend}) {
      const size_t before = a.Count(Seen::Kind::kSlotsFree);
      const size_t slots = message_class == kFault ? 4 : 2;
      std::vector<SlotId> taken;
      for (size_t i = 0; i < slots; ++i) taken.push_back(Acquire(a, message_class, use));
      std::sort(taken.begin(), taken.end());
      EXPECT_EQ(std::unique(taken.begin(), taken.end()), taken.end());
      EXPECT_EQ(a->Statistics().slots_lent, slots);
      EXPECT_EQ(Code(a->AcquireSlot(message_class, use).status()), absl::StatusCode::kResourceExhausted);
      EXPECT_EQ(Code(a->AcquireSlot(message_class, use).status()), absl::StatusCode::kResourceExhausted);
      a->ReleaseSlot(taken[0]);
      a->ReleaseSlot(taken[1]);
      ASSERT_TRUE(AwaitCount(a, Seen::Kind::kSlotsFree, before + 1));
      const Seen told = a.All(Seen::Kind::kSlotsFree).back();
      EXPECT_EQ(told.message_class, message_class);
      EXPECT_EQ(told.use, use);
      // Told once: the next one comes from the next refusal.
      taken[0] = Acquire(a, message_class, use);
      taken[1] = Acquire(a, message_class, use);
      EXPECT_FALSE(a->AcquireSlot(message_class, use).ok());
      a->ReleaseSlot(taken[0]);
      ASSERT_TRUE(AwaitCount(a, Seen::Kind::kSlotsFree, before + 2));
      EXPECT_EQ(a.Count(Seen::Kind::kSlotsFree), before + 2);
      for (size_t i = 1; i < slots; ++i) a->ReleaseSlot(taken[i]);
    }
  }
  EXPECT_EQ(Code(a->AcquireSlot(kInvalidate, kReceive).status()), absl::StatusCode::kInvalidArgument);
}

TEST_P(TransportConformance, ASendSlotIsSharedUntilThePeerHasIt) {
  Node& a = StartNode(0);
  TransportSettings settings = Patient(1);
  settings.fault_send_slots = 1;
  Node& b = StartNode(settings);
  Join(a, b);
  const SlotId slot = Acquire(a, kFault, kReceive);
  const Message request = RequestInto(a, slot, 1);
  ASSERT_TRUE(a->Send(b.id(), request).ok());
  ASSERT_TRUE(AwaitMessages(b, a.id(), kFault, 1));
  a.Hold(kFault);
  ASSERT_TRUE(b->Send(a.id(), Plain(kFault, 2)).ok());
  ASSERT_TRUE(AwaitMessages(a, b.id(), kFault, 1));  // held in the handler of this one
  ASSERT_TRUE(SendPage(b, request, "page", kFaultSlotBytes).ok());
  EXPECT_EQ(Code(b->AcquireSlot(kFault, kSend).status()), absl::StatusCode::kResourceExhausted)
      << "released, but the peer does not have it";
  EXPECT_EQ(b->Statistics().slots_sending, 1u);
  a.Release(kFault);
  ASSERT_TRUE(AwaitCount(b, Seen::Kind::kSlotsFree, 1));
  EXPECT_TRUE(b->AcquireSlot(kFault, kSend).ok());
  ASSERT_TRUE(AwaitMessages(a, b.id(), kFault, 2));
  EXPECT_EQ(a.Messages(b.id(), kFault)[1].payload.substr(0, 5), "page.");
}

TEST_P(TransportConformance, ASendSlotServesSeveralRequests) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Node& c = StartNode(2);
  Join(a, b);
  Join(c, b);
  const SlotId of_a = Acquire(a, kFault, kReceive), of_c = Acquire(c, kFault, kReceive);
  ASSERT_TRUE(a->Send(b.id(), RequestInto(a, of_a, 1)).ok());
  ASSERT_TRUE(c->Send(b.id(), RequestInto(c, of_c, 2)).ok());
  ASSERT_TRUE(AwaitMessages(b, a.id(), kFault, 1));
  ASSERT_TRUE(AwaitMessages(b, c.id(), kFault, 1));
  SendOptions options;
  options.payload = Acquire(b, kFault, kSend);
  options.payload_bytes = 4;
  std::memcpy(b->SlotBytes(options.payload).data(), "page", 4);
  ASSERT_TRUE(b->Send(a.id(), AnswerTo(RequestInto(a, of_a, 1)), options).ok());
  ASSERT_TRUE(b->Send(c.id(), AnswerTo(RequestInto(c, of_c, 2)), options).ok());
  ASSERT_TRUE(AwaitMessages(a, b.id(), kFault, 1));
  ASSERT_TRUE(AwaitMessages(c, b.id(), kFault, 1));
  EXPECT_EQ(a.Messages(b.id(), kFault)[0].payload, "page");
  EXPECT_EQ(c.Messages(b.id(), kFault)[0].payload, "page");
  ASSERT_TRUE(Await([&] { return b->Statistics().slots_sending == 0; }));
  EXPECT_EQ(b->Statistics().slots_lent, 1u) << "still its owner's";
  b->ReleaseSlot(options.payload);
  EXPECT_EQ(b->Statistics().slots_lent, 0u);
}

// Requester -> home -> owner -> requester, then Done to the home.
TEST_P(TransportConformance, AForwardedRequestIsAnsweredByTheOwner) {
  Node& requester = StartNode(0);
  auto forward = [this](const Seen& seen) {
    if (seen.kind != Seen::Kind::kMessage || seen.message.slot == SlotId()) return;
    EXPECT_TRUE((*nodes_[NodeId(1)])->Send(NodeId(2), seen.message).ok());
  };
  auto answer = [this](const Seen& seen) {
    if (seen.kind != Seen::Kind::kMessage) return;
    EXPECT_TRUE(SendPage(*nodes_[NodeId(2)], seen.message, "owned", kFaultSlotBytes).ok());
  };
  Node& home = StartNode(Patient(1), forward);
  TransportSettings settings = Patient(2);
  settings.fault_send_slots = 32;  // acknowledged some time
  Node& owner = StartNode(settings, answer);
  Join(requester, home);
  Join(requester, owner);
  Join(home, owner);
  for (uint64_t i = 1; i <= 20; ++i) {
    const SlotId slot = Acquire(requester, kFault, kReceive);
    ASSERT_TRUE(requester->Send(home.id(), RequestInto(requester, slot, i), Writers({&home, &owner})).ok());
    ASSERT_TRUE(AwaitMessages(requester, owner.id(), kFault, i));
    const Seen page = requester.Messages(owner.id(), kFault).back();
    EXPECT_EQ(page.message.transaction, i);
    EXPECT_EQ(page.payload.substr(0, 6), "owned.");
    EXPECT_FALSE(page.late);
    requester->ReleaseSlot(slot);
    ASSERT_TRUE(requester->Send(home.id(), Plain(kFault, i)).ok());
  }
  ASSERT_TRUE(AwaitMessages(home, requester.id(), kFault, 40));
}

TEST_P(TransportConformance, AnyWriterMayAnswer) {
  Node& a = StartNode(0);
  Node& home = StartNode(1);
  Node& owner = StartNode(2);
  Join(a, home);
  Join(a, owner);
  const SlotId slot = Acquire(a, kBulk, kReceive);
  const Message request = RequestInto(a, slot, 1);
  ASSERT_TRUE(a->Send(home.id(), request, Writers({&home, &owner})).ok());
  ASSERT_TRUE(AwaitMessages(home, a.id(), kBulk, 1));
  ASSERT_TRUE(SendPage(home, request, "home", kBulkSlotBytes).ok());
  ASSERT_TRUE(AwaitMessages(a, home.id(), kBulk, 1));
  EXPECT_EQ(a.Messages(home.id(), kBulk)[0].payload.substr(0, 5), "home.");
}

TEST_P(TransportConformance, ADeadlineQuarantinesTheSlotUntilTheLateAnswer) {
  TransportSettings settings = Patient(0);
  settings.fault_receive_slots = 1;
  Node& a = StartNode(settings);
  Node& b = StartNode(1);
  Join(a, b);
  const SlotId slot = Acquire(a, kFault, kReceive);
  const Message request = RequestInto(a, slot, 77);
  ASSERT_TRUE(a->Send(b.id(), request, Deadline(20)).ok());
  EXPECT_EQ(Code(a->AcquireSlot(kFault, kReceive).status()), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(AwaitCount(a, Seen::Kind::kExpired, 1));
  const Seen expired = a.All(Seen::Kind::kExpired)[0];
  EXPECT_EQ(expired.peer, b.id());
  EXPECT_EQ(expired.message_class, kFault);
  EXPECT_EQ(expired.transaction, 77u);
  EXPECT_EQ(expired.slot, slot);
  EXPECT_EQ(expired.expired, RequestFailure::kDeadline);
  EXPECT_EQ(Of(a, b.id()).classes[0].expired_requests, 1u);
  EXPECT_EQ(a->Statistics().slots_quarantined, 1u);
  EXPECT_EQ(Code(a->AcquireSlot(kFault, kReceive).status()), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Code(a->CancelRequest(slot)), absl::StatusCode::kNotFound);
  ASSERT_TRUE(Settle(a, b));
  ASSERT_TRUE(SendPage(b, request, "late", kFaultSlotBytes).ok());
  ASSERT_TRUE(AwaitMessages(a, b.id(), kFault, 1));
  const Seen answer = a.Messages(b.id(), kFault)[0];
  EXPECT_TRUE(answer.late);
  EXPECT_EQ(answer.payload.substr(0, 5), "late.");
  EXPECT_EQ(a->Statistics().slots_quarantined, 0u);
  EXPECT_EQ(a->Statistics().slots_lent, 1u);
  a->ReleaseSlot(slot);
  ASSERT_TRUE(AwaitCount(a, Seen::Kind::kSlotsFree, 1));
  EXPECT_TRUE(a->AcquireSlot(kFault, kReceive).ok());
  EXPECT_EQ(a.Count(Seen::Kind::kExpired), 1u);
}

TEST_P(TransportConformance, TheDeadlineOfTheSettingsIsTakenWithoutAnother) {
  TransportSettings settings = Patient(0);
  settings.request_ms = 10;
  Node& a = StartNode(settings);
  Node& b = StartNode(1);
  Join(a, b);
  ASSERT_TRUE(a->Send(b.id(), RequestInto(a, Acquire(a, kBulk, kReceive), 1)).ok());
  ASSERT_TRUE(AwaitCount(a, Seen::Kind::kExpired, 1));
  EXPECT_EQ(a.All(Seen::Kind::kExpired)[0].message_class, kBulk);
}

TEST_P(TransportConformance, ACancelledRequestIsNotReportedAndItsAnswerIsLate) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Join(a, b);
  const SlotId slot = Acquire(a, kFault, kReceive);
  EXPECT_EQ(Code(a->CancelRequest(slot)), absl::StatusCode::kNotFound) << "not asked for yet";
  const Message request = RequestInto(a, slot, 1);
  ASSERT_TRUE(a->Send(b.id(), request, Deadline(50)).ok());
  const absl::Status cancelled = a->CancelRequest(slot);
  if (cancelled.ok()) {
    EXPECT_EQ(a->Statistics().slots_quarantined, 1u);
    EXPECT_EQ(Code(a->CancelRequest(slot)), absl::StatusCode::kNotFound);
  }
  // Another deadline of the same length, begun later, has passed: nothing was told of the first.
  const SlotId other = Acquire(a, kFault, kReceive);
  ASSERT_TRUE(a->Send(b.id(), RequestInto(a, other, 2), Deadline(50)).ok());
  ASSERT_TRUE(Await([&] {
    const std::vector<Seen> expired = a.All(Seen::Kind::kExpired);
    return std::any_of(expired.begin(), expired.end(), [](const Seen& seen) { return seen.transaction == 2; });
  }));
  EXPECT_EQ(a.Count(Seen::Kind::kExpired), cancelled.ok() ? 1u : 2u);
  ASSERT_TRUE(Settle(a, b));
  ASSERT_TRUE(SendPage(b, request, "late", 10).ok());
  ASSERT_TRUE(AwaitMessages(a, b.id(), kFault, 1));
  EXPECT_TRUE(a.Messages(b.id(), kFault)[0].late);
}

TEST_P(TransportConformance, QuarantineEndsWhenNobodyIsLeftToWrite) {
  TransportSettings settings = Patient(0);
  settings.fault_receive_slots = 1;
  Node& a = StartNode(settings);
  Node& home = StartNode(1);
  Node& owner = StartNode(2);
  Join(a, home);
  Join(a, owner);
  const SlotId slot = Acquire(a, kFault, kReceive);
  ASSERT_TRUE(a->Send(home.id(), RequestInto(a, slot, 1), Writers({&home, &owner}, 20)).ok());
  ASSERT_TRUE(AwaitCount(a, Seen::Kind::kExpired, 1));
  a->ResetPeer(home.id(), Epoch(2));
  EXPECT_EQ(a->Statistics().slots_quarantined, 1u) << "the owner might have it";
  EXPECT_FALSE(a->AcquireSlot(kFault, kReceive).ok());
  a->ResetPeer(owner.id(), Epoch(2));
  ASSERT_TRUE(AwaitCount(a, Seen::Kind::kSlotsFree, 1));
  EXPECT_EQ(a->Statistics().slots_quarantined, 0u);
  auto next = a->AcquireSlot(kFault, kReceive);
  ASSERT_TRUE(next.ok());
  EXPECT_NE(*next, slot) << "a name is given once";
  EXPECT_EQ(a.Count(Seen::Kind::kExpired), 1u) << "it had ended before";
}

TEST_P(TransportConformance, RequestsEndWhenNobodyIsLeftToAnswer) {
  Node& a = StartNode(0);
  Node& home = StartNode(1);
  Node& owner = StartNode(2);
  Join(a, home);
  Join(a, owner);
  const SlotId one = Acquire(a, kFault, kReceive), both = Acquire(a, kBulk, kReceive);
  ASSERT_TRUE(a->Send(home.id(), RequestInto(a, one, 1)).ok());
  ASSERT_TRUE(a->Send(home.id(), RequestInto(a, both, 2), Writers({&home, &owner})).ok());
  a->ResetPeer(home.id(), Epoch(2));
  ASSERT_TRUE(AwaitCount(a, Seen::Kind::kExpired, 1));
  EXPECT_EQ(a.All(Seen::Kind::kExpired)[0].transaction, 1u);
  EXPECT_EQ(a.All(Seen::Kind::kExpired)[0].expired, RequestFailure::kNobodyLeft);
  a->ResetPeer(owner.id(), Epoch(2));
  ASSERT_TRUE(AwaitCount(a, Seen::Kind::kExpired, 2));
  EXPECT_EQ(a.All(Seen::Kind::kExpired)[1].transaction, 2u);
  EXPECT_EQ(a.All(Seen::Kind::kExpired)[1].peer, home.id()) << "whom it was sent to";
}

TEST_P(TransportConformance, ASecondAnswerIsDropped) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Join(a, b);
  const SlotId slot = Acquire(a, kFault, kReceive);
  const Message request = RequestInto(a, slot, 1);
  ASSERT_TRUE(a->Send(b.id(), request).ok());
  ASSERT_TRUE(AwaitMessages(b, a.id(), kFault, 1));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(b->Send(a.id(), AnswerTo(request)).ok());
  ASSERT_TRUE(Settle(b, a));
  EXPECT_EQ(a.Messages(b.id(), kFault).size(), 1u);
  EXPECT_EQ(Dropped(a, b.id(), DropReason::kStaleSlot), 2u);
  EXPECT_TRUE(a.IsUp(b.id()));
  EXPECT_EQ(a->Statistics().slots_lent, 1u);
}

TEST_P(TransportConformance, AnAnswerOfANodeThatWasNotAskedFailsIt) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Node& c = StartNode(2);
  Join(a, b);
  Join(a, c);
  const SlotId slot = Acquire(a, kFault, kReceive);
  const Message request = RequestInto(a, slot, 1);
  ASSERT_TRUE(a->Send(b.id(), request).ok());
  ASSERT_TRUE(AwaitMessages(b, a.id(), kFault, 1));
  ASSERT_TRUE(c->Send(a.id(), AnswerTo(request)).ok());
  ASSERT_TRUE(AwaitCount(a, Seen::Kind::kFailed, 1));
  const Seen failed = a.All(Seen::Kind::kFailed)[0];
  EXPECT_EQ(failed.peer, c.id());
  EXPECT_EQ(failed.failure, PeerFailure::kMalformed);
  EXPECT_EQ(a->Statistics().malformed, 1u);
  EXPECT_EQ(a->Statistics().slots_in_flight, 1u);
  ASSERT_TRUE(SendPage(b, request, "right", 100).ok());
  ASSERT_TRUE(AwaitMessages(a, b.id(), kFault, 1));
  EXPECT_EQ(a.Messages(c.id(), kFault).size(), 0u);
}

TEST_P(TransportConformance, SlotsOfAnEarlierSessionAreRefusedOnBothSides) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Join(a, b);
  const SlotId asked = Acquire(a, kFault, kReceive), kept = Acquire(a, kFault, kReceive);
  const Message request = RequestInto(a, asked, 1);
  ASSERT_TRUE(a->Send(b.id(), request).ok());
  ASSERT_TRUE(AwaitMessages(b, a.id(), kFault, 1));
  a->ResetPeer(b.id(), Epoch(2));
  ASSERT_TRUE(AwaitCount(a, Seen::Kind::kExpired, 1));
  ASSERT_TRUE(AwaitCount(b, Seen::Kind::kFailed, 1));
  b->SetNodeEpoch(Epoch(2));
  ASSERT_TRUE(AwaitUpAgain(a, b));
  EXPECT_EQ(Code(b->Send(a.id(), AnswerTo(request))), absl::StatusCode::kAborted);
  EXPECT_EQ(Code(SendPage(b, request, "stale", 10)), absl::StatusCode::kAborted);
  EXPECT_EQ(b->Statistics().slots_sending + b->Statistics().slots_lent, 0u) << "nothing was taken";
  EXPECT_EQ(Code(a->Send(b.id(), RequestInto(a, kept, 2))), absl::StatusCode::kAborted);
  EXPECT_EQ(a->Statistics().slots_lent, 1u) << "unchanged";
  a->ReleaseSlot(kept);
  const SlotId fresh = Acquire(a, kFault, kReceive);
  ASSERT_TRUE(a->Send(b.id(), RequestInto(a, fresh, 3)).ok());
  ASSERT_TRUE(AwaitMessages(b, a.id(), kFault, 2));
  ASSERT_TRUE(SendPage(b, RequestInto(a, fresh, 3), "fresh", 10).ok());
  ASSERT_TRUE(AwaitMessages(a, b.id(), kFault, 1));
  EXPECT_EQ(a.Messages(b.id(), kFault)[0].payload.substr(0, 6), "fresh.");
}

TEST_P(TransportConformance, SendRefusesWhatBreaksARule) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Join(a, b);
  const absl::StatusCode invalid = absl::StatusCode::kInvalidArgument;
  const absl::StatusCode failed = absl::StatusCode::kFailedPrecondition;
  const std::vector<std::byte> long_body(kMaxBodyBytes + 1);
  Message message = Plain(kFault, 1);
  message.body = long_body;
  EXPECT_EQ(Code(a->Send(b.id(), message)), invalid);
  message = Plain(kFault, 1);
  message.type = kFirstUserType - 1;
  EXPECT_EQ(Code(a->Send(b.id(), message)), invalid);
  EXPECT_EQ(Code(a->Send(a.id(), Plain(kFault, 1))), invalid);
  EXPECT_EQ(Code(a->Send(NodeId(9), Plain(kFault, 1))), absl::StatusCode::kUnavailable) << "no such peer";

  const SlotId receive = Acquire(a, kFault, kReceive), send = Acquire(a, kFault, kSend);
  message = RequestInto(a, receive, 1);
  message.message_class = kBulk;
  EXPECT_EQ(Code(a->Send(b.id(), message)), invalid) << "a slot of another class";
  EXPECT_EQ(Code(a->Send(b.id(), RequestInto(a, send, 1))), invalid) << "not a receive slot";
  SendOptions options;
  options.payload = send;
  options.payload_bytes = 1;
  EXPECT_EQ(Code(a->Send(b.id(), Plain(kFault, 1), options)), invalid) << "a payload without answer";
  message = RequestInto(b, Acquire(b, kFault, kReceive), 1);  // as if b had asked
  message.answer = true;
  options.payload_bytes = kFaultSlotBytes + 1;
  EXPECT_EQ(Code(a->Send(b.id(), message, options)), invalid);
  options.payload_bytes = 1;
  a->ReleaseSlot(send);
  EXPECT_EQ(Code(a->Send(b.id(), message, options)), failed) << "not the caller's slot";
  ASSERT_TRUE(a->Send(b.id(), RequestInto(a, receive, 1)).ok());
  EXPECT_EQ(Code(a->Send(b.id(), RequestInto(a, receive, 2))), failed) << "in flight already";
  ASSERT_TRUE(Settle(a, b));
  EXPECT_EQ(b.Messages(a.id(), kFault).size(), 1u);
  EXPECT_EQ(b.Messages(a.id(), kBulk).size(), 0u);
}

TEST_P(TransportConformance, PagesSurviveBrokenConnections) {
  constexpr uint64_t kPages = 60;
  Node& a = StartNode(0);
  auto answer = [this](const Seen& seen) {
    if (seen.kind != Seen::Kind::kMessage) return;
    const std::string text = "page " + std::to_string(seen.message.transaction);
    EXPECT_TRUE(SendPage(*nodes_[NodeId(1)], seen.message, text, kFaultSlotBytes).ok());
  };
  Node& b = StartNode(Patient(1), answer);
  Join(a, b);
  HK_NEEDS(back_end_->Break(a.id(), b.id()));
  for (uint64_t i = 0; i < kPages; ++i) {
    const SlotId slot = Acquire(a, kFault, kReceive);
    ASSERT_TRUE(a->Send(b.id(), RequestInto(a, slot, i)).ok());
    if (i % 4 == 0) back_end_->Break(a.id(), b.id());
    ASSERT_TRUE(AwaitMessages(a, b.id(), kFault, i + 1));
    const Seen page = a.Messages(b.id(), kFault).back();
    EXPECT_EQ(page.message.transaction, i);
    EXPECT_EQ(page.payload.substr(0, 8), ("page " + std::to_string(i) + "...").substr(0, 8));
    EXPECT_EQ(page.payload.size(), kFaultSlotBytes);
    a->ReleaseSlot(slot);
  }
  EXPECT_EQ(a.Count(Seen::Kind::kFailed), 0u);
  EXPECT_EQ(a.Count(Seen::Kind::kExpired), 0u);
}

}  // namespace hk
