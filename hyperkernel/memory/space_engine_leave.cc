// A node that leaves its space while it lives: it gives away all that it owns, by the offers of a node that is short of
// frames, and wants nothing more. README.md, "Leaving".
#include <algorithm>
#include <utility>
#include <vector>

#include "hyperkernel/base/mutant.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {

absl::Status Engine::LeavesHere() const {
  return absl::FailedPreconditionError("this node is leaving the space");
}

void Engine::Leave(bool leave) {
  MutexLock leave_lock(&leave_mutex_);
  if (leaving() == leave) return;
  // Who has waited for the node to stay begins to wait anew, before anybody can take him for late.
  if (!leave) RenewWishes(false);
  leaving_.store(leave, std::memory_order_release);
  RenewWishes(true);
  frames_due_.store(true, std::memory_order_release);
  Finish();
}

void Engine::RenewWishes(bool advance) {
  for (Shard& shard : shards_) {
    MutexLock lock(&shard.mutex);
    std::vector<uint64_t> pages;
    for (const auto& [gfn, active] : shard.active) {
      if (active->wished()) pages.push_back(gfn);
    }
    std::sort(pages.begin(), pages.end());  // the same order in each run
    for (const uint64_t gfn : pages) {
      const auto found = shard.active.find(gfn);
      if (found == shard.active.end() || stopped()) continue;
      ActivePage* const active = found->second.get();
      active->since = clock_.Now();
      if (!advance) continue;
      Advance(&shard, active);
      Rest(&shard, active);
      Drain(&shard);
    }
  }
}

void Engine::EndWishes(ActivePage* active) {
  for (const Waiter& waiter : std::exchange(active->waiters, {})) waiter.granted(LeavesHere());
}

// What is on its way counts: a request that was under way when the node began to leave may still bring a page, and
// bytes that are kept for another node are the only ones until it has them.
SpaceLeaving Engine::LeavingState() const {
  SpaceLeaving state;
  state.leaving = leaving();
  state.running = running();
  for (const Shard& shard : shards_) {
    MutexLock lock(&shard.mutex);
    state.pages_left += shard.statistics.pages_owned + shard.statistics.pages_exclusive;
    state.pages_lost += shard.statistics.pages_lost;
    for (const auto& [gfn, active] : shard.active) {
      if (active->page.pins > 0) ++state.pages_pinned;
      if (HK_MUTANT(leave_forgets_what_is_under_way)) continue;
      const bool counted = active->page.state == PageState::kOwner || active->page.state == PageState::kExclusive;
      if (counted) continue;
      if (!IsResting(active->page.state) || active->page.retained || !active->unmapped.empty()) ++state.pages_left;
    }
  }
  return state;
}

}  // namespace hk::space
