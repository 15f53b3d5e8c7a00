#include "hyperkernel/device/pci.h"

#include <atomic>
#include <set>
#include <thread>
#include <utility>

#include "gtest/gtest.h"
#include "hyperkernel/device/msix.h"
#include "hyperkernel/device/testing_interrupts.h"

namespace hk {
namespace {

constexpr uint32_t kBarBytes = 0x2000;

// A function with two BARs that tells what was done to it.
class TestFunction final : public PciDevice {
 public:
  TestFunction() : PciDevice({.vendor = 0x1234, .device = 0x5678, .class_code = 0xff0000, .interrupt_pin = true}) {
    MutexLock lock(&config_mutex_);
    config_.AddBar(0, kBarBytes);
    config_.AddBar(2, 16);
    const std::array<std::byte, 4> body{};
    first_capability = config_.AddCapability(0x09, body);
    second_capability = config_.AddCapability(0x11, body);
  }
  void ReadBar(int bar, uint64_t offset, std::span<std::byte> data) override { StoreLe(data, bar << 16 | offset); }
  void WriteBar(int, uint64_t offset, std::span<const std::byte> data) override {
    last_write = offset << 32 | LoadLe(data);
  }
  std::span<const Doorbell> Doorbells(int bar) const override {
    return bar == 0 ? std::span<const Doorbell>(doorbells) : std::span<const Doorbell>();
  }
  using PciDevice::SetIntx;

  const std::array<Doorbell, 2> doorbells = {{{.offset = 0x100, .event = 7}, {.offset = 0x104, .event = 8}}};
  uint8_t first_capability = 0, second_capability = 0;
  std::atomic<uint64_t> last_write = 0;
};

class PciTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = *PciRoot::Create(&mmio_, &interrupts_);
    ASSERT_TRUE(root_->Add(3, &device_).ok());
  }
  static uint64_t ConfigAddress(uint32_t slot, uint32_t offset) { return kEcamStart.value() + (slot << 15) + offset; }
  uint64_t Read(uint64_t address, size_t bytes) {
    std::array<std::byte, 8> data{};
    mmio_.Read(address, std::span(data).first(bytes));
    return LoadLe(data);
  }
  void Write(uint64_t address, uint64_t value, size_t bytes) {
    std::array<std::byte, 8> data{};
    StoreLe(data, value);
    mmio_.Write(address, std::span(data).first(bytes));
  }
  uint32_t Config(uint32_t offset, size_t bytes = 4) {
    return static_cast<uint32_t>(Read(ConfigAddress(3, offset), bytes));
  }
  void SetConfig(uint32_t offset, uint32_t value, size_t bytes = 4) { Write(ConfigAddress(3, offset), value, bytes); }

  RecordingInterrupts interrupts_;
  Bus mmio_;
  TestFunction device_;
  std::unique_ptr<PciRoot> root_;
};

TEST_F(PciTest, EcamFindsFunctions) {
  EXPECT_EQ(Config(0), 0x56781234u);
  EXPECT_EQ(Config(2, 2), 0x5678u);
  EXPECT_EQ(Config(0x0a, 2), 0xff00u);
  EXPECT_EQ(Read(ConfigAddress(0, 0x0a), 2), 0x0600u) << "host bridge";
  EXPECT_EQ(Read(ConfigAddress(4, 0), 4), 0xffffffffu);
  EXPECT_EQ(Read(ConfigAddress(3, 0x1000), 4), 0xffffffffu) << "function 1";
  EXPECT_EQ(Read(kEcamStart.value() + (1 << 20), 4), 0xffffffffu) << "bus 1";
  EXPECT_EQ(Read(kEcamStart.value() + kEcamBytes - 4, 4), 0xffffffffu);
  EXPECT_EQ(Config(0x100), 0u) << "no extended capabilities";
}

TEST_F(PciTest, EmptySlotPagesAreWhatReadsAsOnes) {
  uint64_t bytes = 0;
  for (const PciRoot::EmptyRange& range : root_->EmptySlotPages()) {
    bytes += range.bytes;
    for (uint64_t at = 0; at < range.bytes; at += 4096) {
      EXPECT_EQ(Read(range.start.value() + at, 4), 0xffffffffu);
      Write(range.start.value() + at, 0, 4);
    }
  }
  EXPECT_EQ(bytes, (256u - 2) * 4096);
}

