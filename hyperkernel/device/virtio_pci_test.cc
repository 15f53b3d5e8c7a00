#include "hyperkernel/device/virtio_pci.h"

#include <atomic>
#include <thread>

#include "gtest/gtest.h"
#include "hyperkernel/device/testing_virtio.h"

namespace hk {
namespace {

constexpr uint64_t kBuffer = 0x200000;
constexpr uint64_t kFeature = uint64_t{1} << 5;
constexpr uint8_t kNeedsReset = 0x40;

// Answers each request with the number of readable bytes; counts what is done to it.
class TestDevice final : public VirtioDevice {
 public:
  uint16_t type() const override { return 42; }
  uint64_t features() const override { return kFeature; }
  std::span<const uint16_t> queue_sizes() const override { return sizes_; }
  void ReadConfig(uint64_t offset, std::span<std::byte> data) override { StoreLe(data, 0x1000 + offset); }
  void WriteConfig(uint64_t offset, std::span<const std::byte> data) override { written = offset << 32 | LoadLe(data); }
  void Activate(VirtioRun* run) override {
    run_ = run;
    ++activations;
  }
  void OnDoorbell(uint16_t index) override {
    ++bells;
    ServeQueue(run_, index, [this](Virtqueue& queue) -> absl::StatusOr<bool> {
      for (;;) {
        auto popped = queue.Pop(&chain_);
        if (!popped.ok()) return popped.status();
        if (!*popped) return true;
        const auto bytes = static_cast<uint32_t>(chain_.readable_bytes);
        chain_.Release();
        queue.AddUsed(chain_.head, bytes);
      }
    });
  }
  void Stop() override {
    run_ = nullptr;
    ++stops;
  }
  VirtioRun* run() { return run_; }

  std::atomic<int> activations = 0, bells = 0, stops = 0;
  std::atomic<uint64_t> written = 0;

