// Reads that ask the owner beside the home: README.md, "Peeks".
#include <utility>

#include "hyperkernel/base/mutant.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {

// A step of a page was done because of this message, or of none.
void Engine::LearnOwner(Shard* shard, Gfn page, const PageEvent& event) {
  const PageMessage& m = event.message;
  const uint64_t extent = page.value() / kExtentPages;
  switch (event.type) {
    case PageEventType::kAnswer:
      if (m.source != PageSource::kPayload || m.right != PageRight::kShared)
        return shard->hints.Heard(extent, m.serial);
      return shard->hints.Told(extent, m.from, m.serial);
    case PageEventType::kInvalidate:
    case PageEventType::kForwardWrite:
    case PageEventType::kForwardAdopt:
      return shard->hints.Told(extent, m.requester, m.serial);
    case PageEventType::kForwardRead:
      return shard->hints.Heard(extent, m.serial);
    default:
      return;
  }
}

// A read of a page that is not here is about to be asked for. The slot of a Peek is one more: without one there is
// none.
void Engine::AddPeek(Shard* shard, ActivePage* active, PageMessage* wish, Duty* duty) {
  if (active->peek_refused) return;
  const NodeId home = HomeIn(*shard, active->gfn);
  const OwnerHint* const hint = shard->hints.Find(active->gfn.value() / kExtentPages);
  if (hint == nullptr || home == config_.self || hint->owner == home || hint->owner == config_.self ||
      !shard->live.Contains(hint->owner)) {
    return;
  }
  const absl::StatusOr<SlotId> slot = transport_->AcquireSlot(MessageClass::kFault, SlotUse::kReceive);
  if (!slot.ok()) return;
  wish->peeks = true;
  wish->asked = hint->owner;
  wish->serial = hint->serial;
  duty->node = config_.self;
  duty->slot = *slot;
  duty->own = LentSlot(transport_, *slot);
  ++shard->statistics.peeks;
}

// Answered at once, or refused: nothing ever waits for a Peek.
void Engine::HandlePeek(Shard* shard, Incoming incoming) {
  const Gfn page = incoming.gfn;
  const auto found = shard->active.find(page.value());
  const PageState state = found != shard->active.end()
                              ? found->second->page.state
                              : ExtentOf(shard, page)->pages.state(page.value() % kExtentPages);
  const bool owns = state == PageState::kOwner || state == PageState::kExclusive;
  Means means;
  if (owns && CanGive(shard, page)) {
    const absl::StatusOr<SlotId> slot = transport_->AcquireSlot(MessageClass::kFault, SlotUse::kSend);
    if (slot.ok()) means.send = LentSlot(transport_, *slot);
  }
  if (!means.send) {
    PageMessage refused;
    refused.type = PageMessageType::kPeeked;
    refused.from = config_.self;
    refused.to = refused.requester = incoming.message.from;
    refused.transaction = incoming.message.transaction;
    return Post(shard, page, refused, std::move(incoming.duty));
  }
  ActivePage* const active = Activate(shard, page);
  if (!active->page.deferred.active) SettleHold(active);
  means.incoming = &incoming;
  const PageEvent event{.type = PageEventType::kPeek, .message = incoming.message};
  StepPage(shard, active, event, std::move(means));
  Advance(shard, active);
  Rest(shard, active);
}

void Engine::HandlePeeked(Shard* shard, Incoming incoming) {
  const bool refused = incoming.message.source != PageSource::kPayload;
  if (refused) shard->hints.Refused(incoming.gfn.value() / kExtentPages);
  const auto found = shard->active.find(incoming.gfn.value());
  if (found == shard->active.end()) return;  // the request is over
  ActivePage* const active = found->second.get();
  if (refused && active->page.transaction == incoming.message.transaction) {
    active->peek_refused = true;
    ++shard->statistics.peeks_refused;
  }
  Means means;
  means.incoming = &incoming;
  StepPage(shard, active, {.type = PageEventType::kPeeked, .message = incoming.message}, std::move(means));
  Advance(shard, active);
  Rest(shard, active);
}

}  // namespace hk::space
