// The bound on frames: what a node gives up when it has no frame for a page that it wants.
#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "hyperkernel/base/mutant.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {
bool Engine::ClaimFrame() {
  uint64_t taken = frames_taken_.load(std::memory_order_relaxed);
  do {
    if (config_.max_pages != 0 && taken >= config_.max_pages) return false;
  } while (!frames_taken_.compare_exchange_weak(taken, taken + 1));
  if (IsShort(kLowShare) && !low_.exchange(true)) frames_due_.store(true, std::memory_order_release);
  return true;
}

void Engine::CountFrame(bool had, bool has) {
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
    size_t starved = 0;
    uint64_t copies = 0;
    for (size_t i = 0; i < kShards && !stopped(); ++i) {
      Shard& shard = shards_[i];
      MutexLock lock(&shard.mutex);
      bool more = true;
      Starved(&shard, kFramePool, &more);
      starved += shard.starved[kFramePool].size();
      copies += shard.statistics.pages_shared;
    }
    const bool starving = starved > 0;
    // Ahead of need, once for whoever found frames low: it does not go on by itself.
    const size_t ahead = low_.exchange(false) && !starving ? ShortOf(kHighShare) : 0;
    const bool low = ahead > 0;
    const bool few = copies < config_.max_pages / kCopiesShare && !leaving() && !HK_MUTANT(engine_copies_never_stay);
    // For others, as long as that makes room for them.
    scarce_.store(copies < FramesKept(config_.max_pages));
    const bool urgent = pressed_.exchange(false);
    const bool full = RoomForOthers(urgent) == 0;
    const bool wanted =
        room_wanted_.exchange(false) && full && copies >= KeptFrames(urgent) && RoomForOthers(urgent, copies) > 0;
    const bool pressed = urgent && full;
    const size_t first = first_shard_.fetch_add(1, std::memory_order_relaxed);
    const bool alone = config_.nodes.size() == 1;
    // What is read now would go for what is read next, beside pages that nobody uses.
    const bool stay = few && ((!alone && !offers_idle_.load()) || MaySwap());
    const size_t found = DropCopies(first, low ? stay ? 0 : ahead : starving || wanted ? 1 : 0);
    if (found > 0 && starving) frames_due_.store(true);
    const bool offers = found == 0 || (few && !alone && SomebodyHasRoom());
    if (offers && (starving || low) && !stopped() && !offering_.exchange(true)) OfferPages(first);
    if (leaving() && !stopped() && !offering_.exchange(true)) OfferPages(first);
    // To the swap goes what nobody else takes.
    if ((found == 0 || few) && !leaving() &&
        (pressed || ((starving || low) && (alone || offers_idle_.load() || (few && !offers))))) {
      SwapPages(first, starving ? starved : low ? ahead : kOffers);
    }
    // A frame that was given back meanwhile is ours to find.
    if (starving && HasFreeFrame()) frames_due_.store(true);
    frames_mutex_.Unlock();
  }
}

size_t Engine::DropCopies(size_t first, size_t most) {
  size_t found = 0;
  // The first round of all shards may only take the marks away.
  for (size_t i = 0; i < 2 * kShards && found < most && !stopped(); ++i) {
    Shard& shard = shards_[(first + i) % kShards];
    MutexLock lock(&shard.mutex);
    if (!running()) break;
    while (found < most && DropOne(&shard)) ++found;
    Drain(&shard);
  }
  return found;
}

