// What the fault engine notices about where a space is busy, for operators: nothing else depends on it.
#include <algorithm>

#include "hyperkernel/base/mutant.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {
namespace {

bool IsRevocation(PageEventType type) {
  return type == PageEventType::kForwardRead || type == PageEventType::kForwardWrite ||
         type == PageEventType::kForwardAdopt || type == PageEventType::kInvalidate;
}

}  // namespace

// A page's right has changed here, by a step. `deferred`: what waited before it.
void Engine::NoteChange(Shard* shard, const Page& page, PageRight before, const PageEvent& event,
                        const DeferredRevoke& deferred, Gfn gfn) {
  const Monotonic now = clock_.Now();
  ExtentOf(shard, gfn)->heat.Add(now);
  const PageRight after = hk::RightOf(page.state);
  const bool was_deferred = deferred.active && !page.deferred.active;
  if (after >= before || (!was_deferred && !IsRevocation(event.type))) return;
  if (HK_MUTANT(engine_losses_unnoticed) && was_deferred) return;
  const bool owner = before >= PageRight::kOwner && after < PageRight::kOwner;
  shard->hot.Lost(gfn, owner, was_deferred ? deferred.message.requester : event.message.requester, now);
}

std::vector<HotPage> Engine::MostLost(size_t most) const {
  const Monotonic now = clock_.Now();
  std::vector<HotPage> pages;
  for (const Shard& shard : shards_) {
    MutexLock lock(&shard.mutex);
    shard.hot.AppendTo(now, &pages);
  }
  std::sort(pages.begin(), pages.end(), [](const HotPage& left, const HotPage& right) {
    return left.lately != right.lately ? left.lately > right.lately : left.page < right.page;
  });
  if (pages.size() > most) pages.resize(most);
  return pages;
}

}  // namespace hk::space
