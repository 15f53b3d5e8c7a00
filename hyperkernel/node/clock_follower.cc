#include "hyperkernel/node/clock_follower.h"

#include <algorithm>
#include <bit>
#include <chrono>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

constexpr int64_t kBillion = 1'000'000'000;
// Round trips of the first look: a thousand of them would fit.
constexpr std::chrono::seconds kFirstLookDeadline(2);
// Exchanges of a later one, of which there is one each second, and how long they may take.
constexpr uint32_t kLookExchanges = 4;
constexpr std::chrono::milliseconds kLookDeadline(300);
// Drift is taken from two measurements so far apart: round trips of 100 us then leave some 10 ppm open.
constexpr std::chrono::seconds kDriftBase(16);
// By how much more drift may change until it is taken anew: quartz follows its temperature by less.
constexpr int64_t kWanderPpb = 2'000;

// Of `ticks` at that drift, rounded down.
int64_t Drifted(uint64_t ticks, int64_t ppb) {
  const __int128 product = static_cast<__int128>(ticks) * ppb;
  const __int128 quotient = product / kBillion;
  return static_cast<int64_t>(product % kBillion < 0 ? quotient - 1 : quotient);
}

// How far `b` is from `a`, both near each other.
int64_t Apart(uint64_t a, uint64_t b) {
  return static_cast<int64_t>(b - a);
}

uint64_t Size(int64_t value) {
  return value < 0 ? uint64_t{0} - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
}

}  // namespace

uint64_t TicksOf(std::chrono::nanoseconds time, uint32_t tsc_khz) {
  return static_cast<uint64_t>(static_cast<__int128>(time.count()) * tsc_khz / 1'000'000);
}

uint64_t NsOf(uint64_t ticks, uint32_t tsc_khz) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(ticks) * 1'000'000 / tsc_khz);
}

void ClockFilter::Begin(const Point& measured) {
  known_ = true;
  last_ = base_ = measured;
  least_drift_ = -kMostDriftPpb;
  most_drift_ = kMostDriftPpb;
}

void ClockFilter::LearnDrift(const Point& measured) {
  const uint64_t ticks = measured.at - base_.at;
  if (ticks < TicksOf(kDriftBase, tsc_khz_)) return;
  const auto ppb = [&](int64_t change) {
    return static_cast<int64_t>(static_cast<__int128>(change) * kBillion / static_cast<int64_t>(ticks));
  };
  const int64_t least = Apart(base_.range.least, measured.range.least) - static_cast<int64_t>(base_.range.width);
  const int64_t most = Apart(base_.range.least, measured.range.least) + static_cast<int64_t>(measured.range.width);
  least_drift_ = std::clamp(ppb(least) - kWanderPpb, -kMostDriftPpb, kMostDriftPpb);
  most_drift_ = std::clamp(ppb(most) + kWanderPpb, -kMostDriftPpb, kMostDriftPpb);
  base_ = measured;
}

void ClockFilter::Add(const TscOffset& measured) {
  // The other counter was read within the exchange, and has drifted since.
  const uint64_t error = measured.error + static_cast<uint64_t>(Drifted(2 * measured.error, kMostDriftPpb)) + 1;
  const Point point{.at = measured.at,
                    .range = {.least = static_cast<uint64_t>(measured.offset) - error, .width = 2 * error}};
  if (!known_) return Begin(point);
  const TscRange before = At(point.at);
  // Both as seen from the one before, which is near.
  const int64_t least = std::max<int64_t>(0, Apart(before.least, point.range.least));
  const int64_t most = std::min(static_cast<int64_t>(before.width),
                                Apart(before.least, point.range.least) + static_cast<int64_t>(point.range.width));
  if (least > most) {
    jumps_++;
    return Begin(point);
  }
  last_ = {
      .at = point.at,
      .range = {.least = before.least + static_cast<uint64_t>(least), .width = static_cast<uint64_t>(most - least)}};
  if (HK_MUTANT(clock_history_ignored)) last_ = point;
  LearnDrift(point);
}

