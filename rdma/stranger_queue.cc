#include "rdma/stranger_queue.h"

#include <algorithm>

#include "hyperkernel/base/mutant.h"

namespace hk {

void StrangerQueue::Remove(uint64_t id) {
  const auto found = sources_.find(id);
  if (found == sources_.end()) return;
  const auto ids = ids_.find(found->second);
  ids->second.erase(id);
  if (ids->second.empty()) ids_.erase(ids);
  sources_.erase(found);
}

std::optional<uint64_t> StrangerQueue::Victim() const {
  if (sources_.empty()) return std::nullopt;
  if (HK_MUTANT(strangers_unfair)) return sources_.begin()->first;
  std::optional<uint64_t> victim;
  size_t most = 0;
  for (const auto& [source, ids] : ids_) {
    const size_t count = std::max(ids.size(), kShare);
    if (count < most || (count == most && victim < *ids.begin())) continue;
    victim = *ids.begin();
    most = count;
  }
  return victim;
}

}  // namespace hk
