// The bound on frames: what a node gives up when it has no frame for a page that it wants.
#include <algorithm>
#include <utility>

#include "hyperkernel/base/mutant.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {
namespace {

// States that have a frame, or will: it is taken before the request leaves.
bool TakesFrame(PageState state) {
  return state != PageState::kAbsent && state != PageState::kEvictGone;
}

}  // namespace

bool Engine::ClaimFrame() {
  uint64_t taken = frames_taken_.load(std::memory_order_relaxed);
  do {
    if (config_.max_pages != 0 && taken >= config_.max_pages) return false;
  } while (!frames_taken_.compare_exchange_weak(taken, taken + 1));
  return true;
}

void Engine::CountFrame(PageState before, PageState after) {
  const bool had = TakesFrame(before), has = TakesFrame(after);
  if (had == has) return;
  frames_taken_.fetch_add(has ? 1 : ~uint64_t{0});
  if (had && config_.max_pages != 0 && !HK_MUTANT(engine_free_frame_untold))
    frames_due_.store(true, std::memory_order_release);
}

void Engine::WaitForFrame(Shard* shard, ActivePage* active) {
  constexpr uint8_t kBit = 1U << kFramePool;
  if ((active->starved & kBit) == 0) {
    active->starved |= kBit;
    shard->starved[kFramePool].push_back(active->gfn);
  }
  ArmWatch();
  frames_due_.store(true, std::memory_order_release);
}

// Whoever sets frames_due_ comes here afterwards, or somebody else does it for him: nobody waits beside a free frame.
void Engine::FindFrames() {
  // Nothing that others were told of changes while an epoch does; Run looks again.
  while (running() && frames_due_.load(std::memory_order_acquire) && frames_mutex_.TryLock()) {
    frames_due_.store(false);
    bool starving = false;
    for (size_t i = 0; i < kShards && !stopped(); ++i) {
      Shard& shard = shards_[i];
      MutexLock lock(&shard.mutex);
      bool more = true;
      Starved(&shard, kFramePool, &more);
      starving = starving || !shard.starved[kFramePool].empty();
    }
    bool found = false;
    const size_t first = first_shard_.fetch_add(1, std::memory_order_relaxed);
    const bool needed = starving || (room_wanted_.exchange(false) && !HasRoomForOthers());
    for (size_t i = 0; i < kShards && needed && !found && !stopped(); ++i) {
      Shard& shard = shards_[(first + i) % kShards];
      MutexLock lock(&shard.mutex);
      if (!running()) break;
      found = DropOne(&shard);
      Drain(&shard);
    }
    if (found && starving) frames_due_.store(true);
    if (starving && !found && !stopped() && !offering_.exchange(true)) {
      size_t left = config_.nodes.size() > 1 ? kOffers : 0;
      for (size_t i = 0; i < kShards && left > 0; ++i) {
        Shard& shard = shards_[(first + i) % kShards];
        MutexLock lock(&shard.mutex);
        if (!running() || shard.live.size() == 1) break;
        left -= Offer(&shard, left);
      }
      timers_->After(kOfferPause, [this] {
        offering_.store(false);
        frames_due_.store(true);
        Finish();
      });
    }
    // A frame that was given back meanwhile is ours to find.
    if (starving && HasFreeFrame()) frames_due_.store(true);
    frames_mutex_.Unlock();
  }
}

template <typename Fits>
bool Engine::FindPage(Shard* shard, Fits fits, Gfn* page) {
  for (size_t i = 0; i <= shard->touched.size() && !shard->touched.empty(); ++i) {
    if (shard->hand_extent >= shard->touched.size()) shard->hand_extent = 0;
    const uint64_t number = shard->touched[shard->hand_extent];
    const ExtentPages& pages = shard->extents.find(number)->second->pages;
    if (pages.count(PageRight::kNone) < kExtentPages) {
      while (shard->hand_page < kExtentPages) {
        const size_t index = shard->hand_page++;
        if (pages.active(index) || !fits(pages.state(index))) continue;
        *page = Gfn(number * kExtentPages + index);
        return true;
      }
    }
    shard->hand_page = 0;
    ++shard->hand_extent;
  }
  return false;
}

bool Engine::DropOne(Shard* shard) {
  const uint64_t before = shard->statistics.dropped;
  // Each page once at most; those that are held stay.
  uint64_t shared = shard->statistics.pages_shared;
  Gfn page;
  while (shared-- > 0 && !stopped() &&
         FindPage(
             shard, [](PageState state) { return state == PageState::kShared; }, &page)) {
    ActivePage* const active = Activate(shard, page);
    if (active->page.held && clock_.Now() >= active->held_until) active->page.held = false;
    StepPage(shard, active, {.type = PageEventType::kDrop, .message = {}}, Means());
    Rest(shard, active);
    if (shard->statistics.dropped != before) return true;
  }
  return false;
}

size_t Engine::Offer(Shard* shard, size_t most) {
  const auto owned = [](PageState state) { return state == PageState::kOwner || state == PageState::kExclusive; };
  size_t offered = 0;
  uint64_t left = shard->statistics.pages_owned + shard->statistics.pages_exclusive;
  Gfn page;
  while (offered < most && left-- > 0 && FindPage(shard, owned, &page)) {
    PageMessage offer;
    offer.type = PageMessageType::kOffer;
    offer.from = config_.self;
    do {
      offer.to = config_.nodes[next_offer_++ % config_.nodes.size()];
    } while (offer.to == config_.self || !shard->live.Contains(offer.to));
    Post(shard, page, offer, Duty());
    ++offered;
  }
  return offered;
}

// A page that another node would like to be rid of. Taken if there is room, and nothing else to do with it. Copies make
// room, that of the page itself first: else owners could be full for ever beside nodes that are full of copies.
void Engine::HandleOffer(Shard* shard, Gfn page) {
  ActivePage* const active = Activate(shard, page);
  if (active->page.held && !active->page.deferred.active && clock_.Now() >= active->held_until) {
    active->page.held = false;
  }
  if (running() && active->page.state == PageState::kShared && !HK_MUTANT(engine_copies_block_offers)) {
    StepPage(shard, active, {.type = PageEventType::kDrop, .message = {}}, Means());
  }
  if (running() && active->page.state == PageState::kAbsent && !active->wished() && !active->pausing &&
      active->parked.empty() && !stopped()) {
    Adopt(shard, active);
  }
  Rest(shard, active);
}

void Engine::Adopt(Shard* shard, ActivePage* active) {
  if (!HasRoomForOthers() && !HK_MUTANT(engine_adopts_without_room)) {
    room_wanted_.store(true);
    frames_due_.store(true, std::memory_order_release);
    return;
  }
  const absl::StatusOr<SlotId> slot = transport_->AcquireSlot(MessageClass::kFault, SlotUse::kReceive);
  if (!slot.ok()) return;  // it is offered again
  Means means;
  means.request.node = config_.self;
  means.request.slot = *slot;
  means.request.own = LentSlot(transport_, *slot);
  if (!ClaimFrame() && !HK_MUTANT(engine_adopts_without_room)) return;
  means.has_frame = true;
  PageEvent event{.type = PageEventType::kAdopt, .message = {}};
  event.message.transaction = ++shard->next_transaction * kShards + ShardIndexOf(active->gfn.value() / kExtentPages);
  active->request_slot = *slot;
  ++shard->statistics.adopted;
  StepPage(shard, active, event, std::move(means));
}

}  // namespace hk::space
