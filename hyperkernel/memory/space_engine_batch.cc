// Batches: requests for several pages of one extent in one message, and one answer with as many as can be given at
// once. README.md, "Batches". Each page takes the steps of page_protocol and page_directory that it would take alone;
// only what is sent is joined, and what is done to frames.
#include <algorithm>
#include <cstring>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {
namespace {

PageMessage MessageOf(const PageBatch& batch, PageMessageType type, const BatchPage& page) {
  PageMessage m;
  m.type = type;
  m.from = batch.from;
  m.to = batch.to;
  m.requester = batch.requester;
  m.transaction = batch.transaction;
  m.serial = page.serial;
  m.kind = RequestKind::kRead;
  return m;
}

// True if `b` follows `a` in memory.
bool Follows(Gfn a, Gfn b) {
  return b.value() == a.value() + 1;
}

// Calls visit(first, count) for each longest run of indices of which in(i) holds and whose pages follow one another.
template <typename In, typename Visit>
bool EachRun(Gfn extent, std::span<const BatchPage> pages, In in, Visit visit) {
  const auto gfn = [&](size_t i) { return Gfn(extent.value() + pages[i].index); };
  for (size_t first = 0; first < pages.size();) {
    if (!in(first)) {
      ++first;
      continue;
    }
    size_t end = first + 1;
    while (end < pages.size() && in(end) && Follows(gfn(end - 1), gfn(end))) ++end;
    if (!visit(first, end - first)) return false;
    first = end;
  }
  return true;
}

}  // namespace

void Engine::PostBatch(Shard* shard, Gfn extent, PageBatch batch, Duty duty, LentSlot payload, SendWhen when) {
  const Gfn first(extent.value() + batch.pages[0].index);
  batch.from = config_.self;
  if (batch.to == config_.self) {
    Incoming& incoming = shard->local.emplace_back();
    incoming.gfn = first;
    incoming.duty = std::move(duty);
    incoming.batch = std::make_shared<PageBatch>(batch);
    return;
  }
  Message header;
  SendOptions options;
  options.when = when;
  LentSlot request;
  SetBatchHeader(batch, &header);
  header.guest = config_.guest;
  header.generation = config_.generation;
  header.epoch = shard->epoch;
  header.gfn = first;
  if (batch.type != PageBatchType::kDone) {
    HK_CHECK(duty.slot != SlotId());
    header.slot = duty.slot;
    header.slot_node = duty.node;
    if (!header.answer && duty.node == config_.self) {
      options.writers = shard->live;
      options.writers.Remove(config_.self);
      options.deadline = config_.request_limit;
      options.when = SendWhen::kWithNext;
      request = std::move(duty.own);
    }
  }
  if (payload) {
    options.payload = payload.id();
    for (const BatchPage& page : batch.all()) {
      if (page.fate == BatchFate::kTaken) options.payload_bytes += kPageSize;
    }
  }
  const absl::Status sent =
      outbox_.Send(batch.to, header, EncodeBatchBody(batch), options, std::move(request), std::move(payload));
  if (!sent.ok()) OnSendFailed(batch.to, sent);
}

// The requests wait for Flush, as a single one does.
void Engine::AskBatch(Shard* shard, std::span<const Gfn> pages, LentSlot slot) {
  HK_CHECK(pages.size() >= kLeastBatchPages && pages.size() <= kMostBatchPages);
  const Gfn extent(pages[0].value() / kExtentPages * kExtentPages);
  PageBatch batch;
  batch.type = PageBatchType::kRequest;
  batch.to = HomeIn(*shard, extent);
  batch.requester = config_.self;
  batch.transaction = ++shard->next_transaction * kShards + ShardIndexOf(extent.value() / kExtentPages);
  for (const Gfn page : pages) {
    batch.Add({.index = static_cast<uint16_t>(page.value() - extent.value())});
    ActivePage* const active = Activate(shard, page);
    active->request_slot = slot.id();
    active->prefetched = active->batched = true;
    active->later = false;
    ++shard->statistics.prefetched;
    BatchStep step;
    Means means;
    means.has_frame = true;
    means.batch = &step;
    PageEvent event{.type = PageEventType::kRead, .message = {}};
    event.message.transaction = batch.transaction;
    StepPage(shard, active, event, std::move(means));
  }
  ++shard->statistics.batches;
  shard->batches.emplace(slot.id().value(), AskedBatch{batch, extent.value()});
  Duty duty;
  duty.message_class = MessageClass::kBulk;
  duty.node = config_.self;
  duty.slot = slot.id();
  duty.own = std::move(slot);
  PostBatch(shard, extent, batch, std::move(duty));
}

