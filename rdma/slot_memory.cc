#include "rdma/slot_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "hyperkernel/base/check.h"

namespace hk {

namespace {

size_t PoolIndex(MessageClass message_class, SlotUse use) {
  HK_CHECK(message_class != MessageClass::kInvalidate);
  return (message_class == MessageClass::kBulk ? 2 : 0) + (use == SlotUse::kSend ? 1 : 0);
}

size_t StrideOf(MessageClass message_class, size_t room) {
  return room + (message_class == MessageClass::kBulk ? kBulkSlotBytes : kFaultSlotBytes);
}

}  // namespace

absl::StatusOr<SlotMemory> SlotMemory::Create(const SlotCounts& counts, size_t room) {
  HK_CHECK(room % 64 == 0);
  const size_t fault = size_t{counts.fault_receive} + counts.fault_send;
  const size_t bulk = size_t{counts.bulk_receive} + counts.bulk_send;
  const size_t size = fault * StrideOf(MessageClass::kFault, room) + bulk * StrideOf(MessageClass::kBulk, room) + room;
  auto mapping = Mapping::Create(std::max<size_t>(size, 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                                 "slots of the transport");
  if (!mapping.ok()) return mapping.status();
  return SlotMemory(*std::move(mapping), counts, room);
}

SlotMemory::SlotMemory(Mapping mapping, const SlotCounts& counts, size_t room)
    : mapping_(std::move(mapping)),
      room_(room),
      counts_{counts.fault_receive, counts.fault_send, counts.bulk_receive, counts.bulk_send} {
  const size_t fault = StrideOf(MessageClass::kFault, room), bulk = StrideOf(MessageClass::kBulk, room);
  start_ = {0, counts_[0] * fault, (counts_[0] + counts_[1]) * fault,
            (counts_[0] + counts_[1]) * fault + counts_[2] * bulk};
}

std::span<std::byte> SlotMemory::Bytes(SlotId slot) const {
  const SlotName name = SlotName::Decode(slot);
  const size_t pool = PoolIndex(name.message_class, name.use);
  HK_CHECK(name.index < counts_[pool]);
  const size_t stride = Stride(name.message_class);
  return {First(name.message_class, name.use) + name.index * stride, stride - room_};
}

std::byte* SlotMemory::First(MessageClass message_class, SlotUse use) const {
  return reinterpret_cast<std::byte*>(mapping_.data()) + start_[PoolIndex(message_class, use)] + room_;
}

size_t SlotMemory::Stride(MessageClass message_class) const {
  return StrideOf(message_class, room_);
}

std::span<std::byte> SlotMemory::All() const {
  return {reinterpret_cast<std::byte*>(mapping_.data()), mapping_.size()};
}

}  // namespace hk
