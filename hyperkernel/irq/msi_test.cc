#include "hyperkernel/irq/msi.h"

#include <gtest/gtest.h>

namespace hk {
namespace {

TEST(Msi, Fields) {
  EXPECT_EQ(DecodeMsi(0xfee05000, 0x41, false), (InterruptMessage{.destination = 5, .vector = 0x41}));
  EXPECT_EQ(
      DecodeMsi(0xfee03004, 0x141, false),
      (InterruptMessage{.destination = 3, .logical = true, .mode = DeliveryMode::kLowestPriority, .vector = 0x41}));
  EXPECT_EQ(DecodeMsi(0xfee03000, 0xc041, false), (InterruptMessage{.destination = 3, .vector = 0x41, .level = true}));
  EXPECT_EQ(DecodeMsi(0xfee03000, 0x400, false)->mode, DeliveryMode::kNmi);
}

TEST(Msi, TheRedirectionHintMattersForLogicalDestinations) {
  EXPECT_EQ(DecodeMsi(0xfee0300c, 0x41, false)->mode, DeliveryMode::kLowestPriority);
  EXPECT_EQ(DecodeMsi(0xfee03008, 0x41, false)->mode, DeliveryMode::kFixed);
  EXPECT_EQ(DecodeMsi(0xfee0300c, 0x441, false)->mode, DeliveryMode::kNmi);
}

TEST(Msi, ExtendedDestinationIsAnOption) {
  EXPECT_FALSE(DecodeMsi(0xfee01020, 0x41, false));
  EXPECT_EQ(DecodeMsi(0xfee01020, 0x41, true)->destination, 0x101u);
  EXPECT_EQ(DecodeMsi(0xfeefffe0, 0x41, true)->destination, 0x7fffu);
}

TEST(Msi, WhatIsNone) {
  for (uint64_t address : {0xfed00000ull, 0xfef00000ull, 0x1fee00000ull, 0xfee00010ull, 0xfee00001ull, 0xfee00002ull,
                           0x80000000fee00000ull, 0ull}) {
    EXPECT_FALSE(DecodeMsi(address, 0x41, false)) << std::hex << address;
    EXPECT_FALSE(DecodeMsi(address, 0x41, true)) << std::hex << address;
  }
  for (uint32_t data : {0x341u, 0x641u, 0x8041u}) {
    EXPECT_FALSE(DecodeMsi(0xfee00000, data, false)) << std::hex << data;
  }
}

}  // namespace
}  // namespace hk