 private:
  const std::array<uint16_t, 2> sizes_ = {16, 64};
  VirtioRun* run_ = nullptr;
  DescriptorChain chain_{24};
};

class VirtioPciTest : public testing::Test {
 protected:
  TestDevice device_;
  TestVirtioMachine machine_{&device_};
};

TEST_F(VirtioPciTest, IsFoundAndDescribed) {
  EXPECT_EQ(machine_.Config(0, 4), 0x1af4u | (0x1040u + 42) << 16);
  std::vector<uint64_t> types;
  for (int n = 0;; ++n) {
    const uint32_t at = machine_.FindCapability(0x09, n);
    if (at == 0) break;
    types.push_back(machine_.Config(at + 3, 1));
    EXPECT_EQ(machine_.Config(at + 4, 1), 0u) << "BAR 0";
    EXPECT_LE(machine_.Config(at + 8, 4) + machine_.Config(at + 12, 4), VirtioPci::kBarBytes);
  }
  EXPECT_EQ(types, (std::vector<uint64_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(machine_.Config(machine_.FindCapability(0x11) + 2, 2), 2u) << "three vectors";
}

TEST_F(VirtioPciTest, NegotiatesAndWorks) {
  ASSERT_TRUE(machine_.Start());
  EXPECT_EQ(device_.activations, 1);
  EXPECT_EQ(machine_.features, kFeature | kVirtioVersion1 | kVirtioIndirect);
  EXPECT_TRUE(device_.run()->has(kFeature));
  EXPECT_EQ(machine_.Do(1, {{kBuffer, 7, false}}), 7u);
  EXPECT_EQ(machine_.interrupts.TakeMessages(),
            (std::vector<RecordingInterrupts::Msi>{{TestVirtioMachine::kMsiAddress, 2}}));
}

TEST_F(VirtioPciTest, RefusesFeaturesItDidNotOffer) {
  machine_.SetConfig(4, kPciCommandMemory | kPciCommandMaster, 2);
  machine_.SetStatus(3);
  machine_.SetFeatures(kVirtioVersion1 | 1);
  machine_.SetStatus(3 | 8);
  EXPECT_EQ(machine_.Status(), 3);
  machine_.SetFeatures(kFeature);
  machine_.SetStatus(3 | 8);
  EXPECT_EQ(machine_.Status(), 3) << "modern only";
  machine_.SetStatus(3 | 4);
  machine_.Run();
  EXPECT_EQ(device_.activations, 0) << "DRIVER_OK without FEATURES_OK";
}

TEST_F(VirtioPciTest, FeaturesAndQueuesFreeze) {
  ASSERT_TRUE(machine_.Start());
  machine_.SetFeatures(0);
  machine_.SetCommon(VIRTIO_PCI_COMMON_GFSELECT, 1, 4);
  EXPECT_EQ(machine_.Common(VIRTIO_PCI_COMMON_GF, 4), kVirtioVersion1 >> 32);
  machine_.SetCommon(VIRTIO_PCI_COMMON_Q_SELECT, 0, 2);
  machine_.SetCommon(VIRTIO_PCI_COMMON_Q_SIZE, 4, 2);
  EXPECT_EQ(machine_.Common(VIRTIO_PCI_COMMON_Q_SIZE, 2), 16u);
}

TEST_F(VirtioPciTest, ChecksWhatADriverSaysOfQueues) {
  machine_.SetConfig(4, kPciCommandMemory | kPciCommandMaster, 2);
  machine_.SetCommon(VIRTIO_PCI_COMMON_Q_SELECT, 1, 2);
  EXPECT_EQ(machine_.Common(VIRTIO_PCI_COMMON_Q_SIZE, 2), 64u);
  for (uint32_t size : {0u, 3u, 128u, 0xffffu}) machine_.SetCommon(VIRTIO_PCI_COMMON_Q_SIZE, size, 2);
  EXPECT_EQ(machine_.Common(VIRTIO_PCI_COMMON_Q_SIZE, 2), 64u);
  machine_.SetCommon(VIRTIO_PCI_COMMON_Q_SIZE, 8, 2);
  EXPECT_EQ(machine_.Common(VIRTIO_PCI_COMMON_Q_SIZE, 2), 8u);
  machine_.SetCommon(VIRTIO_PCI_COMMON_Q_MSIX, 3, 2);
  EXPECT_EQ(machine_.Common(VIRTIO_PCI_COMMON_Q_MSIX, 2), 0xffffu) << "no such vector";
  machine_.SetCommon(VIRTIO_PCI_COMMON_Q_DESCLO, 0x1122334455667788, 8);
  EXPECT_EQ(machine_.Common(VIRTIO_PCI_COMMON_Q_DESCHI, 4), 0x11223344u);
  machine_.SetCommon(VIRTIO_PCI_COMMON_Q_DESCHI, 0xaa, 4);
  EXPECT_EQ(machine_.Common(VIRTIO_PCI_COMMON_Q_DESCLO, 8), 0xaa55667788u);
  machine_.SetCommon(VIRTIO_PCI_COMMON_Q_SELECT, 2, 2);
  EXPECT_EQ(machine_.Common(VIRTIO_PCI_COMMON_Q_SIZE, 2), 0u) << "no such queue";
  machine_.SetCommon(VIRTIO_PCI_COMMON_Q_ENABLE, 1, 2);
  machine_.Notify(63);
  machine_.Notify(500);
}

TEST_F(VirtioPciTest, BrokenRingNeedsReset) {
  ASSERT_TRUE(machine_.Start());
  machine_.interrupts.TakeMessages();
  machine_.drivers[0]->Show(99);
  machine_.Notify(0);
  machine_.Run();
  EXPECT_EQ(machine_.Status() & kNeedsReset, kNeedsReset);
  EXPECT_EQ(machine_.interrupts.TakeMessages(),
            (std::vector<RecordingInterrupts::Msi>{{TestVirtioMachine::kMsiAddress, 0}}));
  EXPECT_FALSE(machine_.Do(1, {{kBuffer, 7, false}}, 20).has_value()) << "no queue is looked at";
  ASSERT_TRUE(machine_.Start());
  EXPECT_EQ(machine_.Status() & kNeedsReset, 0);
  EXPECT_EQ(machine_.Do(0, {{kBuffer, 7, false}}), 7u);
  EXPECT_EQ(device_.stops, 1);
}

TEST_F(VirtioPciTest, ResetIsFinishedByTheWorker) {
  ASSERT_TRUE(machine_.Start());
  machine_.SetStatus(0);
  EXPECT_NE(machine_.Status(), 0) << "the worker has not run";
  machine_.SetStatus(1);
  machine_.Run();
  EXPECT_EQ(machine_.Status(), 0);
  EXPECT_EQ(device_.stops, 1);
}

TEST_F(VirtioPciTest, BadQueueAddressesBreakAtStart) {
  machine_.SetConfig(4, kPciCommandMemory | kPciCommandMaster, 2);
  machine_.SetStatus(3);
  machine_.SetFeatures(kVirtioVersion1);
  machine_.SetStatus(3 | 8);
  machine_.SetCommon(VIRTIO_PCI_COMMON_Q_SELECT, 0, 2);
  machine_.SetCommon(VIRTIO_PCI_COMMON_Q_DESCLO, 0x1001, 8);
  machine_.SetCommon(VIRTIO_PCI_COMMON_Q_ENABLE, 1, 2);
  machine_.SetStatus(3 | 8 | 4);
  machine_.Run();
  EXPECT_EQ(machine_.Status() & kNeedsReset, kNeedsReset);
}

TEST_F(VirtioPciTest, IntxAndIsrWithoutMsix) {
  const uint8_t pin = PciRoot::IntxPin(TestVirtioMachine::kSlot);
  ASSERT_TRUE(machine_.Start(kVirtioEventIndex, false));
  EXPECT_EQ(machine_.Do(0, {{kBuffer, 1, false}}), 1u);
  EXPECT_TRUE(machine_.interrupts.level(pin));
  EXPECT_EQ(machine_.Config(6, 2) & kPciStatusInterrupt, kPciStatusInterrupt);
  EXPECT_EQ(machine_.Read(machine_.bar + VirtioPci::kIsrOffset, 1), 1u);
  EXPECT_FALSE(machine_.interrupts.level(pin));
  EXPECT_EQ(machine_.Read(machine_.bar + VirtioPci::kIsrOffset, 1), 0u);
  machine_.transport->ConfigChanged();
  EXPECT_TRUE(machine_.interrupts.level(pin));
  machine_.SetConfig(4, kPciCommandMemory | kPciCommandMaster | kPciCommandIntxDisable, 2);
  EXPECT_FALSE(machine_.interrupts.level(pin));
  EXPECT_EQ(machine_.Read(machine_.bar + VirtioPci::kIsrOffset, 1), 2u);
}

TEST_F(VirtioPciTest, BusMasteringGatesTheDevice) {
  ASSERT_TRUE(machine_.Start());
  machine_.SetConfig(4, kPciCommandMemory, 2);
  EXPECT_FALSE(machine_.Do(0, {{kBuffer, 3, false}}, 20).has_value());
  machine_.SetConfig(4, kPciCommandMemory | kPciCommandMaster, 2);
  EXPECT_EQ(machine_.Wait(0), 3u) << "the bell was kept";
}

// A write to a doorbell from another node may come when the BAR is elsewhere already.
TEST_F(VirtioPciTest, ABarThatMovesRingsItsDoorbells) {
  ASSERT_TRUE(machine_.Start());
  machine_.drivers[0]->Add({{.address = kBuffer, .bytes = 5}});
  machine_.SetConfig(0x10, machine_.bar + 0x100000, 4);
  machine_.Notify(0);  // nothing is there
  EXPECT_EQ(machine_.Wait(0), 5u);
  machine_.drivers[1]->Add({{.address = kBuffer, .bytes = 6}});
  machine_.SetConfig(0x04, kPciCommandMaster, 2);
  EXPECT_EQ(machine_.Wait(1), 6u);
  const int bells = device_.bells;
  machine_.SetConfig(0x0c, 0x10, 1);  // another register
  machine_.Run();
  EXPECT_EQ(device_.bells, bells);
}

TEST_F(VirtioPciTest, ADoorbellIsAllThereIsWhereOneMayBe) {
  ASSERT_TRUE(machine_.Start());
  ASSERT_TRUE(MayBeDoorbell(Gpa(machine_.bar + VirtioPci::kNotifyOffset)));
  const uint64_t vector = machine_.Read(machine_.bar + VirtioPci::kTableOffset, 8);
  machine_.drivers[0]->Add({{.address = kBuffer, .bytes = 5}});
  for (uint64_t offset = 0; offset < VirtioPci::kBarBytes; ++offset) {
    if (MayBeDoorbell(Gpa(machine_.bar + offset))) machine_.Write(machine_.bar + offset, ~uint64_t{0}, 8);
  }
  EXPECT_EQ(machine_.Wait(0), 5u);
  EXPECT_EQ(machine_.Status(), 15);
  EXPECT_EQ(machine_.Read(machine_.bar + VirtioPci::kTableOffset, 8), vector);
}

TEST_F(VirtioPciTest, BlockedMemoryPutsWorkOff) {
  ASSERT_TRUE(machine_.Start());
  ASSERT_TRUE(machine_.space->Block(std::chrono::steady_clock::now()).ok());
  EXPECT_FALSE(machine_.Do(0, {{kBuffer, 3, false}}, 20).has_value());
  EXPECT_EQ(machine_.Status() & kNeedsReset, 0);
  machine_.space->Unblock();
  machine_.transport->RingAll();
  EXPECT_EQ(machine_.Wait(0), 3u);
}

TEST_F(VirtioPciTest, ConfigurationAccessCapability) {
  const uint32_t at = machine_.FindCapability(0x09, 4);
  ASSERT_EQ(machine_.Config(at + 3, 1), 5u);
  machine_.SetConfig(at + 4, 0, 1);
  machine_.SetConfig(at + 8, VirtioPci::kDeviceOffset + 4, 4);
  machine_.SetConfig(at + 12, 4, 4);
  EXPECT_EQ(machine_.Config(at + 16, 4), 0x1004u);
  machine_.SetConfig(at + 16, 0xabcd, 4);
  EXPECT_EQ(device_.written, uint64_t{4} << 32 | 0xabcd);
  for (auto [offset, length] : std::vector<std::pair<uint32_t, uint32_t>>{{2, 4}, {0xfffffffc, 4}, {0, 3}, {0, 0}}) {
    device_.written = 0;
    machine_.SetConfig(at + 8, offset, 4);
    machine_.SetConfig(at + 12, length, 4);
    machine_.SetConfig(at + 16, 1, 4);
    machine_.Config(at + 16, 4);
    EXPECT_EQ(device_.written, 0u);
  }
}

TEST_F(VirtioPciTest, MachineResetWaitsForTheWorker) {
  machine_.StartThread();
  ASSERT_TRUE(machine_.Start());
  EXPECT_EQ(machine_.Do(0, {{kBuffer, 3, false}}), 3u);
  ASSERT_TRUE(machine_.transport->ResetAndWait(std::chrono::steady_clock::now() + std::chrono::seconds(10)).ok());
  EXPECT_EQ(device_.stops, 1);
  EXPECT_EQ(machine_.Config(4, 2), 0u);
  EXPECT_EQ(machine_.Read(machine_.bar, 4), 0xffffffffu) << "decoding is off";
  ASSERT_TRUE(machine_.Start());
  EXPECT_EQ(machine_.Do(0, {{kBuffer, 4, false}}), 4u);
}

TEST_F(VirtioPciTest, VcpusResetWhileTheWorkerWorks) {
  machine_.StartThread();
  ASSERT_TRUE(machine_.Start());
  std::atomic<bool> stop = false;
  std::thread ringer([&] {
    while (!stop) {
      machine_.Notify(0);
      machine_.Notify(1);
      machine_.Status();
      machine_.Config(4, 2);
    }
  });
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(machine_.Start());
  stop = true;
  ringer.join();
  EXPECT_EQ(machine_.Do(0, {{kBuffer, 4, false}}), 4u);
}

}  // namespace
}  // namespace hk
