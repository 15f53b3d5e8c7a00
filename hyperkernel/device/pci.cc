#include "hyperkernel/device/pci.h"

#include <algorithm>

#include "absl/status/statusor.h"
#include "fmt/format.h"
#include "hyperkernel/base/byte_archive.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

// ECAM: 4 KiB per function, 8 functions per slot, 32 slots per bus (PCI Express Base 7.2.2).
constexpr uint64_t kFunctionBytes = 4096;
constexpr uint32_t kFunctionsPerSlot = 8;
// Configuration address register (PCI 3.0, 3.2.2.3.2).
constexpr uint32_t kConfigEnable = 0x80000000;
constexpr uint32_t kConfigWritable = 0x80fffffc;
constexpr uint16_t kStateVersion = 1;
// QEMU's generic host bridge: no driver looks for it.
constexpr PciConfig::Identity kHostBridge = {.vendor = 0x1b36, .device = 0x0008, .class_code = 0x060000};

// 00:00.0: registers only.
class HostBridge final : public PciDevice {
 public:
  HostBridge() : PciDevice(kHostBridge) {}
  void ReadBar(int, uint64_t, std::span<std::byte> data) override { FillOnes(data); }
  void WriteBar(int, uint64_t, std::span<const std::byte>) override {}
};

}  // namespace

void PciDevice::ReadConfig(uint32_t offset, std::span<std::byte> data) {
  MutexLock lock(&config_mutex_);
  config_.Read(offset, data);
}

void PciDevice::WriteConfig(uint32_t offset, std::span<const std::byte> data) {
  MutexLock lock(&config_mutex_);
  config_.Write(offset, data);
}

void PciDevice::SetIntx(bool level) {
  if (root_ != nullptr) root_->SetIntx(slot_, level);
}

void PciDevice::BarsChanged() {
  if (root_ != nullptr) root_->UpdateBars();
}

PciRoot::PciRoot(Bus* mmio, InterruptSink* interrupts) : mmio_(mmio), host_bridge_(std::make_unique<HostBridge>()) {
  slots_[0] = host_bridge_.get();
  ecam_.root = this;
  ports_.root = this;
  for (uint8_t pin = 0; pin < kPciPins; ++pin) {
    lines_.push_back(std::make_unique<InterruptLine>(interrupts, kFirstPciPin + pin));
  }
}

absl::StatusOr<std::unique_ptr<PciRoot>> PciRoot::Create(Bus* mmio, InterruptSink* interrupts) {
  std::unique_ptr<PciRoot> root(new PciRoot(mmio, interrupts));
  HK_RETURN_IF_ERROR(mmio->Add(kEcamStart.value(), kEcamBytes, &root->ecam_));
  return root;
}

absl::Status PciRoot::Add(uint8_t slot, PciDevice* device) {
  if (slot == 0 || slot >= kSlots) return absl::InvalidArgumentError(fmt::format("PCI slot {} is not 1 to 31", slot));
  if (slots_[slot] != nullptr) return absl::AlreadyExistsError(fmt::format("PCI slot {} is taken", slot));
  MutexLock lock(&mutex_);
  MutexLock device_lock(&device->config_mutex_);
  for (int bar = 0; bar < PciConfig::kBars; ++bar) {
    const uint32_t bytes = device->config_.BarBytes(bar);
    if (bytes == 0) continue;
    const uint64_t address = (next_bar_ + bytes - 1) / bytes * bytes;
    if (address + bytes > kPci32Start.value() + kPci32Bytes) {
      return absl::ResourceExhaustedError(fmt::format("no room for BAR {} of PCI slot {}", bar, slot));
    }
    next_bar_ = address + bytes;
    device->config_.SetBarAddress(bar, static_cast<uint32_t>(address));
    auto window = std::make_unique<BarWindow>();
    window->device = device;
    window->bar = bar;
    window->bytes = bytes;
    bars_.push_back(std::move(window));
  }
  const uint8_t pin = IntxPin(slot);
  device->config_.Write(static_cast<uint16_t>(PciRegister::kInterruptLine), std::as_bytes(std::span(&pin, 1)));
  device->root_ = this;
  device->slot_ = slot;
  slots_[slot] = device;
  return absl::OkStatus();
}

PciDevice* PciRoot::At(uint32_t bus, uint32_t slot, uint32_t function) const {
  return bus == 0 && function == 0 && slot < kSlots ? slots_[slot] : nullptr;
}

void PciRoot::ReadConfig(PciDevice* device, uint32_t offset, std::span<std::byte> data) {
  if (device == nullptr) {
    FillOnes(data);
  } else {
    device->ReadConfig(offset, data);
  }
}

void PciRoot::WriteConfig(PciDevice* device, uint32_t offset, std::span<const std::byte> data) {
  if (device == nullptr) return;
  device->WriteConfig(offset, data);
  // Only the command register and the BARs decide where a device answers.
  if (offset < static_cast<uint32_t>(PciRegister::kBar0) + 4 * PciConfig::kBars) UpdateBars();
}

// Works from the registers as they are now, so that of two writes in parallel the later update sees both.
void PciRoot::UpdateBars() {
  MutexLock lock(&mutex_);
  auto wanted = [](BarWindow& window) {
    MutexLock device_lock(&window.device->config_mutex_);
    return window.device->config_.DecodedBar(window.bar);
  };
  for (auto& window : bars_) {
    if (window->mapped && window->mapped != wanted(*window)) Unmap(window.get());
  }
  for (auto& window : bars_) {
    if (window->mapped) continue;
    const std::optional<uint64_t> address = wanted(*window);
    if (address) Map(window.get(), *address);
  }
}

