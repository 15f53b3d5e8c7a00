// The I/O APIC (Intel 82093AA; SDM vol. 3, chapter 11.11 for what its entries mean) with 24 pins, as a pure state
// machine. Not thread-safe: InterruptController locks it.
//
// Invariant: a level-triggered pin sends again only after its EOI, and then only while its line is high.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "hyperkernel/irq/local_apic.h"

namespace hk {

// One I/O APIC.
class IoApic {
 public:
  static constexpr uint8_t kPins = 24;

  // Registers by MMIO offset: 0x00 index, 0x10 data, 0x40 EOI (version 0x20). What must be sent is appended to `out`.
  uint32_t Read(uint32_t offset) const;
  void Write(uint32_t offset, uint32_t value, std::vector<InterruptMessage>* out);
  // A line's level. REQUIRES: pin < kPins.
  void SetLine(uint8_t pin, bool level, std::vector<InterruptMessage>* out);
  // A local APIC ended a level-triggered interrupt of this vector.
  void EndOfInterrupt(uint8_t vector, std::vector<InterruptMessage>* out);

 private:
  void Send(uint8_t pin, std::vector<InterruptMessage>* out);
  bool IsLevel(uint8_t pin) const { return (entries_[pin] >> 15 & 1) != 0; }

  uint32_t id_ = 0;
  uint8_t index_ = 0;
  std::array<uint64_t, kPins> entries_ = [] {
    std::array<uint64_t, kPins> masked{};
    masked.fill(uint64_t{1} << 16);
    return masked;
  }();
  uint32_t lines_ = 0;
};

}  // namespace hk
