// The page's half of the fault engine: wishes, steps of the page machine, and what is done to frames.
#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {
namespace {

bool IsForward(PageEventType type) {
  return type == PageEventType::kForwardRead || type == PageEventType::kForwardWrite ||
         type == PageEventType::kForwardAdopt;
}

PageEventType EventOf(const PageMessage& message) {
  switch (message.type) {
    case PageMessageType::kForward:
      return message.kind == RequestKind::kRead    ? PageEventType::kForwardRead
             : message.kind == RequestKind::kAdopt ? PageEventType::kForwardAdopt
                                                   : PageEventType::kForwardWrite;
    case PageMessageType::kAnswer:
      return PageEventType::kAnswer;
    case PageMessageType::kNack:
      return PageEventType::kNack;
    case PageMessageType::kInvalidate:
      return PageEventType::kInvalidate;
    case PageMessageType::kAck:
      return PageEventType::kAck;
    case PageMessageType::kRelease:
      return PageEventType::kRelease;
    case PageMessageType::kEvictGranted:
      return PageEventType::kEvictGranted;
    default:
      return PageEventType::kEvictDenied;
  }
}

PageAccess AccessOf(PageRight right) {
  return right == PageRight::kExclusive ? PageAccess::kWrite
         : right == PageRight::kNone    ? PageAccess::kNone
                                        : PageAccess::kRead;
}

size_t BucketOf(Monotonic::duration latency) {
  const int64_t ns = std::chrono::nanoseconds(latency).count();
  if (ns <= 1) return 0;
  const auto bits = static_cast<size_t>(std::bit_width(static_cast<uint64_t>(ns)));
  return std::min(bits - 1, SpaceStatistics::kLatencyBuckets - 1);
}

// Programs wait for the page, with that access. Who waits to write has nothing of a page that it may read.
bool IsAwaited(const ActivePage& active, PageAccess access) {
  return active.fault_read || (active.fault_write && access == PageAccess::kWrite);
}

void CountRight(SpaceStatistics* statistics, PageRight right, uint64_t by) {
  if (right == PageRight::kShared) statistics->pages_shared += by;
  if (right == PageRight::kOwner) statistics->pages_owned += by;
  if (right == PageRight::kExclusive) statistics->pages_exclusive += by;
}

}  // namespace

Extent* Engine::ExtentOf(Shard* shard, Gfn page) {
  std::unique_ptr<Extent>& extent = shard->extents[page.value() / kExtentPages];
  if (extent == nullptr) {
    extent = std::make_unique<Extent>();
    const uint64_t number = page.value() / kExtentPages;
    if (shard->committed.size() > 1 && HomeIn(*shard, page) == config_.self &&
        placement_.IsForgotten(number, shard->committed)) {
      RestingEntry lost;
      lost.state = DirectoryState::kLost;
      lost.ever_written = true;
      lost.owner = config_.self;  // it may have been any of those lost
      extent->home = ExtentDirectory(lost);
    }
    shard->touched.push_back(page.value() / kExtentPages);
  }
  return extent.get();
}

ActivePage* Engine::Activate(Shard* shard, Gfn page) {
  ExtentPages& pages = ExtentOf(shard, page)->pages;
  const size_t index = page.value() % kExtentPages;
  std::unique_ptr<ActivePage>& slot = shard->active[page.value()];
  if (slot != nullptr) return slot.get();
  slot = shard->spare_pages.Take();
  ActivePage* const active = slot.get();
  active->gfn = page;
  active->page.state = pages.state(index);
  active->page.held = pages.held(index);
  if (active->page.held) active->hold = shard->holds.Of(page);
  if (pages.swapped(index)) active->swap.stage = SwapStage::kOut;
  pages.Set(index, pages.state(index), false, true);
  return active;
}

