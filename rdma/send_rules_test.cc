#include "rdma/send_rules.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rdma/slots.h"
#include "rdma/wire.h"

namespace hk {
namespace {

using ::testing::HasSubstr;

constexpr NodeId kSelf(1), kPeer(2), kThird(3);
constexpr MessageClass kFault = MessageClass::kFault;
const SlotId kReceiveSlot = SlotName{kFault, SlotUse::kReceive, 3, 9}.Encode();
const SlotId kSendSlot = SlotName{kFault, SlotUse::kSend, 3, 9}.Encode();
const SlotId kBulkSlot = SlotName{MessageClass::kBulk, SlotUse::kReceive, 3, 9}.Encode();

Message Plain() {
  Message message;
  message.type = kFirstUserType;
  return message;
}

Message Request() {
  Message message = Plain();
  message.slot_node = kSelf;
  message.slot = kReceiveSlot;
  return message;
}

Message Answer() {
  Message message = Plain();
  message.answer = true;
  message.slot_node = kPeer;
  message.slot = kReceiveSlot;
  return message;
}

SendOptions Page() {
  SendOptions options;
  options.payload = kSendSlot;
  options.payload_bytes = kFaultSlotBytes;
  return options;
}

std::string Refusal(const Message& message, const SendOptions& options = {}, NodeId to = kPeer) {
  return std::string(CheckSend(kSelf, to, message, options).message());
}

TEST(SendRulesTest, WhatPassesDecodes) {
  Message forwarded = Request();
  forwarded.slot_node = kThird;
  for (const auto& [message, options] : {std::pair{Plain(), SendOptions{}},
                                         {Request(), SendOptions{}},
                                         {Answer(), SendOptions{}},
                                         {Answer(), Page()},
                                         {forwarded, SendOptions{}}}) {
    EXPECT_TRUE(CheckSend(kSelf, kPeer, message, options).ok());
    Header header, read;
    header.message = message;
    header.sequence = 1;
    header.payload_bytes = options.payload_bytes;
    EXPECT_EQ(DecodeHeader(EncodeHeader(header), kFault, &read), WireError::kNone);
  }
  EXPECT_TRUE(IsRequest(kSelf, Request()));
  EXPECT_FALSE(IsRequest(kSelf, forwarded));
  EXPECT_FALSE(IsRequest(kSelf, Answer()));
  EXPECT_FALSE(IsRequest(NodeId(), Plain()));
}

TEST(SendRulesTest, EachRuleIsNamed) {
  EXPECT_THAT(Refusal(Plain(), {}, kSelf), HasSubstr("no other node"));
  EXPECT_THAT(Refusal(Plain(), {}, NodeId(kMaxNodes)), HasSubstr("no other node"));
  Message message = Plain();
  message.type = kFirstUserType - 1;
  EXPECT_THAT(Refusal(message), HasSubstr("own"));
  const std::vector<std::byte> body(kMaxBodyBytes + 1);
  message = Plain();
  message.body = body;
  EXPECT_THAT(Refusal(message), HasSubstr("too long"));
  message.body = message.body.first(kMaxBodyBytes);
  EXPECT_EQ(Refusal(message), "");
  message = Plain();
  message.message_class = static_cast<MessageClass>(3);
  EXPECT_THAT(Refusal(message), HasSubstr("no such class"));

  message = Request();
  message.message_class = MessageClass::kInvalidate;
  EXPECT_THAT(Refusal(message), HasSubstr("has no slots"));
  for (const SlotId slot : {kSendSlot, kBulkSlot, SlotId(3)}) {
    message = Request();
    message.slot = slot;
    EXPECT_THAT(Refusal(message), HasSubstr("receive slot of its class"));
  }
  message = Request();
  message.slot_node = NodeId(kMaxNodes);
  EXPECT_THAT(Refusal(message), HasSubstr("no node"));

  message = Request();
  message.slot_node = kPeer;
  EXPECT_THAT(Refusal(message), HasSubstr("does not go to its slot's node"));

  message = Answer();
  message.slot = SlotId();
  EXPECT_THAT(Refusal(message), HasSubstr("names the slot"));
  message = Answer();
  message.slot_node = kThird;
  EXPECT_THAT(Refusal(message), HasSubstr("its slot's node"));

  EXPECT_THAT(Refusal(Plain(), Page()), HasSubstr("only an answer"));
  EXPECT_THAT(Refusal(Request(), Page()), HasSubstr("only an answer"));
  SendOptions options = Page();
  options.payload_bytes = 0;
  EXPECT_THAT(Refusal(Answer(), options), HasSubstr("go together"));
  options.payload_bytes = kFaultSlotBytes + 1;
  EXPECT_THAT(Refusal(Answer(), options), HasSubstr("more than a slot"));
  options = Page();
  options.payload = kReceiveSlot;
  EXPECT_THAT(Refusal(Answer(), options), HasSubstr("send slot"));

  options = {};
  options.deadline = std::chrono::milliseconds(1);
  EXPECT_EQ(Refusal(Request(), options), "");
  EXPECT_THAT(Refusal(Plain(), options), HasSubstr("belong to a request"));
  options.deadline = kMaxRequestDeadline + std::chrono::milliseconds(1);
  EXPECT_THAT(Refusal(Request(), options), HasSubstr("out of range"));
  options.deadline = std::chrono::milliseconds(-1);
  EXPECT_THAT(Refusal(Request(), options), HasSubstr("out of range"));
  options = {};
  options.writers = NodeSet::Of(kSelf);
  EXPECT_THAT(Refusal(Request(), options), HasSubstr("nobody else"));
}

TEST(SendRulesTest, WritersAreOthers) {
  SendOptions options;
  EXPECT_EQ(WritersOf(kSelf, kPeer, options), NodeSet::Of(kPeer));
  options.writers = NodeSet::Of(kSelf);
  options.writers.Add(kThird);
  EXPECT_EQ(WritersOf(kSelf, kPeer, options), NodeSet::Of(kThird));
}

TEST(SendRulesTest, SettingsAreChecked) {
  TransportSettings good;
  good.cluster = "c";
  EXPECT_EQ(CheckSettings(good), absl::OkStatus());
  auto refusal = [&](auto change) {
    TransportSettings settings = good;
    change(&settings);
    return std::string(CheckSettings(settings).message());
  };
  EXPECT_THAT(refusal([](auto* s) { s->cluster.clear(); }), HasSubstr("cluster"));
  EXPECT_THAT(refusal([](auto* s) { s->self = NodeId(kMaxNodes); }), HasSubstr("self"));
  EXPECT_THAT(refusal([](auto* s) { s->heartbeat_ms = s->lease_ms / 4 + 1; }), HasSubstr("heartbeat_ms"));
  EXPECT_THAT(refusal([](auto* s) { s->window_messages = kMaxWindow + 1; }), HasSubstr("window_messages"));
  EXPECT_THAT(refusal([](auto* s) { s->queue_messages = s->window_messages - 1; }), HasSubstr("queue_messages"));
  EXPECT_THAT(refusal([](auto* s) { s->bulk_send_slots = kMaxSlots + 1; }), HasSubstr("bulk_send_slots"));
  EXPECT_THAT(refusal([](auto* s) { s->backoff_ms = s->backoff_max_ms + 1; }), HasSubstr("backoff_ms"));
  EXPECT_THAT(refusal([](auto* s) { s->strangers = 0; }), HasSubstr("strangers"));
}

TEST(SendRulesTest, PollersNeverOutnumberCpus) {
  EXPECT_EQ(EffectiveWaitMode(WaitMode::kBusy, 3, 2), WaitMode::kBlocking);
  EXPECT_EQ(EffectiveWaitMode(WaitMode::kBoundedSpin, 3, 2), WaitMode::kBlocking);
  EXPECT_EQ(EffectiveWaitMode(WaitMode::kBusy, 3, 3), WaitMode::kBusy);
}

TEST(SendRulesTest, LatencyBucketsArePowersOfTwo) {
  using std::chrono::nanoseconds;
  EXPECT_EQ(LatencyBucket(nanoseconds(-5)), 0u);
  EXPECT_EQ(LatencyBucket(nanoseconds(0)), 0u);
  EXPECT_EQ(LatencyBucket(nanoseconds(1)), 0u);
  EXPECT_EQ(LatencyBucket(nanoseconds(2)), 1u);
  EXPECT_EQ(LatencyBucket(nanoseconds(1023)), 9u);
  EXPECT_EQ(LatencyBucket(nanoseconds(1024)), 10u);
  EXPECT_EQ(LatencyBucket(std::chrono::hours(1)), ClassStatistics::kLatencyBuckets - 1);
}

}  // namespace
}  // namespace hk
