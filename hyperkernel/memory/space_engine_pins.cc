// Pins: pages that a device writes to. README.md, "The engine", 13.
#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {

void Engine::Pin(Gfn first, uint64_t count, Granted granted) {
  if (count == 0 || first.value() >= config_.pages || count > config_.pages - first.value()) {
    return granted(
        absl::OutOfRangeError(fmt::format("{} pages from {:#x} on are not in the space", count, first.value())));
  }
  const uint64_t most = MostPinnedPages(config_.max_pages);
  uint64_t pinned = pinned_.load();
  do {
    if (count > most || pinned > most - count) {
      return granted(absl::ResourceExhaustedError(
          fmt::format("{} pages cannot be pinned: {} are, of {} at most on this node", count, pinned, most)));
    }
  } while (!pinned_.compare_exchange_weak(pinned, pinned + count));
  // All of them are on their way while the first is waited for.
  for (uint64_t i = 1; i < count; ++i) Want(Gfn(first.value() + i), PageAccess::kWrite, [](const absl::Status&) {});
  auto order = std::make_shared<PinOrder>();
  order->first = first;
  order->count = count;
  order->granted = std::move(granted);
  PinNext(order);
}

void Engine::PinNext(const std::shared_ptr<PinOrder>& order) {
  while (order->next < order->count) {
    const Gfn page(order->first.value() + order->next);
    // Set by whoever comes first: this loop, or the page.
    const auto met = std::make_shared<std::atomic<bool>>(false);
    Waiter waiter{.access = PageAccess::kWrite, .replacement = {}, .granted = {}, .pin = true};
    waiter.granted = [this, order, met](const absl::Status& status) {
      if (!status.ok()) {
        EndPin(order, status);
      } else if (++order->next == order->count) {
        order->granted(status);
      }
      // The page's lock is held here: if the loop has gone, another thread goes on.
      if (met->exchange(true) && order->next < order->count) {
        timers_->After(Monotonic::duration(0), [this, order] { PinNext(order); });
      }
    };
    Enqueue(page, std::move(waiter));
    if (!met->exchange(true)) return;  // it goes on when the page is here
  }
}

void Engine::EndPin(const std::shared_ptr<PinOrder>& order, const absl::Status& why) {
  const uint64_t had = std::exchange(order->next, order->count + 1);
  if (stopped()) return order->granted(why);  // nobody has pins any more
  // A page's lock is held here.
  timers_->After(Monotonic::duration(0), [this, order, had, why] {
    pinned_.fetch_sub(order->count - had);
    Unpin(order->first, had);
    order->granted(why);
  });
}

bool Engine::TakePin(Shard* shard, ActivePage* active) {
  const PageEvent event{.type = PageEventType::kPin, .message = {}};
  const PageResult result = Step(active->page, event, config_.self, HomeIn(*shard, active->gfn));
  // Refused: somebody else has it first, and it is asked for again.
  if (result.verdict != PageVerdict::kDone) return false;
  active->page = result.page;
  ++shard->statistics.pages_pinned;
  return true;
}

void Engine::Unpin(Gfn first, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    const Gfn page(first.value() + i);
    Shard& shard = ShardOf(page);
    MutexLock lock(&shard.mutex);
    if (stopped()) break;
    const auto found = shard.active.find(page.value());
    HK_CHECK(found != shard.active.end() && found->second->page.pins > found->second->unpins);
    ActivePage* const active = found->second.get();
    ++active->unpins;
    pinned_.fetch_sub(1);
    --shard.statistics.pages_pinned;
    Advance(&shard, active);
    Rest(&shard, active);
    Drain(&shard);
  }
  Finish();
}

bool Engine::UnpinPage(Shard* shard, ActivePage* active) {
  Means means;
  const DeferredRevoke& deferred = active->page.deferred;
  const bool serves = deferred.active && deferred.type != PageEventType::kInvalidate && !active->page.held;
  if (active->page.pins == 1 && serves && !active->deferred.without_bytes &&
      !Acquire(shard, active, active->deferred.message_class, SlotUse::kSend, &means.send)) {
    return false;
  }
  --active->unpins;
  // What a device has used lately is not what the hand looks for: it would be pinned again by the time it is given
  // away.
  if (active->page.pins == 1) ExtentOf(shard, active->gfn)->pages.Mark(active->gfn.value() % kExtentPages);
  StepPage(shard, active, {.type = PageEventType::kUnpin, .message = {}}, std::move(means));
  return true;
}

}  // namespace hk::space