void Engine::OfferPages(size_t first) {
  const uint64_t given = given_away_.load();
  const int rounds =
      1 + static_cast<int>(std::chrono::nanoseconds(stretched_hold_.load(std::memory_order_relaxed)) / kOfferPause);
  const size_t most = leaving() ? kLeaveOffers : kOffers;
  size_t left = config_.nodes.size() > 1 ? most : 0;
  for (size_t i = 0; i < 2 * kShards && left > 0; ++i) {
    if (i == kShards && left < most) break;  // the second round is for when all were marked
    Shard& shard = shards_[(first + i) % kShards];
    MutexLock lock(&shard.mutex);
    if (!running()) break;
    left -= Offer(&shard, left);
    Drain(&shard);
  }
  if (left == most) offers_idle_.store(true);
  timers_->After(kOfferPause, [this, given, rounds] {
    // Where messages take longer, so does it until an offer is taken.
    fruitless_offers_ = given_away_.load() == given ? fruitless_offers_ + 1 : 0;
    offers_idle_.store(fruitless_offers_ >= rounds);
    offering_.store(false);
    frames_due_.store(true);
    Finish();
  });
}

void Engine::SwapPages(size_t first, size_t most) {
  size_t left = std::min({most, kSwapWrites, static_cast<size_t>(config_.max_pages / kLeastFrames)});
  left -= std::min(left, swap_writes_.load());
  const size_t all = left;
  for (size_t i = 0; i < 2 * kShards && left > 0 && MaySwap(); ++i) {
    if (i == kShards && left < all) break;
    Shard& shard = shards_[(first + i) % kShards];
    MutexLock lock(&shard.mutex);
    if (!running()) break;
    left -= SwapOut(&shard, left);
    Drain(&shard);
  }
}

