#include "hyperkernel/node/machine_wire.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "hyperkernel/node/wire_testing.h"

namespace hk {
namespace {

constexpr std::array<std::byte, kMaxExitBytes> Data(uint64_t value) {
  std::array<std::byte, kMaxExitBytes> data{};
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(value >> (8 * i));
  return data;
}

TEST(MachineWireTest, TheBytesAreThoseOfTheReadme) {
  const ExitRequest write{
      .kind = ExitKind::kMmioWrite, .size = 4, .address = 0x1122334455667788, .data = Data(0xa1b2c3d4)};
  EXPECT_EQ(Of(EncodeExitRequest(write)), Raw({1,    4,    4,    0,    0,    0,    0,    0,    0x88, 0x77, 0x66, 0x55,
                                               0x44, 0x33, 0x22, 0x11, 0xd4, 0xc3, 0xb2, 0xa1, 0,    0,    0,    0}));
  const ExitAnswer answer{.kind = ExitKind::kPortRead, .size = 2, .data = Data(0xbeef)};
  EXPECT_EQ(Of(EncodeExitAnswer(answer)), Raw({1, 1, 2, 0, 0, 0, 0, 0, 0xef, 0xbe, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(Of(EncodeFailure(VcpuId(0x102), "no").span()), Raw({1, 0, 2, 1, 'n', 'o'}));
  EXPECT_EQ(Of(EncodeDoorbell(Gpa(0xc100b006))), Raw({1, 0, 0, 0, 0, 0, 0, 0, 4, 0xb0, 0, 0xc1, 0, 0, 0, 0}));
  EXPECT_EQ(Of(EncodePing()), Raw({1, 0, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(Of(EncodePong(0x1122334455667788)),
            Raw({1, 0, 0, 0, 0, 0, 0, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11}));
}

TEST(MachineWireTest, EveryAccessComesBackAsItWas) {
  for (const ExitKind kind : {ExitKind::kPortRead, ExitKind::kPortWrite, ExitKind::kMmioRead, ExitKind::kMmioWrite}) {
    const bool port = kind == ExitKind::kPortRead || kind == ExitKind::kPortWrite;
    for (uint8_t size = 0; size <= 9; ++size) {
      const bool right = port ? size == 1 || size == 2 || size == 4 : size >= 1 && size <= 8;
      const uint64_t mask = size >= 8 ? ~uint64_t{0} : (uint64_t{1} << 8 * size) - 1;
      const ExitRequest request{.kind = kind, .size = size, .address = 0xffff, .data = Data(IsRead(kind) ? 0 : mask)};
      EXPECT_EQ(IsExit(request), right) << static_cast<int>(kind) << " " << static_cast<int>(size);
      if (!right) continue;
      const auto read = DecodeExitRequest(EncodeExitRequest(request));
      ASSERT_TRUE(read.ok());
      EXPECT_EQ(*read, request);
      const ExitAnswer answer{.kind = kind, .size = size, .data = Data(IsRead(kind) ? mask : 0)};
      const auto answered = DecodeExitAnswer(EncodeExitAnswer(answer));
      ASSERT_TRUE(answered.ok());
      EXPECT_EQ(*answered, answer);
    }
  }
  const auto pong = DecodePong(EncodePong(~uint64_t{0}));
  ASSERT_TRUE(pong.ok());
  EXPECT_EQ(*pong, ~uint64_t{0});
  EXPECT_TRUE(DecodePing(EncodePing()).ok());
}

TEST(MachineWireTest, WhatNoNodeSendsIsRefused) {
  const auto request = [](size_t at, int value, ExitKind kind = ExitKind::kMmioRead) {
    ExitRequest good{.kind = kind, .size = 4, .address = 0x20, .data = {}};
    auto body = EncodeExitRequest(good);
    body[at] = static_cast<std::byte>(value);
    return DecodeExitRequest(body).ok();
  };
  EXPECT_TRUE(request(8, 1));
  for (const int value : {0, 2, 0xff}) EXPECT_FALSE(request(0, value)) << "format " << value;
  for (const int value : {0, 5, 0xff}) EXPECT_FALSE(request(1, value)) << "kind " << value;
  for (const int value : {0, 9, 0xff}) EXPECT_FALSE(request(2, value)) << "size " << value;
  for (size_t at = 3; at < 8; ++at) EXPECT_FALSE(request(at, 1)) << "reserved byte " << at;
  for (size_t at = 16; at < 24; ++at) EXPECT_FALSE(request(at, 1)) << "a read with data at " << at;
  for (size_t at = 20; at < 24; ++at) EXPECT_FALSE(request(at, 1, ExitKind::kMmioWrite)) << "data beyond the size";
  EXPECT_FALSE(request(2, 3, ExitKind::kPortRead));
  EXPECT_FALSE(request(2, 8, ExitKind::kPortRead));
  EXPECT_FALSE(request(10, 1, ExitKind::kPortRead)) << "no port has such a number";

  const auto answer = [](size_t at, int value, ExitKind kind = ExitKind::kMmioRead) {
    auto body = EncodeExitAnswer({.kind = kind, .size = 4, .data = {}});
    body[at] = static_cast<std::byte>(value);
    return DecodeExitAnswer(body).ok();
  };
  EXPECT_TRUE(answer(8, 1));
  for (const int value : {0, 2}) EXPECT_FALSE(answer(0, value));
  for (const int value : {0, 5}) EXPECT_FALSE(answer(1, value));
  for (const int value : {0, 9}) EXPECT_FALSE(answer(2, value));
  for (size_t at = 3; at < 8; ++at) EXPECT_FALSE(answer(at, 1));
  for (size_t at = 12; at < 16; ++at) EXPECT_FALSE(answer(at, 1));
  EXPECT_FALSE(answer(8, 1, ExitKind::kMmioWrite));

  for (size_t at = 0; at < 8; ++at) {
    auto ping = EncodePing();
    ping[at] = std::byte{7};
    EXPECT_FALSE(DecodePing(ping).ok());
    auto pong = EncodePong(5);
    pong[at] = std::byte{7};
    EXPECT_FALSE(DecodePong(pong).ok());
    auto doorbell = EncodeDoorbell(Gpa(0xc0003000));
    doorbell[at] = std::byte{7};
    EXPECT_FALSE(DecodeDoorbell(doorbell).ok());
  }
}

TEST(MachineWireTest, ADoorbellIsWhereOneMayBe) {
  const auto decoded = [](uint64_t address) {
    std::array<std::byte, kDoorbellBytes> body{std::byte{1}};
    for (size_t i = 0; i < 8; ++i) body[8 + i] = static_cast<std::byte>(address >> (8 * i));
    return DecodeDoorbell(body).ok();
  };
  for (const uint64_t bar : {0xc0000000u, 0xc0008000u, 0xdfff8000u}) {
    EXPECT_TRUE(decoded(bar + 0x3000));
    EXPECT_TRUE(decoded(bar + 0x30fc));
    EXPECT_FALSE(decoded(bar + 0x3001));
    EXPECT_FALSE(decoded(bar + 0x3100));
    EXPECT_FALSE(decoded(bar + 0x2ffc));
    for (const uint64_t region : {0u, 0x1000u, 0x2000u, 0x4000u, 0x5000u}) EXPECT_FALSE(decoded(bar + region));
    EXPECT_FALSE(decoded(1ULL << 32 | bar | 0x3000));
  }
  for (const uint64_t outside : {0x3000ULL, 0xbfffb000ULL, 0xe0003000ULL, 0xfec03000ULL, ~0xfffULL}) {
    EXPECT_FALSE(decoded(outside));
  }
}

TEST(MachineWireTest, OnlyTheRightLengthIsTaken) {
  const Bytes bytes(300, std::byte{1});
  for (size_t size = 0; size <= bytes.size(); ++size) {
    const auto cut = [size](std::span<const std::byte> body) {
      Bytes copy = Of(body);
      copy.resize(size);
      return copy;
    };
    EXPECT_EQ(DecodeExitRequest(cut(EncodeExitRequest({}))).ok(), size == kExitRequestBytes);
    EXPECT_EQ(DecodeExitAnswer(cut(EncodeExitAnswer({}))).ok(), size == kExitAnswerBytes);
    EXPECT_EQ(DecodeDoorbell(cut(EncodeDoorbell(Gpa(0xc0003000)))).ok(), size == kDoorbellBytes);
    EXPECT_EQ(DecodePing(cut(EncodePing())).ok(), size == kPingBytes);
    EXPECT_EQ(DecodePong(cut(EncodePong(1))).ok(), size == kPongBytes);
    EXPECT_EQ(DecodeFailure(cut(EncodeFailure(VcpuId(1), std::string(252, 'a')).span())).ok(),
              size >= kFailureHeadBytes && size <= kMaxBodyBytes);
  }
}

TEST(MachineWireTest, AReasonIsCutToFitAndFitToBePrinted) {
  const FailureBody body = EncodeFailure(VcpuId(254), std::string(1000, 'x'));
  EXPECT_EQ(body.size, kMaxBodyBytes);
  auto failure = DecodeFailure(body.span());
  ASSERT_TRUE(failure.ok());
  EXPECT_EQ(failure->vcpu, VcpuId(254));
  EXPECT_EQ(failure->reason, std::string(kMaxFailureReason, 'x'));
  failure = DecodeFailure(EncodeFailure(VcpuId(0), "a\nb\x1b[31m\xff").span());
  ASSERT_TRUE(failure.ok());
  EXPECT_EQ(failure->reason, "a?b?[31m?");
  failure = DecodeFailure(EncodeFailure(VcpuId(0), "").span());
  ASSERT_TRUE(failure.ok());
  EXPECT_EQ(failure->reason, "");
}

TEST(MachineWireTest, WhatIsReadIsWrittenTheSame) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 100'000; ++i) {
    Bytes body(i % 2 == 0 ? kExitRequestBytes : kExitAnswerBytes);
    // Mostly zeroes, so that some are right.
    for (std::byte& each : body) each = static_cast<std::byte>(random() % 3 == 0 ? random() % 9 : 0);
    body[0] = std::byte{1};
    if (const auto request = DecodeExitRequest(body); request.ok()) {
      EXPECT_EQ(Of(EncodeExitRequest(*request)), body);
    }
    if (const auto answer = DecodeExitAnswer(body); answer.ok()) {
      EXPECT_EQ(Of(EncodeExitAnswer(*answer)), body);
    }
  }
}

TEST(MachineWireTest, HeadersThatNoNodeSends) {
  for (uint16_t type = kMachineInterruptType; type <= kMachineDoorbellType; ++type) {
    Message good;
    good.type = type;
    good.message_class = ClassOfMachineType(type);
    const bool numbered = type != kMachineInterruptType && type != kMachineFailureType && type != kMachineDoorbellType;
    good.transaction = numbered ? 9 : 0;
    EXPECT_TRUE(CheckMachineHeader(good, {}).ok()) << type;
    const auto refused = [&](auto change) {
      Message bad = good;
      change(bad);
      return !CheckMachineHeader(bad, {}).ok();
    };
    EXPECT_TRUE(refused([&](Message& m) { m.transaction = numbered ? 0 : 1; }));
    EXPECT_TRUE(refused([](Message& m) { m.message_class = MessageClass::kBulk; }));
    EXPECT_TRUE(refused([](Message& m) {
      m.message_class = m.message_class == MessageClass::kFault ? MessageClass::kInvalidate : MessageClass::kFault;
    }));
    EXPECT_TRUE(refused([](Message& m) { m.flags = 1; }));
    EXPECT_TRUE(refused([](Message& m) { m.answer = true; }));
    EXPECT_TRUE(refused([](Message& m) { m.slot = SlotId(1); }));
    EXPECT_TRUE(refused([](Message& m) { m.gfn = Gfn(1); }));
    EXPECT_TRUE(refused([](Message& m) { m.epoch = Epoch(1); }));
    EXPECT_FALSE(CheckMachineHeader(good, Bytes(1)).ok());
  }
  for (const uint16_t type : {kFirstUserType, static_cast<uint16_t>(kMachineInterruptType - 1),
                              static_cast<uint16_t>(kMachineDoorbellType + 1), uint16_t{0xffff}}) {
    Message message;
    message.type = type;
    EXPECT_FALSE(CheckMachineHeader(message, {}).ok()) << type;
  }
}

}  // namespace
}  // namespace hk