TEST_F(PciTest, MechanismOneReachesTheSameRegisters) {
  std::vector<uint8_t> resets;
  struct ResetPort final : IoHandler {
    void Read(uint64_t, std::span<std::byte> data) override { StoreLe(data, 0x77); }
    void Write(uint64_t, std::span<const std::byte> data) override { log->push_back(static_cast<uint8_t>(data[0])); }
    std::vector<uint8_t>* log = nullptr;
  } reset;
  reset.log = &resets;
  Bus ports;
  ASSERT_TRUE(ports.Add(kPortPciConfig, PciRoot::kConfigPorts, root_->ConfigPorts(&reset)).ok());
  auto out = [&](uint16_t port, uint32_t value, size_t bytes) {
    std::array<std::byte, 4> data{};
    StoreLe(data, value);
    ports.Write(port, std::span(data).first(bytes));
  };
  auto in = [&](uint16_t port, size_t bytes) {
    std::array<std::byte, 4> data{};
    ports.Read(port, std::span(data).first(bytes));
    return static_cast<uint32_t>(LoadLe(std::span(data).first(bytes)));
  };
  EXPECT_EQ(in(0xcfc, 4), 0xffffffffu) << "not enabled";
  out(0xcf8, 0x80000000, 4);
  EXPECT_EQ(in(0xcf8, 4), 0x80000000u) << "how Linux finds mechanism 1";
  out(0xcf8, 0x80000000 | 3 << 11, 4);
  EXPECT_EQ(in(0xcfc, 4), 0x56781234u);
  EXPECT_EQ(in(0xcfe, 2), 0x5678u);
  out(0xcf8, 0x80000000 | 3 << 11 | 4, 4);
  out(0xcfc, kPciCommandMaster, 2);
  EXPECT_EQ(Config(4, 2), kPciCommandMaster);
  out(0xcf8, 0x80000000 | 5 << 11, 4);
  EXPECT_EQ(in(0xcfc, 4), 0xffffffffu);
  out(0xcf9, 0x06, 1);
  EXPECT_EQ(resets, std::vector<uint8_t>{0x06});
  EXPECT_EQ(in(0xcf9, 1), 0x77u);
}

