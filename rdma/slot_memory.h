// The memory of a node's slots: one mapping, the same layout for all back ends, so that verbs can register it as a
// whole. Immutable after Create; thread-safe. Who may touch which slot's bytes is slots.h's matter.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "hyperkernel/base/mapping.h"
#include "rdma/slots.h"

namespace hk {

// Pools of slots, one behind the other. Each slot has `room` bytes before its payload, and so many behind it: the next
// slot's, or as many at the end. Payloads are 64-byte aligned.
class SlotMemory {
 public:
  // `room`: a multiple of 64. Errors: errno of mmap.
  static absl::StatusOr<SlotMemory> Create(const SlotCounts& counts, size_t room);

  // The whole payload of a slot. REQUIRES: a slot of these counts (SlotTable has checked it).
  std::span<std::byte> Bytes(SlotId slot) const;
  // Payload of index 0, and the distance from slot to slot: what Setup tells. REQUIRES: a class with slots.
  std::byte* First(MessageClass message_class, SlotUse use) const;
  size_t Stride(MessageClass message_class) const;
  std::span<std::byte> All() const;

 private:
  SlotMemory(Mapping mapping, const SlotCounts& counts, size_t room);

  Mapping mapping_;
  size_t room_;
  std::array<size_t, 4> start_{};  // index: bulk * 2 + send
  std::array<uint32_t, 4> counts_{};
};

}  // namespace hk