bool Engine::FindPage(Shard* shard, bool copies, Gfn* page, bool all) {
  const auto fits = [copies](PageState state) {
    return copies ? state == PageState::kShared : state == PageState::kOwner || state == PageState::kExclusive;
  };
  const size_t first_page = shard->hand_page, extents = shard->touched.size();
  for (size_t i = 0; i <= extents && extents > 0; ++i) {
    if (shard->hand_extent >= extents) shard->hand_extent = 0;
    const uint64_t number = shard->touched[shard->hand_extent];
    ExtentPages& pages = shard->extents.find(number)->second->pages;
    // Each page once: what has just lost its mark is not found.
    const size_t end = i == extents ? first_page : kExtentPages;
    const uint64_t owned = pages.count(PageRight::kOwner) + pages.count(PageRight::kExclusive);
    if ((copies ? pages.count(PageRight::kShared) : owned) > 0) {
      while (shard->hand_page < end) {
        const size_t index = shard->hand_page++;
        const uint64_t gfn = number * kExtentPages + index;
        if (!all && (pages.active(index) || pages.swapped(index))) continue;
        if (!fits(pages.active(index) ? shard->active.find(gfn)->second->page.state : pages.state(index))) continue;
        if (pages.TakeMark(index) && !HK_MUTANT(engine_gives_up_the_newest)) continue;
        *page = Gfn(gfn);
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
  while (shared-- > 0 && !stopped() && FindPage(shard, true, &page)) {
    ActivePage* const active = Activate(shard, page);
    SettleHold(active);
    StepPage(shard, active, {.type = PageEventType::kDrop, .message = {}}, Means());
    Rest(shard, active);
    if (shard->statistics.dropped != before) return true;
  }
  return false;
}

bool Engine::IsZero(Gfn page) {
  alignas(uint64_t) std::array<std::byte, kPageSize> bytes;
  if (!FramesDid(page, frames_->Read(page, 0, bytes))) return false;
  // Compared with itself, one byte on: ends at the first difference.
  return bytes[0] == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, kPageSize - 1) == 0;
}

bool Engine::EvictIfZero(Shard* shard, ActivePage* active) {
  const Gfn page = active->gfn;
  if (!IsZero(page)) return false;
  // From here on nobody can change that.
  const bool exclusive = active->page.state == PageState::kExclusive;
  if (exclusive && !FramesDid(page, frames_->SetAccess(page, PageAccess::kRead))) return false;
  if (exclusive && !IsZero(page) && !HK_MUTANT(engine_evicts_what_was_zero)) {
    if (FramesDid(page, frames_->SetAccess(page, PageAccess::kWrite))) frames_->Wake(page);
    return false;
  }
  ++shard->statistics.zeroed;
  PageEvent event{.type = PageEventType::kEvict, .message = {}};
  event.message.source = PageSource::kZero;
  StepPage(shard, active, event, Means());
  return true;
}

size_t Engine::Offer(Shard* shard, size_t most) {
  size_t offered = 0;
  uint64_t left = shard->statistics.pages_owned + shard->statistics.pages_exclusive;
  Gfn page;
  while (offered < most && left-- > 0 && !stopped() && FindPage(shard, false, &page, leaving())) {
    const bool idle = !shard->active.contains(page.value());
    ActivePage* const active = Activate(shard, page);
    // Who waits for the end of the hold has a timer.
    if (!active->page.deferred.active) SettleHold(active);
    // A device has it, or it is on its way already as soon as it can be.
    const bool stays =
        (active->page.pins > 0 || active->page.deferred.active) && !HK_MUTANT(engine_leaves_pinned_pages);
    const bool zero =
        idle && !active->page.held && active->swap.stage == SwapStage::kFrame && EvictIfZero(shard, active);
    const bool held = active->page.held || stays;
    Rest(shard, active);
    if (zero) {
      ++offered;
      continue;
    }
    if (held) continue;
    if (shard->live.size() == 1) {  // there is nobody else: what is not zero stays, and was looked at
      ++offered;
      continue;
    }
    PageMessage offer;
    offer.type = PageMessageType::kOffer;
    offer.from = config_.self;
    offer.urgent = leaving() || (IsSwapFull() && scarce_.load());
    if (!NextToOffer(shard->live, &offer.to)) return offered;
    Post(shard, page, offer, Duty());
    ++offered;
  }
  return offered;
}

// A page that another node would like to be rid of. Taken if there is room, and nothing else to do with it. Copies make
// room, that of the page itself first: else owners could be full for ever beside nodes that are full of copies.
void Engine::HandleOffer(Shard* shard, Gfn page, const PageMessage& offer) {
  ActivePage* const active = Activate(shard, page);
  if (!active->page.deferred.active) SettleHold(active);
  if (running() && active->page.state == PageState::kShared && !HK_MUTANT(engine_copies_block_offers)) {
    // If that makes room for the page; else another copy goes, for the next offer.
    if (RoomForOthers(offer.urgent, 1) > 0) {
      StepPage(shard, active, {.type = PageEventType::kDrop, .message = {}}, Means());
    } else if (!HK_MUTANT(engine_own_copy_blocks_offers)) {
      WantRoom(offer.urgent);
      TellRoom(shard, offer.from, offer.urgent);
    }
  }
  if (running() && active->page.state == PageState::kAbsent && !active->wished() && !active->pausing &&
      active->parked.empty() && !stopped()) {
    // It is offered again, when some of ours are in the swap.
    if (Adopt(shard, active, offer.urgent) || !offer.urgent || !MaySwap()) TellRoom(shard, offer.from, offer.urgent);
  }
  Rest(shard, active);
}

bool Engine::Adopt(Shard* shard, ActivePage* active, bool urgent) {
  if (RoomForOthers(urgent) == 0 && !HK_MUTANT(engine_adopts_without_room)) {
    WantRoom(urgent);
    return false;
  }
  const absl::StatusOr<SlotId> slot = transport_->AcquireSlot(MessageClass::kFault, SlotUse::kReceive);
  if (!slot.ok()) return true;  // it is offered again
  Means means;
  means.request.node = config_.self;
  means.request.slot = *slot;
  means.request.own = LentSlot(transport_, *slot);
  if (!ClaimFrame() && !HK_MUTANT(engine_adopts_without_room)) return false;
  means.has_frame = true;
  PageEvent event{.type = PageEventType::kAdopt, .message = {}};
  event.message.transaction = ++shard->next_transaction * kShards + ShardIndexOf(active->gfn.value() / kExtentPages);
  active->request_slot = *slot;
  ++shard->statistics.adopted;
  StepPage(shard, active, event, std::move(means));
  return true;
}

}  // namespace hk::space
