// Conformance: epochs and generations of guests.

#include "tests/transport/conformance.h"

namespace hk {
namespace {

// A guest's message of the fault class.
Message GuestMessage(GuestId guest, uint32_t generation, uint64_t epoch, uint64_t transaction) {
  Message message;
  message.type = kFirstUserType;
  message.guest = guest;
  message.generation = generation;
  message.epoch = Epoch(epoch);
  message.transaction = transaction;
  return message;
}

}  // namespace

TEST_P(TransportConformance, OldEpochsAreNotSent) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Join(a, b);
  ASSERT_TRUE(a->SetEpoch(kGuest, 2, Epoch(5)).ok());
  EXPECT_EQ(a->Send(b.id(), GuestMessage(kGuest, 2, 4, 1)).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(a->Send(b.id(), GuestMessage(kGuest, 1, 9, 2)).code(), absl::StatusCode::kAborted) << "an old generation";
  EXPECT_TRUE(a->Send(b.id(), GuestMessage(kGuest, 2, 5, 3)).ok());
  EXPECT_TRUE(a->Send(b.id(), GuestMessage(kGuest, 3, 6, 4)).ok());
  EXPECT_TRUE(a->Send(b.id(), GuestMessage(GuestId(8), 0, 0, 5)).ok()) << "another guest";
  EXPECT_TRUE(a->Send(b.id(), GuestMessage(GuestId(), 0, 0, 6)).ok()) << "no guest";
  ASSERT_TRUE(a->SetEpoch(kGuest, 1, Epoch(3)).ok()) << "never goes back";
  EXPECT_EQ(a->Send(b.id(), GuestMessage(kGuest, 2, 4, 7)).code(), absl::StatusCode::kAborted);
  const SlotId slot = Acquire(a, kFault, SlotUse::kReceive);
  Message request = RequestInto(a, slot, 8);
  request.epoch = Epoch(4);
  request.generation = 2;
  EXPECT_EQ(a->Send(b.id(), request).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(a->Statistics().slots_lent, 1u) << "slots unchanged";
  EXPECT_EQ(a->SetEpoch(GuestId(), 1, Epoch(1)).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(Settle(a, b));
  const std::vector<Seen> messages = b.Messages(a.id(), kFault);
  ASSERT_EQ(messages.size(), 4u);
  for (uint64_t i = 0; i < 4; ++i) EXPECT_EQ(messages[i].message.transaction, i + 3);
}

TEST_P(TransportConformance, OldEpochsAreNotDelivered) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Join(a, b);
  ASSERT_TRUE(b->SetEpoch(kGuest, 2, Epoch(5)).ok());
  for (const MessageClass message_class : kClasses) {
    Message message = GuestMessage(kGuest, 2, 4, 1);
    message.message_class = message_class;
    ASSERT_TRUE(a->Send(b.id(), message).ok());
    message.generation = 1;
    message.epoch = Epoch(9);
    ASSERT_TRUE(a->Send(b.id(), message).ok());
    message = GuestMessage(kGuest, 2, 5, 2);
    message.message_class = message_class;
    ASSERT_TRUE(a->Send(b.id(), message).ok());
  }
  ASSERT_TRUE(Settle(a, b));
  for (const MessageClass message_class : kClasses) {
    const std::vector<Seen> messages = b.Messages(a.id(), message_class);
    ASSERT_EQ(messages.size(), 1u);
    EXPECT_EQ(messages[0].message.transaction, 2u);
    EXPECT_EQ(Of(b, a.id()).classes[static_cast<size_t>(message_class)].dropped[0], 2u);
  }
  EXPECT_TRUE(b.IsUp(a.id())) << "no fault of the peer";
  EXPECT_EQ(b->Statistics().malformed, 0u);
}

TEST_P(TransportConformance, WhatWasQueuedBeforeIsDroppedAtTheOtherEnd) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Join(a, b);
  HK_NEEDS(back_end_->Cut(a.id(), b.id()));
  for (uint64_t i = 0; i < 20; ++i) ASSERT_TRUE(a->Send(b.id(), GuestMessage(kGuest, 1, 5, i)).ok());
  ASSERT_TRUE(a->SetEpoch(kGuest, 1, Epoch(6)).ok());
  ASSERT_TRUE(b->SetEpoch(kGuest, 1, Epoch(6)).ok());
  ASSERT_TRUE(a->Send(b.id(), GuestMessage(kGuest, 1, 6, 100)).ok());
  const size_t before = b.Messages(a.id(), kFault).size();
  back_end_->Heal(a.id(), b.id());
  ASSERT_TRUE(Settle(a, b));
  const std::vector<Seen> messages = b.Messages(a.id(), kFault);
  ASSERT_EQ(messages.size(), before + 1);
  EXPECT_EQ(messages.back().message.transaction, 100u);
}

TEST_P(TransportConformance, ARaisedEpochEndsOlderRequests) {
  TransportSettings settings = Patient(0);
  settings.fault_receive_slots = 1;
  Node& a = StartNode(settings);
  Node& b = StartNode(1);
  Join(a, b);
  const SlotId slot = Acquire(a, kFault, SlotUse::kReceive);
  const Message request = RequestInto(a, slot, 1);  // epoch 5
  ASSERT_TRUE(a->Send(b.id(), request).ok());
  ASSERT_TRUE(a->SetEpoch(kGuest, 1, Epoch(6)).ok());
  ASSERT_TRUE(AwaitCount(a, Seen::Kind::kExpired, 1));
  EXPECT_EQ(a.All(Seen::Kind::kExpired)[0].expired, RequestFailure::kOldEpoch);
  EXPECT_EQ(a->Statistics().slots_quarantined, 1u);
  EXPECT_FALSE(a->AcquireSlot(kFault, SlotUse::kReceive).ok());
  // The answer of the old epoch is dropped, but nothing more can come: the slot is free.
  ASSERT_TRUE(AwaitMessages(b, a.id(), kFault, 1));
  ASSERT_TRUE(SendPage(b, request, "old", kFaultSlotBytes).ok());
  ASSERT_TRUE(AwaitCount(a, Seen::Kind::kSlotsFree, 1));
  ASSERT_TRUE(Settle(b, a));
  EXPECT_EQ(a.Messages(b.id(), kFault).size(), 0u);
  EXPECT_EQ(Dropped(a, b.id(), DropReason::kOldEpoch), 1u);
  EXPECT_EQ(a->Statistics().slots_quarantined, 0u);
}

TEST_P(TransportConformance, QuarantineEndsWhenAllWritersPassedTheEpoch) {
  TransportSettings settings = Patient(0);
  settings.bulk_receive_slots = 1;
  Node& a = StartNode(settings);
  Node& home = StartNode(1);
  Node& owner = StartNode(2);
  Join(a, home);
  Join(a, owner);
  const SlotId slot = Acquire(a, kBulk, SlotUse::kReceive);
  SendOptions options;
  options.writers.Add(home.id());
  options.writers.Add(owner.id());
  ASSERT_TRUE(a->Send(home.id(), RequestInto(a, slot, 1), options).ok());  // epoch 5
  for (Node* node : {&a, &home}) ASSERT_TRUE((*node)->SetEpoch(kGuest, 1, Epoch(6)).ok());
  ASSERT_TRUE(AwaitCount(a, Seen::Kind::kExpired, 1));
  ASSERT_TRUE(Settle(home, a));
  EXPECT_EQ(a->Statistics().slots_quarantined, 1u) << "the owner might still write";
  EXPECT_FALSE(a->AcquireSlot(kBulk, SlotUse::kReceive).ok());
  ASSERT_TRUE(owner->SetEpoch(kGuest, 1, Epoch(6)).ok());
  ASSERT_TRUE(AwaitCount(a, Seen::Kind::kSlotsFree, 1));
  EXPECT_TRUE(a->AcquireSlot(kBulk, SlotUse::kReceive).ok());
}

TEST_P(TransportConformance, NobodyIsAskedWhoPassedTheEpoch) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Node& c = StartNode(2);
  ASSERT_TRUE(b->SetEpoch(kGuest, 1, Epoch(6)).ok()) << "told when the session begins";
  Join(a, b);
  Join(a, c);
  ASSERT_TRUE(Settle(b, a));
  const SlotId slot = Acquire(a, kFault, SlotUse::kReceive);
  EXPECT_EQ(a->Send(b.id(), RequestInto(a, slot, 1)).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(a->Statistics().slots_lent, 1u);
  SendOptions options;
  options.writers.Add(b.id());
  options.writers.Add(c.id());
  EXPECT_TRUE(a->Send(c.id(), RequestInto(a, slot, 1), options).ok()) << "one is left";
  ASSERT_TRUE(AwaitMessages(c, a.id(), kFault, 1));
  ASSERT_TRUE(SendPage(c, RequestInto(a, slot, 1), "page", 8).ok());
  ASSERT_TRUE(AwaitMessages(a, c.id(), kFault, 1));
}

TEST_P(TransportConformance, AForgottenGuestIsNotChecked) {
  Node& a = StartNode(0);
  Node& b = StartNode(1);
  Join(a, b);
  ASSERT_TRUE(a->SetEpoch(kGuest, 1, Epoch(6)).ok());
  ASSERT_TRUE(b->SetEpoch(kGuest, 1, Epoch(6)).ok());
  a->ForgetGuest(kGuest);
  b->ForgetGuest(kGuest);
  ASSERT_TRUE(a->Send(b.id(), GuestMessage(kGuest, 0, 1, 1)).ok());
  ASSERT_TRUE(AwaitMessages(b, a.id(), kFault, 1));
}

TEST_P(TransportConformance, GuestsWithAnEpochAreBounded) {
  Node& a = StartNode(0);
  absl::Status last;
  uint64_t guest = 1;
  while (last.ok() && guest < 100'000) last = a->SetEpoch(GuestId(guest++), 1, Epoch(1));
  EXPECT_EQ(last.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(a->SetEpoch(GuestId(1), 1, Epoch(2)).ok()) << "one that is there can be raised";
  a->ForgetGuest(GuestId(1));
  EXPECT_TRUE(a->SetEpoch(GuestId(guest), 1, Epoch(1)).ok());
}

}  // namespace hk
