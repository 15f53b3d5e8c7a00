#include "hyperkernel/memory/page_directory.h"

#include <algorithm>
#include <bit>

#include "hyperkernel/base/mutant.h"

namespace hk {
namespace {

using Event = DirectoryEventType;
using State = DirectoryState;

constexpr NodeSet Without(NodeSet nodes, NodeId node) {
  nodes.Remove(node);
  return nodes;
}
constexpr NodeId kNobody(kMaxNodes);  // equal to no node

constexpr bool Owned(State state) {
  return state == State::kShared || state == State::kExclusive;
}
constexpr NodeSet With(NodeSet nodes, NodeId node) {
  nodes.Add(node);
  return nodes;
}

// One step under way.
class Stepper {
 public:
  // All of them outlive it; `result` is as it was made.
  Stepper(const DirectoryEntry& entry, const DirectoryEvent& event, NodeId self, DirectoryResult* result)
      : before_(entry), event_(event), message_(event.message), self_(self), result_(*result) {
    result_.entry = entry;
  }

  void Run() {
    switch (event_.type) {
      case Event::kRead:
      case Event::kWrite:
      case Event::kOverwrite:
      case Event::kAdopt:
        Request();
        break;
      case Event::kEvict:
        Evict();
        break;
      case Event::kDone:
        Done();
        break;
      case Event::kReleased:
        Released();
        break;
      case Event::kMirrored:
        Mirrored();
        break;
      case Event::kFreeze:
        Freeze();
        break;
      case Event::kThaw:
        Thaw();
        break;
      case Event::kMoveOut:
        MoveOut();
        break;
      case Event::kRebuild:
        Rebuild();
        break;
    }
  }

 private:
  DirectoryEntry& entry() { return result_.entry; }
  State state() const { return result_.entry.state; }
  bool UnderWay() const {
    return state() == State::kMirroring || state() == State::kBusy || state() == State::kSettling;
  }
  void Reject(DirectoryVerdict verdict) {
    result_.entry = before_;
    result_.action_count = 0;
    result_.serials_used = 0;
    result_.owns = false;
    result_.verdict = verdict;
  }
  PageMessage To(NodeId to, PageMessageType type) const {
    PageMessage message;
    message.type = type;
    message.from = self_;
    message.to = to;
    return message;
  }
  void Send(const PageMessage& message) { result_.Add({.type = DirectoryActionType::kSend, .message = message}); }
  void Nack(const PageMessage& request, NackReason reason) {
    PageMessage nack = To(request.requester, PageMessageType::kNack);
    nack.requester = request.requester;
    nack.transaction = request.transaction;
    nack.kind = request.kind;
    nack.reason = reason;
    if (reason == NackReason::kMoved) nack.home = state() == State::kElsewhere ? entry().owner : event_.home;
    if (reason == NackReason::kLost) nack.home = entry().owner;
    Send(nack);
  }

  void Request() {
    const NodeId requester = message_.requester;
    if (message_.from != requester || EventOf(message_.kind) != event_.type) {
      return Reject(DirectoryVerdict::kImpossible);
    }
    if (state() == State::kElsewhere) return Nack(message_, NackReason::kMoved);
    // A node has one request at a time. While Busy, its next one may have overtaken its Done (the classes differ).
    if (state() == State::kMirroring && entry().current.requester == requester) {
      return Reject(DirectoryVerdict::kImpossible);
    }
    for (size_t i = 0; i < entry().waiting_count; ++i) {
      if (entry().waiting[i].requester == requester) return Reject(DirectoryVerdict::kImpossible);
    }
    if (!UnderWay() && !entry().frozen) return Begin(message_);
    if (entry().waiting_count == kMaxWaitingRequests) return Nack(message_, NackReason::kBusy);
    entry().waiting[entry().waiting_count++] = message_;
  }

