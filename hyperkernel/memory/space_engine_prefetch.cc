// Pages that nobody has asked for yet, on the bulk class. A page that a program touches while it is on its way is under
// way like any other: the program waits for it.
#include <algorithm>
#include <utility>

#include "hyperkernel/base/mutant.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {

void Engine::Foresee(Gfn page) {
  std::vector<Gfn> fetch;
  {
    MutexLock lock(&prefetch_mutex_);
    streams_.OnWanted(page, config_.pages, &fetch);
  }
  if (fetch.empty()) return;
  foresees_.store(true, std::memory_order_relaxed);
  for (size_t first = 0; first < fetch.size();) {
    size_t end = first + 1;
    while (end < fetch.size() && end - first < kBatchesTogether * kMostBatchPages &&
           fetch[end].value() / kExtentPages == fetch[first].value() / kExtentPages) {
      ++end;
    }
    Prefetch(std::span(fetch).subspan(first, end - first));
    for (const NodeId node : config_.nodes) {
      if (node != config_.self) transport_->Flush(node, MessageClass::kBulk);
    }
    first = end;
  }
}

// The requests wait for Flush (Post): one write takes them to their home, or to the owner if that is here.
void Engine::Prefetch(std::span<const Gfn> pages) {
  Shard& shard = ShardOf(pages[0]);
  MutexLock lock(&shard.mutex);
  if (stopped() || !running()) return;
  for (size_t next = 0; next < pages.size() && !stopped();) {
    LentSlot slot = TakePrefetchSlot();
    std::vector<Gfn> together;
    while (next < pages.size() && together.size() < kMostBatchPages) {
      const Gfn page = pages[next++];
      if (slot && CanPrefetch(&shard, page)) {
        together.push_back(page);
      } else {
        Decline(page);
      }
    }
    if (together.size() >= kLeastBatchPages) {
      std::sort(together.begin(), together.end());  // a stream may go down
      AskBatch(&shard, together, std::move(slot));
    } else if (!together.empty()) {
      AskAhead(&shard, together[0], std::move(slot));
    } else if (slot) {
      prefetch_slots_.fetch_sub(1);
    }
  }
  Drain(&shard);
}

void Engine::AskAhead(Shard* shard, Gfn page, LentSlot slot) {
  ActivePage* const active = Activate(shard, page);
  Means means;
  means.request.message_class = MessageClass::kBulk;
  means.request.node = config_.self;
  means.request.slot = active->request_slot = slot.id();
  means.request.own = std::move(slot);
  means.has_frame = true;
  PageEvent event{.type = PageEventType::kRead, .message = {}};
  event.message.transaction = ++shard->next_transaction * kShards + ShardIndexOf(page.value() / kExtentPages);
  active->prefetched = true;
  ++shard->statistics.prefetched;
  StepPage(shard, active, event, std::move(means));
  Rest(shard, active);
}

// Never the last ones: those are for what programs wait for.
LentSlot Engine::TakePrefetchSlot() {
  if (prefetch_slots_.load() >= kMostPrefetchSlots && !HK_MUTANT(engine_prefetches_without_bound)) return {};
  const absl::StatusOr<SlotId> lent = transport_->AcquireSlot(MessageClass::kBulk, SlotUse::kReceive);
  if (!lent.ok()) return {};
  prefetch_slots_.fetch_add(1);
  return LentSlot(transport_, *lent);
}

void Engine::Decline(Gfn page) {
  MutexLock lock(&prefetch_mutex_);
  streams_.OnDeclined(page);
}

// True: a frame is taken. Never the last ones.
bool Engine::CanPrefetch(Shard* shard, Gfn page) {
  const ExtentPages& here = ExtentOf(shard, page)->pages;
  const size_t index = page.value() % kExtentPages;
  if (here.active(index) || here.state(index) != PageState::kAbsent || IsDormantHere(shard, page)) return false;
  if (prefetching_.load() >= kMostPrefetching && !HK_MUTANT(engine_prefetches_without_bound)) return false;
  if (!HasRoomForOthers()) return false;
  if (!ClaimFrame()) return false;
  prefetching_.fetch_add(1);
  return true;
}

void Engine::NotePrefetched(ActivePage* active) {
  active->prefetched = false;
  prefetching_.fetch_sub(1);
  if (!std::exchange(active->batched, false)) prefetch_slots_.fetch_sub(1);
  if (active->page.state == PageState::kAbsent) NoteGone(active->gfn);
}

// Each takes the steps that a first write takes; nothing of that leaves this node.
void Engine::FillAround(Shard* shard, Gfn page) {
  if (!config_.homes_at_coordinator || config_.coordinator != config_.self || !running() || leaving()) return;
  const uint64_t first = page.value() / config_.fill_around * config_.fill_around;
  const uint64_t end = std::min(first + config_.fill_around, config_.pages);
  for (uint64_t at = first; at < end && !stopped(); ++at) {
    const Gfn near(at);
    const ExtentPages& here = ExtentOf(shard, near)->pages;
    const size_t index = at % kExtentPages;
    if (here.active(index) || here.state(index) != PageState::kAbsent || !IsDormantHere(shard, near)) continue;
    if (!HasRoomForOthers() || !ClaimFrame()) break;
    ActivePage* const active = Activate(shard, near);
    Means means;
    means.request.node = config_.self;
    means.has_frame = true;
    PageEvent event{.type = PageEventType::kWrite, .message = {}};
    event.message.transaction = ++shard->next_transaction * kShards + ShardIndexOf(at / kExtentPages);
    ++shard->statistics.filled_around;
    StepPage(shard, active, event, std::move(means));
  }
  Drain(shard);
}

void Engine::NoteGone(Gfn page) {
  if (!foresees_.load(std::memory_order_relaxed)) return;
  MutexLock lock(&prefetch_mutex_);
  streams_.OnGone(page);
}

}  // namespace hk::space
