#include "hyperkernel/memory/page_wire.h"

#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk {
namespace {

using Type = PageMessageType;

constexpr NodeId kFrom(3), kSelf(5), kThird(63);
constexpr SlotId kSlot(0x10001);

// One message of each type, with every field that it has.
std::vector<PageMessage> Examples() {
  std::vector<PageMessage> all;
  const auto make = [&all](Type type, NodeId requester) -> PageMessage& {
    PageMessage m;
    m.type = type;
    m.from = kFrom;
    m.to = kSelf;
    m.requester = requester;
    all.push_back(m);
    return all.back();
  };
  {
    PageMessage& m = make(Type::kRequest, kFrom);
    m.transaction = 0x0102030405060708;
    m.kind = RequestKind::kAdopt;
    m.has_copy = true;
    m.ticket = 0x1122334455667788;
  }
  {
    PageMessage& m = make(Type::kForward, kThird);
    m.transaction = 7;
    m.kind = RequestKind::kWrite;
    m.serial = 0x1122334455667788;
    m.acks = NodeSet(0x8000000000000001);
    m.ticket = ~uint64_t{0};
  }
  {
    PageMessage& m = make(Type::kAnswer, kSelf);
    m.transaction = ~uint64_t{0};
    m.kind = RequestKind::kOverwrite;
    m.right = PageRight::kExclusive;
    m.source = PageSource::kStored;
    m.serial = 9;
    m.storage = 0x99aabbccddeeff00;
    m.acks = NodeSet(6);
  }
  {
    PageMessage& m = make(Type::kNack, kSelf);
    m.transaction = 1;
    m.kind = RequestKind::kRead;
    m.reason = NackReason::kMoved;
    m.home = kThird;
  }
  {
    PageMessage& m = make(Type::kInvalidate, kThird);
    m.transaction = 2;
    m.serial = 3;
    m.ticket = 4;
  }
  for (const Type type : {Type::kAck, Type::kDone}) {
    PageMessage& m = make(type, type == Type::kAck ? kSelf : kFrom);
    m.transaction = 4;
    m.serial = 5;
  }
  make(Type::kRelease, NodeId()).serial = 6;
  make(Type::kReleased, NodeId()).serial = 6;
  {
    PageMessage& m = make(Type::kEvict, NodeId());
    m.source = PageSource::kStored;
    m.storage = 12;
  }
  make(Type::kEvictGranted, NodeId());
  make(Type::kEvictDenied, NodeId());
  make(Type::kOffer, NodeId()).urgent = true;
  {
    PageMessage& m = make(Type::kRequest, kFrom);
    m.transaction = 8;
    m.peeks = true;
    m.asked = kThird;
    m.serial = 0x0102030405060708;
  }
  make(Type::kPeek, kFrom).transaction = 9;
  for (const PageSource source : {PageSource::kPayload, PageSource::kNone}) {
    PageMessage& m = make(Type::kPeeked, kSelf);
    m.transaction = 9;
    m.source = source;
  }
  {
    PageMessage& m = make(Type::kDone, kFrom);
    m.transaction = 4;
    m.serial = 5;
    m.declined = true;
  }
  return all;
}

// As it arrives at kSelf; `body` is the caller's memory.
Message Header(const PageMessage& m) {
  Message message;
  SetPageHeader(m, &message);
  message.message_class = ClassOf(m.type);
  if (m.type == Type::kRequest || m.type == Type::kForward || m.type == Type::kAnswer || m.type == Type::kNack ||
      m.type == Type::kPeek || m.type == Type::kPeeked) {
    message.slot = kSlot;
    message.slot_node = m.requester;
  }
  return message;
}

TEST(PageWire, EveryTypeComesBackAsItWas) {
  size_t longest = 0;
  for (const PageMessage& m : Examples()) {
    const PageBody body = EncodePageBody(m);
    longest = std::max(longest, body.size);
    Message message = Header(m);
    message.body = body.span();
    const absl::StatusOr<PageMessage> back = DecodePageMessage(kFrom, kSelf, message);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(*back, m) << Name(m.type);
  }
  EXPECT_EQ(longest, kMaxPageBodyBytes);
}

TEST(PageWire, TheBytesAreTheDocumentedOnes) {
  const PageBody forward = EncodePageBody(Examples()[1]);
  const std::vector<uint8_t> expected = {63, 0, 1, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 1,    0,   0,
                                         0,  0, 0, 0,    0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
  ASSERT_EQ(forward.size, expected.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(static_cast<uint8_t>(forward.bytes[i]), expected[i]) << i;
}

TEST(PageWire, EveryOtherLengthIsRefused) {
  for (const PageMessage& m : Examples()) {
    const PageBody body = EncodePageBody(m);
    std::vector<std::byte> bytes(body.bytes.begin(), body.bytes.begin() + static_cast<ptrdiff_t>(body.size));
    bytes.resize(kMaxBodyBytes);
    for (size_t length = 0; length <= bytes.size(); ++length) {
      Message message = Header(m);
      message.body = std::span(bytes).first(length);
      EXPECT_EQ(DecodePageMessage(kFrom, kSelf, message).ok(), length == body.size) << Name(m.type) << " " << length;
    }
  }
}

TEST(PageWire, FieldsOutOfRangeAreRefused) {
  const auto refused = [](const PageMessage& m, size_t at, uint8_t value) {
    PageBody body = EncodePageBody(m);
    body.bytes[at] = static_cast<std::byte>(value);
    Message message = Header(m);
    message.body = body.span();
    return !DecodePageMessage(kFrom, kSelf, message).ok();
  };
  const std::vector<PageMessage> all = Examples();
  EXPECT_TRUE(refused(all[0], 0, 4));   // kind
  EXPECT_TRUE(refused(all[0], 1, 2));   // has copy
  EXPECT_TRUE(refused(all[1], 0, 64));  // requester
  EXPECT_TRUE(refused(all[1], 1, 1));
  EXPECT_TRUE(refused(all[1], 2, 4));
  EXPECT_TRUE(refused(all[2], 0, 4));
  EXPECT_TRUE(refused(all[2], 1, 4));
  EXPECT_TRUE(refused(all[2], 2, 5));
  EXPECT_TRUE(refused(all[3], 1, 4));
  EXPECT_TRUE(refused(all[3], 2, 64));
  EXPECT_TRUE(refused(all[4], 0, 64));
  EXPECT_TRUE(refused(all[9], 0, 4));
  EXPECT_TRUE(refused(all[0], 2, 2));  // peeks
  EXPECT_TRUE(refused(all[0], 2, 1));  // and adopts
  EXPECT_TRUE(refused(all[0], 3, 1));  // asked, and does not peek
  EXPECT_TRUE(refused(all[0], 5, 1));
  EXPECT_EQ(all[13].type, Type::kRequest);
  EXPECT_TRUE(refused(all[13], 0, 1));  // peeks, and writes
  EXPECT_TRUE(refused(all[13], 1, 1));
  EXPECT_TRUE(refused(all[13], 3, 64));
  EXPECT_TRUE(refused(all[15], 0, 2));
  EXPECT_TRUE(refused(all[17], 8, 2));
}

TEST(PageWire, AMessageHasItsClassAndSlot) {
  for (const PageMessage& m : Examples()) {
    const PageBody body = EncodePageBody(m);
    Message good = Header(m);
    good.body = body.span();
    Message bad = good;
    bad.answer = !good.answer;
    EXPECT_FALSE(DecodePageMessage(kFrom, kSelf, bad).ok()) << Name(m.type);
    bad = good;
    bad.message_class =
        good.message_class == MessageClass::kInvalidate ? MessageClass::kFault : MessageClass::kInvalidate;
    EXPECT_FALSE(DecodePageMessage(kFrom, kSelf, bad).ok()) << Name(m.type);
    bad = good;
    bad.slot = good.slot == SlotId() ? kSlot : SlotId();
    EXPECT_FALSE(DecodePageMessage(kFrom, kSelf, bad).ok()) << Name(m.type);
    bad = good;
    bad.type = static_cast<uint16_t>(kFirstUserType + 13);
    EXPECT_FALSE(DecodePageMessage(kFrom, kSelf, bad).ok());
    bad.type = 0;
    EXPECT_FALSE(DecodePageMessage(kFrom, kSelf, bad).ok());
  }
  // Another node's slot; a forward of our own request.
  Message message = Header(Examples()[0]);
  const PageBody body = EncodePageBody(Examples()[0]);
  message.body = body.span();
  message.slot_node = kThird;
  EXPECT_FALSE(DecodePageMessage(kFrom, kSelf, message).ok());
  PageMessage forward = Examples()[1];
  forward.requester = kSelf;
  const PageBody forwarded = EncodePageBody(forward);
  message = Header(forward);
  message.body = forwarded.span();
  EXPECT_FALSE(DecodePageMessage(kFrom, kSelf, message).ok());
}

TEST(PageWire, RandomBytesAreAStatusOrAMessageThatEncodesToThem) {
  std::mt19937_64 random(1);
  uint64_t good = 0;
  for (int i = 0; i < 200'000; ++i) {
    std::vector<std::byte> bytes(random() % 30);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random() % (random() % 4 == 0 ? 256 : 4));
    Message message;
    message.type = static_cast<uint16_t>(kFirstUserType + random() % 17);
    message.message_class = static_cast<MessageClass>(random() % 3);
    message.answer = random() % 2 == 0;
    message.slot = random() % 2 == 0 ? kSlot : SlotId();
    message.slot_node = NodeId(static_cast<uint16_t>(random() % 6));
    message.transaction = random() % 2;
    message.body = bytes;
    const absl::StatusOr<PageMessage> decoded = DecodePageMessage(kFrom, kSelf, message);
    if (!decoded.ok()) continue;
    ++good;
    const PageBody again = EncodePageBody(*decoded);
    EXPECT_THAT(again.span(), testing::ElementsAreArray(bytes));
  }
  EXPECT_GT(good, 100u);
}

}  // namespace
}  // namespace hk
