#include "hyperkernel/irq/pending_interrupts.h"

namespace hk {

DeliveryMode PendingInterrupts::ModeOf(ApicEvent::Kind kind) {
  switch (kind) {
    case ApicEvent::Kind::kNmi:
      return DeliveryMode::kNmi;
    case ApicEvent::Kind::kInit:
      return DeliveryMode::kInit;
    case ApicEvent::Kind::kSipi:
      break;
  }
  return DeliveryMode::kStartup;
}

void PendingInterrupts::Add(const InterruptMessage& message) {
  switch (message.mode) {
    case DeliveryMode::kFixed:
    case DeliveryMode::kLowestPriority:
      fixed.Set(message.vector);
      level.Assign(message.vector, message.level);
      if (message.level && message.pin < kIoApicPins) {
        Pin& pin = deliveries[message.pin];
        const bool known = (pins >> message.pin & 1) != 0;
        // One that was overtaken on its way does not hide the newer one (LocalApic::NoteLevelSource).
        if (!known || static_cast<int32_t>(message.generation - pin.generation) > 0) {
          pin = {.generation = message.generation, .vector = message.vector};
          pins |= uint32_t{1} << message.pin;
        }
      }
      return;
    case DeliveryMode::kNmi:
      events.PushNmi();
      return;
    case DeliveryMode::kInit:
      events.PushInit();
      return;
    case DeliveryMode::kStartup:
      // Whether the vCPU waits for it, its APIC knows.
      events.PushSipi(message.vector, true);
      return;
    case DeliveryMode::kSmi:
    case DeliveryMode::kReserved:
    case DeliveryMode::kExtInt:
      return;
  }
}

}  // namespace hk