TscRange ClockFilter::At(uint64_t now) const {
  HK_CHECK(known_);
  // A measurement's time is that of its best exchange, and the clock of one that is asked may be a little behind it.
  const uint64_t ticks = static_cast<uint64_t>(std::max<int64_t>(0, Apart(last_.at, now)));
  const int64_t least = Drifted(ticks, least_drift_), most = Drifted(ticks, most_drift_) + 1;
  return {.least = last_.range.least + static_cast<uint64_t>(least),
          .width = last_.range.width + static_cast<uint64_t>(most - least)};
}

ClockTurn TurnOf(const TscRange& ahead, uint64_t machine, uint64_t own, uint64_t step_at) {
  int64_t least = Apart(own, machine + ahead.least);
  ClockTurn turn;
  // What is certain, and no more: to overtake the I/O node would make it step, and so on for ever.
  const int64_t behind = least + (HK_MUTANT(clock_steps_beyond) ? static_cast<int64_t>(ahead.width) : 0);
  if (behind > 0 && static_cast<uint64_t>(behind) >= step_at) {
    turn.step = static_cast<uint64_t>(behind);
    least -= behind;
  }
  const int64_t most = least + static_cast<int64_t>(ahead.width);
  if (most < 0) turn.lead = Size(most);
  turn.bound = std::max(Size(least), Size(most));
  return turn;
}

uint64_t StepOfIoNode(const std::vector<uint64_t>& leads, uint64_t step_at, uint64_t most) {
  uint64_t step = 0;
  for (const uint64_t lead : leads) {
    if (lead >= step_at && (lead <= most || HK_MUTANT(clock_lead_believed))) step = std::max(step, lead);
  }
  return step;
}

TscRange PartClock::Ahead() const {
  return host_.one_host ? TscRange() : filter_.At(host_.ticks());
}

absl::StatusOr<uint64_t> PartClock::Begin(uint64_t machine) {
  own_ = machine;
  if (host_.one_host) return own_;
  HK_ASSIGN_OR_RETURN(const TscOffset measured,
                      host_.measure(kClockExchanges, host_.clock->Now() + kFirstLookDeadline));
  if (host_.tsc_khz != 0) first_error_ns_ = NsOf(measured.error, host_.tsc_khz);
  filter_.Add(measured);
  own_ = machine + static_cast<uint64_t>(measured.offset);
  return own_;
}

ClockTurn PartClock::Turn(uint64_t machine) const {
  // On one host nothing is uncertain: the smallest step is made.
  return TurnOf(Ahead(), machine, own_, host_.one_host ? 1 : TicksOf(kClockStepAt, host_.tsc_khz));
}

ClockWord PartClock::Look(uint64_t machine) {
  if (host_.tsc_khz == 0) return {};
  if (!host_.one_host) {
    const absl::StatusOr<TscOffset> measured = host_.measure(kLookExchanges, host_.clock->Now() + kLookDeadline);
    const uint64_t jumps = filter_.jumps();
    if (measured.ok()) filter_.Add(*measured);
    if (filter_.jumps() != jumps && std::has_single_bit(filter_.jumps())) {
      log::Warning("guest", "the TSC of this host, or of the I/O node's, has jumped, or drifts faster than they may",
                   {{"jumps", fmt::to_string(filter_.jumps())}});
    }
  }
  const ClockTurn turn = Turn(machine);
  if (turn.step != 0) {
    if (const absl::Status status = host_.step(turn.step); status.ok()) own_ += turn.step;
  }
  ClockTurn now = TurnOf(Ahead(), machine, own_, ~uint64_t{0});
  if (!host_.one_host) {
    const TscRange later = filter_.At(host_.ticks() + TicksOf(kClockBoundHolds, host_.tsc_khz));
    now.bound = std::max(now.bound, TurnOf(later, machine, own_, ~uint64_t{0}).bound);
  }
  return {.lead = now.lead, .bound_ns = NsOf(now.bound, host_.tsc_khz)};
}

}  // namespace hk
