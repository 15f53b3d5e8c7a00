#include "hyperkernel/irq/io_apic.h"

#include <vector>

#include "gtest/gtest.h"

namespace hk {
namespace {

class IoApicTest : public testing::Test {
 protected:
  void Program(uint8_t pin, uint64_t entry) {
    for (int half = 0; half < 2; half++) {
      io_apic_.Write(0x00, 0x10u + 2u * pin + half, &out_);
      io_apic_.Write(0x10, static_cast<uint32_t>(entry >> (32 * half)), &out_);
    }
  }
  uint64_t Entry(uint8_t pin) {
    io_apic_.Write(0x00, 0x10u + 2u * pin, &out_);
    const uint64_t low = io_apic_.Read(0x10);
    io_apic_.Write(0x00, 0x11u + 2u * pin, &out_);
    return low | uint64_t{io_apic_.Read(0x10)} << 32;
  }
  size_t Sent() {
    const size_t count = out_.size();
    if (count > 0) last_ = out_.back();
    out_.clear();
    return count;
  }

  IoApic io_apic_;
  std::vector<InterruptMessage> out_;
  InterruptMessage last_;
};

TEST_F(IoApicTest, AfterResetAllPinsAreMasked) {
  for (uint8_t pin = 0; pin < IoApic::kPins; pin++) {
    EXPECT_EQ(Entry(pin), 0x10000u);
    io_apic_.SetLine(pin, true, &out_);
  }
  EXPECT_EQ(Sent(), 0u);
  io_apic_.Write(0x00, 1, &out_);
  EXPECT_EQ(io_apic_.Read(0x10), 0x170020u);
}

TEST_F(IoApicTest, EdgesSendOncePerRise) {
  Program(4, uint64_t{3} << 56 | 1 << 11 | 0x31);
  io_apic_.SetLine(4, true, &out_);
  ASSERT_EQ(Sent(), 1u);
  EXPECT_EQ(last_.vector, 0x31);
  EXPECT_TRUE(last_.logical);
  EXPECT_FALSE(last_.level);
  EXPECT_EQ(last_.destination, 3u);
  io_apic_.SetLine(4, true, &out_);
  EXPECT_EQ(Sent(), 0u);
  io_apic_.SetLine(4, false, &out_);
  io_apic_.SetLine(4, true, &out_);
  EXPECT_EQ(Sent(), 1u);
}

TEST_F(IoApicTest, LevelsSendAgainAfterTheirEndWhileHigh) {
  Program(9, 1 << 15 | 0x52);
  io_apic_.SetLine(9, true, &out_);
  EXPECT_EQ(Sent(), 1u);
  EXPECT_TRUE(last_.level);
  EXPECT_EQ(Entry(9), 1u << 15 | 1u << 14 | 0x52u);
  io_apic_.EndOfInterrupt(0x51, &out_);
  EXPECT_EQ(Sent(), 0u);
  io_apic_.EndOfInterrupt(0x52, &out_);
  EXPECT_EQ(Sent(), 1u) << "the line is still high";
  io_apic_.SetLine(9, false, &out_);
  io_apic_.Write(0x40, 0x52, &out_);
  EXPECT_EQ(Sent(), 0u);
  EXPECT_EQ(Entry(9) & 1 << 14, 0u);
}

TEST_F(IoApicTest, UnmaskingALevelThatIsHighSends) {
  Program(9, 1 << 16 | 1 << 15 | 0x52);
  io_apic_.SetLine(9, true, &out_);
  EXPECT_EQ(Sent(), 0u);
  Program(9, 1 << 15 | 0x52);
  EXPECT_EQ(Sent(), 1u);
}

TEST_F(IoApicTest, RegistersThatDoNotExistAreHarmless) {
  for (uint32_t index = 0; index < 0x100; index++) {
    io_apic_.Write(0x00, index, &out_);
    io_apic_.Write(0x10, 0x10000, &out_);
    io_apic_.Read(0x10);
    io_apic_.Read(index);
  }
  EXPECT_EQ(Sent(), 0u);
}

}  // namespace
}  // namespace hk