void Engine::Rest(Shard* shard, ActivePage* active) {
  const Page& page = active->page;
  if (!IsResting(page.state) || (page.pins > 0 && !HK_MUTANT(engine_pins_forgotten)) || page.deferred.active ||
      page.retained || active->wished() || active->pausing || !active->parked.empty() || active->swap.io || stopped()) {
    return;
  }
  SettleSwap(shard, active);
  HK_DCHECK(active->unmapped.empty() && active->retained.empty() && !active->answer_slot);
  const Gfn gfn = active->gfn;
  bool held = page.held;
  if (held) {
    const Monotonic now = clock_.Now();
    shard->holds.Expire(now, [this, shard](Gfn over) ABSL_NO_THREAD_SAFETY_ANALYSIS {
      ExtentPages& pages = ExtentOf(shard, over)->pages;
      const size_t index = over.value() % kExtentPages;
      if (!pages.active(index)) pages.Set(index, pages.state(index), false, false);
    });
    held = !HoldIsOver(&active->hold, {});
    if (held) shard->holds.Add(gfn, active->hold);
  }
  ExtentOf(shard, gfn)->pages.Set(gfn.value() % kExtentPages, page.state, held, false);
  const auto found = shard->active.find(gfn.value());
  std::unique_ptr<ActivePage> record = std::move(found->second);
  shard->active.erase(found);
  record->Reset();
  shard->spare_pages.Give(std::move(record));
}

bool Engine::Acquire(Shard* shard, ActivePage* active, MessageClass message_class, SlotUse use, LentSlot* slot) {
  absl::StatusOr<SlotId> acquired = transport_->AcquireSlot(message_class, use);
  if (acquired.ok()) {
    *slot = LentSlot(transport_, *acquired);
    return true;
  }
  const size_t pool = PoolOf(message_class, use);
  const auto bit = static_cast<uint8_t>(1U << pool);
  if ((active->starved & bit) == 0) {
    active->starved |= bit;
    shard->starved[pool].push_back(active->gfn);
  }
  ArmWatch();
  return false;
}

void Engine::Wish(Shard* shard, ActivePage* active) {
  const PageState state = active->page.state;
  // Also of a request that was not asked for by anybody, and has no deadline of its own.
  if (active->wished() && !HK_MUTANT(engine_joined_wish_unwatched)) ArmWatch();
  if (leaving() && IsResting(state)) return EndWishes(active);
  if (!running() || !active->wished() || active->pausing || !IsResting(state)) return;
  if (active->swap.stage != SwapStage::kFrame && !BringBack(shard, active)) return;
  if (!active->wished() || state == PageState::kExclusive) return;
  bool write = active->fault_write;
  bool overwrite = !active->fault_read && !active->fault_write;
  for (const Waiter& waiter : active->waiters) {
    write = write || waiter.access == PageAccess::kWrite;
    overwrite = overwrite && !waiter.replacement.empty();
  }
  if (!write && state != PageState::kAbsent) return;
  Means means;
  const DeferredRevoke& deferred = active->page.deferred;
  // The wish for more lets the other have it first, and asks anew.
  if (deferred.active && IsForward(deferred.type) && !active->deferred.without_bytes &&
      !Acquire(shard, active, active->deferred.message_class, SlotUse::kSend, &means.send)) {
    return;
  }
  means.request.node = config_.self;
  const bool leaves = shard->live.size() > 1 && (deferred.active || !IsDormantHere(shard, active->gfn));
  if (leaves) {
    LentSlot slot;
    if (!Acquire(shard, active, MessageClass::kFault, SlotUse::kReceive, &slot)) return;
    means.request.slot = slot.id();
    means.request.own = std::move(slot);
  }
  if (state == PageState::kAbsent) {
    if (!ClaimFrame()) return WaitForFrame(shard, active);
    means.has_frame = true;
  }
  SpaceStatistics& statistics = shard->statistics;
  ++(write ? statistics.write_faults : statistics.read_faults);
  if (write && state != PageState::kAbsent) ++statistics.upgrades;
  PageEvent event{.type = !write      ? PageEventType::kRead
                          : overwrite ? PageEventType::kOverwrite
                                      : PageEventType::kWrite,
                  .message = {}};
  // The shard is in the number: an expired request is found by it.
  event.message.transaction = ++shard->next_transaction * kShards + ShardIndexOf(active->gfn.value() / kExtentPages);
  if (!write && leaves) AddPeek(shard, active, &event.message, &means.peek);
  active->request_slot = means.request.slot;
  active->peek_slot = means.peek.slot;
  ArmWatch();
  StepPage(shard, active, event, std::move(means));
}