  // Begins the request's transaction, or answers it at once. REQUIRES: none is under way, not frozen.
  void Begin(const PageMessage& request) {
    const NodeId requester = request.requester;
    const bool read = request.kind == RequestKind::kRead;
    if (state() == State::kLost) return Nack(request, NackReason::kLost);
    const bool owned = Owned(state());
    if (request.kind == RequestKind::kAdopt && (!owned || entry().owner == requester)) {
      return Nack(request, NackReason::kNothing);
    }
    // An owner has the page: it neither reads nor fetches it. It may ask for the right to write that a Peek took from
    // it.
    if (owned && entry().owner == requester && (!request.has_copy || read)) {
      return Reject(DirectoryVerdict::kImpossible);
    }
    entry().current = request;
    entry().before = state();
    if (!read && !entry().ever_written && request.kind != RequestKind::kAdopt &&
        !HK_MUTANT(directory_writes_unmirrored)) {
      entry().state = State::kMirroring;
      result_.Add({.type = DirectoryActionType::kMirror});
      return;
    }
    Grant();
  }

  // REQUIRES: current and before are set.
  void Grant() {
    DirectoryEntry& e = entry();
    const PageMessage& request = e.current;
    const NodeId requester = request.requester;
    const bool owned = Owned(e.before);
    e.state = State::kBusy;
    e.serial = event_.serial + result_.serials_used++;
    result_.owns = request.kind != RequestKind::kRead;
    e.after_owner = requester;
    e.after_copyset = NodeSet();
    e.leaves = false;
    NodeSet holders = e.copyset;  // of the bytes' readers: all, the owner included
    if (owned) holders.Add(e.owner);
    switch (request.kind) {
      case RequestKind::kRead:
        e.after_copyset = With(holders, requester);
        if (!owned && HK_MUTANT(directory_dormant_reader_forgotten)) e.after_copyset = holders;
        e.after = owned ? State::kShared : e.before;
        e.after_owner = e.owner;
        if (owned && !IsPeeked(request)) return Forward(NodeSet());
        return Answer(PageRight::kShared, owned ? PageSource::kPeeked : SourceAtRest(), NodeSet());
      case RequestKind::kAdopt:
        e.after = e.before;
        if (e.before == State::kShared) e.after_copyset = With(Without(holders, e.owner), requester);
        Leave(e.owner);
        return Forward(NodeSet());
      case RequestKind::kWrite:
      case RequestKind::kOverwrite:
        break;
    }
    e.after = State::kExclusive;
    const bool copy = request.has_copy && (holders.Contains(requester) || HK_MUTANT(directory_trusts_has_copy));
    if (owned && e.owner != requester) Leave(e.owner);
    if (owned && !copy && request.kind == RequestKind::kWrite) {
      const NodeSet readers = Without(Without(holders, requester), e.owner);
      Forward(readers);
      return InvalidateEach(readers);
    }
    const NodeSet readers = Without(holders, requester);
    Answer(PageRight::kExclusive, copy || request.kind == RequestKind::kOverwrite ? PageSource::kNone : SourceAtRest(),
           readers);
    InvalidateEach(readers);
  }
  // What the reader has from the owner, or will have, is what the page is now: README.md, "Peeks".
  bool IsPeeked(const PageMessage& request) const {
    const bool since = event_.owned <= request.serial || HK_MUTANT(directory_grants_old_peeks);
    return request.peeks && result_.entry.owner == request.asked && since;
  }
  void Leave(NodeId owner) {
    entry().leaves = true;
    entry().leaver = owner;
  }
  PageSource SourceAtRest() const {
    return result_.entry.before == State::kStored ? PageSource::kStored : PageSource::kZero;
  }
  void Forward(NodeSet acks) {
    const PageMessage& request = entry().current;
    PageMessage forward = To(entry().owner, PageMessageType::kForward);
    forward.requester = request.requester;
    forward.transaction = request.transaction;
    forward.serial = entry().serial;
    forward.kind = request.kind;
    forward.ticket = HK_MUTANT(directory_forgets_tickets) ? 0 : request.ticket;
    forward.acks = HK_MUTANT(directory_forgets_acks) ? NodeSet() : acks;
    Send(forward);
  }
  void Answer(PageRight right, PageSource source, NodeSet acks) {
    const PageMessage& request = entry().current;
    PageMessage answer = To(request.requester, PageMessageType::kAnswer);
    answer.requester = request.requester;
    answer.transaction = request.transaction;
    answer.serial = entry().serial;
    answer.kind = request.kind;
    answer.right = right;
    answer.source = source;
    if (source == PageSource::kStored) answer.storage = entry().storage;
    answer.acks = HK_MUTANT(directory_forgets_acks) ? NodeSet() : acks;
    Send(answer);
  }
  void InvalidateEach(NodeSet nodes) {
    if (nodes.empty()) return;
    PageMessage invalidate = To(entry().current.requester, PageMessageType::kInvalidate);
    invalidate.requester = entry().current.requester;
    invalidate.transaction = entry().current.transaction;
    invalidate.serial = entry().serial;
    invalidate.ticket = entry().current.ticket;
    result_.Add({.type = DirectoryActionType::kSendToEach, .nodes = nodes, .message = invalidate});
  }

