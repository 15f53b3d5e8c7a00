// A guest's driver of one virtio device, for tests: finds it in PCI configuration space, sets it up through its BAR as
// Linux does, and drives its queues. The device's loop is run in the test's thread, or has its own.
#pragma once

#include <linux/virtio_pci.h>

#include <array>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "hyperkernel/device/pci.h"
#include "hyperkernel/device/testing_interrupts.h"
#include "hyperkernel/device/testing_virtqueue.h"
#include "hyperkernel/device/virtio_pci.h"

namespace hk {

// A machine with one virtio device in slot 1, and its driver.
class TestVirtioMachine {
 public:
  static constexpr uint64_t kRings = 0x10000;  // 4 pages per queue
  static constexpr uint64_t kRam = 0x1000000;
  static constexpr uint8_t kSlot = 1;
  static constexpr uint64_t kMsiAddress = 0xfee00000;

  // `other`: its memory, which has views for a guest and outlives it; null: `memory`.
  explicit TestVirtioMachine(VirtioDevice* device, uint16_t queue_size = 16, GuestMemory* other = nullptr)
      : guest(other == nullptr ? &memory : other), queue_size_(queue_size) {
    transport = std::make_unique<VirtioPci>("test", device, space.get(), loop.get(), &interrupts);
    HK_CHECK(root->Add(kSlot, transport.get()).ok());
    bar = Config(0x10, 4) & ~0xfull;
  }
  ~TestVirtioMachine() { loop->Stop(); }

  uint64_t Read(uint64_t address, size_t bytes) {
    std::array<std::byte, 8> data{};
    mmio.Read(address, std::span(data).first(bytes));
    return LoadLe(data);
  }
  void Write(uint64_t address, uint64_t value, size_t bytes) {
    std::array<std::byte, 8> data{};
    StoreLe(data, value);
    mmio.Write(address, std::span(data).first(bytes));
  }
  static uint64_t ConfigAddress(uint32_t offset) { return kEcamStart.value() + (kSlot << 15) + offset; }
  uint64_t Config(uint32_t offset, size_t bytes) { return Read(ConfigAddress(offset), bytes); }
  void SetConfig(uint32_t offset, uint64_t value, size_t bytes) { Write(ConfigAddress(offset), value, bytes); }
  uint64_t Common(uint32_t offset, size_t bytes) { return Read(bar + VirtioPci::kCommonOffset + offset, bytes); }
  void SetCommon(uint32_t offset, uint64_t value, size_t bytes) {
    Write(bar + VirtioPci::kCommonOffset + offset, value, bytes);
  }
  uint8_t Status() { return static_cast<uint8_t>(Common(VIRTIO_PCI_COMMON_STATUS, 1)); }
  void SetStatus(uint8_t value) { SetCommon(VIRTIO_PCI_COMMON_STATUS, value, 1); }
  uint64_t OfferedFeatures() {
    uint64_t offered = 0;
    for (uint32_t half = 0; half < 2; ++half) {
      SetCommon(VIRTIO_PCI_COMMON_DFSELECT, half, 4);
      offered |= Common(VIRTIO_PCI_COMMON_DF, 4) << 32 * half;
    }
    return offered;
  }
  void SetFeatures(uint64_t wanted) {
    for (uint32_t half = 0; half < 2; ++half) {
      SetCommon(VIRTIO_PCI_COMMON_GFSELECT, half, 4);
      SetCommon(VIRTIO_PCI_COMMON_GF, wanted >> 32 * half & 0xffffffff, 4);
    }
  }
  // The offset of the n-th capability of a kind, from 0; 0 if there is none.
  uint32_t FindCapability(uint8_t id, int n = 0) {
    for (uint32_t at = static_cast<uint32_t>(Config(0x34, 1)); at != 0; at = static_cast<uint32_t>(Config(at + 1, 1))) {
      if (Config(at, 1) == id && n-- == 0) return at;
    }
    return 0;
  }