void Engine::Advance(Shard* shard, ActivePage* active) {
  while (active->unpins > 0 && !stopped() && UnpinPage(shard, active)) {
  }
  while (!active->parked.empty() && !stopped()) {
    if (!TryPage(shard, active, &active->parked.front())) break;
    active->parked.erase(active->parked.begin());
  }
  if (active->page.held && active->page.deferred.active && !stopped()) {
    const PageMessage& wanted = active->page.deferred.message;
    if (HoldIsOver(&active->hold, {wanted.ticket, wanted.requester})) {
      HoldOver(shard, active);
    } else {
      ArmHold(active, clock_.Now());
    }
  }
  if (!stopped()) Wish(shard, active);
}

void Engine::HoldOver(Shard* shard, ActivePage* active) {
  Means means;
  if (IsForward(active->page.deferred.type) && !active->deferred.without_bytes &&
      !Acquire(shard, active, active->deferred.message_class, SlotUse::kSend, &means.send)) {
    return;
  }
  StepPage(shard, active, {.type = PageEventType::kHoldOver, .message = {}}, std::move(means));
}

void Engine::ArmHold(ActivePage* active, Monotonic now) {
  // One that goes off for an earlier hold does nothing.
  if (active->hold_timer && active->hold_timer_at <= active->hold.least) return;
  active->hold_timer = true;
  active->hold_timer_at = active->hold.least;
  timers_->After(active->hold.least - now, [this, page = active->gfn] { OnTimer(page, false); });
}

void Engine::End(Gfn page, Waiter* waiter) {
  if (!waiter->replacement.empty() && !FramesDid(page, frames_->Write(page, 0, waiter->replacement))) {
    return waiter->granted(reason());
  }
  waiter->granted(absl::OkStatus());
}

void Engine::Grant(Shard* shard, ActivePage* active) {
  const PageAccess access = AccessOf(hk::RightOf(active->page.state));
  if (access == PageAccess::kNone || !active->wished() || active->swap.stage != SwapStage::kFrame) return;
  size_t kept = 0;
  for (size_t i = 0; i < active->waiters.size(); ++i) {
    Waiter& waiter = active->waiters[i];
    if (waiter.access <= access && (!waiter.pin || TakePin(shard, active))) {
      End(active->gfn, &waiter);
    } else {
      if (kept != i) active->waiters[kept] = std::move(waiter);
      ++kept;
    }
  }
  active->waiters.resize(kept);
  if (IsAwaited(*active, access)) {
    if (HK_MUTANT(engine_reader_not_woken) && access == PageAccess::kRead) return;
    active->fault_read = false;
    if (access == PageAccess::kWrite) active->fault_write = false;
    frames_->Wake(active->gfn);
  }
}

void Engine::HandlePage(Shard* shard, Incoming incoming) {
  ActivePage* const active = Activate(shard, incoming.gfn);
  // A Release goes by its serial and needs no slot: the home, and with it others' slots, may wait for what follows it.
  const bool behind = !active->parked.empty() && incoming.message.type != PageMessageType::kRelease;
  if (behind || !TryPage(shard, active, &incoming)) {
    if (active->parked.size() == kMaxParked) {
      return FailPage(incoming.gfn, absl::StatusCode::kInternal,
                      fmt::format("node {} sends more than a home can", incoming.message.from.value()));
    }
    active->parked.push_back(std::move(incoming));
  }
  Advance(shard, active);
  Rest(shard, active);
}

bool Engine::TryPage(Shard* shard, ActivePage* active, Incoming* incoming) {
  Page& page = active->page;
  if (!page.deferred.active) SettleHold(active, {incoming->message.ticket, incoming->message.requester});
  // It is served from where it is read to, without a frame. A Release is not about these bytes, and needs none.
  if (!active->swap.at_hand() && incoming->message.type != PageMessageType::kRelease && !incoming->duty.without_bytes) {
    ReadBack(shard, active);
    return false;
  }
  Means means;
  means.incoming = incoming;
  const PageEvent event{.type = EventOf(incoming->message), .message = incoming->message};
  if (IsForward(event.type)) {
    const bool blocked = page.held || page.pins > 0;
    const bool waits = blocked && (page.state == PageState::kExclusive ||
                                   (page.state == PageState::kOwner && event.type != PageEventType::kForwardRead));
    const bool has_bytes = HasBytes(page.state);
    if (has_bytes && !waits && !incoming->duty.without_bytes &&
        !Acquire(shard, active, incoming->duty.message_class, SlotUse::kSend, &means.send)) {
      return HK_MUTANT(engine_starved_forward_lost);
    }
  }
  StepPage(shard, active, event, std::move(means));
  return true;
}

