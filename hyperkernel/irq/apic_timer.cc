#include "hyperkernel/irq/apic_timer.h"

#include <algorithm>

#include "hyperkernel/irq/apic_registers.h"

namespace hk {

std::chrono::nanoseconds ApicTimer::Unit() const {
  // Figure 11-10: bits 3, 1 and 0 together; 0 is 2, 6 is 128, 7 is 1.
  const uint32_t code = (divide_register_ >> 1 & 4) | (divide_register_ & 3);
  return kApicBusTick * (uint32_t{1} << (code + 1) % 8);
}

std::chrono::nanoseconds ApicTimer::Period() const {
  const auto period = Unit() * int64_t{initial_};
  return periodic_ ? std::max(period, kMinTimerPeriod) : period;
}

void ApicTimer::WriteInitial(uint32_t count, Monotonic now) {
  initial_ = count;
  deadline_.reset();
  if (count != 0) {
    deadline_ = now + Period();
  }
}

void ApicTimer::WriteDivide(uint32_t value, Monotonic now) {
  const uint32_t count = Current(now);
  divide_register_ = value & kTimerDivideWritable;
  if (deadline_) {
    deadline_ = now + Unit() * int64_t{count};
  }
}

uint32_t ApicTimer::Current(Monotonic now) const {
  if (!deadline_) {
    return 0;
  }
  auto remaining = std::chrono::duration_cast<std::chrono::nanoseconds>(*deadline_ - now);
  if (remaining.count() <= 0) {
    if (!periodic_) {
      return 0;
    }
    remaining = Period() - -remaining % Period();
  }
  const int64_t unit = Unit().count();
  return static_cast<uint32_t>(std::min<int64_t>((remaining.count() + unit - 1) / unit, initial_));
}

bool ApicTimer::Expire(Monotonic now) {
  if (!deadline_ || *deadline_ > now) {
    return false;
  }
  if (periodic_) {
    const auto missed = (now - *deadline_) / Period();
    *deadline_ += Period() * (missed + 1);
  } else {
    deadline_.reset();
  }
  return true;
}

void ApicTimer::Restore(uint32_t initial, uint32_t divide_register, bool periodic,
                        std::optional<std::chrono::nanoseconds> remaining, Monotonic now) {
  initial_ = initial;
  divide_register_ = divide_register;
  periodic_ = periodic;
  deadline_.reset();
  if (remaining) {
    deadline_ = now + *remaining;
  }
}

}  // namespace hk
