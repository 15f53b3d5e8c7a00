#include "storage-replica/intent_map.h"

#include <algorithm>

#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"

namespace hk {
namespace {

template <typename Each>
void ForEachRegion(DiskId disk, BlockRange blocks, const Each& each) {
  if (blocks.count == 0) return;
  const uint64_t first = blocks.first / kRegionBlocks;
  const uint64_t last = (blocks.first + blocks.count - 1) / kRegionBlocks;
  if (last - first >= kMaxRequestRegions) return each(DiskRegion{disk, kWholeDisk});
  for (uint64_t number = first; number <= last; ++number) each(DiskRegion{disk, number});
}

}  // namespace

std::vector<DiskRegion> IntentMap::Begin(DiskId disk, BlockRange blocks) {
  std::vector<DiskRegion> missing;
  ForEachRegion(disk, blocks, [&](DiskRegion region) {
    if (!regions_[region].durable && !HK_MUTANT(replica_intent_not_awaited)) missing.push_back(region);
  });
  if (missing.empty()) {
    ForEachRegion(disk, blocks, [&](DiskRegion region) {
      State& state = regions_[region];
      ++state.in_flight;
      ++state.begun;
    });
  }
  return missing;
}

void IntentMap::Marked(DiskRegion region) {
  regions_[region].durable = true;
}

void IntentMap::End(DiskId disk, BlockRange blocks, uint32_t flush, int64_t now_ms) {
  ForEachRegion(disk, blocks, [&](DiskRegion region) {
    const auto found = regions_.find(region);
    HK_CHECK(found != regions_.end() && found->second.in_flight > 0);
    --found->second.in_flight;
    found->second.flush = std::max(found->second.flush, flush);
    found->second.last_ms = now_ms;
  });
}

void IntentMap::Found(DiskRegion region, int64_t now_ms) {
  // The first flush of this process covers what another had written.
  regions_[region] = {.durable = true, .flush = 1, .last_ms = now_ms};
}

std::vector<IntentMap::Candidate> IntentMap::Idle(const std::function<uint32_t(DiskId)>& durable,
                                                  int64_t now_ms) const {
  std::vector<Candidate> idle;
  for (const auto& [region, state] : regions_) {
    if (!state.durable || now_ms - state.last_ms < kIntentIdleMs) continue;
    if (state.in_flight > 0 && !HK_MUTANT(replica_intent_cleared_in_flight)) continue;
    if (state.flush > durable(region.disk) && !HK_MUTANT(replica_intent_cleared_unflushed)) continue;
    idle.push_back({.region = region, .begun = state.begun});
  }
  return idle;
}

std::vector<DiskRegion> IntentMap::Unmark(const std::vector<Candidate>& candidates) {
  std::vector<DiskRegion> unmarked;
  for (const Candidate& candidate : candidates) {
    const auto found = regions_.find(candidate.region);
    if (found == regions_.end()) continue;
    State& state = found->second;
    const bool used = state.in_flight > 0 || state.begun != candidate.begun;
    if (used && !HK_MUTANT(replica_intent_cleared_in_flight)) continue;
    unmarked.push_back(candidate.region);
    if (state.in_flight > 0) {
      state.durable = false;
    } else {
      regions_.erase(found);
    }
  }
  return unmarked;
}

}  // namespace hk
