#include "hyperkernel/irq/interrupt_wire.h"

#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "hyperkernel/base/check.h"

namespace hk {

namespace {

using Kind = InterruptItem::Kind;

constexpr uint8_t kFormat = 1;

// The longest item, alone in a message: format, kind, vcpu, version, serial, origin; vectors and their trigger modes;
// pins; events.
constexpr size_t kLongestMessage =
    1 + (1 + 2 + 4 + 4 + 2) + 2 * (1 + 8 * 4) + (1 + kIoApicPins * 6) + (1 + ApicEventQueue::kCapacity * 2);
static_assert(kLongestMessage <= kMaxInterruptBytes);

uint8_t UsedWords(const VectorSet::Words& words) {
  uint8_t mask = 0;
  for (size_t i = 0; i < words.size(); ++i) {
    mask = static_cast<uint8_t>(mask | (words[i] != 0 ? 1u << i : 0u));
  }
  return mask;
}

}  // namespace

void InterruptWriter::Number(uint64_t value, size_t bytes) {
  if (bytes_.size() - size_ < bytes) {
    full_ = true;
    return;
  }
  for (size_t i = 0; i < bytes; ++i) {
    bytes_[size_++] = static_cast<std::byte>(value >> (8 * i));
  }
}

void InterruptWriter::Content(const PendingInterrupts& content) {
  for (const VectorSet* set : {&content.fixed, &content.level}) {
    Number(UsedWords(set->words()), 1);
    for (uint32_t word : set->words()) {
      if (word != 0) {
        Number(word, 4);
      }
    }
  }
  Number(static_cast<uint64_t>(std::popcount(content.pins)), 1);
  for (uint32_t rest = content.pins; rest != 0; rest &= rest - 1) {
    const auto pin = static_cast<size_t>(std::countr_zero(rest));
    Number(pin, 1);
    Number(content.deliveries[pin].vector, 1);
    Number(content.deliveries[pin].generation, 4);
  }
  Number(content.events.events().size(), 1);
  for (const ApicEvent& event : content.events.events()) {
    Number(static_cast<uint8_t>(event.kind), 1);
    Number(event.vector, 1);
  }
}

bool InterruptWriter::Put(const InterruptItem& item) {
  const size_t before = size_;
  full_ = false;
  if (size_ == 0) {
    Number(kFormat, 1);
  }
  Number(static_cast<uint8_t>(item.kind), 1);
  if (item.kind == Kind::kEoi) {
    Number(item.eoi.pin, 1);
    Number(item.eoi.generation, 4);
  } else {
    Number(item.vcpu.value(), 2);
    Number(item.version, 4);
    Number(item.serial, 4);
  }
  switch (item.kind) {
    case Kind::kDeliver:
      Number(item.origin.value(), 2);
      Content(item.content);
      break;
    case Kind::kAnswer:
      Number(item.hint, 2);
      break;
    case Kind::kVcpu:
      Number(item.hint, 2);
      Number(static_cast<uint8_t>(item.addressing.mode), 1);
      Number(static_cast<uint8_t>(item.addressing.model), 1);
      Number(item.addressing.logical_id, 1);
      break;
    case Kind::kKnown:
    case Kind::kEoi:
      break;
  }
  if (full_) {
    size_ = before;
    HK_CHECK(before != 0);
    return false;
  }
  return true;
}

// Reads beyond the end give zeroes and are remembered.
uint64_t InterruptReader::Number(size_t bytes) {
  if (bytes_.size() - at_ < bytes) {
    bad_ = true;
    at_ = bytes_.size();
    return 0;
  }
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; ++i) {
    value |= static_cast<uint64_t>(bytes_[at_ + i]) << (8 * i);
  }
  at_ += bytes;
  return value;
}

void InterruptReader::Words(uint8_t mask, VectorSet::Words* words) {
  for (size_t i = 0; i < words->size(); ++i) {
    (*words)[i] = 0;
    if ((mask >> i & 1) != 0) {
      (*words)[i] = static_cast<uint32_t>(Number(4));
      bad_ |= (*words)[i] == 0;
    }
  }
}

