#include "hyperkernel/irq/io_apic.h"

namespace hk {
namespace {

constexpr uint32_t kIndex = 0x00, kData = 0x10, kEoi = 0x40;
constexpr uint8_t kRegisterId = 0, kRegisterVersion = 1, kRegisterArbitration = 2, kFirstEntry = 0x10;
constexpr uint32_t kVersion = 0x20 | (IoApic::kPins - 1) << 16;
constexpr uint64_t kMasked = 1 << 16, kRemoteIrr = 1 << 14, kDeliveryStatus = 1 << 12;

}  // namespace

uint32_t IoApic::Read(uint32_t offset) const {
  if (offset == kIndex) return index_;
  if (offset != kData) return 0;
  switch (index_) {
    case kRegisterId:
    case kRegisterArbitration:
      return id_;
    case kRegisterVersion:
      return kVersion;
    default:
      break;
  }
  const uint32_t pin = static_cast<uint32_t>(index_ - kFirstEntry) / 2;
  if (index_ < kFirstEntry || pin >= kPins) return 0;
  return static_cast<uint32_t>(index_ % 2 == 0 ? entries_[pin] : entries_[pin] >> 32);
}

void IoApic::Write(uint32_t offset, uint32_t value, std::vector<InterruptMessage>* out) {
  if (offset == kIndex) {
    index_ = static_cast<uint8_t>(value);
  } else if (offset == kEoi) {
    EndOfInterrupt(static_cast<uint8_t>(value), out);
  } else if (offset == kData && index_ == kRegisterId) {
    id_ = value & 0x0f000000;
  } else if (offset == kData && index_ >= kFirstEntry && (index_ - kFirstEntry) / 2 < kPins) {
    const auto pin = static_cast<uint8_t>((index_ - kFirstEntry) / 2);
    const uint64_t read_only = kRemoteIrr | kDeliveryStatus;
    uint64_t& entry = entries_[pin];
    if (index_ % 2 == 0) {
      entry = (entry & (0xffffffff00000000 | read_only)) | (value & ~read_only & 0x1ffff);
      if (!IsLevel(pin)) entry &= ~kRemoteIrr;
    } else {
      entry = (entry & 0xffffffff) | uint64_t{value & 0xff000000} << 32;
    }
    if (IsLevel(pin) && (lines_ >> pin & 1) != 0) Send(pin, out);
  }
}

void IoApic::SetLine(uint8_t pin, bool level, std::vector<InterruptMessage>* out) {
  const uint32_t bit = 1u << pin;
  const bool rose = level && (lines_ & bit) == 0;
  lines_ = level ? lines_ | bit : lines_ & ~bit;
  if (IsLevel(pin) ? level : rose) Send(pin, out);
}

void IoApic::EndOfInterrupt(uint8_t vector, std::vector<InterruptMessage>* out) {
  for (uint8_t pin = 0; pin < kPins; pin++) {
    if (!IsLevel(pin) || static_cast<uint8_t>(entries_[pin]) != vector || (entries_[pin] & kRemoteIrr) == 0) continue;
    entries_[pin] &= ~kRemoteIrr;
    if ((lines_ >> pin & 1) != 0) Send(pin, out);
  }
}

void IoApic::Send(uint8_t pin, std::vector<InterruptMessage>* out) {
  uint64_t& entry = entries_[pin];
  if ((entry & kMasked) != 0 || (entry & kRemoteIrr) != 0) return;
  if (IsLevel(pin)) entry |= kRemoteIrr;
  out->push_back({.vector = static_cast<uint8_t>(entry),
                  .mode = static_cast<DeliveryMode>(entry >> 8 & 7),
                  .logical = (entry >> 11 & 1) != 0,
                  .level = IsLevel(pin),
                  .destination = static_cast<uint32_t>(entry >> 56)});
}

}  // namespace hk
