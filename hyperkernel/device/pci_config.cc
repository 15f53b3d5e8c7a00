#include "hyperkernel/device/pci_config.h"

#include <bit>
#include <cstring>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/device/io_handler.h"

namespace hk {
namespace {

constexpr uint16_t Offset(PciRegister reg) {
  return static_cast<uint16_t>(reg);
}
constexpr uint16_t kStatusCapabilities = 0x0010;
constexpr uint16_t kWritableCommand = kPciCommandMemory | kPciCommandMaster | kPciCommandIntxDisable;
constexpr uint32_t kBarAddressMask = ~uint32_t{0xf};

}  // namespace

PciConfig::PciConfig(const Identity& identity) {
  Set16(Offset(PciRegister::kVendor), identity.vendor);
  Set16(Offset(PciRegister::kDevice), identity.device);
  Set32(Offset(PciRegister::kRevision), identity.revision | identity.class_code << 8);
  Set16(Offset(PciRegister::kSubsystemVendor), identity.subsystem_vendor);
  Set16(Offset(PciRegister::kSubsystem), identity.subsystem);
  bytes_[Offset(PciRegister::kInterruptPin)] = std::byte{static_cast<uint8_t>(identity.interrupt_pin ? 1 : 0)};
  const uint16_t command = kWritableCommand;
  AllowWrites(Offset(PciRegister::kCommand), std::as_bytes(std::span(&command, 1)));
  const uint8_t all = 0xff;
  AllowWrites(Offset(PciRegister::kCacheLine), std::as_bytes(std::span(&all, 1)));
  AllowWrites(Offset(PciRegister::kInterruptLine), std::as_bytes(std::span(&all, 1)));
}

void PciConfig::AddBar(int bar, uint32_t bytes) {
  HK_CHECK(bar >= 0 && bar < kBars && bar_bytes_[bar] == 0 && bytes >= 16 && std::has_single_bit(bytes));
  bar_bytes_[bar] = bytes;
  const uint32_t mask = ~(bytes - 1);  // what sizing reads back (PCI 3.0, 6.2.5.1)
  AllowWrites(static_cast<uint16_t>(Offset(PciRegister::kBar0) + 4 * bar), std::as_bytes(std::span(&mask, 1)));
}

uint8_t PciConfig::AddCapability(uint8_t id, std::span<const std::byte> body) {
  const auto at = static_cast<uint8_t>(next_capability_);
  HK_CHECK(at + 2 + body.size() <= 0x100);
  bytes_[at] = std::byte{id};
  std::memcpy(&bytes_[at + 2u], body.data(), body.size());
  bytes_[link_] = std::byte{at};
  link_ = static_cast<uint16_t>(at + 1);
  next_capability_ = static_cast<uint16_t>((at + 2 + body.size() + 3) & ~size_t{3});
  Set16(Offset(PciRegister::kStatus), Get(PciRegister::kStatus) | kStatusCapabilities);
  return at;
}

void PciConfig::AllowWrites(uint16_t offset, std::span<const std::byte> mask) {
  HK_CHECK(offset + mask.size() <= kBytes);
  std::memcpy(&writable_[offset], mask.data(), mask.size());
}

void PciConfig::Read(uint32_t offset, std::span<std::byte> data) const {
  for (size_t i = 0; i < data.size(); ++i) {
    data[i] = uint64_t{offset} + i < kBytes ? bytes_[offset + i] : std::byte{0xff};
  }
}

void PciConfig::Write(uint32_t offset, std::span<const std::byte> data) {
  for (size_t i = 0; i < data.size() && uint64_t{offset} + i < kBytes; ++i) {
    const std::byte mask = writable_[offset + i];
    bytes_[offset + i] = (bytes_[offset + i] & ~mask) | (data[i] & mask);
  }
}

absl::Status PciConfig::Restore(std::span<const std::byte, kSavedBytes> saved) {
  for (size_t i = 0; i < kSavedBytes; ++i) {
    std::byte fixed = ~writable_[i];
    if (i == Offset(PciRegister::kStatus)) fixed &= ~std::byte{kPciStatusInterrupt};  // follows the device
    if (((saved[i] ^ bytes_[i]) & fixed) != std::byte{0}) {
      return absl::InvalidArgumentError(fmt::format("PCI register {:#x} is another function's", i));
    }
  }
  Write(0, saved);
  return absl::OkStatus();
}

uint16_t PciConfig::Get16(uint16_t offset) const {
  return static_cast<uint16_t>(LoadLe(std::span(bytes_).subspan(offset, 2)));
}
uint32_t PciConfig::Get32(uint16_t offset) const {
  return static_cast<uint32_t>(LoadLe(std::span(bytes_).subspan(offset, 4)));
}
void PciConfig::Set16(uint16_t offset, uint16_t value) {
  StoreLe(std::span(bytes_).subspan(offset, 2), value);
}
void PciConfig::Set32(uint16_t offset, uint32_t value) {
  StoreLe(std::span(bytes_).subspan(offset, 4), value);
}

void PciConfig::SetBarAddress(int bar, uint32_t address) {
  HK_CHECK(bar_bytes_[bar] != 0 && address % bar_bytes_[bar] == 0);
  Set32(static_cast<uint16_t>(Offset(PciRegister::kBar0) + 4 * bar), address);
}

std::optional<uint64_t> PciConfig::DecodedBar(int bar) const {
  if (bar_bytes_[bar] == 0 || (Get(PciRegister::kCommand) & kPciCommandMemory) == 0) return std::nullopt;
  return Get32(static_cast<uint16_t>(Offset(PciRegister::kBar0) + 4 * bar)) & kBarAddressMask;
}

}  // namespace hk
