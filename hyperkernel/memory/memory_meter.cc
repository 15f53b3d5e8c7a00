#include "hyperkernel/memory/memory_meter.h"

#include <algorithm>
#include <bit>

namespace hk {

void MemoryMeter::Filled(Gfn first, uint64_t pages, Monotonic now) {
  if (pages == 0) return;
  MutexLock lock(&mutex_);
  Use& use = extents_.at(first.value() / kExtentPages);
  use.pages += static_cast<uint32_t>(pages);
  use.heat.Add(now, static_cast<float>(pages));
  statistics_.pages_exclusive += pages;
}

void MemoryMeter::Waited(bool write, Monotonic::duration time) {
  const auto ns = static_cast<uint64_t>(std::max<int64_t>(1, std::chrono::nanoseconds(time).count()));
  const size_t bucket = std::min<size_t>(std::bit_width(ns) - 1, SpaceStatistics::kLatencyBuckets - 1);
  MutexLock lock(&mutex_);
  ++(write ? statistics_.write_faults : statistics_.read_faults);
  ++(write ? statistics_.write_latency : statistics_.read_latency)[bucket];
}

SpaceStatistics MemoryMeter::Statistics() const {
  MutexLock lock(&mutex_);
  return statistics_;
}

std::vector<ExtentUse> MemoryMeter::Uses(uint64_t first, size_t most) const {
  const Monotonic now = std::chrono::steady_clock::now();
  std::vector<ExtentUse> uses;
  MutexLock lock(&mutex_);
  for (uint64_t extent = first; extent < extents_.size() && uses.size() < most; ++extent) {
    const Use& use = extents_[extent];
    if (use.pages == 0) continue;
    ExtentUse& out = uses.emplace_back();
    out.extent = extent;
    out.exclusive = use.pages;
    out.heat = use.heat.At(now);
  }
  return uses;
}

}  // namespace hk
