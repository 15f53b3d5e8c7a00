#include "hyperkernel/device/virtio_console.h"

#include <linux/virtio_console.h>

#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/device/testing_virtio.h"
#include "hyperkernel/device/virtio_rng.h"

namespace hk {
namespace {

constexpr uint64_t kBuffer = 0x200000;
constexpr uint64_t kInput = 0x300000;

// Port 0: console; port 1: an agent.
class VirtioConsoleTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(machine_.Start()); }
  std::optional<uint32_t> SendControl(uint32_t id, uint16_t event, uint16_t value) {
    const virtio_console_control control{id, event, value};
    machine_.drivers[3]->SetText(kBuffer, std::string(reinterpret_cast<const char*>(&control), sizeof(control)));
    return machine_.Do(3, {{kBuffer, sizeof(control), false}});
  }
  // The next control message as "id event value payload".
  std::string NextControl() {
    const auto bytes = machine_.Do(2, {{kInput, 100, true}}, 50);
    if (!bytes) return "";
    const std::string text = machine_.drivers[2]->Text(kInput, *bytes);
    virtio_console_control control{};
    std::memcpy(&control, text.data(), sizeof(control));
    return std::to_string(control.id) + " " + std::to_string(control.event) + " " + std::to_string(control.value) +
           " " + text.substr(sizeof(control));
  }
  size_t Type(size_t port, const std::string& text) { return console_.Input(port, std::as_bytes(std::span(text))); }

  std::array<std::string, 2> output_;
  int rooms_ = 0;
  std::vector<bool> opened_;
  VirtioConsole console_{
      {{.name = "",
        .output = [this](auto data) { output_[0].append(reinterpret_cast<const char*>(data.data()), data.size()); },
        .room = [this] { ++rooms_; }},
       {.name = "org.qemu.guest_agent.0",
        .host_open = false,
        .output = [this](auto data) { output_[1].append(reinterpret_cast<const char*>(data.data()), data.size()); },
        .guest_open = [this](bool open) { opened_.push_back(open); }}}};
  TestVirtioMachine machine_{&console_};
};

TEST_F(VirtioConsoleTest, OutputGoesToItsPort) {
  machine_.drivers[1]->SetText(kBuffer, "hello world");
  EXPECT_EQ(machine_.Do(1, {{kBuffer, 5, false}, {kBuffer + 5, 6, false}}), 0u);
  EXPECT_EQ(machine_.Do(5, {{kBuffer, 5, false}}), 0u);
  EXPECT_EQ(output_[0], "hello world");
  EXPECT_EQ(output_[1], "hello");
}

TEST_F(VirtioConsoleTest, InputWaitsForBuffersAndBuffersForInput) {
  EXPECT_EQ(Type(0, "early"), 5u);
  EXPECT_EQ(machine_.Do(0, {{kInput, 3, true}}), 3u);
  EXPECT_EQ(machine_.drivers[0]->Text(kInput, 3), "ear");
  EXPECT_EQ(machine_.Do(0, {{kInput, 100, true}}), 2u);
  machine_.drivers[0]->Add({{kInput, 100, true}});
  machine_.Notify(0);
  machine_.Run();
  EXPECT_FALSE(machine_.drivers[0]->Take().has_value());
  EXPECT_EQ(Type(0, "late"), 4u);
  EXPECT_EQ(machine_.Wait(0), 4u);
  EXPECT_EQ(machine_.drivers[0]->Text(kInput, 4), "late");
}

TEST_F(VirtioConsoleTest, InputIsBoundedAndTellsOfRoom) {
  EXPECT_EQ(Type(0, std::string(VirtioConsole::kInputLimit + 1, 'x')), VirtioConsole::kInputLimit);
  EXPECT_EQ(Type(0, "y"), 0u);
  for (size_t i = 0; i < VirtioConsole::kInputLimit / 4096; ++i) {
    EXPECT_EQ(rooms_, i >= 8 ? 1 : 0) << i;
    EXPECT_EQ(machine_.Do(0, {{kInput, 4096, true}}), 4096u);
  }
}

