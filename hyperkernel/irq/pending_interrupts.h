// What waits to reach one local APIC, in the form that the APIC itself would keep it: so it is bounded however much is
// sent, and nothing of it is lost that the APIC would not lose too.
//
// Plain value. One bit for each vector; the newest delivery of each I/O APIC pin; INIT, SIPI and NMI as the APIC queues
// them (apic_event_queue.h). Which arrived first of an interrupt and an event is not kept: given to an APIC in one
// step, both orders leave it in the same state.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "hyperkernel/irq/apic_event_queue.h"
#include "hyperkernel/irq/interrupt_message.h"
#include "hyperkernel/irq/vector_set.h"

namespace hk {

// See above. Invariants: `level` is within `fixed`; the vector of each pin is in `fixed`.
struct PendingInterrupts {
  // The newest delivery of a pin.
  struct Pin {
    uint32_t generation = 0;
    uint8_t vector = 0;
  };
  VectorSet fixed;
  VectorSet level;    // those that arrived level-triggered last
  uint32_t pins = 0;  // those of `deliveries` that are valid
  std::array<Pin, kIoApicPins> deliveries{};
  ApicEventQueue events;

  bool empty() const { return !fixed.Highest() && events.events().empty(); }

  // One more message for this APIC. Modes that no local APIC accepts change nothing.
  void Add(const InterruptMessage& message);

  // Calls visit(InterruptMessage) for messages that together have the effect of all that was added.
  template <typename Visit>
  void ForEachMessage(Visit visit) const {
    for (uint32_t rest = pins; rest != 0; rest &= rest - 1) {
      const auto pin = static_cast<uint8_t>(std::countr_zero(rest));
      visit(InterruptMessage{
          .vector = deliveries[pin].vector, .level = true, .pin = pin, .generation = deliveries[pin].generation});
    }
    fixed.ForEach([&](uint8_t vector) { visit(InterruptMessage{.vector = vector, .level = level.Test(vector)}); });
    for (const ApicEvent& event : events.events()) {
      visit(InterruptMessage{.mode = ModeOf(event.kind), .vector = event.vector});
    }
  }
  // What is in `newer` was added after all that is here.
  void Merge(const PendingInterrupts& newer) {
    newer.ForEachMessage([this](const InterruptMessage& message) { Add(message); });
  }

 private:
  static DeliveryMode ModeOf(ApicEvent::Kind kind);
};

}  // namespace hk
