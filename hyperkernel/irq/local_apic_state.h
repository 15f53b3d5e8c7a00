// What a move or a suspend carries of a local APIC. Fixed-width fields only; timers as remaining time, since the other
// node's clock has another origin. A change of meaning raises kLocalApicStateVersion.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/irq/interrupt_message.h"

namespace hk {

inline constexpr uint32_t kLocalApicStateVersion = 1;

// The last level-triggered delivery from one I/O APIC pin that this APIC has not ended yet.
struct LevelSource {
  uint32_t generation = 0;
  uint8_t vector = 0;
  uint8_t valid = 0;

  bool operator==(const LevelSource&) const = default;
};

// A queued event: ApicEvent::Kind and vector.
struct SavedApicEvent {
  uint8_t kind = 0;
  uint8_t vector = 0;

  bool operator==(const SavedApicEvent&) const = default;
};

// One local APIC, whole.
struct LocalApicState {
  uint32_t version = kLocalApicStateVersion;
  uint32_t apic_id = 0;
  uint64_t apic_base = 0;
  uint64_t icr = 0;
  int64_t timer_remaining_ns = 0;  // of a running timer; negative when overdue
  uint32_t tpr = 0;
  uint32_t ldr = 0;  // as written in xAPIC mode
  uint32_t dfr = 0;
  uint32_t svr = 0;
  uint32_t esr = 0;
  uint32_t pending_errors = 0;
  uint32_t timer_initial = 0;
  uint32_t timer_divide = 0;
  std::array<uint32_t, 8> irr{};
  std::array<uint32_t, 8> isr{};
  std::array<uint32_t, 8> tmr{};
  std::array<uint32_t, 7> lvt{};  // in the order of LocalSource
  std::array<LevelSource, kIoApicPins> level_sources{};
  std::array<SavedApicEvent, 4> events{};
  uint8_t event_count = 0;
  uint8_t timer_running = 0;
  uint8_t waiting_for_sipi = 0;

  bool operator==(const LocalApicState&) const = default;
};

// The byte form: every field in its order, little-endian, no padding.
inline constexpr size_t kLocalApicStateBytes = 343;
std::vector<std::byte> EncodeLocalApic(const LocalApicState& state);
// Errors: kInvalidArgument: another length, or another version. What the fields may be, LocalApic::Restore says.
absl::StatusOr<LocalApicState> DecodeLocalApic(std::span<const std::byte> bytes);

}  // namespace hk