TEST_F(PciTest, BarsAreSizedMovedAndGated) {
  const uint32_t at = Config(0x10);
  EXPECT_EQ(at, kPci32Start.value());
  EXPECT_EQ(Config(0x18), at + kBarBytes);
  EXPECT_EQ(Read(at + 4, 4), 0xffffffffu) << "decoding is off";
  SetConfig(4, kPciCommandMemory, 2);
  EXPECT_EQ(Read(at + 4, 4), 4u);
  EXPECT_EQ(Read(at + kBarBytes + 8, 4), 0x20008u);
  SetConfig(0x10, 0xffffffff);
  EXPECT_EQ(Config(0x10), ~(kBarBytes - 1)) << "sizing";
  EXPECT_EQ(Read(at + 4, 4), 0xffffffffu) << "moved away";
  SetConfig(0x10, 0xd0000000);
  Write(0xd0000010, 0x55, 1);
  EXPECT_EQ(device_.last_write, 0x10'00000055u);
  SetConfig(4, 0, 2);
  EXPECT_EQ(Read(0xd0000004, 4), 0xffffffffu);
  SetConfig(0x14, 0xffffffff);
  EXPECT_EQ(Config(0x14), 0u) << "no such BAR";
}

TEST_F(PciTest, CollidingBarsAnswerNowhereUntilThereIsRoom) {
  SetConfig(4, kPciCommandMemory, 2);
  SetConfig(0x10, kEcamStart.value());
  EXPECT_EQ(Config(0), 0x56781234u) << "ECAM keeps its place";
  SetConfig(0x10, 0xd0000000);
  SetConfig(0x18, 0xd0000000);
  EXPECT_EQ(Read(0xd0000000, 4), 0u) << "BAR 0 was first";
  SetConfig(0x10, 0xd1000000);
  EXPECT_EQ(Read(0xd0000000, 4), 0x20000u) << "BAR 2 takes its place";
}

TEST_F(PciTest, ReadOnlyRegistersStay) {
  const uint32_t before = Config(8);
  for (uint32_t offset : {0x00u, 0x08u, 0x2cu, 0x34u, 0x40u, 0x44u, 0xffcu}) SetConfig(offset, 0xffffffff);
  EXPECT_EQ(Config(0), 0x56781234u);
  EXPECT_EQ(Config(8), before);
  SetConfig(4, 0xffff, 2);
  EXPECT_EQ(Config(4, 2), kPciCommandMemory | kPciCommandMaster | kPciCommandIntxDisable);
  std::array<std::byte, 8> data{};
  mmio_.Read(ConfigAddress(3, 0xffc), data);
  EXPECT_EQ(LoadLe(data) >> 32, 0xffffffffu) << "beyond the function";
}

TEST_F(PciTest, CapabilitiesAreALinkedList) {
  EXPECT_EQ(Config(6, 2) & 0x10, 0x10u);
  EXPECT_EQ(Config(0x34, 1), device_.first_capability);
  EXPECT_EQ(Config(device_.first_capability, 2), 0x09u | device_.second_capability << 8);
  EXPECT_EQ(Config(device_.second_capability, 2), 0x11u);
}

TEST_F(PciTest, IntxIsSharedByLevel) {
  TestFunction other;
  ASSERT_TRUE(root_->Add(3 + kPciPins, &other).ok());
  const uint8_t pin = PciRoot::IntxPin(3);
  device_.SetIntx(true);
  other.SetIntx(true);
  device_.SetIntx(false);
  EXPECT_TRUE(interrupts_.level(pin));
  other.SetIntx(false);
  EXPECT_FALSE(interrupts_.level(pin));
  EXPECT_EQ(Config(0x3c, 2), pin | 0x100u);
}

TEST_F(PciTest, RefusesBadSlots) {
  TestFunction other;
  EXPECT_EQ(root_->Add(0, &other).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(root_->Add(32, &other).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(root_->Add(3, &other).code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(PciTest, VcpusProgramInParallel) {
  std::thread other([&] {
    for (int i = 0; i < 500; ++i) SetConfig(0x10, i % 2 ? 0xd0000000 : 0xd1000000);
  });
  for (int i = 0; i < 500; ++i) SetConfig(4, i % 2 ? kPciCommandMemory : 0, 2);
  other.join();
  EXPECT_EQ(Read(0xd0000004, 4), 4u);
  EXPECT_EQ(Read(0xd1000004, 4), 0xffffffffu);
}

class MsixTest : public testing::Test {
 protected:
  void Program(uint32_t vector, uint64_t address, uint32_t data, uint32_t control) {
    const uint32_t words[4] = {static_cast<uint32_t>(address), static_cast<uint32_t>(address >> 32), data, control};
    for (size_t i = 0; i < 4; ++i) table_.WriteTable(vector * 16 + i * 4, std::as_bytes(std::span(&words[i], 1)));
  }
  uint64_t Pending() {
    uint64_t value = 0;
    table_.ReadPending(0, std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }
  RecordingInterrupts sink_;
  MsixTable table_{&sink_, 4};
};

TEST_F(MsixTest, SendsWhatIsProgrammed) {
  Program(1, 0xfee01000, 0x4041, 0);
  table_.Notify(1);
  EXPECT_TRUE(sink_.TakeMessages().empty()) << "disabled";
  table_.SetControl(true, false, true);
  EXPECT_TRUE(sink_.TakeMessages().empty()) << "nothing was remembered while disabled";
  table_.Notify(1);
  EXPECT_EQ(sink_.TakeMessages(), (std::vector<RecordingInterrupts::Msi>{{0xfee01000, 0x4041}}));
  table_.Notify(4);
  table_.Notify(0xffff);
  EXPECT_TRUE(sink_.TakeMessages().empty());
}

TEST_F(MsixTest, MasksHoldBack) {
  table_.SetControl(true, false, true);
  Program(0, 0xfee00000, 1, 1);
  table_.Notify(0);
  table_.Notify(0);
  EXPECT_EQ(Pending(), 1u);
  Program(0, 0xfee00000, 2, 0);
  EXPECT_EQ(sink_.TakeMessages(), (std::vector<RecordingInterrupts::Msi>{{0xfee00000, 2}}));
  EXPECT_EQ(Pending(), 0u);
  table_.SetControl(true, true, true);
  table_.Notify(0);
  EXPECT_EQ(Pending(), 1u);
  table_.SetControl(true, false, false);
  EXPECT_EQ(Pending(), 1u) << "no bus mastering";
  table_.SetControl(true, false, true);
  EXPECT_EQ(sink_.TakeMessages().size(), 1u);
}

TEST_F(MsixTest, WildAccessesAreHarmless) {
  std::array<std::byte, 8> data{};
  table_.WriteTable(60, data);
  table_.WriteTable(~0ull - 3, data);
  table_.ReadTable(~0ull - 3, data);
  table_.ReadPending(~0ull - 3, data);
  EXPECT_EQ(LoadLe(data), 0u);
  table_.Reset();
  table_.ReadTable(8, data);
  EXPECT_EQ(LoadLe(data), uint64_t{1} << 32) << "masked";
}

// Takes all doorbells but those of one event.
class TestDoorbells final : public DoorbellRegistrar {
 public:
  bool Add(Gpa address, int event) override {
    if (event == refused) return false;
    EXPECT_TRUE(taken.emplace(address.value(), event).second);
    return true;
  }
  void Remove(Gpa address, int event) override { EXPECT_EQ(taken.erase({address.value(), event}), 1u); }
  std::set<std::pair<uint64_t, int>> taken;
  int refused = -1;
};

TEST_F(PciTest, DoorbellsFollowTheirBar) {
  TestDoorbells doorbells;
  root_->SetDoorbellRegistrar(&doorbells);
  SetConfig(0x10, 0xc1000000);
  EXPECT_TRUE(doorbells.taken.empty()) << "decoding is off";
  SetConfig(0x04, 2, 2);
  EXPECT_EQ(doorbells.taken, (std::set<std::pair<uint64_t, int>>{{0xc1000100, 7}, {0xc1000104, 8}}));
  SetConfig(0x10, 0xc2000000);
  EXPECT_EQ(doorbells.taken, (std::set<std::pair<uint64_t, int>>{{0xc2000100, 7}, {0xc2000104, 8}}));
  SetConfig(0x04, 0, 2);
  EXPECT_TRUE(doorbells.taken.empty());
  doorbells.refused = 7;
  SetConfig(0x04, 2, 2);
  EXPECT_EQ(doorbells.taken, (std::set<std::pair<uint64_t, int>>{{0xc2000104, 8}}));
  SetConfig(0x10, 0xe0000000);
  EXPECT_TRUE(doorbells.taken.empty()) << "over ECAM it answers nowhere";
}

}  // namespace
}  // namespace hk