std::string Engine::WhyImpossible(const Shard& shard, NodeId from, Gfn page, const PageBatch& batch) const {
  const NodeId home = HomeIn(shard, page);
  const bool for_home = batch.type == PageBatchType::kRequest || batch.type == PageBatchType::kDone;
  if (batch.type == PageBatchType::kAnswer &&
      batch.transaction % kShards != ShardIndexOf(page.value() / kExtentPages)) {
    return "it answers what was asked of other pages";
  }
  if (for_home ? home != config_.self : batch.type == PageBatchType::kForward && home != from) {
    return fmt::format("the pages' home is node {}", home.value());
  }
  if (batch.type == PageBatchType::kForward &&
      (!IsNode(batch.requester) || !shard.live.Contains(batch.requester) || batch.requester == config_.self)) {
    return fmt::format("for node {}", batch.requester.value());
  }
  return "";
}

void Engine::HandleBatch(Shard* shard, Incoming incoming) {
  switch (incoming.batch->type) {
    case PageBatchType::kRequest:
      return HandleBatchRequest(shard, std::move(incoming));
    case PageBatchType::kForward:
      return HandleBatchForward(shard, std::move(incoming));
    case PageBatchType::kAnswer:
      return HandleBatchAnswer(shard, std::move(incoming));
    case PageBatchType::kDone:
      break;
  }
  const Gfn extent(incoming.gfn.value() / kExtentPages * kExtentPages);
  for (const BatchPage& page : incoming.batch->all()) {
    if (stopped()) return;
    Incoming one;
    one.gfn = Gfn(extent.value() + page.index);
    one.message = MessageOf(*incoming.batch, PageMessageType::kDone, page);
    HandleHome(shard, std::move(one));
  }
}

// Home. A page's transaction begins only if it is at rest, and its first message may go in the batch: what the machine
// would do is looked at before it is done. All others are declined: nothing was said to the machine.
void Engine::HandleBatchRequest(Shard* shard, Incoming incoming) {
  const Gfn extent(incoming.gfn.value() / kExtentPages * kExtentPages);
  const PageBatch& asked = *incoming.batch;
  PageBatch out;
  out.requester = asked.requester;
  out.transaction = asked.transaction;
  bool has_owner = false;
  for (const BatchPage& wanted : asked.all()) {
    BatchPage page{.index = wanted.index};
    const Gfn gfn(extent.value() + wanted.index);
    if (!shard->busy.contains(gfn.value())) {
      std::unique_ptr<BusyEntry> busy = shard->spare_entries.Take();
      busy->entry = EntryOf(ExtentOf(shard, gfn)->home.Get(page.index));
      DirectoryEvent event{.type = DirectoryEventType::kRead,
                           .message = MessageOf(asked, PageMessageType::kRequest, wanted)};
      event.serial = shard->next_serial;
      const DirectoryResult result = Step(busy->entry, event, config_.self);
      if (result.verdict != DirectoryVerdict::kDone) {
        return FailPage(gfn, absl::StatusCode::kInternal,
                        fmt::format("coherence violation: {} from node {} at the home in state {}", Name(event.type),
                                    asked.from.value(), Name(busy->entry.state)));
      }
      if (result.action_count == 1 && result.actions[0].type == DirectoryActionType::kSend) {
        const PageMessage& m = result.actions[0].message;
        if (m.type == PageMessageType::kForward && m.acks.empty() && (!has_owner || m.to == out.to) &&
            (m.to != config_.self || CanGive(shard, gfn))) {
          page.fate = BatchFate::kTaken;
          out.to = m.to;
          has_owner = true;
        } else if (m.type == PageMessageType::kAnswer && m.source == PageSource::kZero && m.acks.empty()) {
          page.fate = BatchFate::kZero;
        }
        if (page.fate != BatchFate::kDeclined) {
          page.serial = m.serial;
          shard->next_serial += result.serials_used;
          busy->entry = result.entry;
          shard->busy[gfn.value()] = std::move(busy);
        }
      }
      shard->spare_entries.Give(std::move(busy));
    }
    out.Add(page);
  }
  out.type = has_owner ? PageBatchType::kForward : PageBatchType::kAnswer;
  if (!has_owner) out.to = asked.requester;
  PostBatch(shard, extent, out, std::move(incoming.duty));
}