  void Done() {
    if (state() != State::kBusy || message_.serial != entry().serial || message_.from != entry().current.requester) {
      return Reject(DirectoryVerdict::kStale);
    }
    if (message_.declined) {
      // It was granted a copy that it did not take: as if it had not asked.
      if (!entry().current.peeks || !Owned(entry().before)) return Reject(DirectoryVerdict::kImpossible);
      entry().after = entry().before;
      entry().after_copyset = entry().copyset;
    }
    entry().state = State::kSettling;
    Settle();
  }
  // The end of a transaction whose Done has come, as soon as the Release before it was answered.
  void Settle() {
    DirectoryEntry& e = entry();
    if (e.leaves && e.releasing && !HK_MUTANT(directory_releases_overtake)) return;
    e.state = e.after;
    e.owner = e.after_owner;
    e.copyset = e.after_copyset;
    if (e.leaves) {
      e.releasing = true;
      e.released_node = e.leaver;
      e.released_serial = e.serial;
      PageMessage release = To(e.leaver, PageMessageType::kRelease);
      release.serial = e.serial;
      Send(release);
    }
    e.leaves = false;
    e.current = PageMessage{};
    BeginWaiting();
  }
  void BeginWaiting() {
    DirectoryEntry& e = entry();
    while (e.waiting_count > 0 && !UnderWay() && !e.frozen) {
      const PageMessage next = e.waiting[0];
      for (size_t i = 1; i < e.waiting_count; ++i) e.waiting[i - 1] = e.waiting[i];
      e.waiting[--e.waiting_count] = PageMessage{};
      Begin(next);
      if (result_.verdict != DirectoryVerdict::kDone) return;
    }
  }

  void Released() {
    DirectoryEntry& e = entry();
    if (!e.releasing || message_.serial != e.released_serial || message_.from != e.released_node) {
      return Reject(DirectoryVerdict::kStale);
    }
    e.releasing = false;
    if (state() == State::kSettling) Settle();
  }

  void Evict() {
    DirectoryEntry& e = entry();
    const bool owned = Owned(state());
    const bool grant = owned && e.owner == message_.from && !e.frozen && !e.releasing;
    if (message_.source != PageSource::kZero && message_.source != PageSource::kStored) {
      return Reject(DirectoryVerdict::kImpossible);
    }
    if (!grant && !(HK_MUTANT(directory_evicts_while_busy) && e.owner == message_.from && state() == State::kBusy)) {
      return Send(To(message_.from, PageMessageType::kEvictDenied));
    }
    e.copyset = Without(e.copyset, message_.from);
    e.owner = NodeId();
    e.state = message_.source == PageSource::kZero ? State::kDormant : State::kStored;
    e.storage = message_.source == PageSource::kZero ? 0 : message_.storage;
    Send(To(message_.from, PageMessageType::kEvictGranted));
  }

  void Mirrored() {
    if (state() != State::kMirroring) return Reject(DirectoryVerdict::kNotNow);
    entry().ever_written = true;
    Grant();
  }

  void Freeze() {
    if (state() == State::kElsewhere || entry().frozen) return Reject(DirectoryVerdict::kNotNow);
    entry().frozen = true;
  }
  void Thaw() {
    if (!entry().frozen) return Reject(DirectoryVerdict::kNotNow);
    entry().frozen = false;
    BeginWaiting();
  }
  // The new home has the entry (state, owner, copyset, storage, ever_written) and the serial.
  void MoveOut() {
    if (!entry().frozen || UnderWay() || entry().releasing) return Reject(DirectoryVerdict::kNotNow);
    for (size_t i = 0; i < entry().waiting_count; ++i) Nack(entry().waiting[i], NackReason::kMoved);
    entry() = DirectoryEntry{.state = State::kElsewhere, .owner = event_.home};
  }