void Engine::StepPage(Shard* shard, ActivePage* active, const PageEvent& event, Means means) {
  const PageState before = active->page.state;
  const bool was_deferred = active->page.deferred.active;
  const NodeId deferred_for = active->page.deferred.message.requester;
  const PageResult result = Step(active->page, event, config_.self, HomeIn(*shard, active->gfn));
  switch (result.verdict) {
    case PageVerdict::kDone:
      break;
    case PageVerdict::kWait:
    case PageVerdict::kRefused:
      return;
    case PageVerdict::kStale:
      ++shard->statistics.stale_messages;
      return;
    case PageVerdict::kImpossible:
    case PageVerdict::kNothingToDo:
      return FailPage(active->gfn, absl::StatusCode::kInternal,
                      fmt::format("coherence violation: {} from node {} in state {}", Name(event.type),
                                  event.message.from.value(), Name(before)));
  }
  NoteHolder(*active, event);
  active->page = result.page;
  LearnOwner(shard, active->gfn, event);
  if (!means.has_frame) {
    const bool stays = HasBytes(before) && HasBytes(result.page.state);
    const bool counted = active->swap.counted();
    CountFrame(TakesFrame(before) && counted, TakesFrame(result.page.state) && (counted || !stays));
  }
  const PageRight right_before = hk::RightOf(before), right_after = hk::RightOf(result.page.state);
  if (right_before != right_after) {
    NoteChange(shard, active, right_before, event,
               was_deferred && !result.page.deferred.active ? &deferred_for : nullptr);
    ExtentOf(shard, active->gfn)->pages.Count(right_before, right_after);
    CountRight(&shard->statistics, right_before, ~uint64_t{0});
    CountRight(&shard->statistics, right_after, 1);
    if (right_after == PageRight::kNone) {
      ++(event.type == PageEventType::kDrop ? shard->statistics.dropped : shard->statistics.revoked);
      NoteGone(active->gfn);
    }
  }
  if (was_deferred && !result.page.deferred.active) {
    means.answered = std::move(active->deferred);
  } else if (means.incoming != nullptr && result.page.deferred.active && !was_deferred) {
    active->deferred = std::move(means.incoming->duty);
  } else if (IsForward(event.type) || event.type == PageEventType::kPeek) {
    means.answered = std::move(means.incoming->duty);
  }
  bool installs = false;
  for (size_t i = 0; i < result.action_count; ++i) {
    installs = installs || result.actions[i].type == PageActionType::kInstall;
  }
  // Those who wait for a page that is installed go on before its home is told: that costs a system call. Everything
  // else is done in the machine's order.
  const bool sends_first = HK_MUTANT(engine_sends_first);
  const int rounds = installs || sends_first ? 2 : 1;
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < result.action_count; ++i) {
      const bool is_send = result.actions[i].type == PageActionType::kSend;
      if (rounds == 2 && is_send != (sends_first ? round == 0 : round == 1)) continue;
      if (!Do(shard, active, before, result, i, &means)) return;
    }
  }
  if (active->page.retained && !active->unmapped.empty() && !HasBytes(active->page.state)) {
    active->retained = std::move(active->unmapped);
  }
  if (active->page.transaction == 0) {
    active->request_slot = active->peek_slot = SlotId();
    if (active->prefetched) NotePrefetched(active);
  }
}

bool Engine::FramesDid(Gfn page, const absl::Status& status) {
  if (status.ok()) return true;
  FailPage(page, status.code(), MessageOf(status));
  return false;
}

