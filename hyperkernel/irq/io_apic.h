// The I/O APIC: 24 pins that turn lines into messages (82093AA data sheet; version 0x20 as in the ICH chipsets).
//
// Version 0x20 for its EOI register: software that suppresses EOI broadcasts needs it, and a crash kernel clears a
// stuck remote IRR with one write. Pure and single-threaded; calls return the pins that must send, and MessageOf says
// what. Invariants:
//  1. A remote IRR bit is set only on a level-triggered fixed or lowest-priority pin; while set, the pin sends nothing.
//  2. Each level-triggered delivery has a generation above the pin's earlier ones; only its own EOI ends it.
//  3. A level-triggered pin that is asserted and unmasked has its remote IRR set after every call, unless nobody
//     accepted the message (Rejected).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/irq/interrupt_message.h"

namespace hk {

inline constexpr uint32_t kIoApicStateVersion = 1;

// What a move or a suspend carries of the I/O APIC.
struct IoApicState {
  uint32_t version = kIoApicStateVersion;
  uint32_t id = 0;
  uint32_t select = 0;
  uint32_t lines = 0;  // asserted pins, one bit each
  std::array<uint64_t, kIoApicPins> entries{};
  std::array<uint32_t, kIoApicPins> generations{};

  bool operator==(const IoApicState&) const = default;
};

// The byte form: every field in its order, little-endian, no padding.
std::vector<std::byte> EncodeIoApic(const IoApicState& state);
// Errors: kInvalidArgument: another length, or another version. What the fields may be, IoApic::Restore says.
absl::StatusOr<IoApicState> DecodeIoApic(std::span<const std::byte> bytes);

// The one I/O APIC of a guest.
class IoApic final {
 public:
  // One bit for each pin whose message must be sent now.
  using Pins = uint32_t;

  // MMIO offsets. Others read as 0 and ignore writes.
  enum class Offset : uint32_t { kSelect = 0x00, kWindow = 0x10, kEoi = 0x40 };
  // Registers behind the window.
  enum class Register : uint32_t { kId = 0, kVersion = 1, kArbitration = 2, kFirstEntry = 0x10 };

  // `extended_destination`: bits 55:49 of an entry are destination bits 14:8 (KVM_FEATURE_MSI_EXT_DEST_ID).
  explicit IoApic(bool extended_destination);

  uint32_t Read(uint32_t offset) const;
  Pins Write(uint32_t offset, uint32_t value);
  // The line of a pin is high or low, whatever the entry's polarity: devices say "asserted". A pin that does not exist
  // is ignored.
  Pins SetLine(uint8_t pin, bool asserted);
  // A vCPU ended the service of a delivery. Stale ones change nothing. From a peer, so anything is accepted.
  Pins OnEoi(LevelEoi eoi);
  // Nobody accepted the delivery (invariant 3); RetryAsserted sends it again when somebody may.
  void Rejected(LevelEoi delivery);
  Pins RetryAsserted();

  // REQUIRES: pin < kIoApicPins.
  InterruptMessage MessageOf(uint8_t pin) const;

  // As after power-up, but lines stay as devices drive them and generations are not reused.
  void Reset();
  IoApicState Save() const;
  // Replaces everything; on failure nothing changed.
  absl::Status Restore(const IoApicState& state);

 private:
  uint32_t ReadWindow() const;
  Pins WriteWindow(uint32_t value);
  Pins WriteEoi(uint8_t vector);
  // Sends if the pin is level-triggered, asserted, free and unmasked.
  Pins SendIfAsserted(uint8_t pin);

  uint64_t writable_;
  uint32_t id_ = 0;
  uint32_t select_ = 0;
  uint32_t lines_ = 0;
  std::array<uint64_t, kIoApicPins> entries_;
  std::array<uint32_t, kIoApicPins> generations_{};
};

}  // namespace hk