// True if the page, of which this node is the owner, can be given to a reader at once.
bool Engine::CanGive(Shard* shard, Gfn page) {
  const auto found = shard->active.find(page.value());
  if (found == shard->active.end()) {
    const ExtentPages& pages = ExtentOf(shard, page)->pages;
    const size_t index = page.value() % kExtentPages;
    const PageState state = pages.state(index);
    if (pages.swapped(index)) return false;
    return state == PageState::kOwner ||
           (state == PageState::kExclusive && (!pages.held(index) || RestingHoldIsOver(shard, page)));
  }
  ActivePage& active = *found->second;
  const bool blocked = (active.page.held && !HoldIsOver(&active.hold, {})) || active.page.pins > 0;
  return HasBytes(active.page.state) && active.parked.empty() && active.swap.at_hand() &&
         !(active.page.state == PageState::kExclusive && (blocked || active.page.deferred.active));
}

// Owner. What cannot be given now never delays the rest: its forward waits here as a single one does, and is answered
// without bytes (kSpaceEmptyType).
void Engine::HandleBatchForward(Shard* shard, Incoming incoming) {
  const Gfn extent(incoming.gfn.value() / kExtentPages * kExtentPages);
  const PageBatch& forward = *incoming.batch;
  LentSlot send;
  if (const absl::StatusOr<SlotId> lent = transport_->AcquireSlot(MessageClass::kBulk, SlotUse::kSend); lent.ok()) {
    send = LentSlot(transport_, *lent);
  }
  PageBatch out = forward;
  out.type = PageBatchType::kAnswer;
  out.to = forward.requester;
  std::array<ActivePage*, kMostBatchPages> given{};
  std::array<std::span<std::byte>, kMostBatchPages> places;
  size_t room = 0;
  for (size_t i = 0; i < out.count; ++i) {
    BatchPage& page = out.pages[i];
    if (page.fate != BatchFate::kTaken) continue;
    const Gfn gfn(extent.value() + page.index);
    const bool may = CanGive(shard, gfn);
    if (!send || (!may && !HK_MUTANT(batch_gives_what_is_held))) {
      page.fate = BatchFate::kLater;
      continue;
    }
    ActivePage* const active = Activate(shard, gfn);
    // Not looked at again: it depends on what has been measured by now, and the bytes are on their way.
    if (may && active->page.state == PageState::kExclusive) active->page.held = false;
    given[i] = active;
    places[i] = send.bytes().subspan(room, kPageSize);
    room += kPageSize;
  }
  const auto in_frame = [&](size_t i) {
    return given[i] != nullptr && given[i]->unmapped.empty() && given[i]->swap.stage == SwapStage::kFrame;
  };
  // Frames of pages that follow one another: by one call each.
  const bool framed =
      EachRun(
          extent, out.all(), [&](size_t i) { return in_frame(i) && given[i]->page.state == PageState::kExclusive; },
          [&](size_t i, size_t count) {
            return HK_MUTANT(batch_given_unprotected) ||
                   FramesDid(given[i]->gfn, frames_->ProtectPages(given[i]->gfn, count));
          }) &&
      EachRun(extent, out.all(), in_frame, [&](size_t i, size_t count) {
        return FramesDid(given[i]->gfn, frames_->ReadPages(given[i]->gfn, {places[i].data(), count * kPageSize}));
      });
  if (!framed) return;
  for (size_t i = 0; i < out.count && !stopped(); ++i) {
    if (given[i] == nullptr) continue;
    BatchStep step;
    step.framed = in_frame(i);
    step.to = places[i];
    Incoming one;
    Means means;
    means.incoming = &one;
    means.batch = &step;
    const PageEvent event{.type = PageEventType::kForwardRead,
                          .message = MessageOf(forward, PageMessageType::kForward, out.pages[i])};
    StepPage(shard, given[i], event, std::move(means));
  }
  if (stopped()) return;
  if (room == 0) send.Release();
  PostBatch(shard, extent, out, std::move(incoming.duty), std::move(send));
  for (size_t i = 0; i < out.count && !stopped(); ++i) {
    if (given[i] != nullptr) {
      Advance(shard, given[i]);
      Rest(shard, given[i]);
    } else if (out.pages[i].fate == BatchFate::kLater) {
      Incoming later;
      later.gfn = Gfn(extent.value() + out.pages[i].index);
      later.message = MessageOf(forward, PageMessageType::kForward, out.pages[i]);
      later.duty.message_class = MessageClass::kBulk;
      later.duty.node = forward.requester;
      later.duty.without_bytes = true;
      HandlePage(shard, std::move(later));
    }
  }
}

