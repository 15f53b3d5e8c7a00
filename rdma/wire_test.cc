#include "rdma/wire.h"

#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rdma/slots.h"

namespace hk {
namespace {

constexpr MessageClass kFault = MessageClass::kFault;
constexpr MessageClass kInvalidate = MessageClass::kInvalidate;
constexpr MessageClass kBulk = MessageClass::kBulk;

std::vector<std::byte> FromHex(const std::string& hex) {
  std::vector<std::byte> bytes;
  std::string digits;
  for (const char c : hex) {
    if (c == ' ') continue;
    digits += c;
    if (digits.size() < 2) continue;
    bytes.push_back(static_cast<std::byte>(std::stoi(digits, nullptr, 16)));
    digits.clear();
  }
  return bytes;
}

template <size_t N>
std::vector<std::byte> Bytes(const std::array<std::byte, N>& bytes) {
  return {bytes.begin(), bytes.end()};
}

SlotId ReceiveSlot(MessageClass message_class, uint32_t index = 5, uint64_t counter = 0x0a0b0c) {
  return SlotName{message_class, SlotUse::kReceive, index, counter}.Encode();
}

// A page answer with every field set to something of its own.
Header PageAnswer() {
  Header header;
  header.message.message_class = kFault;
  header.message.type = 0x1234;
  header.message.flags = 0x5a;
  header.message.answer = true;
  header.message.guest = GuestId(0x1112131415161718);
  header.message.generation = 0x21222324;
  header.message.epoch = Epoch(0x3132333435363738);
  header.message.transaction = 0x4142434445464748;
  header.message.gfn = Gfn(0x5152535455565758);
  header.message.slot_node = NodeId(3);
  header.message.slot = ReceiveSlot(kFault);
  header.sequence = 0x6162636465666768;
  header.acknowledged = 0x7172737475767778;
  header.body_bytes = 16;
  header.payload_bytes = kFaultSlotBytes;
  header.has_payload_crc = true;
  header.payload_crc = 0x81828384;
  return header;
}

Header Plain(MessageClass message_class, uint16_t type = kFirstUserType) {
  Header header;
  header.message.message_class = message_class;
  header.message.type = type;
  header.sequence = 1;
  return header;
}

Hello AnyHello() {
  Hello hello;
  hello.kind = HelloKind::kAcceptResumed;
  hello.message_class = kBulk;
  hello.cluster = 0x1112131415161718;
  hello.from = NodeId(0x21);
  hello.to = NodeId(0x31);
  hello.node_epoch = Epoch(0x4142434445464748);
  hello.session = 0x5152535455565758;
  hello.peer_session = 0x6162636465666768;
  hello.received = 0x7172737475767778;
  return hello;
}

// What the decoder says about a header that EncodeHeader would never be asked for; its CRC is right.
WireError Decode(const Header& header) {
  Header read;
  return DecodeHeader(EncodeHeader(header), header.message.message_class, &read);
}

// `bytes` with the byte at `at` changed and the CRC, the last four bytes, made right again.
std::vector<std::byte> With(std::vector<std::byte> bytes, size_t at, int value) {
  bytes[at] = static_cast<std::byte>(value);
  const uint32_t crc = Crc32c(std::span(bytes).first(bytes.size() - 4));
  for (size_t i = 0; i < 4; ++i) bytes[bytes.size() - 4 + i] = static_cast<std::byte>(crc >> (8 * i));
  return bytes;
}

WireError DecodeWith(size_t at, int value) {
  Header read;
  return DecodeHeader(With(Bytes(EncodeHeader(PageAnswer())), at, value), kFault, &read);
}

WireError DecodeHelloWith(size_t at, int value) {
  Hello read;
  return DecodeHello(With(Bytes(EncodeHello(AnyHello())), at, value), &read);
}

TEST(Crc32cTest, VectorsOfRfc3720) {
  std::array<std::byte, 32> bytes{};
  EXPECT_EQ(Crc32c(bytes), 0x8a9136aaU);
  bytes.fill(std::byte{0xff});
  EXPECT_EQ(Crc32c(bytes), 0x62a8ab43U);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  EXPECT_EQ(Crc32c(bytes), 0x46dd794eU);
  EXPECT_EQ(Crc32c(std::span(bytes).subspan(11), Crc32c(std::span(bytes).first(11))), 0x46dd794eU);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(31 - i);
  EXPECT_EQ(Crc32c(bytes), 0x113fdb5cU);
  const std::vector<std::byte> read_command = FromHex(
      "01c00000 00000000 00000000 00000000 14000000 00000400 00000014 00000018 28000000 00000000 02000000 00000000");
  EXPECT_EQ(Crc32c(read_command), 0xd9963a56U);
  EXPECT_EQ(Crc32c(std::as_bytes(std::span("123456789", 9))), 0xe3069283U);
  EXPECT_EQ(Crc32c({}), 0U);
}

TEST(WireTest, BytesOfAHeader) {
  EXPECT_EQ(Bytes(EncodeHeader(PageAnswer())), FromHex("484b4d31 01 00 3412 035a 0300 24232221"
                                                       "1817161514131211 3837363534333231"
                                                       "4847464544434241 5857565554535251"
                                                       "6867666564636261 7877767574737271"
                                                       "05000c0b0a000000 1000 0000 00100000 84838281 81334cb6"));
}

TEST(WireTest, BytesOfAHeaderWithoutSlot) {
  EXPECT_EQ(Bytes(EncodeHeader(Plain(kInvalidate))), FromHex("484b4d31 01 01 1000 0000 ffff 00000000"
                                                             "0000000000000000 0000000000000000"
                                                             "0000000000000000 0000000000000000"
                                                             "0100000000000000 0000000000000000"
                                                             "0000000000000000 0000 0000 00000000 00000000 4e2a623d"));
}

TEST(WireTest, BytesOfAHello) {
  EXPECT_EQ(Bytes(EncodeHello(AnyHello())), FromHex("484b4831 01 03 02 00 2100 3100 1817161514131211"
                                                    "4847464544434241 5857565554535251"
                                                    "6867666564636261 7877767574737271 1f0991ad"));
}

TEST(WireTest, BytesOfASetup) {
  const SetupBody setup{.window_messages = 0x0102,
                        .heartbeat_ms = 0x11121314,
                        .first_slot_counter = 0x2122232425262728,
                        .slots_address = 0x3132333435363738,
                        .slots_key = 0x41424344,
                        .slot_stride = 0x51525354,
                        .slot_count = 0x0161};
  EXPECT_EQ(Bytes(EncodeSetup(setup)), FromHex("02010000 14131211 2827262524232221 3837363534333231"
                                               "44434241 54535251 61010000 00000000"));
  SetupBody read;
  ASSERT_EQ(DecodeSetup(EncodeSetup(setup), &read), WireError::kNone);
  EXPECT_EQ(EncodeSetup(read), EncodeSetup(setup));
}

TEST(WireTest, HeaderRoundTrip) {
  Header read;
  ASSERT_EQ(DecodeHeader(EncodeHeader(PageAnswer()), kFault, &read), WireError::kNone);
  EXPECT_EQ(EncodeHeader(read), EncodeHeader(PageAnswer()));
  EXPECT_TRUE(read.message.answer);
  EXPECT_EQ(read.message.slot_node, NodeId(3));
  EXPECT_EQ(read.message.slot, PageAnswer().message.slot);
  EXPECT_EQ(read.message.gfn, PageAnswer().message.gfn);
  EXPECT_EQ(read.payload_bytes, kFaultSlotBytes);
}

TEST(WireTest, EveryTruncationIsSeen) {
  const auto header = EncodeHeader(PageAnswer());
  const auto hello = EncodeHello(AnyHello());
  const auto setup = EncodeSetup({.window_messages = 8});
  Header read;
  Hello read_hello;
  SetupBody read_setup;
  for (size_t size = 0; size < kHeaderBytes; ++size) {
    EXPECT_EQ(DecodeHeader(std::span(header).first(size), kFault, &read), WireError::kTruncated);
  }
  for (size_t size = 0; size < kHelloBytes; ++size) {
    EXPECT_EQ(DecodeHello(std::span(hello).first(size), &read_hello), WireError::kTruncated);
  }
  for (size_t size = 0; size < kSetupBytes; ++size) {
    EXPECT_EQ(DecodeSetup(std::span(setup).first(size), &read_setup), WireError::kLength);
  }
}

TEST(WireTest, EveryFlippedBitIsSeenAndChangesNothing) {
  const auto good = EncodeHeader(PageAnswer());
  for (size_t bit = 0; bit < kHeaderBytes * 8; ++bit) {
    auto bytes = good;
    bytes[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
    Header read;
    const WireError error = DecodeHeader(bytes, kFault, &read);
    const WireError expected = bit < 32 ? WireError::kMagic : bit < 40 ? WireError::kVersion : WireError::kHeaderCrc;
    // Version 1 with its lowest bit flipped is 0; no other single flip gives a version that is read.
    EXPECT_EQ(error, expected) << "bit " << bit;
    EXPECT_EQ(EncodeHeader(read), EncodeHeader(Header())) << "bit " << bit;
  }
  const auto good_hello = EncodeHello(AnyHello());
  for (size_t bit = 0; bit < kHelloBytes * 8; ++bit) {
    auto bytes = good_hello;
    bytes[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
    Hello read;
    EXPECT_NE(DecodeHello(bytes, &read), WireError::kNone) << "bit " << bit;
    EXPECT_EQ(read.session, 0U);
  }
}

TEST(WireTest, EveryFlippedBitOfBodyAndPayloadIsSeen) {
  std::vector<std::byte> body(16, std::byte{7}), payload(kFaultSlotBytes, std::byte{9});
  Header header = PageAnswer();
  SetPayloadCrc(body, payload, &header);
  EXPECT_EQ(CheckPayload(header, body, payload), WireError::kNone);
  for (auto* part : {&body, &payload}) {
    for (size_t bit = 0; bit < part->size() * 8; ++bit) {
      (*part)[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
      ASSERT_EQ(CheckPayload(header, body, payload), WireError::kPayloadCrc) << bit;
      (*part)[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
    }
  }
  EXPECT_EQ(CheckPayload(header, body, std::span(payload).first(4095)), WireError::kLength);
  header.has_payload_crc = false;
  EXPECT_EQ(CheckPayload(header, body, payload), WireError::kPayloadCrc);
}

TEST(WireTest, VersionsNAndNMinusOne) {
  Header header = PageAnswer(), read;
  Hello hello = AnyHello(), read_hello;
  for (const auto& [version, accepted] : {std::pair{0, false}, {4, false}, {5, true}, {6, true}, {7, false}}) {
    header.version = hello.version = static_cast<uint8_t>(version);
    const WireError expected = accepted ? WireError::kNone : WireError::kVersion;
    EXPECT_EQ(DecodeHeader(EncodeHeader(header), kFault, &read, 6), expected) << version;
    EXPECT_EQ(DecodeHello(EncodeHello(hello), &read_hello, 6), expected) << version;
  }
  EXPECT_EQ(read.version, 6);
  EXPECT_TRUE(AcceptsVersion(kWireVersion));
  EXPECT_FALSE(AcceptsVersion(0, 1));
  EXPECT_FALSE(AcceptsVersion(0, 255));
}

TEST(WireTest, ReservedBitsMustBeZero) {
  for (int bit = 2; bit < 8; ++bit) EXPECT_EQ(DecodeWith(8, 3 | 1 << bit), WireError::kReserved) << bit;
  EXPECT_EQ(DecodeWith(74, 1), WireError::kReserved);
  EXPECT_EQ(DecodeWith(75, 0x80), WireError::kReserved);
  EXPECT_EQ(DecodeHelloWith(7, 1), WireError::kReserved);
  auto setup = EncodeSetup({.window_messages = 8});
  setup[36] = std::byte{1};
  SetupBody read;
  EXPECT_EQ(DecodeSetup(setup, &read), WireError::kReserved);
}

TEST(WireTest, ClassIsTheConnections) {
  Header read;
  EXPECT_EQ(DecodeHeader(EncodeHeader(Plain(kInvalidate)), kFault, &read), WireError::kClass);
  EXPECT_EQ(DecodeHeader(EncodeHeader(Plain(kInvalidate)), kInvalidate, &read), WireError::kNone);
  EXPECT_EQ(DecodeWith(5, 3), WireError::kClass);
  EXPECT_EQ(DecodeHelloWith(6, 3), WireError::kClass);
}

TEST(WireTest, TypesOfTheTransport) {
  for (const MessageClass message_class : {kFault, kInvalidate, kBulk}) {
    for (uint16_t type = 0; type <= kFirstUserType; ++type) {
      Header header = Plain(message_class, type);
      const bool barrier = type == static_cast<uint16_t>(OwnType::kBarrier);
      const bool numbered = type == kFirstUserType || barrier;
      const bool known = type >= 1 && type <= 5 &&
                         (type != static_cast<uint16_t>(OwnType::kHeartbeat) || message_class == kInvalidate);
      header.sequence = numbered ? 1 : 0;
      header.body_bytes = type == static_cast<uint16_t>(OwnType::kSetup) ? kSetupBytes : 0;
      if (!known && type < kFirstUserType) {
        EXPECT_EQ(Decode(header), WireError::kType) << type;
        continue;
      }
      EXPECT_EQ(Decode(header), WireError::kNone) << type;
      header.sequence = numbered ? 0 : 1;
      EXPECT_EQ(Decode(header), WireError::kSequence) << type;
      header.body_bytes = 1;  // no message of the transport's own has this length
      const WireError too_long = type < kFirstUserType ? WireError::kLength : WireError::kSequence;
      EXPECT_EQ(Decode(header), too_long) << type;
    }
  }
}

TEST(WireTest, LengthsHaveLimits) {
  Header header = Plain(kFault);
  header.body_bytes = kMaxBodyBytes;
  EXPECT_EQ(Decode(header), WireError::kNone);
  header.body_bytes = kMaxBodyBytes + 1;
  EXPECT_EQ(Decode(header), WireError::kLength);

  header = PageAnswer();
  header.payload_bytes = kFaultSlotBytes + 1;
  EXPECT_EQ(Decode(header), WireError::kLength);
  header.payload_bytes = 0xffffffff;
  EXPECT_EQ(Decode(header), WireError::kLength);
  header.payload_bytes = 0;
  EXPECT_EQ(Decode(header), WireError::kNone);
  header.payload_bytes = 1;
  header.message.answer = false;
  EXPECT_EQ(Decode(header), WireError::kLength);

  header = PageAnswer();
  header.message.message_class = kBulk;
  header.message.slot = ReceiveSlot(kBulk);
  header.payload_bytes = kBulkSlotBytes;
  EXPECT_EQ(Decode(header), WireError::kNone);
  header.payload_bytes = kBulkSlotBytes + 1;
  EXPECT_EQ(Decode(header), WireError::kLength);
}

TEST(WireTest, SlotsFitTheirMessage) {
  Header header = PageAnswer();
  header.message.slot = ReceiveSlot(kBulk);
  EXPECT_EQ(Decode(header), WireError::kSlot) << "a slot of another class";
  header.message.slot = SlotName{kFault, SlotUse::kSend, 5, 1}.Encode();
  EXPECT_EQ(Decode(header), WireError::kSlot) << "a send slot";
  header.message.slot = ReceiveSlot(kFault, 5, 0);
  EXPECT_EQ(Decode(header), WireError::kSlot) << "a use that never was";
  header.message.slot = SlotId();
  header.payload_bytes = 0;
  EXPECT_EQ(Decode(header), WireError::kSlot) << "an answer to nothing";
  EXPECT_EQ(DecodeWith(10, kMaxNodes), WireError::kSlot) << "a node that cannot be";
  EXPECT_EQ(DecodeWith(11, 0xff), WireError::kSlot);
  header = Plain(kInvalidate);
  header.message.slot = ReceiveSlot(kFault);
  EXPECT_EQ(Decode(header), WireError::kSlot) << "a slot on the class without slots";
  header = Plain(kFault, static_cast<uint16_t>(OwnType::kBarrier));
  header.message.slot = ReceiveSlot(kFault);
  EXPECT_EQ(Decode(header), WireError::kSlot) << "a slot in the transport's own message";
}

TEST(WireTest, NoPayloadCrcIsZero) {
  Header header = Plain(kFault);
  header.payload_crc = 1;
  EXPECT_EQ(Decode(header), WireError::kPayloadCrc);
}

TEST(WireTest, HelloRoundTripAndItsRules) {
  Hello read;
  ASSERT_EQ(DecodeHello(EncodeHello(AnyHello()), &read), WireError::kNone);
  EXPECT_EQ(EncodeHello(read), EncodeHello(AnyHello()));
  std::vector<std::byte> padded = Bytes(EncodeHello(AnyHello()));
  padded.resize(196);
  EXPECT_EQ(DecodeHello(padded, &read), WireError::kNone);

  for (int kind = 0; kind < 256; ++kind) {
    const bool known = (kind >= 1 && kind <= 3) || (kind >= 16 && kind <= 23);
    EXPECT_EQ(DecodeHelloWith(5, kind), known ? WireError::kNone : WireError::kType) << kind;
    EXPECT_EQ(HelloKindName(static_cast<HelloKind>(kind)) != "unknown", known) << kind;
  }
  EXPECT_EQ(DecodeHelloWith(8, kMaxNodes), WireError::kValue);
  EXPECT_EQ(DecodeHelloWith(11, 1), WireError::kValue);

  Hello hello = AnyHello();
  hello.session = 0;
  EXPECT_EQ(DecodeHello(EncodeHello(hello), &read), WireError::kValue);
  hello.kind = HelloKind::kRejectCluster;
  EXPECT_EQ(DecodeHello(EncodeHello(hello), &read), WireError::kNone);
  hello = AnyHello();
  hello.peer_session = 0;
  EXPECT_EQ(DecodeHello(EncodeHello(hello), &read), WireError::kSequence);
}

TEST(WireTest, ClustersAreToldApart) {
  EXPECT_EQ(ClusterHash("abc"), 0xeacf018fbf1678baU);  // FIPS 180-4: ba7816bf 8f01cfea
  EXPECT_NE(ClusterHash("default"), ClusterHash("Default"));
}

TEST(WireTest, SetupValuesHaveLimits) {
  SetupBody read;
  EXPECT_EQ(DecodeSetup(EncodeSetup({.window_messages = kMinWindow - 1}), &read), WireError::kValue);
  EXPECT_EQ(DecodeSetup(EncodeSetup({.window_messages = kMinWindow}), &read), WireError::kNone);
  EXPECT_EQ(DecodeSetup(EncodeSetup({.window_messages = kMaxWindow}), &read), WireError::kNone);
  EXPECT_EQ(DecodeSetup(EncodeSetup({.window_messages = kMaxWindow + 1}), &read), WireError::kValue);
  EXPECT_EQ(DecodeSetup(EncodeSetup({.window_messages = 8, .slot_count = kMaxSlots + 1}), &read), WireError::kValue);
  EXPECT_EQ(DecodeSetup(EncodeSetup({.window_messages = 8, .first_slot_counter = 0}), &read), WireError::kValue);
}

TEST(WireTest, EveryErrorHasAName) {
  for (size_t error = 0; error < kWireErrors; ++error) {
    EXPECT_NE(WireErrorName(static_cast<WireError>(error)), "unknown") << error;
  }
  EXPECT_EQ(WireErrorName(static_cast<WireError>(kWireErrors)), "unknown");
}

}  // namespace
}  // namespace hk
