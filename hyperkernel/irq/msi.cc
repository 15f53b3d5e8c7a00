#include "hyperkernel/irq/msi.h"

namespace hk {

namespace {

// Address (SDM 3A 11.11.1).
constexpr uint64_t kAddressBase = 0xfee00000;
constexpr uint64_t kAddressBaseMask = ~uint64_t{0xfffff};
constexpr uint64_t kExtendedBits = 0xfe0;
constexpr uint64_t kRemappable = 1 << 4;
constexpr uint64_t kRedirectionHint = 1 << 3;
constexpr uint64_t kLogical = 1 << 2;
// Data (SDM 3A 11.11.2).
constexpr uint32_t kAsserted = 1 << 14;
constexpr uint32_t kLevel = 1 << 15;

}  // namespace

std::optional<InterruptMessage> DecodeMsi(uint64_t address, uint32_t data, bool extended_destination) {
  const uint64_t must_be_zero = kRemappable | (extended_destination ? 0 : kExtendedBits) | 3;
  if ((address & kAddressBaseMask) != kAddressBase || (address & must_be_zero) != 0) {
    return std::nullopt;
  }
  auto mode = static_cast<DeliveryMode>(data >> 8 & 7);
  const bool level = (data & kLevel) != 0;
  if (mode == DeliveryMode::kReserved || mode == DeliveryMode::kStartup || (level && (data & kAsserted) == 0)) {
    return std::nullopt;
  }
  const bool logical = (address & kLogical) != 0;
  // The hint matters only for a logical destination: it then asks for the lowest priority among it.
  if ((address & kRedirectionHint) != 0 && logical && mode == DeliveryMode::kFixed) {
    mode = DeliveryMode::kLowestPriority;
  }
  const uint32_t extended = extended_destination ? static_cast<uint32_t>(address & kExtendedBits) << 3 : 0;
  return InterruptMessage{.destination = static_cast<uint32_t>(address >> 12 & 0xff) | extended,
                          .width = DestinationWidth::kBits8,
                          .logical = logical,
                          .mode = mode,
                          .vector = static_cast<uint8_t>(data),
                          .level = level};
}

}  // namespace hk
