// Configuration space of one PCI function (PCI Local Bus 3.0, chapter 6; PCI Express Base, 7.5): header type 0, 32-bit
// memory BARs, a capability list. Pure: registers and masks, no side effects.
//
// Not thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "absl/status/status.h"

namespace hk {

// Register offsets of header type 0.
enum class PciRegister : uint16_t {
  kVendor = 0x00,
  kDevice = 0x02,
  kCommand = 0x04,
  kStatus = 0x06,
  kRevision = 0x08,
  kClass = 0x09,
  kCacheLine = 0x0c,
  kHeaderType = 0x0e,
  kBar0 = 0x10,
  kSubsystemVendor = 0x2c,
  kSubsystem = 0x2e,
  kCapabilities = 0x34,
  kInterruptLine = 0x3c,
  kInterruptPin = 0x3d,
};

// Bits of the command register.
inline constexpr uint16_t kPciCommandMemory = 0x0002;
inline constexpr uint16_t kPciCommandMaster = 0x0004;
inline constexpr uint16_t kPciCommandIntxDisable = 0x0400;
inline constexpr uint16_t kPciStatusInterrupt = 0x0008;

// One function's registers.
class PciConfig {
 public:
  static constexpr size_t kBytes = 4096;
  static constexpr int kBars = 6;

  // Who the function is. Plain value.
  struct Identity {
    uint16_t vendor = 0;
    uint16_t device = 0;
    uint16_t subsystem_vendor = 0;
    uint16_t subsystem = 0;
    uint32_t class_code = 0;  // 24 bits: base class, subclass, interface
    uint8_t revision = 0;
    bool interrupt_pin = false;  // uses INTA
  };
  explicit PciConfig(const Identity& identity);

  // Before the guest runs. REQUIRES: `bytes` a power of two from 16 to 2^31, the BAR not there yet.
  void AddBar(int bar, uint32_t bytes);
  // `body` is what follows the id and the link; returns the capability's offset. REQUIRES: it fits below 0x100.
  uint8_t AddCapability(uint8_t id, std::span<const std::byte> body);
  // Lets the guest write the bits of `mask` at `offset`.
  void AllowWrites(uint16_t offset, std::span<const std::byte> mask);

  // Accesses of any size and offset; beyond the end reads are all ones and writes are dropped.
  void Read(uint32_t offset, std::span<std::byte> data) const;
  void Write(uint32_t offset, std::span<const std::byte> data);

  // The part that anybody can write to or has something in it: kSavedBytes. Restore takes over what the guest may
  // write. Errors: kInvalidArgument: the rest is not this function's.
  static constexpr size_t kSavedBytes = 256;
  std::span<const std::byte> Saved() const { return std::span(bytes_).first(kSavedBytes); }
  absl::Status Restore(std::span<const std::byte, kSavedBytes> saved);

  // For the device: without masks. REQUIRES: within the space.
  uint16_t Get16(uint16_t offset) const;
  uint32_t Get32(uint16_t offset) const;
  uint16_t Get(PciRegister reg) const { return Get16(static_cast<uint16_t>(reg)); }
  void Set16(uint16_t offset, uint16_t value);
  void Set32(uint16_t offset, uint32_t value);

  uint32_t BarBytes(int bar) const { return bar_bytes_[bar]; }  // 0: not there
  void SetBarAddress(int bar, uint32_t address);
  // Where the BAR answers now; nullopt if it is not there or memory decoding is off.
  std::optional<uint64_t> DecodedBar(int bar) const;

 private:
  std::array<std::byte, kBytes> bytes_{};
  std::array<std::byte, kBytes> writable_{};  // mask
  std::array<uint32_t, kBars> bar_bytes_{};
  uint16_t next_capability_ = 0x40;
  uint16_t link_ = static_cast<uint16_t>(PciRegister::kCapabilities);  // where the next capability's offset goes
};

}  // namespace hk