void Engine::PostEmpty(Shard* shard, Gfn page, const PageMessage& answer) {
  PageBody body;
  Message message = SpaceEmptyMessage(answer.transaction, answer.serial, &body);
  message.guest = config_.guest;
  message.generation = config_.generation;
  message.epoch = shard->epoch;
  message.gfn = page;
  const absl::Status sent = outbox_.Send(answer.to, message, body, {}, {}, {});
  if (!sent.ok()) OnSendFailed(answer.to, sent);
}

// Requester. The pages that came are installed together; then each takes its step.
void Engine::HandleBatchAnswer(Shard* shard, Incoming incoming) {
  const Gfn extent(incoming.gfn.value() / kExtentPages * kExtentPages);
  const PageBatch& answer = *incoming.batch;
  const auto found = shard->batches.find(incoming.duty.slot.value());
  if (found == shard->batches.end()) {
    ++shard->statistics.stale_messages;
    return;
  }
  const AskedBatch asked = found->second;
  const auto same = [](const BatchPage& a, const BatchPage& b) { return a.index == b.index; };
  if (asked.transaction != answer.transaction || !std::ranges::equal(asked.all(), answer.all(), same) ||
      asked.extent != extent.value()) {
    return FailPage(incoming.gfn, absl::StatusCode::kInternal,
                    fmt::format("node {} answers other pages than were asked for", answer.from.value()));
  }
  shard->batches.erase(found);
  prefetch_slots_.fetch_sub(1);
  std::array<ActivePage*, kMostBatchPages> pages{};
  std::array<std::span<const std::byte>, kMostBatchPages> bytes;
  size_t at = 0;
  for (size_t i = 0; i < answer.count; ++i) {
    if (answer.pages[i].fate == BatchFate::kTaken) {
      bytes[i] = incoming.payload.subspan(at, kPageSize);
      at += kPageSize;
    }
    const auto active = shard->active.find(extent.value() + answer.pages[i].index);
    if (active == shard->active.end()) continue;
    const Page& page = active->second->page;
    if (page.state == PageState::kFetchRead && page.transaction == answer.transaction && !page.answered) {
      pages[i] = active->second.get();
    }
  }
  const auto comes = [&](size_t i) { return pages[i] != nullptr && answer.pages[i].fate == BatchFate::kTaken; };
  if (!EachRun(extent, answer.all(), comes, [&](size_t i, size_t count) {
        bool awaited = false;
        for (size_t j = i; j < i + count; ++j)
          awaited = awaited || (pages[j]->fault_read && !HK_MUTANT(batch_reader_not_woken));
        if (awaited) frames_->NoteHolder(pages[i]->gfn, count, answer.from);
        return FramesDid(pages[i]->gfn,
                         frames_->InstallPages(pages[i]->gfn, {bytes[i].data(), count * kPageSize}, awaited));
      })) {
    return;
  }
  PageBatch done;
  done.type = PageBatchType::kDone;
  done.to = HomeIn(*shard, extent);
  done.requester = config_.self;
  done.transaction = answer.transaction;
  bool hurried = false;
  for (size_t i = 0; i < answer.count && !stopped(); ++i) {
    const BatchFate fate = answer.pages[i].fate;
    if (pages[i] == nullptr) {
      ++shard->statistics.stale_messages;
      continue;
    }
    if (fate == BatchFate::kLater) {
      pages[i]->later = true;
      continue;
    }
    PageEvent event{.type = PageEventType::kAnswer,
                    .message = MessageOf(answer, PageMessageType::kAnswer, answer.pages[i])};
    BatchStep step;
    step.framed = fate == BatchFate::kTaken;
    Means means;
    means.batch = &step;
    if (fate == BatchFate::kDeclined) {
      EndDeclined(pages[i]);
      event.type = PageEventType::kNack;
      event.message.type = PageMessageType::kNack;
      event.message.reason = NackReason::kNothing;
    } else {
      event.message.right = PageRight::kShared;
      event.message.source = fate == BatchFate::kZero ? PageSource::kZero : PageSource::kPayload;
      hurried = hurried || pages[i]->hurried;
    }
    StepPage(shard, pages[i], event, std::move(means));
    if (step.sent) done.Add({.index = answer.pages[i].index, .serial = answer.pages[i].serial});
  }
  if (stopped()) return;
  incoming.duty.own.Release();
  if (done.count > 0) {
    PostBatch(shard, extent, done, Duty(), {}, hurried ? SendWhen::kNow : SendWhen::kWithNext);
  }
  for (size_t i = 0; i < answer.count && !stopped(); ++i) {
    if (pages[i] == nullptr) continue;
    Advance(shard, pages[i]);
    Rest(shard, pages[i]);
  }
}