TEST_F(VirtioConsoleTest, ResetMakesRoom) {
  Type(0, std::string(VirtioConsole::kInputLimit + 1, 'x'));
  ASSERT_TRUE(machine_.Start());
  EXPECT_EQ(rooms_, 1);
  EXPECT_EQ(Type(0, "y"), 1u);
}

TEST_F(VirtioConsoleTest, PortsAreAddedNamedAndOpened) {
  SendControl(0, VIRTIO_CONSOLE_DEVICE_READY, 1);
  EXPECT_EQ(NextControl(), "0 1 1 ");
  EXPECT_EQ(NextControl(), "1 1 1 ");
  EXPECT_EQ(NextControl(), "");
  machine_.drivers[2]->Take();
}

TEST_F(VirtioConsoleTest, ReadyPortsLearnTheirRoles) {
  console_.Resize(100, 40);
  SendControl(0, VIRTIO_CONSOLE_PORT_READY, 1);
  EXPECT_EQ(NextControl(), "0 4 1 ");
  EXPECT_EQ(NextControl(), std::string("0 5 0 \x64\0\x28\0", 10)) << "columns, rows";
  EXPECT_EQ(NextControl(), "0 6 1 ");
  SendControl(1, VIRTIO_CONSOLE_PORT_READY, 1);
  EXPECT_EQ(NextControl(), "1 7 1 org.qemu.guest_agent.0");
  console_.SetHostOpen(1, true);
  EXPECT_EQ(NextControl(), "1 6 1 ");
  console_.SetHostOpen(1, false);
  EXPECT_EQ(NextControl(), "1 6 0 ");
  SendControl(1, VIRTIO_CONSOLE_PORT_OPEN, 1);
  SendControl(1, VIRTIO_CONSOLE_PORT_OPEN, 0);
  EXPECT_THAT(opened_, testing::ElementsAre(true, false));
}

TEST_F(VirtioConsoleTest, ResizeChangesConfiguration) {
  machine_.interrupts.TakeMessages();
  console_.Resize(132, 50);
  EXPECT_EQ(machine_.Read(machine_.bar + VirtioPci::kDeviceOffset, 4), 132u | 50u << 16);
  EXPECT_EQ(machine_.Read(machine_.bar + VirtioPci::kDeviceOffset + 4, 4), 2u);
  EXPECT_EQ(machine_.interrupts.TakeMessages().size(), 1u);
}

TEST_F(VirtioConsoleTest, NonsenseControlIsIgnored) {
  for (uint16_t event = 0; event < 20; ++event) {
    EXPECT_TRUE(SendControl(99, event, 1).has_value());
    EXPECT_TRUE(SendControl(0, event, 0x1234).has_value());
  }
  EXPECT_EQ(machine_.Do(3, {{kBuffer, 3, false}}), 0u) << "short";
  EXPECT_EQ(machine_.Status() & 0x40, 0);
}

TEST_F(VirtioConsoleTest, InputFromOtherThreads) {
  machine_.StartThread();
  constexpr size_t kBytes = 100000;
  std::thread typist([&] {
    for (size_t i = 0; i < kBytes;) i += Type(0, std::string(std::min<size_t>(777, kBytes - i), 't'));
  });
  size_t got = 0;
  while (got < kBytes) {
    const auto bytes = machine_.Do(0, {{kInput, 1000, true}});
    ASSERT_TRUE(bytes.has_value());
    got += *bytes;
  }
  typist.join();
  EXPECT_EQ(got, kBytes);
}

TEST(VirtioRngTest, FillsBuffersBoundedly) {
  VirtioRng rng;
  TestVirtioMachine machine(&rng);
  ASSERT_TRUE(machine.Start());
  EXPECT_EQ(machine.Do(0, {{kInput, 40, true}, {kInput + 0x1000, 24, true}}), 64u);
  EXPECT_NE(machine.drivers[0]->Text(kInput, 40), std::string(40, '\0'));
  EXPECT_EQ(machine.Do(0, {{kInput, 0x10000, true}}), VirtioRng::kMaxBytesPerRequest);
  EXPECT_EQ(machine.Do(0, {{kInput, 16, false}}), 0u) << "nothing to write";
}

}  // namespace
}  // namespace hk