bool Engine::Do(Shard* shard, ActivePage* active, PageState before, const PageResult& result, size_t index,
                Means* means) {
  const PageAction& action = result.actions[index];
  switch (action.type) {
    case PageActionType::kSend: {
      if (means->batch != nullptr) {
        means->batch->sent = true;
        return true;
      }
      const PageMessageType type = action.message.type;
      const bool asks = type == PageMessageType::kRequest;
      if (asks) active->hurried = false;
      Duty duty;
      if (asks) duty = std::move(means->request);
      if (type == PageMessageType::kPeek) duty = std::move(means->peek);
      if (type == PageMessageType::kPeeked) duty = std::move(means->answered);
      // Nobody waits for it but who asks for the same page, and he is heard of.
      const bool can_wait = type == PageMessageType::kDone && !active->hurried;
      PageMessage message = action.message;
      if (asks) message.ticket = TicketOf(*active);
      Post(shard, active->gfn, message, std::move(duty), {}, {}, can_wait ? SendWhen::kWithNext : SendWhen::kNow);
      return true;
    }
    case PageActionType::kSendPage:
      return SendPage(shard, active, action.message, means);
    case PageActionType::kKeepData:
      active->answer_payload = means->incoming->payload;
      if (HK_MUTANT(engine_answer_slot_early)) {
        means->incoming->duty.own.Release();
        return true;
      }
      active->answer_slot = std::move(means->incoming->duty.own);
      return true;
    case PageActionType::kDropData:
      active->answer_payload = {};
      active->answer_slot.Release();
      return true;
    case PageActionType::kInstall:
      return Install(shard, active, before, action, means);
    case PageActionType::kProtect:
      return active->swap.stage != SwapStage::kFrame || (means->batch != nullptr && means->batch->framed) ||
             FramesDid(active->gfn, frames_->SetAccess(active->gfn, PageAccess::kRead));
    case PageActionType::kUnmap:
      return Unmap(shard, active, result, index, means);
    case PageActionType::kMap:
    case PageActionType::kAdoptRetained: {
      KeptBytes& kept = action.type == PageActionType::kMap ? active->unmapped : active->retained;
      HK_CHECK(!kept.empty());
      if (!FramesDid(active->gfn, frames_->Install(active->gfn, kept.bytes(), AccessOf(action.right)))) return false;
      Drop(shard, &kept);
      return true;
    }
    case PageActionType::kDropFrame:
      Drop(shard, &active->unmapped);  // empty, if the frame has just been dropped with the mapping
      return true;
    case PageActionType::kDropRetained:
      Drop(shard, &active->retained);
      return true;
    case PageActionType::kStartHold:
      BeginHold(shard, active);
      ExtentOf(shard, active->gfn)->pages.Mark(active->gfn.value() % kExtentPages);
      if (config_.hold.count() == 0 || HK_MUTANT(engine_hold_not_kept)) active->page.held = false;
      return true;
    case PageActionType::kWake:
      Grant(shard, active);
      return true;
    case PageActionType::kRetry:
      Retry(shard, active, action.reason);
      return true;
    case PageActionType::kStopGuest:
      // Nobody needs it: it was fetched ahead.
      if (active->prefetched && !active->wished() && !HK_MUTANT(engine_prefetch_stops_the_space)) return true;
      FailPage(active->gfn, absl::StatusCode::kDataLoss, WhyLost(means->incoming->message.home));
      return false;
  }
  return true;
}

bool Engine::Install(Shard* shard, ActivePage* active, PageState before, const PageAction& action, Means* means) {
  const bool here = hk::RightOf(before) != PageRight::kNone;
  std::span<const std::byte> bytes;
  switch (action.source) {
    case PageSource::kNone:
    case PageSource::kZero:
      // What is to replace it is there from the beginning: nobody sees zeroes, and no other store before it is undone.
      if (!here && action.right == PageRight::kExclusive && !active->waiters.empty() &&
          !HK_MUTANT(engine_replaced_page_zeroed)) {
        bytes = std::exchange(active->waiters.front().replacement, {});
      }
      break;
    case PageSource::kPeeked:
      ++shard->statistics.peeks_used;
      [[fallthrough]];
    case PageSource::kPayload:
      if (means->batch != nullptr) break;  // they were put in their frame with others
      bytes = active->answer_slot || active->answer_payload.data() != nullptr ? active->answer_payload
                                                                              : means->incoming->payload;
      break;
    case PageSource::kStored:
      FailPage(active->gfn, absl::StatusCode::kUnimplemented, "its bytes are in storage, which is not read yet");
      return false;
  }
  if (here && action.source != PageSource::kNone) {
    FailPage(active->gfn, absl::StatusCode::kInternal, "coherence violation: bytes for a page that is here");
    return false;
  }
  const PageAccess access = AccessOf(action.right);
  const bool wished = active->wished();
  // Programs first, by the same system call. Wishes follow (Grant).
  if (means->batch != nullptr && means->batch->framed) {
    active->fault_read = false;  // it is here, and whoever waited was woken
  } else if (IsAwaited(*active, access) && !HK_MUTANT(engine_reader_not_woken)) {
    if (!FramesDid(active->gfn, here ? frames_->SetAccessAndWake(active->gfn, access)
                                     : frames_->InstallAndWake(active->gfn, bytes, access))) {
      return false;
    }
    active->fault_read = false;
    if (access == PageAccess::kWrite) active->fault_write = false;
  } else if (!FramesDid(active->gfn, here ? frames_->SetAccess(active->gfn, access)
                                          : frames_->Install(active->gfn, bytes, access))) {
    return false;
  }
  active->answer_payload = {};
  active->answer_slot.Release();
  const Monotonic now = clock_.Now();
  SpaceStatistics& statistics = shard->statistics;
  if (wished) {
    ++(access == PageAccess::kWrite ? statistics.write_latency
                                    : statistics.read_latency)[BucketOf(now - active->since)];
    if (action.source == PageSource::kPayload || action.source == PageSource::kPeeked) {
      ++statistics.fetched;
      PingSoon();
    }
    active->since = now;  // for whoever wants more still
  }
  return true;
}

