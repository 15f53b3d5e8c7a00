// The home's half of the fault engine, and the ways of all messages.
#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/space_engine_impl.h"

namespace hk::space {
namespace {

using Type = PageMessageType;

bool IsForHome(Type type) {
  return type == Type::kRequest || type == Type::kDone || type == Type::kReleased || type == Type::kEvict;
}
bool IsFromHome(Type type) {
  switch (type) {
    case Type::kForward:
    case Type::kNack:
    case Type::kInvalidate:
    case Type::kRelease:
    case Type::kEvictGranted:
    case Type::kEvictDenied:
      return true;
    default:
      return false;
  }
}

DirectoryEventType EventOfMessage(const PageMessage& message) {
  switch (message.type) {
    case Type::kRequest:
      return EventOf(message.kind);
    case Type::kDone:
      return DirectoryEventType::kDone;
    case Type::kReleased:
      return DirectoryEventType::kReleased;
    default:
      return DirectoryEventType::kEvict;
  }
}

}  // namespace

std::string Engine::WhyImpossible(const Shard& shard, const Incoming& incoming) const {
  const PageMessage& m = incoming.message;
  const NodeId home = HomeIn(shard, incoming.gfn);
  if (IsForHome(m.type) && home != config_.self) return fmt::format("the page's home is node {}", home.value());
  if (IsFromHome(m.type) && m.from != home) return fmt::format("the page's home is node {}", home.value());
  if (m.type == Type::kAnswer && m.source == PageSource::kPeeked && m.from != home) {
    return fmt::format("the page's home is node {}", home.value());
  }
  if ((m.type == Type::kForward || m.type == Type::kInvalidate) &&
      (!IsNode(m.requester) || !shard.live.Contains(m.requester) || m.requester == config_.self)) {
    return fmt::format("for node {}", m.requester.value());
  }
  if ((m.type == Type::kForward || m.type == Type::kAnswer) &&
      ((m.acks.bits() & ~shard.live.bits()) != 0 || m.acks.Contains(m.requester))) {
    return "it names nodes that cannot acknowledge";
  }
  const bool brings = m.type == Type::kAnswer || m.type == Type::kPeeked;
  if (brings && m.source == PageSource::kPayload && incoming.payload.size() != kPageSize) {
    return fmt::format("a page of {} bytes", incoming.payload.size());
  }
  return "";
}

bool Engine::IsDormantHere(Shard* shard, Gfn page) {
  if (HomeIn(*shard, page) != config_.self || shard->busy.contains(page.value())) return false;
  return ExtentOf(shard, page)->home.Get(page.value() % kExtentPages).state == DirectoryState::kDormant;
}

void Engine::Handle(Shard* shard, Incoming incoming) {
  if (incoming.batch != nullptr) return HandleBatch(shard, std::move(incoming));
  if (incoming.message.type == Type::kOffer) return HandleOffer(shard, incoming.gfn, incoming.message);
  if (incoming.message.type == Type::kPeek) return HandlePeek(shard, std::move(incoming));
  if (incoming.message.type == Type::kPeeked) return HandlePeeked(shard, std::move(incoming));
  if (IsForHome(incoming.message.type)) return HandleHome(shard, std::move(incoming));
  HandlePage(shard, std::move(incoming));
}

void Engine::Drain(Shard* shard) {
  while (shard->local_next < shard->local.size() && !stopped()) {
    Incoming next = std::move(shard->local[shard->local_next++]);
    Handle(shard, std::move(next));
  }
  shard->local.clear();
  shard->local_next = 0;
  PostAnswer(shard);
}

bool Engine::TakeOwnAck(Shard* shard, Gfn page, const PageMessage& ack) {
  std::optional<HeldAnswer>& held = shard->answer;
  if (!held || held->gfn != page || held->message.to != ack.to || held->message.transaction != ack.transaction) {
    return false;
  }
  held->message.acks.Remove(config_.self);
  return true;
}

void Engine::PostAnswer(Shard* shard) {
  if (!shard->answer) return;
  HeldAnswer held = *std::exchange(shard->answer, std::nullopt);
  if (!stopped()) Post(shard, held.gfn, held.message, std::move(held.duty));
}

void Engine::Hurry(Shard* shard, Gfn page, BusyEntry* busy) {
  const DirectoryEntry& entry = busy->entry;
  if (entry.state != DirectoryState::kBusy || entry.waiting_count == 0 || entry.current.requester == config_.self ||
      busy->hurried == entry.serial || HK_MUTANT(engine_waits_for_done)) {
    return;
  }
  busy->hurried = entry.serial;
  Message message = SpaceHurryMessage(entry.current.transaction);
  message.guest = config_.guest;
  message.generation = config_.generation;
  message.epoch = shard->epoch;
  message.gfn = page;
  const absl::Status sent = outbox_.Send(entry.current.requester, message, {}, {}, {}, {});
  if (!sent.ok()) OnSendFailed(entry.current.requester, sent);
}

void Engine::HandleHurry(Shard* shard, const Message& message) {
  const auto found = shard->active.find(message.gfn.value());
  if (found == shard->active.end() || found->second->page.transaction != message.transaction) return;
  found->second->hurried = true;
}

void Engine::HandleHome(Shard* shard, Incoming incoming) {
  const Gfn page = incoming.gfn;
  std::unique_ptr<BusyEntry>& slot = shard->busy[page.value()];
  if (slot == nullptr) {
    slot = shard->spare_entries.Take();
    slot->entry = EntryOf(ExtentOf(shard, page)->home.Get(page.value() % kExtentPages));
  }
  BusyEntry* const busy = slot.get();
  if (incoming.message.type == Type::kRequest) {
    busy->duties.emplace_back(incoming.message.requester, std::move(incoming.duty));
  }
  if (!StepHome(shard, page, busy, {.type = EventOfMessage(incoming.message), .message = incoming.message})) return;
  Hurry(shard, page, busy);
  RestHome(shard, page, busy);
}

void Engine::RestHome(Shard* shard, Gfn page, BusyEntry* busy) {
  if (!IsAtRest(busy->entry)) return;
  ExtentOf(shard, page)->home.Set(page.value() % kExtentPages, RestOf(busy->entry));
  const auto found = shard->busy.find(page.value());
  std::unique_ptr<BusyEntry> record = std::move(found->second);
  shard->busy.erase(found);
  record->duties.clear();
  shard->spare_entries.Give(std::move(record));
}

// False: the space is stopped.
bool Engine::StepHome(Shard* shard, Gfn page, BusyEntry* busy, DirectoryEvent event) {
  for (bool mirrors = true; mirrors;) {
    mirrors = false;
    event.serial = shard->next_serial;
    event.owned = shard->owner_serials.Last(page);
    const DirectoryResult result = Step(busy->entry, event, config_.self);
    switch (result.verdict) {
      case DirectoryVerdict::kDone:
        break;
      case DirectoryVerdict::kStale:
        ++shard->statistics.stale_messages;
        return true;
      case DirectoryVerdict::kImpossible:
      case DirectoryVerdict::kNotNow:
        FailPage(page, absl::StatusCode::kInternal,
                 fmt::format("coherence violation: {} from node {} at the home in state {}", Name(event.type),
                             event.message.from.value(), Name(busy->entry.state)));
        return false;
    }
    shard->next_serial += result.serials_used;
    if (result.owns && !HK_MUTANT(engine_owners_unnoticed)) shard->owner_serials.Note(page, result.entry.serial);
    busy->entry = result.entry;
    for (size_t i = 0; i < result.action_count; ++i) {
      const DirectoryAction& action = result.actions[i];
      switch (action.type) {
        case DirectoryActionType::kSend: {
          const Type type = action.message.type;
          Duty duty;
          if (type == Type::kForward || type == Type::kAnswer || type == Type::kNack) {
            const auto found = std::find_if(busy->duties.begin(), busy->duties.end(), [&action](const auto& entry) {
              return entry.first == action.message.requester;
            });
            HK_CHECK(found != busy->duties.end());
            duty = std::move(found->second);
            busy->duties.erase(found);
          }
          // The home's own acknowledgement most often follows at once, and goes with the answer.
          if (type == Type::kAnswer && action.message.to != config_.self &&
              action.message.acks.Contains(config_.self)) {
            PostAnswer(shard);
            shard->answer = {.gfn = page, .message = action.message, .duty = std::move(duty)};
            break;
          }
          Post(shard, page, action.message, std::move(duty));
          break;
        }
        case DirectoryActionType::kSendToEach:
          for (const NodeId node : config_.nodes) {
            if (!action.nodes.Contains(node)) continue;
            PageMessage message = action.message;
            message.to = node;
            Post(shard, page, message, Duty());
          }
          break;
        case DirectoryActionType::kMirror:
          mirrors = Mirror(shard, page);  // else Mirrored comes
          break;
        case DirectoryActionType::kReconcile:
          break;  // Rebuild's, which is not a step of a message
      }
    }
    event = {.type = DirectoryEventType::kMirrored};
  }
  return true;
}

void Engine::Post(Shard* shard, Gfn page, const PageMessage& message, Duty duty, SlotId payload, LentSlot give,
                  SendWhen when) {
  if (message.type == Type::kAck && TakeOwnAck(shard, page, message)) return;
  if (message.to == config_.self) {
    Incoming& incoming = shard->local.emplace_back();
    incoming.gfn = page;
    incoming.message = message;
    incoming.duty = std::move(duty);
    return;
  }
  Message header;
  SendOptions options;
  options.when = when;
  LentSlot request;
  SetPageHeader(message, &header);
  header.message_class = ClassOf(message.type);
  header.guest = config_.guest;
  header.generation = config_.generation;
  header.epoch = shard->epoch;
  header.gfn = page;
  const bool asks = message.type == Type::kRequest || message.type == Type::kForward || message.type == Type::kPeek;
  if (asks || header.answer) {
    HK_CHECK(duty.slot != SlotId());
    header.message_class = duty.message_class;
    header.slot = duty.slot;
    header.slot_node = duty.node;
    if (asks && duty.node == config_.self) {
      if (message.type == Type::kRequest) {
        options.writers = shard->live;
        options.writers.Remove(config_.self);
      }
      options.deadline = config_.request_limit;
      if (duty.message_class == MessageClass::kBulk) options.when = SendWhen::kWithNext;
      request = std::move(duty.own);
    }
  }
  if (payload != SlotId()) {
    options.payload = payload;
    options.payload_bytes = kPageSize;
  }
  const absl::Status sent =
      outbox_.Send(message.to, header, EncodePageBody(message), options, std::move(request), std::move(give));
  if (!sent.ok()) OnSendFailed(message.to, sent);
}

void Engine::OnSendFailed(NodeId to, const absl::Status& status) {
  if (!running()) return;  // of an epoch that ends
  if (absl::IsUnavailable(status) || absl::IsAborted(status)) {
    // The peer is failing, and the transport says why in a moment; or it was not there from the beginning.
    return FailSoon(fmt::format("node {} cannot be reached: {}", to.value(), MessageOf(status)));
  }
  Fail(absl::InternalError(fmt::format("cannot send to node {}: {}", to.value(), MessageOf(status))));
}

}  // namespace hk::space
