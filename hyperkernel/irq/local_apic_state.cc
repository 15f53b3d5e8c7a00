// Save and Restore of LocalApic.
#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/irq/local_apic.h"

namespace hk {

namespace {

absl::Status Bad(const char* what) {
  return absl::InvalidArgumentError(absl::StrCat("saved local APIC: ", what));
}

bool BaseIsLegal(uint64_t base) {
  const bool extended = (base & kApicBaseX2Apic) != 0;
  const bool enabled = (base & kApicBaseEnabled) != 0;
  return (base & ~(kApicBaseBsp | kApicBaseX2Apic | kApicBaseEnabled)) == kApicBaseAddress && (enabled || !extended);
}

bool VectorsAreLegal(const LocalApicState& state) {
  return ((state.irr[0] | state.isr[0] | state.tmr[0]) & 0xffff) == 0;
}

bool RegistersAreLegal(const LocalApicState& state) {
  if (state.tpr > 0xff || (state.svr & ~kSpuriousWritable) != 0 || (state.ldr & 0xffffff) != 0 ||
      (state.dfr & 0x0fffffff) != 0x0fffffff || ((state.esr | state.pending_errors) & ~kErrorBits) != 0 ||
      (state.icr & 0xffffffff & ~kCommandLowWritable) != 0 || (state.timer_divide & ~kTimerDivideWritable) != 0) {
    return false;
  }
  const bool extended = (state.apic_base & kApicBaseX2Apic) != 0;
  if (!extended && (state.icr >> 32 & 0xffffff) != 0) {
    return false;
  }
  for (size_t i = 0; i < kLocalSources; ++i) {
    const bool must_mask = (state.svr & kSpuriousEnabled) == 0;
    if ((state.lvt[i] & ~LvtWritable(static_cast<LocalSource>(i))) != 0 ||
        (must_mask && (state.lvt[i] & kLvtMasked) == 0)) {
      return false;
    }
  }
  return true;
}

bool TimerIsLegal(const LocalApicState& state) {
  const int64_t limit = std::chrono::nanoseconds(kMaxTimerRemaining).count();
  if (state.timer_running == 0) {
    return state.timer_remaining_ns == 0;
  }
  return state.timer_running == 1 && state.timer_initial != 0 && state.timer_remaining_ns <= limit;
}

bool SourcesAreLegal(const LocalApicState& state) {
  return std::ranges::all_of(state.level_sources, [](const LevelSource& source) {
    return source.valid <= 1 && (source.valid == 0 || source.vector >= kFirstLegalVector);
  });
}

// The classes in service are distinct: each was above the ones before it (invariant 2).
bool ServiceIsLegal(const LocalApicState& state) {
  return std::ranges::all_of(state.isr, [](uint32_t word) {
    return ((word & 0xffff) & ((word & 0xffff) - 1)) == 0 && ((word >> 16) & ((word >> 16) - 1)) == 0;
  });
}

}  // namespace

LocalApicState LocalApic::Save(Monotonic now) const {
  LocalApicState state{.apic_id = apic_id_,
                       .apic_base = base_,
                       .icr = icr_,
                       .tpr = tpr_,
                       .ldr = ldr_,
                       .dfr = dfr_,
                       .svr = svr_,
                       .esr = esr_,
                       .pending_errors = pending_errors_,
                       .timer_initial = timer_.initial(),
                       .timer_divide = timer_.divide_register(),
                       .irr = irr_.words(),
                       .isr = isr_.words(),
                       .tmr = tmr_.words(),
                       .lvt = lvt_,
                       .level_sources = level_sources_};
  if (const auto deadline = timer_.deadline()) {
    state.timer_running = 1;
    state.timer_remaining_ns = std::chrono::nanoseconds(*deadline - now).count();
  }
  for (const ApicEvent& event : events_.events()) {
    state.events[state.event_count++] = {.kind = static_cast<uint8_t>(event.kind), .vector = event.vector};
  }
  state.waiting_for_sipi = waiting_for_sipi_;
  return state;
}

absl::Status LocalApic::Restore(const LocalApicState& state, Monotonic now) {
  if (state.version != kLocalApicStateVersion) {
    return Bad("version not known");
  }
  if (state.apic_id != apic_id_) {
    return Bad("of another vCPU");
  }
  if (!BaseIsLegal(state.apic_base)) {
    return Bad("IA32_APIC_BASE not legal");
  }
  if (!VectorsAreLegal(state) || !ServiceIsLegal(state)) {
    return Bad("IRR, ISR or TMR not legal");
  }
  if (!RegistersAreLegal(state)) {
    return Bad("reserved bits set");
  }
  if (!TimerIsLegal(state)) {
    return Bad("timer not legal");
  }
  if (!SourcesAreLegal(state)) {
    return Bad("level sources not legal");
  }
  if (state.waiting_for_sipi > 1 || state.event_count > ApicEventQueue::kCapacity) {
    return Bad("events not legal");
  }
  std::array<ApicEvent, ApicEventQueue::kCapacity> events;
  for (size_t i = 0; i < state.event_count; ++i) {
    if (state.events[i].kind < 1 || state.events[i].kind > 3) {
      return Bad("events not legal");
    }
    events[i] = {.kind = static_cast<ApicEvent::Kind>(state.events[i].kind), .vector = state.events[i].vector};
  }
  if (!events_.Restore({events.data(), state.event_count}, state.waiting_for_sipi != 0)) {
    return Bad("events not legal");
  }
  waiting_for_sipi_ = state.waiting_for_sipi != 0;
  base_ = state.apic_base;
  icr_ = state.icr;
  tpr_ = state.tpr;
  ldr_ = state.ldr;
  dfr_ = state.dfr;
  svr_ = state.svr;
  esr_ = state.esr;
  pending_errors_ = state.pending_errors;
  irr_ = VectorSet(state.irr);
  isr_ = VectorSet(state.isr);
  tmr_ = VectorSet(state.tmr);
  lvt_ = state.lvt;
  level_sources_ = state.level_sources;
  level_pins_ = 0;
  for (size_t pin = 0; pin < kIoApicPins; ++pin) {
    level_pins_ |= uint32_t{level_sources_[pin].valid} << pin;
  }
  const bool periodic = (Lvt(LocalSource::kTimer) & kLvtPeriodic) != 0;
  std::optional<std::chrono::nanoseconds> remaining;
  if (state.timer_running != 0 && !HK_MUTANT(apic_restore_stops_timer)) {
    // Overdue by more than any timer runs is a saved state of days ago: one expiry, now.
    remaining = std::max(std::chrono::nanoseconds(state.timer_remaining_ns), -kMaxTimerRemaining);
  }
  timer_.Restore(state.timer_initial, state.timer_divide, periodic, remaining, now);
  return absl::OkStatus();
}

}  // namespace hk
