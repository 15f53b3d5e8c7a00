// An interrupt on its way to one or more local APICs: what an ICR write, an I/O APIC pin and an MSI have in common.
// Plain values.
#pragma once

#include <cstdint>

namespace hk {

// Values are the encoding in the ICR, LVT, redirection entries and MSI data (SDM 3A 11.6.1).
enum class DeliveryMode : uint8_t {
  kFixed = 0,
  kLowestPriority = 1,
  kSmi = 2,
  kReserved = 3,
  kNmi = 4,
  kInit = 5,
  kStartup = 6,  // reserved outside the ICR
  kExtInt = 7,   // reserved in the ICR
};

// Values are the encoding in the ICR (SDM 3A 11.6.1).
enum class Shorthand : uint8_t { kNone = 0, kSelf = 1, kAll = 2, kAllButSelf = 3 };

// How a destination of all ones is written, which makes it a broadcast: eight bits (xAPIC, I/O APIC, MSI) or 32
// (x2APIC).
enum class DestinationWidth : uint8_t { kBits8, kBits32 };

inline constexpr uint8_t kIoApicPins = 24;
inline constexpr uint8_t kNoPin = 0xff;
// Vectors 0 to 15 are illegal for fixed interrupts (SDM 3A 11.5.2).
inline constexpr uint8_t kFirstLegalVector = 16;

// One message. Level-triggered ones come from an I/O APIC pin, whose delivery `generation` the EOI carries back.
struct InterruptMessage {
  uint32_t destination = 0;
  DestinationWidth width = DestinationWidth::kBits8;
  bool logical = false;
  Shorthand shorthand = Shorthand::kNone;
  DeliveryMode mode = DeliveryMode::kFixed;
  uint8_t vector = 0;
  bool level = false;
  uint8_t pin = kNoPin;
  uint32_t generation = 0;

  bool operator==(const InterruptMessage&) const = default;
};

// A vCPU has ended the service of a level-triggered interrupt. A late one (the pin has delivered again since, or was
// reprogrammed) has an older generation and changes nothing.
struct LevelEoi {
  uint8_t pin = kNoPin;
  uint32_t generation = 0;

  bool operator==(const LevelEoi&) const = default;
};

}  // namespace hk
