#include "hyperkernel/irq/io_apic.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"

namespace hk {

namespace {

// 82093AA 3.2.2, with an EOI register; bits 23:16 are the number of the last pin.
constexpr uint32_t kVersion = 0x20 | (kIoApicPins - 1) << 16;
constexpr uint32_t kIdMask = 0x0f000000;

// Redirection entry (82093AA 3.2.4).
constexpr uint64_t kLogical = 1 << 11;
constexpr uint64_t kRemoteIrr = 1 << 14;
constexpr uint64_t kLevel = 1 << 15;
constexpr uint64_t kMasked = 1 << 16;
constexpr uint64_t kDestination = uint64_t{0xff} << 56;
constexpr uint64_t kExtendedDestination = uint64_t{0x7f} << 49;
// Delivery status (12, always idle) and remote IRR are read-only.
constexpr uint64_t kWritable = 0x1afff | kDestination;

// The encoding that is SIPI in an ICR is reserved here.
DeliveryMode ModeOf(uint64_t entry) {
  const auto mode = static_cast<DeliveryMode>(entry >> 8 & 7);
  return mode == DeliveryMode::kStartup ? DeliveryMode::kReserved : mode;
}

// Only these modes have an EOI; the others are edges whatever the trigger mode says (82093AA 3.2.4).
bool IsLevel(uint64_t entry) {
  const DeliveryMode mode = ModeOf(entry);
  return (entry & kLevel) != 0 && (mode == DeliveryMode::kFixed || mode == DeliveryMode::kLowestPriority);
}

IoApic::Pins Bit(uint8_t pin) {
  return IoApic::Pins{1} << pin;
}

absl::Status Bad(const char* what) {
  return absl::InvalidArgumentError(absl::StrCat("saved I/O APIC: ", what));
}

}  // namespace

IoApic::IoApic(bool extended_destination) : writable_(kWritable | (extended_destination ? kExtendedDestination : 0)) {
  entries_.fill(kMasked);
}

void IoApic::Reset() {
  id_ = 0;
  select_ = 0;
  entries_.fill(kMasked);
}

uint32_t IoApic::Read(uint32_t offset) const {
  switch (static_cast<Offset>(offset)) {
    case Offset::kSelect:
      return select_;
    case Offset::kWindow:
      return ReadWindow();
    default:
      return 0;
  }
}

uint32_t IoApic::ReadWindow() const {
  switch (static_cast<Register>(select_)) {
    case Register::kId:
    case Register::kArbitration:
      return id_;
    case Register::kVersion:
      return kVersion;
    default:
      break;
  }
  const uint32_t index = select_ - static_cast<uint32_t>(Register::kFirstEntry);
  if (index >= 2 * kIoApicPins) {
    return 0;
  }
  return static_cast<uint32_t>(entries_[index / 2] >> (index % 2 == 0 ? 0 : 32));
}

IoApic::Pins IoApic::Write(uint32_t offset, uint32_t value) {
  switch (static_cast<Offset>(offset)) {
    case Offset::kSelect:
      select_ = value & 0xff;
      return 0;
    case Offset::kWindow:
      return WriteWindow(value);
    case Offset::kEoi:
      return WriteEoi(static_cast<uint8_t>(value));
    default:
      return 0;
  }
}

IoApic::Pins IoApic::WriteWindow(uint32_t value) {
  if (static_cast<Register>(select_) == Register::kId) {
    id_ = value & kIdMask;
    return 0;
  }
  const uint32_t index = select_ - static_cast<uint32_t>(Register::kFirstEntry);
  if (index >= 2 * kIoApicPins) {
    return 0;
  }
  const auto pin = static_cast<uint8_t>(index / 2);
  const uint64_t half = index % 2 == 0 ? 0xffffffff : 0xffffffff00000000;
  const uint64_t wide = index % 2 == 0 ? value : uint64_t{value} << 32;
  uint64_t& entry = entries_[pin];
  entry = (entry & ~(half & writable_)) | (wide & half & writable_);
  if (!IsLevel(entry)) {
    entry &= ~kRemoteIrr;  // how software clears a stuck one on version 0x11; kept on this version
  }
  return SendIfAsserted(pin);
}

IoApic::Pins IoApic::SetLine(uint8_t pin, bool asserted) {
  if (pin >= kIoApicPins) {
    return 0;
  }
  const bool rises = asserted && (lines_ & Bit(pin)) == 0;
  lines_ = asserted ? lines_ | Bit(pin) : lines_ & ~Bit(pin);
  if (IsLevel(entries_[pin])) {
    return SendIfAsserted(pin);
  }
  // An edge on a masked pin is lost (82093AA 3.2.4, bit 16).
  return rises && (entries_[pin] & kMasked) == 0 ? Bit(pin) : 0;
}

IoApic::Pins IoApic::SendIfAsserted(uint8_t pin) {
  uint64_t& entry = entries_[pin];
  if (!IsLevel(entry) || (entry & (kMasked | kRemoteIrr)) != 0 || (lines_ & Bit(pin)) == 0) {
    return 0;
  }
  entry |= kRemoteIrr;
  ++generations_[pin];
  return Bit(pin);
}

IoApic::Pins IoApic::OnEoi(LevelEoi eoi) {
  if (eoi.pin >= kIoApicPins || (entries_[eoi.pin] & kRemoteIrr) == 0) {
    return 0;
  }
  if (generations_[eoi.pin] != eoi.generation && !HK_MUTANT(io_apic_takes_late_eoi)) {
    return 0;
  }
  entries_[eoi.pin] &= ~kRemoteIrr;
  return SendIfAsserted(eoi.pin);
}

IoApic::Pins IoApic::WriteEoi(uint8_t vector) {
  Pins pins = 0;
  for (uint8_t pin = 0; pin < kIoApicPins; ++pin) {
    if ((entries_[pin] & kRemoteIrr) != 0 && static_cast<uint8_t>(entries_[pin]) == vector) {
      entries_[pin] &= ~kRemoteIrr;
      pins |= SendIfAsserted(pin);
    }
  }
  return pins;
}

void IoApic::Rejected(LevelEoi delivery) {
  if (delivery.pin < kIoApicPins && generations_[delivery.pin] == delivery.generation) {
    entries_[delivery.pin] &= ~kRemoteIrr;
  }
}

IoApic::Pins IoApic::RetryAsserted() {
  Pins pins = 0;
  for (uint8_t pin = 0; pin < kIoApicPins; ++pin) {
    pins |= SendIfAsserted(pin);
  }
  return pins;
}

InterruptMessage IoApic::MessageOf(uint8_t pin) const {
  HK_CHECK(pin < kIoApicPins);
  const uint64_t entry = entries_[pin];
  const bool level = IsLevel(entry);
  const auto extended = static_cast<uint32_t>((entry & writable_ & kExtendedDestination) >> 49) << 8;
  return {.destination = static_cast<uint32_t>(entry >> 56) | extended,
          .width = DestinationWidth::kBits8,
          .logical = (entry & kLogical) != 0,
          .mode = ModeOf(entry),
          .vector = static_cast<uint8_t>(entry),
          .level = level,
          .pin = level ? pin : kNoPin,
          .generation = level ? generations_[pin] : 0};
}

IoApicState IoApic::Save() const {
  return {.id = id_, .select = select_, .lines = lines_, .entries = entries_, .generations = generations_};
}

absl::Status IoApic::Restore(const IoApicState& state) {
  if (state.version != kIoApicStateVersion) {
    return Bad("version not known");
  }
  if ((state.id & ~kIdMask) != 0 || state.select > 0xff || state.lines >> kIoApicPins != 0) {
    return Bad("reserved bits set");
  }
  const bool legal = std::ranges::all_of(state.entries, [this](uint64_t entry) {
    return (entry & ~(writable_ | kRemoteIrr)) == 0 && ((entry & kRemoteIrr) == 0 || IsLevel(entry));
  });
  if (!legal) {
    return Bad("redirection entry not legal");
  }
  id_ = state.id;
  select_ = state.select;
  lines_ = state.lines;
  entries_ = state.entries;
  generations_ = state.generations;
  return absl::OkStatus();
}

}  // namespace hk
