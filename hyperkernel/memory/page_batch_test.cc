#include "hyperkernel/memory/page_batch.h"

#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/memory/space_engine.h"

namespace hk {
namespace {

using testing::ElementsAreArray;
using Type = PageBatchType;

constexpr NodeId kFrom(3), kSelf(5), kThird(63);
constexpr SlotId kSlot(0x18001);
constexpr uint64_t kExtent = 7 * kExtentPages, kPages = kExtent + 100;

// One message of each type.
std::vector<PageBatch> Examples() {
  std::vector<PageBatch> all;
  for (const Type type : {Type::kRequest, Type::kForward, Type::kAnswer, Type::kDone}) {
    PageBatch batch;
    batch.type = type;
    batch.from = kFrom;
    batch.to = kSelf;
    batch.requester = type == Type::kForward ? kThird : type == Type::kAnswer ? kSelf : kFrom;
    batch.transaction = 0x0102030405060708;
    const bool fates = type == Type::kForward || type == Type::kAnswer;
    const bool serials = type != Type::kRequest;
    const auto add = [&](uint16_t index, BatchFate fate, uint64_t serial) {
      batch.Add({.index = index, .fate = fates ? fate : BatchFate::kDeclined, .serial = serials ? serial : 0});
    };
    add(3, BatchFate::kTaken, 0x1122334455667788);
    add(4, BatchFate::kZero, 2);
    add(99, type == Type::kAnswer ? BatchFate::kLater : BatchFate::kDeclined, 3);
    all.push_back(batch);
  }
  return all;
}

// As it arrives at kSelf; `body` is the caller's memory.
Message Header(const PageBatch& batch, const PageBody& body) {
  Message message;
  SetBatchHeader(batch, &message);
  message.gfn = Gfn(kExtent + batch.pages[0].index);
  if (batch.type != Type::kDone) {
    message.slot = kSlot;
    message.slot_node = batch.requester;
  }
  message.body = body.span();
  return message;
}

size_t PayloadOf(const PageBatch& batch) {
  return batch.type == Type::kAnswer ? kPageSize : 0;
}

bool Takes(const Message& message, size_t payload, uint64_t pages = kPages) {
  return DecodeBatch(kFrom, kSelf, pages, message, payload).ok();
}

TEST(PageBatch, EveryTypeComesBackAsItWas) {
  for (const PageBatch& batch : Examples()) {
    const PageBody body = EncodeBatchBody(batch);
    const absl::StatusOr<PageBatch> back = DecodeBatch(kFrom, kSelf, kPages, Header(batch, body), PayloadOf(batch));
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(back->type, batch.type);
    EXPECT_EQ(back->requester, batch.requester);
    EXPECT_EQ(back->transaction, batch.transaction);
    EXPECT_THAT(back->all(), ElementsAreArray(batch.all())) << Name(batch.type);
  }
}

TEST(PageBatch, TheBytesAreTheDocumentedOnes) {
  const PageBody body = EncodeBatchBody(Examples()[1]);
  const std::vector<uint8_t> expected = {63, 0, 3, 0, 2, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 4, 0, 1, 2, 0,
                                         0,  0, 0, 0, 0, 0,    99,   0,    0,    3,    0,    0,    0,    0, 0, 0, 0};
  ASSERT_EQ(body.size, expected.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(static_cast<uint8_t>(body.bytes[i]), expected[i]) << i;
  PageBatch whole;
  whole.type = Type::kForward;
  for (uint16_t i = 0; i < kMostBatchPages; ++i) whole.Add({.index = i});
  EXPECT_EQ(EncodeBatchBody(whole).size, kMaxBatchBodyBytes);
}

TEST(PageBatch, EveryOtherLengthIsRefused) {
  for (const PageBatch& batch : Examples()) {
    const PageBody body = EncodeBatchBody(batch);
    std::vector<std::byte> bytes(body.bytes.begin(), body.bytes.begin() + static_cast<ptrdiff_t>(body.size));
    bytes.resize(kMaxBodyBytes);
    for (size_t length = 0; length <= bytes.size(); ++length) {
      Message message = Header(batch, body);
      message.body = std::span(bytes).first(length);
      // What is shorter by whole pages is a message of fewer; what is longer has pages out of order (zeroes).
      const size_t page = batch.type == Type::kRequest ? 2 : batch.type == Type::kDone ? 10 : 11;
      const size_t least = batch.type == Type::kDone ? body.size - 2 * page : body.size - page;
      const bool good = length >= least && length <= body.size && (body.size - length) % page == 0;
      EXPECT_EQ(Takes(message, PayloadOf(batch)), good) << Name(batch.type) << " " << length;
    }
  }
  // More pages than a bulk slot holds, each of them good.
  std::vector<std::byte> many;
  for (size_t i = 0; i <= kMostBatchPages; ++i) {
    many.push_back(static_cast<std::byte>(3 + i));
    many.push_back(std::byte{0});
  }
  Message message = Header(Examples()[0], {});
  message.body = many;
  EXPECT_FALSE(Takes(message, 0));
  message.body = std::span(many).first(2 * kMostBatchPages);
  EXPECT_TRUE(Takes(message, 0));
}

TEST(PageBatch, FieldsOutOfRangeAreRefused) {
  const std::vector<PageBatch> all = Examples();
  const auto refused = [](const PageBatch& batch, size_t at, uint8_t value) {
    PageBody body = EncodeBatchBody(batch);
    body.bytes[at] = static_cast<std::byte>(value);
    return !Takes(Header(batch, body), PayloadOf(batch));
  };
  EXPECT_TRUE(refused(all[0], 0, 2));    // not the header's page
  EXPECT_TRUE(refused(all[0], 2, 3));    // twice the same
  EXPECT_TRUE(refused(all[0], 4, 2));    // not ascending
  EXPECT_TRUE(refused(all[0], 4, 100));  // the space ends before
  EXPECT_TRUE(refused(all[0], 5, 2));    // beyond the extent
  EXPECT_TRUE(refused(all[1], 0, 64));   // requester
  EXPECT_TRUE(refused(all[1], 4, 3));    // fates
  EXPECT_TRUE(refused(all[1], 4, 0));    // of none is anything asked
  EXPECT_TRUE(refused(all[2], 2, 4));
  EXPECT_TRUE(refused(all[2], 2, 0));  // bytes of no page
  EXPECT_TRUE(refused(all[2], 13, 2));
  EXPECT_FALSE(refused(all[3], 2, 0));
}

TEST(PageBatch, PagesAreOfTheSpaceAndPayloadIsThatOfThePages) {
  for (const PageBatch& batch : Examples()) {
    const PageBody body = EncodeBatchBody(batch);
    Message message = Header(batch, body);
    EXPECT_FALSE(Takes(message, PayloadOf(batch), kPages - 1));
    EXPECT_FALSE(Takes(message, PayloadOf(batch) + 1));
    EXPECT_FALSE(Takes(message, PayloadOf(batch) + kPageSize));
    message.gfn = Gfn(~uint64_t{0});
    EXPECT_FALSE(Takes(message, PayloadOf(batch)));
    message.gfn = Gfn(~uint64_t{0} / kExtentPages * kExtentPages + 3);
    EXPECT_FALSE(Takes(message, PayloadOf(batch)));
  }
  const PageBody body = EncodeBatchBody(Examples()[2]);
  EXPECT_FALSE(Takes(Header(Examples()[2], body), 0));
}

TEST(PageBatch, AMessageHasItsClassAndSlot) {
  for (const PageBatch& batch : Examples()) {
    const PageBody body = EncodeBatchBody(batch);
    const Message good = Header(batch, body);
    Message bad = good;
    bad.answer = !good.answer;
    EXPECT_FALSE(Takes(bad, PayloadOf(batch))) << Name(batch.type);
    bad = good;
    bad.message_class = good.message_class == MessageClass::kBulk ? MessageClass::kFault : MessageClass::kBulk;
    EXPECT_FALSE(Takes(bad, PayloadOf(batch))) << Name(batch.type);
    bad = good;
    bad.slot = good.slot == SlotId() ? kSlot : SlotId();
    EXPECT_FALSE(Takes(bad, PayloadOf(batch))) << Name(batch.type);
    bad = good;
    bad.type = static_cast<uint16_t>(kFirstBatchType + kPageBatchTypes);
    EXPECT_FALSE(Takes(bad, PayloadOf(batch)));
  }
  const PageBody body = EncodeBatchBody(Examples()[0]);
  Message message = Header(Examples()[0], body);
  message.slot_node = kThird;
  EXPECT_FALSE(Takes(message, 0));
  // A forward of our own request.
  PageBatch forward = Examples()[1];
  forward.requester = kSelf;
  const PageBody own = EncodeBatchBody(forward);
  EXPECT_FALSE(Takes(Header(forward, own), 0));
}

TEST(PageBatch, AnEmptyAnswerComesBackAsItWas) {
  PageBody body;
  Message message = SpaceEmptyMessage(9, 0x1122334455667788, &body);
  EXPECT_EQ(message.transaction, 9u);
  EXPECT_EQ(SerialInEmpty(kFrom, message).value_or(0), 0x1122334455667788u);
  message.slot = kSlot;
  EXPECT_FALSE(SerialInEmpty(kFrom, message).ok());
  message.slot = SlotId();
  message.message_class = MessageClass::kFault;
  EXPECT_FALSE(SerialInEmpty(kFrom, message).ok());
  message.message_class = MessageClass::kBulk;
  message.body = message.body.first(7);
  EXPECT_FALSE(SerialInEmpty(kFrom, message).ok());
}

TEST(PageBatch, RandomBytesAreAStatusOrABatchThatEncodesToThem) {
  std::mt19937_64 random(1);
  uint64_t good = 0;
  for (int i = 0; i < 200'000; ++i) {
    const Type type = static_cast<Type>(random() % kPageBatchTypes);
    const size_t page = type == Type::kRequest ? 2 : type == Type::kDone ? 10 : 11;
    std::vector<std::byte> bytes(random() % 2 == 0 ? random() % 60 : (type == Type::kForward ? 2 : 0) + 2 * page);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random() % (random() % 4 == 0 ? 256 : 3));
    Message message;
    message.type = static_cast<uint16_t>(kFirstBatchType + static_cast<uint16_t>(type));
    message.message_class = type == Type::kDone ? MessageClass::kFault : MessageClass::kBulk;
    message.answer = type == Type::kAnswer;
    message.slot = type == Type::kDone ? SlotId() : kSlot;
    message.slot_node = NodeId(static_cast<uint16_t>(random() % 6));
    message.gfn = Gfn(random() % 3);
    message.body = bytes;
    const absl::StatusOr<PageBatch> decoded =
        DecodeBatch(kFrom, kSelf, kExtentPages, message, random() % 3 * kPageSize);
    if (!decoded.ok()) continue;
    ++good;
    const PageBody again = EncodeBatchBody(*decoded);
    EXPECT_THAT(again.span(), ElementsAreArray(bytes));
  }
  EXPECT_GT(good, 100u);
}

}  // namespace
}  // namespace hk