void InterruptReader::Content(PendingInterrupts* content) {
  VectorSet::Words fixed, level;
  Words(static_cast<uint8_t>(Number(1)), &fixed);
  Words(static_cast<uint8_t>(Number(1)), &level);
  for (size_t i = 0; i < fixed.size(); ++i) {
    bad_ |= (level[i] & ~fixed[i]) != 0;
  }
  *content = PendingInterrupts();
  content->fixed = VectorSet(fixed);
  content->level = VectorSet(level);
  int last_pin = -1;
  for (uint64_t count = Number(1); count != 0 && !bad_; --count) {
    const auto pin = static_cast<int>(Number(1));
    const auto vector = static_cast<uint8_t>(Number(1));
    const auto generation = static_cast<uint32_t>(Number(4));
    if (pin <= last_pin || pin >= kIoApicPins || !content->fixed.Test(vector)) {
      bad_ = true;
      return;
    }
    last_pin = pin;
    content->pins |= uint32_t{1} << pin;
    content->deliveries[static_cast<size_t>(pin)] = {.generation = generation, .vector = vector};
  }
  const uint64_t count = Number(1);
  if (count > ApicEventQueue::kCapacity) {
    bad_ = true;
    return;
  }
  std::array<ApicEvent, ApicEventQueue::kCapacity> events;
  for (size_t i = 0; i < count; ++i) {
    const auto kind = static_cast<uint8_t>(Number(1));
    bad_ |= kind < 1 || kind > 3;
    events[i] = {.kind = static_cast<ApicEvent::Kind>(kind), .vector = static_cast<uint8_t>(Number(1))};
  }
  bad_ = bad_ || !content->events.Restore(std::span(events).first(count), true) || content->empty();
}

void InterruptReader::Addressing(ApicAddressing* addressing) {
  const auto mode = static_cast<uint8_t>(Number(1));
  const auto model = static_cast<uint8_t>(Number(1));
  bad_ |= mode > static_cast<uint8_t>(ApicAddressing::Mode::kX2Apic) ||
          model > static_cast<uint8_t>(ApicAddressing::Model::kNone);
  *addressing = {.mode = static_cast<ApicAddressing::Mode>(mode),
                 .model = static_cast<ApicAddressing::Model>(model),
                 .logical_id = static_cast<uint8_t>(Number(1))};
}

absl::StatusOr<bool> InterruptReader::Next(InterruptItem* item) {
  if (at_ == 0) {
    if (bytes_.size() > kMaxInterruptBytes || Number(1) != kFormat || at_ == bytes_.size()) {
      return absl::InvalidArgumentError("interrupts: a message of no known format");
    }
  } else if (at_ == bytes_.size()) {
    return false;
  }
  const size_t start = at_;
  const auto kind = static_cast<uint8_t>(Number(1));
  item->kind = static_cast<Kind>(kind);
  if (item->kind == Kind::kEoi) {
    item->eoi.pin = static_cast<uint8_t>(Number(1));
    item->eoi.generation = static_cast<uint32_t>(Number(4));
    bad_ |= item->eoi.pin >= kIoApicPins;
  } else {
    item->vcpu = VcpuId(static_cast<uint32_t>(Number(2)));
    item->version = static_cast<uint32_t>(Number(4));
    item->serial = static_cast<uint32_t>(Number(4));
    bad_ |= item->version == 0;
  }
  switch (item->kind) {
    case Kind::kDeliver:
      item->origin = NodeId(static_cast<uint16_t>(Number(2)));
      Content(&item->content);
      break;
    case Kind::kAnswer:
      item->hint = static_cast<uint16_t>(Number(2));
      bad_ |= item->hint > kAcceptsNothing;
      break;
    case Kind::kVcpu:
      item->hint = static_cast<uint16_t>(Number(2));
      bad_ |= item->hint > kAcceptsNothing;
      Addressing(&item->addressing);
      break;
    case Kind::kKnown:
    case Kind::kEoi:
      break;
    default:
      bad_ = true;
      break;
  }
  if (bad_) {
    return absl::InvalidArgumentError(
        absl::StrCat("interrupts: malformed item of kind ", kind, " at byte ", start, " of ", bytes_.size()));
  }
  return true;
}

}  // namespace hk
