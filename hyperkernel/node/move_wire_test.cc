#include "hyperkernel/node/move_wire.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "hyperkernel/base/node_set.h"
#include "hyperkernel/node/machine_wire.h"
#include "hyperkernel/node/wire_testing.h"

namespace hk {
namespace {

Bytes Many(size_t count) {
  Bytes bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(i % 251);
  return bytes;
}

TEST(MoveWireTest, TheBytesAreThoseOfTheReadme) {
  EXPECT_EQ(Of(EncodeMoveOrder({.vcpu = VcpuId(0x102), .to = NodeId(5)})), Raw({1, 0, 2, 1, 5, 0, 0, 0}));
  EXPECT_EQ(EncodeMovePiece(VcpuId(0x102), Raw({9, 8, 7}), 1), Raw({1, 0, 2, 1, 1, 0, 0, 0, 3, 0, 0, 0, 8, 7}));
  EXPECT_EQ(EncodeMoveWord({.of = MoveWord::Of::kTarget, .took_ns = 0x1122334455667788, .refused = "no"}),
            Raw({1, 2, 0, 0, 0, 0, 0, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 'n', 'o'}));
  EXPECT_EQ(PackMoved({.id = VcpuId(1), .state = Raw({4, 5}), .local_apic = Raw({6}), .version = 0x102}),
            Raw({2, 1, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 0x30, 6, 4, 5}))
      << "three literals, by the format of LZ4 blocks";
}

TEST(MoveWireTest, AVcpuComesBackAsItWas) {
  for (const size_t bytes : {size_t{0}, size_t{1}, kMostPieceBytes, size_t{8000}, kMostVcpuStateBytes}) {
    const MovedVcpu moved{.id = VcpuId(3), .state = Many(bytes), .local_apic = Many(343), .version = 7};
    const Bytes packed = PackMoved(moved);
    Bytes come;
    while (come.size() < packed.size()) {
      const Bytes body = EncodeMovePiece(VcpuId(3), packed, come.size());
      ASSERT_LE(body.size(), kMaxBodyBytes);
      const auto piece = DecodeMovePiece(body);
      ASSERT_TRUE(piece.ok()) << piece.status();
      EXPECT_EQ(piece->at, come.size());
      EXPECT_EQ(piece->total, packed.size());
      come.insert(come.end(), piece->bytes.begin(), piece->bytes.end());
    }
    const auto unpacked = UnpackMoved(VcpuId(3), come);
    ASSERT_TRUE(unpacked.ok()) << unpacked.status();
    EXPECT_EQ(unpacked->state, moved.state);
    EXPECT_EQ(unpacked->local_apic, moved.local_apic);
    EXPECT_EQ(unpacked->version, 7u);
  }
}

TEST(MoveWireTest, AVcpuThatNoNodeSendsIsRefused) {
  const Bytes packed = PackMoved({.id = VcpuId(1), .state = {}, .local_apic = Raw({6}), .version = 1});
  for (size_t cut = 1; cut <= packed.size(); ++cut) {
    EXPECT_FALSE(UnpackMoved(VcpuId(1), std::span(packed).first(packed.size() - cut)).ok()) << cut;
  }
  EXPECT_FALSE(UnpackMoved(VcpuId(1), Many(kMostMovedBytes + 1)).ok());
  Bytes apic = PackMoved({.id = VcpuId(1), .state = Many(2000), .local_apic = {}, .version = 1});
  apic[4] = std::byte{1}, apic[5] = std::byte{4};  // 1025
  EXPECT_FALSE(UnpackMoved(VcpuId(1), apic).ok());
  // More, or less, than it says it is; more than any is.
  for (const auto& [at, value] : {std::pair(8, 1), std::pair(9, 0), std::pair(10, 8), std::pair(11, 0xff)}) {
    Bytes wrong = PackMoved({.id = VcpuId(1), .state = Many(2000), .local_apic = {}, .version = 1});
    ASSERT_NE(wrong[at], std::byte(value));
    wrong[at] = std::byte(value);
    EXPECT_FALSE(UnpackMoved(VcpuId(1), wrong).ok()) << at;
  }
}

TEST(MoveWireTest, WhatNoNodeSendsIsRefused) {
  const Bytes order = Of(EncodeMoveOrder({.vcpu = VcpuId(1), .to = NodeId(5)}));
  EXPECT_EQ(*DecodeMoveOrder(order), (MoveOrder{.vcpu = VcpuId(1), .to = NodeId(5)}));
  for (const size_t at : {size_t{0}, size_t{1}, size_t{5}, size_t{6}, size_t{7}}) {  // format, node, rest
    Bytes bad = order;
    bad[at] = std::byte{0xff};
    EXPECT_FALSE(DecodeMoveOrder(bad).ok()) << at;
  }
  EXPECT_FALSE(DecodeMoveOrder(std::span(order).first(7)).ok());
  EXPECT_FALSE(DecodeMoveOrder(Of(EncodeMoveOrder({.vcpu = VcpuId(1), .to = NodeId(kMaxNodes)}))).ok());

  const Bytes piece = EncodeMovePiece(VcpuId(1), Many(10), 4);
  ASSERT_TRUE(DecodeMovePiece(piece).ok());
  EXPECT_FALSE(DecodeMovePiece(std::span(piece).first(kMovePieceHeadBytes)).ok()) << "no bytes";
  for (const size_t at : {size_t{0}, size_t{1}, size_t{4}, size_t{7}, size_t{11}}) {  // format, at, total
    Bytes bad = piece;
    bad[at] = std::byte{0xff};
    EXPECT_FALSE(DecodeMovePiece(bad).ok()) << at;
  }
  Bytes beyond = piece;
  beyond.push_back({});
  EXPECT_FALSE(DecodeMovePiece(beyond).ok());

  const Bytes word = EncodeMoveWord({.of = MoveWord::Of::kSource, .took_ns = 1, .refused = ""});
  EXPECT_EQ(DecodeMoveWord(word)->took_ns, 1u);
  for (const size_t at : {size_t{0}, size_t{1}, size_t{2}, size_t{7}}) {
    Bytes bad = word;
    bad[at] = std::byte{0xff};
    EXPECT_FALSE(DecodeMoveWord(bad).ok()) << at;
  }
  EXPECT_FALSE(DecodeMoveWord(std::span(word).first(kMoveWordHeadBytes - 1)).ok());
}

TEST(MoveWireTest, ARefusalIsCutAndFitToBePrinted) {
  const auto word = DecodeMoveWord(
      EncodeMoveWord({.of = MoveWord::Of::kTarget, .took_ns = 0, .refused = "\n" + std::string(1000, 'x')}));
  ASSERT_TRUE(word.ok()) << word.status();
  EXPECT_EQ(word->refused, "?" + std::string(kMostRefusalBytes - 1, 'x'));
}

}  // namespace
}  // namespace hk