void PciRoot::Map(BarWindow* window, uint64_t address) {
  if (!mmio_->Add(address, window->bytes, window).ok()) return;
  window->mapped = address;
  if (doorbells_ == nullptr) return;
  for (const Doorbell& doorbell : window->device->Doorbells(window->bar)) {
    if (doorbells_->Add(Gpa(address + doorbell.offset), doorbell.event)) window->taken.push_back(doorbell);
  }
}

void PciRoot::Unmap(BarWindow* window) {
  for (const Doorbell& doorbell : window->taken) {
    if (HK_MUTANT(doorbells_stay_behind)) continue;
    doorbells_->Remove(Gpa(*window->mapped + doorbell.offset), doorbell.event);
  }
  window->taken.clear();
  mmio_->Remove(*window->mapped);
  window->mapped.reset();
}

void PciRoot::SetIntx(uint8_t slot, bool level) {
  const size_t pin = slot % kPciPins;
  {
    MutexLock lock(&mutex_);
    if (level) {
      intx_[pin] |= 1u << slot;
    } else {
      intx_[pin] &= ~(1u << slot);
    }
    lines_[pin]->Set(intx_[pin] != 0);
  }
  lines_[pin]->Deliver();
}

std::vector<PciRoot::EmptyRange> PciRoot::EmptySlotPages() const {
  std::vector<EmptyRange> ranges;
  for (uint32_t index = 0; index < kSlots * kFunctionsPerSlot; ++index) {
    if (At(0, index / kFunctionsPerSlot, index % kFunctionsPerSlot) != nullptr) continue;
    const uint64_t start = kEcamStart.value() + index * kFunctionBytes;
    if (!ranges.empty() && ranges.back().start.value() + ranges.back().bytes == start) {
      ranges.back().bytes += kFunctionBytes;
    } else {
      ranges.push_back({.start = Gpa(start), .bytes = kFunctionBytes});
    }
  }
  return ranges;
}

std::vector<std::byte> PciRoot::SaveState() {
  ByteWriter writer;
  writer.Number(kStateVersion);
  {
    MutexLock lock(&ports_.mutex);
    writer.Number(ports_.address);
  }
  MutexLock lock(&host_bridge_->config_mutex_);
  writer.Raw(host_bridge_->config_.Saved());
  return writer.Take();
}

absl::Status PciRoot::RestoreState(std::span<const std::byte> bytes) {
  uint32_t address = 0;
  std::array<std::byte, PciConfig::kSavedBytes> bridge{};
  const auto fields = [&](ByteReader& reader) {
    reader.Number(address);
    reader.Raw(bridge);
  };
  HK_RETURN_IF_ERROR(ReadVersioned("PCI bus", kStateVersion, bytes, fields));
  {
    MutexLock lock(&ports_.mutex);
    ports_.address = address & kConfigWritable;
  }
  MutexLock lock(&host_bridge_->config_mutex_);
  return WithContext(host_bridge_->config_.Restore(bridge), "host bridge");
}

// An access that runs over a function's end is nobody's: the function answers ones for what is beyond it.
void PciRoot::Ecam::Read(uint64_t offset, std::span<std::byte> data) {
  root->ReadConfig(root->At(offset >> 20, offset >> 15 & 31, offset >> 12 & 7), offset & 0xfff, data);
}

void PciRoot::Ecam::Write(uint64_t offset, std::span<const std::byte> data) {
  root->WriteConfig(root->At(offset >> 20, offset >> 15 & 31, offset >> 12 & 7), offset & 0xfff, data);
}

IoHandler* PciRoot::ConfigPorts(IoHandler* reset_port) {
  ports_.reset_port = reset_port;
  return &ports_;
}

void PciRoot::Ports::Read(uint64_t offset, std::span<std::byte> data) {
  if (offset == 1 && data.size() == 1 && reset_port != nullptr) return reset_port->Read(0, data);
  uint32_t selected = 0;
  {
    MutexLock lock(&mutex);
    selected = address;
  }
  if (offset < 4) {
    if (offset == 0 && data.size() == 4) return StoreLe(data, selected);
    return FillOnes(data);  // only a 32-bit access reaches the address register
  }
  if ((selected & kConfigEnable) == 0) return FillOnes(data);
  root->ReadConfig(root->At(selected >> 16 & 0xff, selected >> 11 & 31, selected >> 8 & 7),
                   (selected & 0xfc) + static_cast<uint32_t>(offset - 4), data);
}

void PciRoot::Ports::Write(uint64_t offset, std::span<const std::byte> data) {
  if (offset == 1 && data.size() == 1 && reset_port != nullptr) return reset_port->Write(0, data);
  uint32_t selected = 0;
  {
    MutexLock lock(&mutex);
    if (offset == 0 && data.size() == 4) address = static_cast<uint32_t>(LoadLe(data)) & kConfigWritable;
    selected = address;
  }
  if (offset < 4 || (selected & kConfigEnable) == 0) return;
  root->WriteConfig(root->At(selected >> 16 & 0xff, selected >> 11 & 31, selected >> 8 & 7),
                    (selected & 0xfc) + static_cast<uint32_t>(offset - 4), data);
}

}  // namespace hk