// The page was granted without its bytes: its copy is taken and dropped in one, so that nobody sees it.
void Engine::HandleEmpty(Shard* shard, NodeId from, Gfn gfn, uint64_t transaction, uint64_t serial) {
  const auto found = shard->active.find(gfn.value());
  PageEvent event{.type = PageEventType::kAnswer, .message = {}};
  event.message.type = PageMessageType::kAnswer;
  event.message.from = from;
  event.message.transaction = transaction;
  event.message.serial = serial;
  event.message.right = PageRight::kShared;
  event.message.source = PageSource::kPayload;
  if (found == shard->active.end() || !found->second->batched || found->second->page.state != PageState::kFetchRead ||
      found->second->page.transaction != transaction) {
    ++shard->statistics.stale_messages;
    return;
  }
  ActivePage* const active = found->second.get();
  if (!active->later) {
    return FailPage(gfn, absl::StatusCode::kInternal,
                    fmt::format("node {} sent Empty for a page that it did not put off", from.value()));
  }
  active->later = false;
  const PageResult taken = Step(active->page, event, config_.self, HomeIn(*shard, gfn));
  HK_CHECK(taken.verdict == PageVerdict::kDone && taken.page.state == PageState::kShared);
  Page copy = taken.page;
  copy.held = false;
  const PageResult dropped = Step(copy, {.type = PageEventType::kDrop, .message = {}}, config_.self, NodeId());
  HK_CHECK(dropped.verdict == PageVerdict::kDone && dropped.page.state == PageState::kAbsent);
  ++shard->statistics.empties;
  active->page = dropped.page;
  active->request_slot = SlotId();
  CountFrame(true, false);
  EndDeclined(active);
  for (size_t i = 0; i < taken.action_count; ++i) {
    const PageAction& action = taken.actions[i];
    if (action.type == PageActionType::kDropRetained) Drop(shard, &active->retained);
    if (action.type == PageActionType::kSend) Post(shard, gfn, action.message, Duty());
  }
  Advance(shard, active);
  Rest(shard, active);
}

void Engine::EndDeclined(ActivePage* active) {
  if (!active->prefetched) return;
  active->prefetched = active->batched = false;
  prefetching_.fetch_sub(1);
  MutexLock lock(&prefetch_mutex_);
  streams_.OnDeclined(active->gfn);
}

void Engine::OnBatchMessage(NodeId from, const Message& message, Incoming incoming) {
  const absl::StatusOr<PageBatch> decoded =
      DecodeBatch(from, config_.self, config_.pages, message, incoming.payload.size());
  if (!decoded.ok()) {
    Fail(absl::InternalError(hk::MessageOf(decoded.status())));
    return Finish();
  }
  incoming.batch = std::make_shared<PageBatch>(*decoded);
  {
    Shard& shard = ShardOf(message.gfn);
    MutexLock lock(&shard.mutex);
    if (stopped() || message.epoch != shard.epoch || !shard.live.Contains(from)) return;
    if (std::string why = WhyImpossible(shard, from, message.gfn, *decoded); !why.empty()) {
      FailPage(message.gfn, absl::StatusCode::kInternal,
               fmt::format("node {} sent {}: {}", from.value(), Name(decoded->type), why));
    } else {
      HandleBatch(&shard, std::move(incoming));
      Drain(&shard);
    }
  }
  Finish();
}

void Engine::OnEmpty(NodeId from, const Message& message) {
  const absl::StatusOr<uint64_t> serial = SerialInEmpty(from, message);
  if (!serial.ok()) {
    FailPage(message.gfn, absl::StatusCode::kInternal, hk::MessageOf(serial.status()));
    return Finish();
  }
  {
    Shard& shard = ShardOf(message.gfn);
    MutexLock lock(&shard.mutex);
    if (stopped() || message.epoch != shard.epoch || !shard.live.Contains(from)) return;
    HandleEmpty(&shard, from, message.gfn, message.transaction, *serial);
    Drain(&shard);
  }
  Finish();
}

}  // namespace hk::space
