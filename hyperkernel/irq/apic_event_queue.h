// INIT, SIPI and NMI on their way into one vCPU, in order of arrival: kept as bits, an INIT that overtakes a SIPI would
// lose the vCPU.
//
// Pure and single-threaded. Invariants:
//  1. At most one INIT, and it is the oldest: a reset forgets what came before it (SDM 3A 9.1).
//  2. At most one SIPI, kept only if the vCPU waits for it or the queued INIT will make it wait (SDM 3A 8.4.4.1).
//  3. At most two NMIs: one that blocks, one pending; more collapse, as in hardware (SDM 3A 6.7.1).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace hk {

// One queued event. Values are the saved form.
struct ApicEvent {
  // What it is.
  enum class Kind : uint8_t { kNmi = 1, kInit = 2, kSipi = 3 };
  Kind kind = Kind::kNmi;
  uint8_t vector = 0;  // of a SIPI

  bool operator==(const ApicEvent&) const = default;
};

// The queue. Pushes return whether the event was kept as a new one.
class ApicEventQueue {
 public:
  static constexpr size_t kCapacity = 4;

  bool PushNmi();
  bool PushInit();
  bool PushSipi(uint8_t vector, bool waiting_for_sipi);

  // The event to act on next. While waiting for SIPI, NMIs stay pending behind it.
  std::optional<ApicEvent> Next(bool waiting_for_sipi) const;
  // Removes the oldest event equal to `event`; false if it is no longer there (an INIT came and removed it).
  bool Take(ApicEvent event);
  std::span<const ApicEvent> events() const { return {events_.data(), size_}; }

  // Replaces the content; false, and nothing changed, if the invariants do not hold.
  bool Restore(std::span<const ApicEvent> events, bool waiting_for_sipi);

 private:
  size_t Count(ApicEvent::Kind kind) const;
  void Append(ApicEvent event);

  std::array<ApicEvent, kCapacity> events_{};
  size_t size_ = 0;
};

}  // namespace hk
