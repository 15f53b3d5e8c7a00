// What the fault engine notices about where a space is busy, and for whom programs wait: for operators and policies;
// nothing else depends on it.
#include <algorithm>
#include <bit>
#include <optional>

#include "hyperkernel/base/mutant.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {
namespace {

bool IsRevocation(PageEventType type) {
  return type == PageEventType::kForwardRead || type == PageEventType::kForwardWrite ||
         type == PageEventType::kForwardAdopt || type == PageEventType::kInvalidate || type == PageEventType::kPeek;
}

}  // namespace

void Engine::NoteChange(Shard* shard, ActivePage* active, PageRight before, const PageEvent& event,
                        const NodeId* deferred_for) {
  const Monotonic now = clock_.Now();
  ExtentOf(shard, active->gfn)->heat.Add(now);
  const PageRight after = hk::RightOf(active->page.state);
  if (after >= before || (deferred_for == nullptr && !IsRevocation(event.type))) return;
  if (HK_MUTANT(engine_losses_unnoticed) && deferred_for != nullptr) return;
  const bool owner = before >= PageRight::kOwner && after < PageRight::kOwner;
  shard->hot.Lost(active->gfn, owner, deferred_for != nullptr ? *deferred_for : event.message.requester, now);
}

// A message takes the request under way on; the page has not changed yet. Of several nodes that a write waits for one
// is named.
void Engine::NoteHolder(const ActivePage& active, const PageEvent& event) {
  if (!active.fault_read && !active.fault_write) return;
  const PageMessage& m = event.message;
  std::optional<NodeId> holder;
  if (event.type == PageEventType::kPeeked) {
    if (m.source != PageSource::kPayload) return;
    holder = m.from;
  } else if (event.type != PageEventType::kAnswer || m.source == PageSource::kPeeked) {
    return;
  } else if (m.source == PageSource::kPayload) {
    holder = m.from;
  } else if (!m.acks.empty()) {
    holder = NodeId(static_cast<uint16_t>(std::countr_zero(m.acks.bits())));
  } else if (m.from == config_.self) {
    return;
  } else if (active.page.state == PageState::kUpgrade || active.page.state == PageState::kOwnerUpgrade) {
    holder = m.from;  // who had the only other copy: its Ack is in the Answer
  }
  if (holder == config_.self) return;
  frames_->NoteHolder(active.gfn, 1, holder);
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
