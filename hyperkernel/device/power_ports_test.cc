#include "hyperkernel/device/power_ports.h"

#include <array>
#include <vector>

#include "gtest/gtest.h"
#include "hyperkernel/boot/address_map.h"
#include "hyperkernel/device/rtc.h"
#include "hyperkernel/device/testing_interrupts.h"

namespace hk {
namespace {

class FixedClock final : public Clock {
 public:
  Monotonic Now() const override { return now; }
  WallTime Wall() const override { return wall; }
  Monotonic now{};
  WallTime wall{};
};

uint64_t In(IoHandler& device, uint64_t offset, size_t bytes = 1) {
  std::array<std::byte, 8> data{};
  device.Read(offset, std::span(data).first(bytes));
  return LoadLe(data);
}

void Out(IoHandler& device, uint64_t offset, uint8_t value) {
  const std::byte data{value};
  device.Write(offset, std::span(&data, 1));
}

class PowerPortsTest : public testing::Test {
 protected:
  std::vector<GuestRequest> requests_;
  GuestRequestSink sink_ = [this](GuestRequest request) { requests_.push_back(request); };
  RecordingInterrupts interrupts_;
};

TEST_F(PowerPortsTest, ResetNeedsItsBit) {
  ResetPort port(sink_);
  Out(port, 0, 0x02);
  EXPECT_TRUE(requests_.empty());
  Out(port, 0, 0x06);
  EXPECT_EQ(requests_, std::vector{GuestRequest::kReset});
}

TEST_F(PowerPortsTest, OnlyS5WithEnableIsPowerOff) {
  PowerPorts ports(&interrupts_, kPinAcpiEvents, sink_);
  Out(ports, 0, kSleepTypeS5 << 2);
  Out(ports, 0, 0x20 | 1 << 2);
  Out(ports, 1, 0x20 | kSleepTypeS5 << 2);
  EXPECT_TRUE(requests_.empty());
  Out(ports, 0, 0x20 | kSleepTypeS5 << 2);
  EXPECT_EQ(requests_, std::vector{GuestRequest::kPowerOff});
  EXPECT_EQ(In(ports, 0), 0u);
  EXPECT_EQ(In(ports, 1), 0u);
}

TEST_F(PowerPortsTest, PowerButtonHoldsItsLineUntilCleared) {
  PowerPorts ports(&interrupts_, kPinAcpiEvents, sink_);
  ports.PressPowerButton();
  EXPECT_TRUE(interrupts_.level(kPinAcpiEvents));
  EXPECT_EQ(In(ports, kPortAcpiEvents - kPortPowerManagement), kEventPowerButton);
  Out(ports, 2, 0x80);
  EXPECT_TRUE(interrupts_.level(kPinAcpiEvents)) << "another bit";
  Out(ports, 2, kEventPowerButton);
  EXPECT_FALSE(interrupts_.level(kPinAcpiEvents));
  EXPECT_EQ(In(ports, 2), 0u);
  ports.PressPowerButton();
  ports.Reset();
  EXPECT_FALSE(interrupts_.level(kPinAcpiEvents));
}

TEST_F(PowerPortsTest, PmTimerRunsAtItsRateAndWraps) {
  FixedClock clock;
  PmTimer timer(&clock);
  EXPECT_EQ(In(timer, 0, 4), 0u);
  clock.now += std::chrono::seconds(2);
  EXPECT_EQ(In(timer, 0, 4), 2u * 3'579'545);
  EXPECT_EQ(In(timer, 1, 1), (2u * 3'579'545 >> 8) & 0xff);
  clock.now += std::chrono::hours(24 * 365);
  EXPECT_EQ(In(timer, 0, 4), static_cast<uint32_t>((24ull * 365 * 3600 + 2) * 3'579'545));
}

TEST_F(PowerPortsTest, PvpanicTellsOnce) {
  Pvpanic port(sink_);
  EXPECT_EQ(In(port, 0), 3u);
  Out(port, 0, 0xf0);
  Out(port, 0, 1);
  Out(port, 0, 2);
  EXPECT_EQ(requests_, (std::vector{GuestRequest::kPanicked, GuestRequest::kCrashLoaded}));
}

TEST(RtcTest, TellsTheWallTimeInBcd) {
  FixedClock clock;
  clock.wall = WallTime(std::chrono::seconds(1'709'210'096));  // 2024-02-29 12:34:56 UTC, a Thursday
  Rtc rtc(&clock);
  auto read = [&](uint8_t index) {
    Out(rtc, 0, index);
    return In(rtc, 1);
  };
  EXPECT_EQ(read(0x00), 0x56u);
  EXPECT_EQ(read(0x02), 0x34u);
  EXPECT_EQ(read(0x04), 0x12u);
  EXPECT_EQ(read(0x06), 0x05u);
  EXPECT_EQ(read(0x07), 0x29u);
  EXPECT_EQ(read(0x08), 0x02u);
  EXPECT_EQ(read(0x09), 0x24u);
  EXPECT_EQ(read(0x32), 0x20u);
  EXPECT_EQ(read(0x0a) & 0x80, 0u) << "update in progress";
  EXPECT_EQ(read(0x0b) & 0x06, 0x02u) << "BCD, 24 hours";
  EXPECT_EQ(read(0x0d), 0x80u);
  EXPECT_EQ(In(rtc, 0), 0xffu);
}

TEST(RtcTest, StoresWhatIsNotTheTime) {
  FixedClock clock;
  Rtc rtc(&clock);
  Out(rtc, 0, 0x80 | 0x40);
  Out(rtc, 1, 0x5a);
  EXPECT_EQ(In(rtc, 1), 0x5au);
  Out(rtc, 0, 0x00);
  Out(rtc, 1, 0x33);
  EXPECT_EQ(In(rtc, 1), 0x00u) << "the time is the host's";
}

}  // namespace
}  // namespace hk