bool Engine::Unmap(Shard* shard, ActivePage* active, const PageResult& result, size_t index, Means* means) {
  const Gfn page = active->gfn;
  if (index + 1 < result.action_count && result.actions[index + 1].type == PageActionType::kDropFrame) {
    return FramesDid(page, frames_->Remove(page, {}));
  }
  KeptBytes& kept = active->unmapped;
  // The bytes go where they leave from, if they leave now, and stay there until they are confirmed.
  if (means->send) {
    kept.slot = std::move(means->send);
  } else {
    kept.buffer = shard->spare_buffers.Take();
  }
  if (active->swap.stage == SwapStage::kFrame) return FramesDid(page, frames_->Remove(page, kept.bytes()));
  std::memcpy(kept.bytes().data(), active->swap.bytes->bytes.data(), kPageSize);
  EndSwap(shard, active);
  return true;
}

bool Engine::SendPage(Shard* shard, ActivePage* active, const PageMessage& message, Means* means) {
  if (means->answered.without_bytes) {
    PostEmpty(shard, active->gfn, message);
    return true;
  }
  if (means->batch != nullptr) {
    const std::span<std::byte> to = means->batch->to;
    if (!active->unmapped.empty()) {
      std::memcpy(to.data(), active->unmapped.bytes().data(), kPageSize);
    } else if (active->swap.stage != SwapStage::kFrame) {
      std::memcpy(to.data(), active->swap.bytes->bytes.data(), kPageSize);
    } else {
      HK_CHECK(means->batch->framed);
    }
    means->batch->sent = true;
    ++shard->statistics.served;
    return true;
  }
  SlotId payload = active->unmapped.slot.id();
  if (payload == SlotId()) {
    HK_CHECK(means->send);
    const std::span<std::byte> to = means->send.bytes().first(kPageSize);
    if (!active->unmapped.empty()) {
      std::memcpy(to.data(), active->unmapped.bytes().data(), kPageSize);
    } else if (active->swap.stage != SwapStage::kFrame) {
      std::memcpy(to.data(), active->swap.bytes->bytes.data(), kPageSize);
    } else if (!FramesDid(active->gfn, frames_->Read(active->gfn, 0, to))) {
      return false;
    }
    payload = means->send.id();
  }
  ++shard->statistics.served;
  if (message.kind == RequestKind::kAdopt) given_away_.fetch_add(1);
  Post(shard, active->gfn, message, std::move(means->answered), payload, std::move(means->send));
  return true;
}

void Engine::Drop(Shard* shard, KeptBytes* kept) {
  kept->slot.Release();
  shard->spare_buffers.Give(std::move(kept->buffer));
}

void Engine::Retry(Shard* shard, ActivePage* active, NackReason reason) {
  switch (reason) {
    case NackReason::kBusy: {
      ++shard->statistics.retries;
      active->pausing = true;
      const std::chrono::microseconds pause(RandomUpTo(shard, static_cast<uint64_t>(config_.retry.count())));
      timers_->After(pause, [this, page = active->gfn] { OnTimer(page, true); });
      return;
    }
    case NackReason::kMoved:
      return FailPage(active->gfn, absl::StatusCode::kInternal,
                      "its home says that it has moved, and homes do not yet");
    case NackReason::kNothing:
    case NackReason::kLost:
      return;  // of an offer taken
  }
}

}  // namespace hk::space
