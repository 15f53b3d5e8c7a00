#include "hyperkernel/device/serial.h"

#include <array>
#include <string>
#include <thread>

#include "gtest/gtest.h"
#include "hyperkernel/device/testing_interrupts.h"

namespace hk {
namespace {

constexpr uint8_t kPin = 4;

class SerialTest : public testing::Test {
 protected:
  uint8_t In(uint64_t offset) {
    std::byte value{};
    serial_.Read(offset, std::span(&value, 1));
    return static_cast<uint8_t>(value);
  }
  void Out(uint64_t offset, uint8_t value) {
    const std::byte data{value};
    serial_.Write(offset, std::span(&data, 1));
  }
  size_t Type(const std::string& text) { return serial_.Input(std::as_bytes(std::span(text))); }

  RecordingInterrupts interrupts_;
  std::string output_;
  int rooms_ = 0;
  Serial serial_{&interrupts_,
                 kPin,
                 {.output =
                      [this](std::span<const std::byte> data) {
                        for (std::byte b : data) output_ += static_cast<char>(b);
                      },
                  .room = [this] { ++rooms_; }}};
};

// drivers/tty/serial/8250/8250_port.c, autoconfig(): what makes the port a 16550A.
TEST_F(SerialTest, IsFoundByLinuxAutoconfiguration) {
  Out(1, 0);
  EXPECT_EQ(In(1) & 0x0f, 0);
  Out(1, 0x0f);
  EXPECT_EQ(In(1) & 0x0f, 0x0f);
  Out(1, 0);
  Out(4, 0x10 | 0x0a);
  EXPECT_EQ(In(6) & 0xf0, 0x90) << "loopback: RTS and OUT2 come back as CTS and DCD";
  Out(4, 0);
  Out(2, 0x01);
  EXPECT_EQ(In(2) >> 6, 3) << "FIFO";
  Out(7, 0xa5);
  EXPECT_EQ(In(7), 0xa5);
  Out(3, 0x80);
  Out(0, 0x01);
  Out(1, 0x00);
  EXPECT_EQ(In(0), 0x01);
  Out(3, 0x03);
  EXPECT_EQ(output_, "");
}

TEST_F(SerialTest, SendsAndInterruptsWhenEmpty) {
  EXPECT_EQ(In(5), 0x60);
  Out(0, 'a');
  EXPECT_EQ(interrupts_.rises(kPin), 0) << "not enabled";
  Out(1, 0x02);
  EXPECT_EQ(interrupts_.rises(kPin), 1);
  EXPECT_EQ(In(2) & 0x0f, 0x02);
  EXPECT_FALSE(interrupts_.level(kPin)) << "reading the identity acknowledges";
  Out(0, 'b');
  EXPECT_EQ(interrupts_.rises(kPin), 2);
  EXPECT_EQ(output_, "ab");
}

TEST_F(SerialTest, ReceivesInOrder) {
  Out(1, 0x01);
  EXPECT_EQ(Type("xyz"), 3u);
  EXPECT_TRUE(interrupts_.level(kPin));
  EXPECT_EQ(In(2) & 0x0f, 0x04);
  EXPECT_EQ(In(5) & 1, 1);
  EXPECT_EQ(In(0), 'x');
  EXPECT_EQ(In(0), 'y');
  EXPECT_TRUE(interrupts_.level(kPin));
  EXPECT_EQ(In(0), 'z');
  EXPECT_FALSE(interrupts_.level(kPin));
  EXPECT_EQ(In(5) & 1, 0);
  EXPECT_EQ(In(0), 0);
}

TEST_F(SerialTest, InputIsBoundedAndTellsOfRoom) {
  EXPECT_EQ(Type(std::string(Serial::kInputLimit + 7, 'i')), Serial::kInputLimit);
  EXPECT_EQ(Type("more"), 0u);
  for (size_t i = 0; i < Serial::kInputLimit / 2 - 1; ++i) In(0);
  EXPECT_EQ(rooms_, 0);
  In(0);
  EXPECT_EQ(rooms_, 1);
  while (In(5) & 1) In(0);
  EXPECT_EQ(rooms_, 1);
  Type(std::string(Serial::kInputLimit + 1, 'i'));
  Out(2, 0x03);
  EXPECT_EQ(rooms_, 2) << "the guest threw it away";
  Type(std::string(Serial::kInputLimit + 1, 'i'));
  serial_.Reset();
  EXPECT_EQ(rooms_, 3);
}

TEST_F(SerialTest, LoopbackSendsToItself) {
  Out(4, 0x10);
  Out(0, 'l');
  EXPECT_EQ(output_, "");
  EXPECT_EQ(In(0), 'l');
  for (size_t i = 0; i < Serial::kInputLimit + 1; ++i) Out(0, 'f');
  EXPECT_EQ(In(5) & 0x02, 0x02) << "overrun";
  EXPECT_EQ(In(5) & 0x02, 0) << "cleared by reading";
  Out(2, 0x03);
  EXPECT_EQ(In(5) & 0x01, 0) << "cleared by FCR";
}

TEST_F(SerialTest, ModemStatusChangesInterrupt) {
  Out(1, 0x08);
  Out(4, 0x10);
  EXPECT_TRUE(interrupts_.level(kPin));
  EXPECT_EQ(In(2) & 0x0f, 0);
  EXPECT_NE(In(6) & 0x0f, 0);
  EXPECT_FALSE(interrupts_.level(kPin));
  EXPECT_EQ(In(6) & 0x0f, 0);
}

TEST_F(SerialTest, ResetForgets) {
  Out(1, 0x01);
  Type("old");
  serial_.Reset();
  EXPECT_FALSE(interrupts_.level(kPin));
  EXPECT_EQ(In(5), 0x60);
  EXPECT_EQ(In(1), 0);
}

TEST_F(SerialTest, WideAndWildAccessesAreHarmless) {
  std::array<std::byte, 8> data{};
  serial_.Read(0, data);
  serial_.Write(0, data);
  serial_.Read(7, data);
}

TEST(SerialThreadsTest, InputWhileTheGuestReads) {
  RecordingInterrupts interrupts;
  Serial serial(&interrupts, kPin, {});
  constexpr size_t kBytes = 20000;
  std::thread writer([&] {
    for (size_t i = 0; i < kBytes;) {
      const std::byte value{static_cast<uint8_t>(i)};
      i += serial.Input(std::span(&value, 1));
    }
  });
  for (size_t i = 0; i < kBytes;) {
    std::byte status{}, value{};
    serial.Read(5, std::span(&status, 1));
    if ((status & std::byte{1}) == std::byte{0}) continue;
    serial.Read(0, std::span(&value, 1));
    ASSERT_EQ(value, std::byte{static_cast<uint8_t>(i)});
    ++i;
  }
  writer.join();
}

}  // namespace
}  // namespace hk
