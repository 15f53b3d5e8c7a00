#include "hyperkernel/node/machine_clocks.h"

#include <chrono>
#include <utility>
#include <vector>

namespace hk {

void MachineClocks::Begin(uint64_t offset, uint32_t tsc_khz) {
  MutexLock lock(&mutex_);
  offset_ = offset;
  tsc_khz_ = tsc_khz;
}

uint64_t MachineClocks::offset() const {
  MutexLock lock(&mutex_);
  return offset_;
}

void MachineClocks::Take(NodeId node, const ClockWord& word, Monotonic now) {
  MutexLock lock(&mutex_);
  said_[node] = {.lead = word.lead, .bound_ns = word.bound_ns, .at = now};
}

uint64_t MachineClocks::TakeStep() {
  MutexLock lock(&mutex_);
  if (tsc_khz_ == 0) return 0;
  std::vector<uint64_t> leads;
  // Each counts once: after the step it is over.
  for (auto& [node, said] : said_) leads.push_back(std::exchange(said.lead, 0));
  return StepOfIoNode(leads, TicksOf(kClockStepAt, tsc_khz_), TicksOf(kMostClockStep, tsc_khz_));
}

void MachineClocks::Stepped(uint64_t ticks) {
  MutexLock lock(&mutex_);
  offset_ += ticks;
  for (auto& [node, said] : said_) {
    if (said.bound_ns.has_value()) *said.bound_ns += NsOf(ticks, tsc_khz_);
  }
}

std::optional<uint64_t> MachineClocks::Bound(NodeId node, Monotonic now) const {
  MutexLock lock(&mutex_);
  const auto found = said_.find(node);
  if (found == said_.end() || !found->second.bound_ns.has_value()) return std::nullopt;
  const uint64_t bound = *found->second.bound_ns;
  const std::chrono::nanoseconds overdue = now - found->second.at - kClockBoundHolds;
  // One host has one counter, however long ago it said so.
  if (bound == 0 || overdue.count() <= 0) return bound;
  return bound + static_cast<uint64_t>(overdue.count()) * kMostDriftPpb / 1'000'000'000;
}

}  // namespace hk
