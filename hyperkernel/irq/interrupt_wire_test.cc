// Messages between nodes as bytes: what is written is read, and nothing else.
#include "hyperkernel/irq/interrupt_wire.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace hk {
namespace {

using Kind = InterruptItem::Kind;
using Bytes = std::vector<std::byte>;

Bytes Of(std::initializer_list<int> values) {
  Bytes bytes;
  for (int value : values) bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

// kInvalidArgument if any item is bad; otherwise their number.
absl::StatusOr<int> Count(const Bytes& bytes) {
  InterruptReader reader(bytes);
  InterruptItem item;
  for (int count = 0;; ++count) {
    const auto next = reader.Next(&item);
    if (!next.ok()) return next.status();
    if (!*next) return count;
  }
}

TEST(InterruptWire, TheBytesOfADelivery) {
  PendingInterrupts content;
  content.Add({.vector = 0x51, .level = true, .pin = 3, .generation = 0x01020304});
  content.Add({.mode = DeliveryMode::kNmi});
  InterruptWriter writer;
  ASSERT_TRUE(writer.Put({.kind = Kind::kDeliver,
                          .vcpu = VcpuId(0x21),
                          .version = 5,
                          .serial = 6,
                          .origin = NodeId(2),
                          .content = content}));
  ASSERT_TRUE(writer.Put({.kind = Kind::kEoi, .eoi = {.pin = 23, .generation = 0xaabbccdd}}));
  const Bytes wanted = Of({1,                                                    // format
                           1, 0x21, 0,    5,    0,    0,   0, 6, 0, 0, 0, 2, 0,  // Deliver
                           4, 0,    0,    2,    0,    4,   0, 0, 2, 0,           // vector 0x51; it is level-triggered
                           1, 3,    0x51, 4,    3,    2,   1, 1, 1, 0,           // pin 3; an NMI
                           5, 23,   0xdd, 0xcc, 0xbb, 0xaa});                    // EOI
  EXPECT_EQ(Bytes(writer.bytes().begin(), writer.bytes().end()), wanted);
  InterruptReader reader(wanted);
  InterruptItem item;
  ASSERT_TRUE(*reader.Next(&item));
  EXPECT_EQ(item.vcpu, VcpuId(0x21));
  EXPECT_EQ(item.origin, NodeId(2));
  EXPECT_EQ(item.content.pins, 8u);
  EXPECT_EQ(item.content.deliveries[3].generation, 0x01020304u);
  EXPECT_TRUE(item.content.level.Test(0x51));
  ASSERT_TRUE(*reader.Next(&item));
  EXPECT_EQ(item.eoi, (LevelEoi{23, 0xaabbccdd}));
  EXPECT_FALSE(*reader.Next(&item));
}

TEST(InterruptWire, TheFullestDeliveryFitsAMessage) {
  PendingInterrupts content;
  for (uint32_t vector = 0; vector < 256; ++vector) {
    content.Add({.vector = static_cast<uint8_t>(vector), .level = true, .pin = static_cast<uint8_t>(vector % 24)});
  }
  for (auto mode : {DeliveryMode::kInit, DeliveryMode::kStartup, DeliveryMode::kNmi, DeliveryMode::kNmi}) {
    content.Add({.mode = mode});
  }
  InterruptWriter writer;
  const InterruptItem item{.kind = Kind::kDeliver, .version = 1, .content = content};
  EXPECT_TRUE(writer.Put(item));
  EXPECT_LE(writer.bytes().size(), kMaxInterruptBytes);
  const Bytes before(writer.bytes().begin(), writer.bytes().end());
  EXPECT_EQ(*Count(before), 1);
  EXPECT_FALSE(writer.Put(item));
  EXPECT_EQ(Bytes(writer.bytes().begin(), writer.bytes().end()), before);
}

TEST(InterruptWire, WhatNoCorrectNodeSends) {
  const Bytes known = Of({1, 4, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0});
  EXPECT_EQ(*Count(known), 1);
  const Bytes start = Of({1, 1, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0});
  const auto deliver = [&](std::initializer_list<int> content) {
    Bytes bytes = start;
    for (int value : content) bytes.push_back(static_cast<std::byte>(value));
    return bytes;
  };
  ASSERT_EQ(*Count(deliver({4, 1, 0, 0, 0, 0, 0, 0})), 1);
  const std::pair<const char*, Bytes> cases[] = {
      {"nothing", {}},
      {"no items", Of({1})},
      {"another format", Of({2, 4, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0})},
      {"kind 0", Of({1, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0})},
      {"kind 6", Of({1, 6, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0})},
      {"version 0", Of({1, 4, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0})},
      {"cut short", Bytes(known.begin(), known.end() - 1)},
      {"too long", Bytes(kMaxInterruptBytes + 1, std::byte{1})},
      {"EOI of pin 24", Of({1, 5, 24, 0, 0, 0, 0})},
      {"hint above all priorities", Of({1, 2, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 1})},
      {"APIC mode 3", Of({1, 3, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 3, 0, 0})},
      {"logical model 3", Of({1, 3, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 3, 0})},
      {"an empty delivery", deliver({0, 0, 0, 0})},
      {"a word of no vectors", deliver({4, 0, 0, 0, 0, 0, 0, 0})},
      {"level-triggered without a request", deliver({4, 1, 0, 0, 0, 4, 2, 0, 0, 0, 0, 0})},
      {"pin 24", deliver({4, 1, 0, 0, 0, 0, 1, 24, 64, 0, 0, 0, 0, 0})},
      {"a pin whose vector is not there", deliver({4, 1, 0, 0, 0, 0, 1, 1, 65, 0, 0, 0, 0, 0})},
      {"a pin twice", deliver({4, 1, 0, 0, 0, 0, 2, 1, 64, 0, 0, 0, 0, 1, 64, 0, 0, 0, 0, 0})},
      {"255 pins", deliver({4, 1, 0, 0, 0, 0, 255, 1, 64, 0, 0, 0, 0})},
      {"five events", deliver({0, 0, 0, 5, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0})},
      {"three NMIs", deliver({0, 0, 0, 3, 1, 0, 1, 0, 1, 0})},
      {"an INIT behind an NMI", deliver({0, 0, 0, 2, 1, 0, 2, 0})},
      {"an event of no kind", deliver({0, 0, 0, 1, 0, 0})},
      {"an NMI with a vector", deliver({0, 0, 0, 1, 1, 9})},
  };
  for (const auto& [what, bytes] : cases) {
    EXPECT_EQ(Count(bytes).status().code(), absl::StatusCode::kInvalidArgument) << what;
  }
}

// Any content comes back, and what comes back is written the same.
TEST(InterruptWire, RandomContentsSurvive) {
  std::mt19937 random(1);
  for (int i = 0; i < 5000; ++i) {
    PendingInterrupts content;
    for (uint32_t n = 1 + random() % 20; n != 0; --n) {
      const uint32_t roll = random() % 8;
      content.Add({.mode = roll < 5 ? DeliveryMode::kFixed : static_cast<DeliveryMode>(roll - 1),
                   .vector = static_cast<uint8_t>(roll == 7 || roll < 5 ? random() : 0),
                   .level = random() % 2 == 0,
                   .pin = static_cast<uint8_t>(random() % 2 == 0 ? random() % 24 : kNoPin),
                   .generation = static_cast<uint32_t>(random() % 4)});
    }
    if (content.empty()) continue;
    InterruptWriter writer;
    ASSERT_TRUE(writer.Put({.kind = Kind::kDeliver, .version = 1, .content = content}));
    InterruptReader reader(writer.bytes());
    InterruptItem item;
    ASSERT_TRUE(*reader.Next(&item)) << i;
    InterruptWriter again;
    ASSERT_TRUE(again.Put(item));
    ASSERT_TRUE(std::ranges::equal(writer.bytes(), again.bytes())) << i;
    ASSERT_FALSE(*reader.Next(&item));
  }
}

}  // namespace
}  // namespace hk
