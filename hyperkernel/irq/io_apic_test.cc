#include "hyperkernel/irq/io_apic.h"

#include <gtest/gtest.h>

namespace hk {
namespace {

constexpr uint32_t kLevelBit = 1 << 15;
constexpr uint32_t kMaskBit = 1 << 16;
constexpr uint32_t kRemoteIrrBit = 1 << 14;

class IoApicTest : public testing::Test {
 protected:
  uint32_t Read(uint32_t reg) {
    io_.Write(0x00, reg);
    return io_.Read(0x10);
  }
  IoApic::Pins Write(uint32_t reg, uint32_t value) {
    io_.Write(0x00, reg);
    return io_.Write(0x10, value);
  }
  IoApic::Pins Program(uint8_t pin, uint32_t low, uint32_t high = 0) {
    Write(0x11 + 2 * pin, high);
    return Write(0x10 + 2 * pin, low);
  }
  bool RemoteIrr(uint8_t pin) { return (Read(0x10 + 2 * pin) & kRemoteIrrBit) != 0; }
  LevelEoi Last(uint8_t pin) { return {pin, io_.MessageOf(pin).generation}; }

  IoApic io_{false};
};

TEST_F(IoApicTest, RegistersAfterPowerUp) {
  EXPECT_EQ(Read(0), 0u);
  EXPECT_EQ(Read(1), 0x170020u);
  for (uint8_t pin = 0; pin < kIoApicPins; ++pin) {
    EXPECT_EQ(Read(0x10 + 2 * pin), kMaskBit);
    EXPECT_EQ(Read(0x11 + 2 * pin), 0u);
  }
  for (uint32_t reg : {0x03u, 0x0fu, 0x40u, 0xffu}) {
    Write(reg, 0xffffffff);
    EXPECT_EQ(Read(reg), 0u);
  }
  EXPECT_EQ(io_.Read(0x20), 0u);
}

TEST_F(IoApicTest, OnlyDefinedBitsAreWritten) {
  Write(0, 0xffffffff);
  EXPECT_EQ(Read(0), 0x0f000000u);
  EXPECT_EQ(Read(2), 0x0f000000u);
  Write(1, 0xffffffff);
  EXPECT_EQ(Read(1), 0x170020u);
  Program(3, 0xffffffff, 0xffffffff);
  EXPECT_EQ(Read(0x16), 0x1afffu);
  EXPECT_EQ(Read(0x17), 0xff000000u);
}

TEST_F(IoApicTest, ExtendedDestination) {
  IoApic extended(true);
  extended.Write(0, 0x11);
  extended.Write(0x10, 0x02020000);  // bit 49 and bit 57
  EXPECT_EQ(extended.MessageOf(0).destination, 0x102u);
}

TEST_F(IoApicTest, AnEdgeSendsOnceForEachRise) {
  Program(4, 0x34, 0x05000000);
  EXPECT_EQ(io_.SetLine(4, true), 1u << 4);
  EXPECT_EQ(io_.MessageOf(4), (InterruptMessage{.destination = 5, .vector = 0x34}));
  EXPECT_EQ(io_.SetLine(4, true), 0u);
  EXPECT_EQ(io_.SetLine(4, false), 0u);
  EXPECT_EQ(io_.SetLine(4, true), 1u << 4);
  EXPECT_FALSE(RemoteIrr(4));
}

TEST_F(IoApicTest, AnEdgeOnAMaskedPinIsLost) {
  Program(4, 0x34 | kMaskBit);
  EXPECT_EQ(io_.SetLine(4, true), 0u);
  EXPECT_EQ(Program(4, 0x34), 0u);
}

TEST_F(IoApicTest, PolarityIsIgnored) {
  Program(4, 0x34 | 1 << 13);
  EXPECT_EQ(io_.SetLine(4, true), 1u << 4);
}

TEST_F(IoApicTest, ALevelIsSentAgainWhileAsserted) {
  Program(9, 0x39 | kLevelBit | 1 << 11 | 0x100, 0x03000000);
  EXPECT_EQ(io_.SetLine(9, true), 1u << 9);
  const InterruptMessage first = io_.MessageOf(9);
  EXPECT_EQ(first, (InterruptMessage{.destination = 3,
                                     .logical = true,
                                     .mode = DeliveryMode::kLowestPriority,
                                     .vector = 0x39,
                                     .level = true,
                                     .pin = 9,
                                     .generation = 1}));
  EXPECT_TRUE(RemoteIrr(9));
  EXPECT_EQ(io_.SetLine(9, false), 0u);
  EXPECT_EQ(io_.SetLine(9, true), 0u) << "nothing before the EOI";
  EXPECT_EQ(io_.OnEoi(Last(9)), 1u << 9) << "still asserted";
  EXPECT_EQ(io_.MessageOf(9).generation, 2u);
  io_.SetLine(9, false);
  EXPECT_EQ(io_.OnEoi(Last(9)), 0u);
  EXPECT_FALSE(RemoteIrr(9));
  EXPECT_EQ(io_.SetLine(9, true), 1u << 9);
}

TEST_F(IoApicTest, StaleAndForeignEoisChangeNothing) {
  Program(9, 0x39 | kLevelBit);
  io_.SetLine(9, true);
  const LevelEoi first = Last(9);
  io_.OnEoi(first);  // delivered again: generation 2
  EXPECT_EQ(io_.OnEoi(first), 0u);
  EXPECT_TRUE(RemoteIrr(9));
  EXPECT_EQ(io_.OnEoi({8, 2}), 0u);
  EXPECT_EQ(io_.OnEoi({kNoPin, 2}), 0u);
  EXPECT_EQ(io_.OnEoi({24, 2}), 0u);
  EXPECT_TRUE(RemoteIrr(9));
}

TEST_F(IoApicTest, AnAssertedLevelIsSentWhenUnmasked) {
  Program(9, 0x39 | kLevelBit | kMaskBit);
  EXPECT_EQ(io_.SetLine(9, true), 0u);
  EXPECT_EQ(Program(9, 0x39 | kLevelBit), 1u << 9);
  EXPECT_EQ(Program(9, 0x39 | kLevelBit | kMaskBit), 0u);
  EXPECT_TRUE(RemoteIrr(9)) << "masking does not end a service";
  EXPECT_EQ(io_.OnEoi(Last(9)), 0u);
  EXPECT_FALSE(RemoteIrr(9));
}

TEST_F(IoApicTest, TheEoiRegisterEndsByVector) {
  Program(9, 0x39 | kLevelBit);
  Program(10, 0x39 | kLevelBit);
  Program(11, 0x40 | kLevelBit);
  for (uint8_t pin : {9, 10, 11}) {
    io_.SetLine(pin, true);
  }
  io_.SetLine(10, false);
  EXPECT_EQ(io_.Write(0x40, 0x39), 1u << 9);
  EXPECT_TRUE(RemoteIrr(9));
  EXPECT_FALSE(RemoteIrr(10));
  EXPECT_TRUE(RemoteIrr(11));
}

TEST_F(IoApicTest, SwitchingToEdgeClearsRemoteIrr) {
  Program(9, 0x39 | kLevelBit);
  io_.SetLine(9, true);
  const LevelEoi old = Last(9);
  EXPECT_EQ(Program(9, 0x39 | kMaskBit), 0u);
  EXPECT_FALSE(RemoteIrr(9));
  EXPECT_EQ(Program(9, 0x39 | kLevelBit), 1u << 9);
  EXPECT_EQ(io_.OnEoi(old), 0u) << "of the delivery before";
  EXPECT_TRUE(RemoteIrr(9));
}

TEST_F(IoApicTest, RemoteIrrIsReadOnly) {
  Program(9, 0x39 | kLevelBit | kRemoteIrrBit | kMaskBit);
  EXPECT_FALSE(RemoteIrr(9));
}

TEST_F(IoApicTest, NmiAndInitAreEdgesAndSipiIsReserved) {
  Program(1, 0x400 | kLevelBit);
  EXPECT_EQ(io_.SetLine(1, true), 1u << 1);
  EXPECT_FALSE(io_.MessageOf(1).level);
  EXPECT_FALSE(RemoteIrr(1));
  Program(2, 0x600);
  EXPECT_EQ(io_.MessageOf(2).mode, DeliveryMode::kReserved);
}

TEST_F(IoApicTest, WhatNobodyAcceptedIsRetried) {
  Program(9, 0x39 | kLevelBit);
  io_.SetLine(9, true);
  io_.Rejected({9, 99});
  EXPECT_TRUE(RemoteIrr(9)) << "of another delivery";
  io_.Rejected(Last(9));
  EXPECT_FALSE(RemoteIrr(9));
  EXPECT_EQ(io_.RetryAsserted(), 1u << 9);
  EXPECT_EQ(io_.RetryAsserted(), 0u);
}

TEST_F(IoApicTest, PinsThatDoNotExist) {
  EXPECT_EQ(io_.SetLine(24, true), 0u);
  EXPECT_EQ(io_.SetLine(255, true), 0u);
}

TEST_F(IoApicTest, ResetKeepsLinesAndGenerations) {
  Program(9, 0x39 | kLevelBit);
  io_.SetLine(9, true);
  const LevelEoi old = Last(9);
  io_.Reset();
  EXPECT_EQ(Read(0x22), kMaskBit);
  EXPECT_EQ(Program(9, 0x39 | kLevelBit), 1u << 9) << "the device still asserts";
  EXPECT_EQ(io_.OnEoi(old), 0u);
}

TEST_F(IoApicTest, SaveAndRestore) {
  Program(9, 0x39 | kLevelBit, 0x01000000);
  Program(4, 0x34);
  io_.SetLine(9, true);
  Write(0, 0x02000000);
  IoApic copy(false);
  ASSERT_TRUE(copy.Restore(io_.Save()).ok());
  EXPECT_EQ(copy.Save(), io_.Save());
  EXPECT_EQ(copy.OnEoi(Last(9)), 1u << 9);
}

TEST_F(IoApicTest, RestoreRefusesWhatCannotBe) {
  const IoApicState good = io_.Save();
  const auto refused = [this](IoApicState state) { return !io_.Restore(state).ok(); };
  IoApicState state = good;
  state.version = 2;
  EXPECT_TRUE(refused(state));
  state = good;
  state.id = 1;
  EXPECT_TRUE(refused(state));
  state = good;
  state.select = 0x100;
  EXPECT_TRUE(refused(state));
  state = good;
  state.lines = 1 << 24;
  EXPECT_TRUE(refused(state));
  state = good;
  state.entries[3] = kRemoteIrrBit;
  EXPECT_TRUE(refused(state)) << "remote IRR of an edge";
  state = good;
  state.entries[3] = uint64_t{1} << 49;
  EXPECT_TRUE(refused(state)) << "extended destination without the option";
  EXPECT_EQ(io_.Save(), good);
}

}  // namespace
}  // namespace hk