  // The entry from what is known for certain. What survivors may read or write is current. Bytes under eviction are, if
  // this home still takes the node for the owner, so has not granted it. A retained copy is, if it came last, its
  // requester lives and never installed it.
  void Rebuild() {
    DirectoryEntry& e = entry();
    const auto [rest, rest_owner] = AtRest();
    const bool at_home = rest == State::kDormant || rest == State::kStored;
    const bool known = rest != State::kElsewhere;
    const bool in_flight = !known || before_.state == State::kBusy;  // else the owner has it, or had it
    NodeSet readers;
    const PageReport* exclusive = nullptr;
    const PageReport* owner = nullptr;
    const PageReport* last = nullptr;  // retained
    for (const PageReport& report : event_.reports) {
      const bool evicts = known && !at_home && report.node == rest_owner;
      const PageRight right = evicts ? std::max(report.right, report.evicting) : report.right;
      if (right == PageRight::kExclusive) {
        if (exclusive != nullptr) return Reject(DirectoryVerdict::kImpossible);
        exclusive = &report;
      }
      if (right == PageRight::kOwner) owner = &report;
      if (right != PageRight::kNone) readers.Add(report.node);
      if (report.retained && (last == nullptr || report.retained_serial > last->retained_serial)) last = &report;
    }
    if (exclusive != nullptr && readers.size() > 1) {
      // An eviction is Exclusive until it has served a reader, who may have installed before.
      if (exclusive->evicting == PageRight::kNone) return Reject(DirectoryVerdict::kImpossible);
      owner = exclusive;
      exclusive = nullptr;
    }
    if (Contradicts(readers, exclusive, owner)) return Reject(DirectoryVerdict::kImpossible);
    e = DirectoryEntry{.ever_written = before_.ever_written};
    if (exclusive != nullptr) {
      e.state = State::kExclusive;
      e.owner = exclusive->node;
    } else if (at_home && owner == nullptr) {  // else its first writer, which has lost that right to a Peek
      e.state = rest;
      e.storage = rest == State::kStored ? before_.storage : 0;
      e.copyset = readers;
    } else if (!readers.empty()) {
      e.state = State::kShared;
      e.copyset = readers;
      e.owner = owner != nullptr ? owner->node : First(readers);
    } else if (last != nullptr && in_flight && (before_.ever_written || HK_MUTANT(directory_unwritten_comes_back)) &&
               !(event_.home_moved && HK_MUTANT(directory_moved_home_forgets_kept)) &&
               (event_.survivors.Contains(last->retained_for) || HK_MUTANT(directory_revives_stale))) {
      // Its requester has it under eviction: not granted, because Released comes before that.
      const PageReport* evictor = Evictor(last->retained_for);
      const bool shared = evictor != nullptr && evictor->evicting == PageRight::kOwner;
      e.state = shared ? State::kShared : State::kExclusive;
      e.owner = evictor != nullptr ? evictor->node : last->node;
      if (shared) e.copyset = NodeSet::Of(e.owner);
    } else if (const PageReport* evictor = AnyEvictor(); !known && event_.home_moved && evictor != nullptr) {
      // Not granted, or else granted and not written since: somebody would have it.
      e.state = evictor->evicting == PageRight::kOwner ? State::kShared : State::kExclusive;
      e.owner = evictor->node;
      if (e.state == State::kShared) e.copyset = NodeSet::Of(e.owner);
    } else {
      const bool zero = !before_.ever_written || (event_.home_moved && !known && !HK_MUTANT(directory_left_is_lost));
      e.state = zero || HK_MUTANT(directory_lost_is_zero) ? State::kDormant : State::kLost;
      if (e.state == State::kLost) e.owner = WhoHadIt(rest_owner);
    }
    result_.Add({.type = DirectoryActionType::kReconcile, .nodes = event_.survivors});
  }
  // The lost node that had the only copy; this node: it may have been any of several.
  NodeId WhoHadIt(NodeId rest_owner) const {
    if (before_.state == State::kLost) return before_.owner;
    // Of what this home knows: the owner, or the writer that it had granted the page to.
    NodeSet may = event_.lost;
    if (before_.state != State::kElsewhere && !HK_MUTANT(directory_lost_by_anyone)) {
      may = NodeSet();
      if (rest_owner != kNobody && event_.lost.Contains(rest_owner)) may.Add(rest_owner);
      if (before_.state == State::kBusy && event_.lost.Contains(before_.current.requester)) {
        may.Add(before_.current.requester);
      }
    }
    return may.size() == 1 ? First(may) : self_;
  }
  // True if nothing was under way here and somebody has a right of which this entry does not know.
  bool Contradicts(NodeSet readers, const PageReport* exclusive, const PageReport* owner) const {
    const DirectoryEntry& e = before_;
    const auto is = [&e](const PageReport* report) { return report == nullptr || report->node == e.owner; };
    switch (e.state == State::kMirroring ? e.before : e.state) {
      case State::kDormant:
      case State::kStored:
        return exclusive != nullptr || owner != nullptr || (readers.bits() & ~e.copyset.bits()) != 0;
      case State::kShared:
        return exclusive != nullptr || !is(owner) || (readers.bits() & ~With(e.copyset, e.owner).bits()) != 0;
      case State::kExclusive:
        // Its right to write may have gone with a Peek.
        return !is(owner) || !is(exclusive) || readers.size() > 1 ||
               (exclusive == nullptr && owner == nullptr && !readers.empty());
      case State::kLost:
        return !readers.empty();
      default:
        return false;
    }
  }
  // What held before the transaction under way, if its requester cannot have run since; Busy: it may have.
  struct Rest {
    State state;
    NodeId owner;
  };
  Rest AtRest() const {
    const DirectoryEntry& e = before_;
    if (e.state == State::kMirroring) return {e.before, Owned(e.before) ? e.owner : kNobody};
    if (e.state == State::kSettling) return {e.after, e.after_owner};  // an owner left, so there is one
    if (e.state != State::kBusy) return {e.state, Owned(e.state) ? e.owner : kNobody};
    // Its requester evicts already: so it was done, and the eviction behind its Done was not looked at.
    for (const PageReport& report : event_.reports) {
      if (report.node == e.current.requester && report.evicting != PageRight::kNone) return {e.after, e.after_owner};
    }
    const bool harmless = e.current.kind == RequestKind::kRead || event_.survivors.Contains(e.current.requester);
    return {harmless ? e.before : State::kBusy, Owned(e.before) ? e.owner : kNobody};
  }
  const PageReport* Evictor(NodeId node) const {
    for (const PageReport& report : event_.reports) {
      if (report.node == node && report.evicting != PageRight::kNone) return &report;
    }
    return nullptr;
  }
  const PageReport* AnyEvictor() const {
    for (const PageReport& report : event_.reports) {
      if (report.evicting != PageRight::kNone) return &report;
    }
    return nullptr;
  }
  static NodeId First(NodeSet nodes) { return NodeId(static_cast<uint16_t>(std::countr_zero(nodes.bits()))); }