  // Linux' way: reset, negotiate (without the event index, so that every used buffer interrupts), MSI-X with vector
  // q + 1 for queue q and 0 for configuration, queues, DRIVER_OK. False if the device refuses.
  bool Start(uint64_t without = kVirtioEventIndex, bool msix = true) {
    SetConfig(0x04, kPciCommandMemory | kPciCommandMaster, 2);
    SetStatus(0);
    while (Status() != 0) Run();
    SetStatus(1 | 2);
    features = OfferedFeatures() & ~without;
    SetFeatures(features);
    SetStatus(1 | 2 | 8);
    if ((Status() & 8) == 0) return false;
    if (msix) EnableMsix();
    const auto queues = static_cast<uint16_t>(Common(VIRTIO_PCI_COMMON_NUMQ, 2));
    drivers.clear();
    for (uint16_t q = 0; q < queues; ++q) {
      SetCommon(VIRTIO_PCI_COMMON_Q_SELECT, q, 2);
      SetCommon(VIRTIO_PCI_COMMON_Q_SIZE, queue_size_, 2);
      if (msix) SetCommon(VIRTIO_PCI_COMMON_Q_MSIX, q + 1, 2);
      drivers.push_back(std::make_unique<TestDriver>(
          [this](Gpa gpa, uint64_t bytes) { return FindForGuest(gpa, bytes); }, kRings + q * 0x4000, queue_size_));
      drivers.back()->SetText(kRings + q * 0x4000, std::string(0x4000, 0));
      const Virtqueue::Layout layout = drivers.back()->layout();
      SetCommon(VIRTIO_PCI_COMMON_Q_DESCLO, layout.descriptors, 4);
      SetCommon(VIRTIO_PCI_COMMON_Q_DESCHI, layout.descriptors >> 32, 4);
      SetCommon(VIRTIO_PCI_COMMON_Q_AVAILLO, layout.available, 4);
      SetCommon(VIRTIO_PCI_COMMON_Q_USEDLO, layout.used, 4);
      SetCommon(VIRTIO_PCI_COMMON_Q_ENABLE, 1, 2);
    }
    SetStatus(1 | 2 | 8 | 4);
    Run();
    return true;
  }
  void EnableMsix() {
    const auto queues = static_cast<uint16_t>(Common(VIRTIO_PCI_COMMON_NUMQ, 2));
    for (uint32_t v = 0; v <= queues; ++v) {
      const uint64_t entry = bar + VirtioPci::kTableOffset + 16 * v;
      Write(entry, kMsiAddress, 8);
      Write(entry + 8, v, 4);
      Write(entry + 12, 0, 4);
    }
    SetConfig(FindCapability(0x11) + 2, 0x8000, 2);
    SetCommon(VIRTIO_PCI_COMMON_MSIX, 0, 2);
  }
  void Notify(uint16_t queue) { Write(bar + VirtioPci::kNotifyOffset + 4 * queue, queue, 2); }
  // Lets the device work for a moment.
  void Run(int timeout_ms = 0) {
    if (!threaded) loop->RunOnce(timeout_ms);
  }
  void StartThread() {
    threaded = true;
    HK_CHECK(loop->Start().ok());
  }
  // Adds a request, rings, and runs until it is used or about `limit_ms` passed. Bytes written, or nullopt.
  std::optional<uint32_t> Do(uint16_t queue, const std::vector<TestBuffer>& buffers, int limit_ms = 5000) {
    drivers[queue]->Add(buffers);
    Notify(queue);
    return Wait(queue, limit_ms);
  }
  std::optional<uint32_t> Wait(uint16_t queue, int limit_ms = 5000) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(limit_ms);
    for (;;) {
      if (auto used = drivers[queue]->Take()) return used->second;
      if (std::chrono::steady_clock::now() > deadline) return std::nullopt;
      Run(1);
    }
  }

  // Where the guest itself reads and writes.
  std::byte* FindForGuest(Gpa gpa, uint64_t bytes) {
    if (guest == &memory) return memory.Find(gpa, bytes);
    const GuestMemory::Slot& slot = guest->slots().front();
    return gpa.value() + bytes <= slot.bytes ? slot.guest_view + gpa.value() : nullptr;
  }

  FakeGuestMemory memory{{{Gpa(0), kRam}}};
  GuestMemory* const guest;
  std::unique_ptr<DmaPins> pins = *DmaPins::Create(*guest);
  std::unique_ptr<DmaSpace> space = *DmaSpace::Create(guest, pins.get());
  RecordingInterrupts interrupts;
  Bus mmio;
  std::unique_ptr<PciRoot> root = *PciRoot::Create(&mmio, &interrupts);
  std::unique_ptr<WorkLoop> loop = *WorkLoop::Create("test");
  std::unique_ptr<VirtioPci> transport;
  std::vector<std::unique_ptr<TestDriver>> drivers;
  uint64_t bar = 0;
  uint64_t features = 0;
  bool threaded = false;

 private:
  const uint16_t queue_size_;
};

}  // namespace hk
