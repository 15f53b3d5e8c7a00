#include "hyperkernel/irq/apic_event_queue.h"

#include <algorithm>

#include "hyperkernel/base/check.h"

namespace hk {

size_t ApicEventQueue::Count(ApicEvent::Kind kind) const {
  return static_cast<size_t>(
      std::ranges::count_if(events(), [kind](const ApicEvent& event) { return event.kind == kind; }));
}

void ApicEventQueue::Append(ApicEvent event) {
  HK_CHECK(size_ < kCapacity);
  events_[size_++] = event;
}

bool ApicEventQueue::PushNmi() {
  if (Count(ApicEvent::Kind::kNmi) >= 2) {
    return false;
  }
  Append({ApicEvent::Kind::kNmi, 0});
  return true;
}

bool ApicEventQueue::PushInit() {
  size_ = 0;
  Append({ApicEvent::Kind::kInit, 0});
  return true;
}

bool ApicEventQueue::PushSipi(uint8_t vector, bool waiting_for_sipi) {
  const bool will_wait = waiting_for_sipi || Count(ApicEvent::Kind::kInit) != 0;
  if (!will_wait || Count(ApicEvent::Kind::kSipi) != 0) {
    return false;
  }
  Append({ApicEvent::Kind::kSipi, vector});
  return true;
}

std::optional<ApicEvent> ApicEventQueue::Next(bool waiting_for_sipi) const {
  for (const ApicEvent& event : events()) {
    if (!waiting_for_sipi || event.kind != ApicEvent::Kind::kNmi) {
      return event;
    }
  }
  return std::nullopt;
}

bool ApicEventQueue::Take(ApicEvent event) {
  const auto end = events_.begin() + static_cast<ptrdiff_t>(size_);
  const auto found = std::find(events_.begin(), end, event);
  if (found == end) {
    return false;
  }
  std::move(found + 1, end, found);
  --size_;
  return true;
}

bool ApicEventQueue::Restore(std::span<const ApicEvent> events, bool waiting_for_sipi) {
  ApicEventQueue replayed;
  for (const ApicEvent& event : events) {
    bool kept = false;
    switch (event.kind) {
      case ApicEvent::Kind::kNmi:
        kept = event.vector == 0 && replayed.PushNmi();
        break;
      case ApicEvent::Kind::kInit:
        kept = event.vector == 0 && replayed.size_ == 0 && replayed.PushInit();
        break;
      case ApicEvent::Kind::kSipi:
        kept = replayed.PushSipi(event.vector, waiting_for_sipi);
        break;
    }
    if (!kept) {
      return false;
    }
  }
  *this = replayed;
  return true;
}

}  // namespace hk