  const DirectoryEntry& before_;
  const DirectoryEvent& event_;
  const PageMessage& message_;
  const NodeId self_;
  DirectoryResult& result_;
};

}  // namespace

DirectoryResult Step(const DirectoryEntry& entry, const DirectoryEvent& event, NodeId self) {
  DirectoryResult result;  // in the caller's memory: these are large values
  Stepper(entry, event, self, &result).Run();
  return result;
}

PageRight RightAt(const DirectoryEntry& entry, NodeId node) {
  const bool owned = Owned(entry.state);
  if (owned && entry.owner == node) {
    return entry.state == State::kExclusive ? PageRight::kExclusive : PageRight::kOwner;
  }
  return entry.copyset.Contains(node) ? PageRight::kShared : PageRight::kNone;
}

DirectoryEventType EventOf(RequestKind kind) {
  switch (kind) {
    case RequestKind::kRead:
      return Event::kRead;
    case RequestKind::kWrite:
      return Event::kWrite;
    case RequestKind::kOverwrite:
      return Event::kOverwrite;
    case RequestKind::kAdopt:
      return Event::kAdopt;
  }
  return Event::kRead;
}

const char* Name(DirectoryState state) {
  static constexpr const char* kNames[] = {HK_DIRECTORY_STATES(HK_NAME_ENTRY)};
  return kNames[static_cast<size_t>(state)];
}

const char* Name(DirectoryEventType event) {
  static constexpr const char* kNames[] = {HK_DIRECTORY_EVENTS(HK_NAME_ENTRY)};
  return kNames[static_cast<size_t>(event)];
}

}  // namespace hk
