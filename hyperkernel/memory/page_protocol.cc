#include "hyperkernel/memory/page_protocol.h"

#include "hyperkernel/base/mutant.h"

namespace hk {
namespace {

using Event = PageEventType;
using State = PageState;

// One step under way. Every handler ends in one of the verdicts; Rejected leaves the page as it was.
class Stepper {
 public:
  // All of them outlive it; `result` is as it was made.
  Stepper(const Page& page, const PageEvent& event, NodeId self, NodeId home, PageResult* result)
      : before_(page), event_(event), message_(event.message), self_(self), home_(home), result_(*result) {
    result_.page = page;
  }

  void Run() {
    switch (event_.type) {
      case Event::kRead:
        Want(RequestKind::kRead);
        break;
      case Event::kWrite:
        Want(RequestKind::kWrite);
        break;
      case Event::kOverwrite:
        Want(RequestKind::kOverwrite);
        break;
      case Event::kAdopt:
        Adopt();
        break;
      case Event::kDrop:
        Drop();
        break;
      case Event::kEvict:
        Evict();
        break;
      case Event::kPin:
        Pin();
        break;
      case Event::kUnpin:
        Unpin();
        break;
      case Event::kHoldOver:
        HoldOver();
        break;
      case Event::kAnswer:
        Answer();
        break;
      case Event::kNack:
        Nack();
        break;
      case Event::kAck:
        Ack();
        break;
      case Event::kForwardRead:
        ForwardRead();
        break;
      case Event::kPeek:
        Peek();
        break;
      case Event::kPeeked:
        Peeked();
        break;
      case Event::kForwardWrite:
      case Event::kForwardAdopt:
        ForwardAway();
        break;
      case Event::kInvalidate:
        Invalidate();
        break;
      case Event::kRelease:
        Release();
        break;
      case Event::kEvictGranted:
        EvictGranted();
        break;
      case Event::kEvictDenied:
        EvictDenied();
        break;
      case Event::kEpochChange:
        EpochChange();
        break;
      case Event::kReconciled:
        Reconciled();
        break;
    }
  }

 private:
  Page& page() { return result_.page; }
  State state() const { return result_.page.state; }
  void Become(State next) { result_.page.state = next; }
  bool Pending() const {
    return state() == State::kFetchRead || state() == State::kFetchWrite || state() == State::kUpgrade ||
           state() == State::kOwnerUpgrade;
  }
  bool Evicting() const {
    return state() == State::kEvictOwner || state() == State::kEvictExclusive || state() == State::kEvictGone;
  }
  bool Owning() const { return HasBytes(state()) && state() != State::kShared && state() != State::kUpgrade; }

  void Reject(PageVerdict verdict) {
    result_ = PageResult{};
    result_.page = before_;
    result_.verdict = verdict;
  }
  void Do(PageActionType type, PageRight right = PageRight::kNone, PageSource source = PageSource::kNone) {
    PageAction action;
    action.type = type;
    action.right = right;
    action.source = source;
    result_.Add(action);
  }
  PageMessage To(NodeId to, PageMessageType type) const {
    PageMessage message;
    message.type = type;
    message.from = self_;
    message.to = to;
    return message;
  }
  void Send(const PageMessage& message, PageActionType type = PageActionType::kSend) {
    PageAction action;
    action.type = type;
    action.message = message;
    result_.Add(action);
  }

  void Request(RequestKind kind, bool has_copy) {
    page().kind = kind;
    page().transaction = message_.transaction;
    page().answered = false;
    page().answer = PageMessage{};
    page().acked = NodeSet();
    page().peek = PeekStage::kNone;
    PageMessage request = To(home_, PageMessageType::kRequest);
    request.requester = self_;
    request.transaction = message_.transaction;
    request.kind = kind;
    request.has_copy = has_copy;
    if (kind == RequestKind::kRead && message_.peeks) {
      // The Peek first: what it asks for takes longer.
      PageMessage peek = To(message_.asked, PageMessageType::kPeek);
      peek.requester = self_;
      peek.transaction = message_.transaction;
      Send(peek);
      page().peek = PeekStage::kAsked;
      request.peeks = true;
      request.asked = message_.asked;
      request.serial = message_.serial;
    }
    Send(request);
  }
  void EndRequest() {
    page().transaction = 0;
    page().kind = RequestKind::kRead;
    page().answered = false;
    page().answer = PageMessage{};
    page().acked = NodeSet();
    page().peek = PeekStage::kNone;
  }

  void Want(RequestKind kind) {
    const bool read = kind == RequestKind::kRead;
    switch (state()) {
      case State::kAbsent:
        Request(kind, false);
        return Become(read ? State::kFetchRead : State::kFetchWrite);
      case State::kShared:
      case State::kOwner:
        if (read) return Do(PageActionType::kWake);
        // The wish for more ends the hold: what waited for it goes first, or two upgrades would wait for each other's
        // hold.
        if (page().deferred.active) {
          Perform();
          Request(kind, false);
          return Become(State::kFetchWrite);
        }
        page().held = false;
        Request(RequestKind::kWrite, true);
        return Become(state() == State::kOwner ? State::kOwnerUpgrade : State::kUpgrade);
      case State::kExclusive:
        return Do(PageActionType::kWake);
      default:
        result_.verdict = PageVerdict::kWait;
    }
  }

  void Adopt() {
    if (state() != State::kAbsent) return Reject(PageVerdict::kRefused);
    Request(RequestKind::kAdopt, false);
    Become(State::kFetchWrite);
  }

  void Drop() {
    const bool droppable = state() == State::kShared || (HK_MUTANT(page_owner_drops) && state() == State::kOwner);
    if (!droppable || page().held || page().deferred.active) return Reject(PageVerdict::kRefused);
    Do(PageActionType::kUnmap);
    Do(PageActionType::kDropFrame);
    Become(State::kAbsent);
  }

  void Evict() {
    const bool owner = state() == State::kOwner;
    if ((!owner && state() != State::kExclusive) || page().held || page().pins > 0 || page().deferred.active ||
        (message_.source != PageSource::kZero && message_.source != PageSource::kStored)) {
      return Reject(PageVerdict::kRefused);
    }
    if (!HK_MUTANT(page_evicts_while_mapped)) Do(PageActionType::kUnmap);
    PageMessage evict = To(home_, PageMessageType::kEvict);
    evict.source = message_.source;
    evict.storage = message_.storage;
    Send(evict);
    if (HK_MUTANT(page_eviction_does_not_wait)) {
      Do(PageActionType::kDropFrame);
      return Become(State::kEvictGone);
    }
    Become(owner ? State::kEvictOwner : State::kEvictExclusive);
  }

  // While a revocation is deferred a page gets no first pin, or it would never come free. One that is pinned gets more:
  // who has the first may be waiting for them.
  void Pin() {
    const bool waits = page().deferred.active && (page().pins == 0 || HK_MUTANT(page_pinned_once));
    if (state() != State::kExclusive || waits || page().pins == UINT16_MAX) {
      return Reject(PageVerdict::kRefused);
    }
    ++page().pins;
  }
  void Unpin() {
    if (page().pins == 0) return Reject(PageVerdict::kNothingToDo);
    --page().pins;
    PerformIfFree();
  }
  void HoldOver() {
    if (!page().held) return Reject(PageVerdict::kNothingToDo);
    page().held = false;
    PerformIfFree();
  }
  void PerformIfFree() {
    if (page().deferred.active && !page().held && page().pins == 0) Perform();
  }
  // Does what was deferred, whatever the hold says. REQUIRES: deferred, no pins.
  void Perform() {
    const DeferredRevoke deferred = page().deferred;
    page().deferred = DeferredRevoke{};
    page().held = false;
    if (deferred.type == Event::kInvalidate) {
      Revoke(deferred.message);
    } else {
      Serve(deferred.type, deferred.message);
    }
  }
  // True if the event has to wait; then it is remembered.
  bool Deferred() {
    const bool pinned = page().pins > 0 && !HK_MUTANT(page_pin_ignored);
    const bool held = page().held && !HK_MUTANT(page_hold_ignored);
    if (!held && !pinned) return false;
    if (page().deferred.active) {
      Reject(PageVerdict::kImpossible);  // the home is busy with the other
      return true;
    }
    page().deferred = {.active = true, .type = event_.type, .message = message_};
    return true;
  }

  void Answer() {
    const bool mine = message_.transaction == page().transaction || HK_MUTANT(page_takes_any_answer);
    if (!Pending() || !mine || page().answered) return Reject(PageVerdict::kStale);
    if (!Acceptable()) return Reject(PageVerdict::kImpossible);
    page().answered = true;
    page().answer = message_;
    InstallIfComplete();
  }
  // What may answer this request in this state.
  bool Acceptable() const {
    const bool copy = state() == State::kUpgrade || state() == State::kOwnerUpgrade;
    switch (result_.page.kind) {
      case RequestKind::kRead:
        return message_.right == PageRight::kShared && message_.source != PageSource::kNone && message_.acks.empty() &&
               (message_.source != PageSource::kPeeked || result_.page.peek != PeekStage::kNone);
      case RequestKind::kAdopt:
        return message_.right >= PageRight::kOwner && message_.source == PageSource::kPayload && message_.acks.empty();
      case RequestKind::kOverwrite:
        return message_.right == PageRight::kExclusive && message_.source != PageSource::kPeeked;
      case RequestKind::kWrite:
        return message_.right == PageRight::kExclusive && message_.source != PageSource::kPeeked &&
               (copy == (message_.source == PageSource::kNone));
    }
    return false;
  }
  void Ack() {
    const bool writing = page().kind == RequestKind::kWrite || page().kind == RequestKind::kOverwrite;
    if (!Pending() || message_.transaction != page().transaction || !writing || page().acked.Contains(message_.from)) {
      return Reject(PageVerdict::kStale);
    }
    page().acked.Add(message_.from);
    InstallIfComplete();
  }
  void InstallIfComplete() {
    if (!page().answered) return;
    const PageMessage answer = page().answer;
    const NodeSet missing(answer.acks.bits() & ~page().acked.bits());
    if (!missing.empty() && !HK_MUTANT(page_runs_before_last_ack)) {
      if (event_.type == Event::kAnswer) Do(PageActionType::kKeepData);
      return;
    }
    if (answer.source == PageSource::kPeeked) {
      if (page().peek == PeekStage::kAsked) return;
      if (page().peek == PeekStage::kRefused) return Decline();
    } else {
      DropPeeked();
    }
    // Whoever gives us the page has seen that our earlier gift arrived, so its Release can only be late.
    if (page().retained) {
      Do(PageActionType::kDropRetained);
      page().retained = false;
    }
    Do(PageActionType::kInstall, answer.right, answer.source);
    PageMessage done = To(home_, PageMessageType::kDone);
    done.requester = self_;
    done.transaction = page().transaction;
    done.serial = answer.serial;
    Send(done);
    EndRequest();
    page().held = true;
    Do(PageActionType::kStartHold);
    Do(PageActionType::kWake);
    Become(answer.right == PageRight::kExclusive ? State::kExclusive
           : answer.right == PageRight::kOwner   ? State::kOwner
                                                 : State::kShared);
  }

  void DropPeeked() {
    if (page().peek == PeekStage::kHere) Do(PageActionType::kDropData);
  }
  // Granted with bytes that were refused: given back, and asked for anew.
  void Decline() {
    PageMessage done = To(home_, PageMessageType::kDone);
    done.requester = self_;
    done.transaction = page().transaction;
    done.serial = page().answer.serial;
    done.declined = true;
    Send(done);
    EndRequest();
    Become(State::kAbsent);
    PageAction again;
    again.type = PageActionType::kRetry;
    again.reason = NackReason::kNothing;
    result_.Add(again);
  }

  // Of a request that is over: nothing, whatever it says.
  void Peeked() {
    if (page().peek != PeekStage::kAsked || message_.transaction != page().transaction) return;
    const bool here = message_.source == PageSource::kPayload;
    page().peek = here ? PeekStage::kHere : PeekStage::kRefused;
    if (page().answered) return InstallIfComplete();
    if (here) Do(PageActionType::kKeepData);
  }
  // A reader's, who has asked the home too. An owner that could give the page to a reader at once gives its bytes, and
  // its right to write away: so that nothing is written before the home has granted somebody else a write. Not one
  // whose own request is under way: the home may have granted that before.
  void Peek() {
    const bool may = state() == State::kOwner ||
                     (state() == State::kOwnerUpgrade && HK_MUTANT(page_peeked_while_upgrading)) ||
                     (state() == State::kExclusive && !page().held && page().pins == 0 && !page().deferred.active);
    PageMessage peeked = To(message_.from, PageMessageType::kPeeked);
    peeked.requester = message_.from;
    peeked.transaction = message_.transaction;
    if (!may) return Send(peeked);
    if (state() == State::kExclusive && !HK_MUTANT(page_peeked_and_written)) {
      Do(PageActionType::kProtect);
      Become(State::kOwner);
    }
    peeked.source = PageSource::kPayload;
    Send(peeked, PageActionType::kSendPage);
  }

  void Nack() {
    if (!Pending() || message_.transaction != page().transaction || page().answered) {
      return Reject(PageVerdict::kStale);
    }
    const bool adopting = page().kind == RequestKind::kAdopt;
    DropPeeked();
    BackToRest();
    PageAction action;
    action.type =
        message_.reason == NackReason::kLost && !adopting ? PageActionType::kStopGuest : PageActionType::kRetry;
    action.reason = message_.reason;
    action.message = message_;
    result_.Add(action);
  }
  // The state without the request or eviction under way.
  void BackToRest() {
    switch (state()) {
      case State::kFetchRead:
      case State::kFetchWrite:
      case State::kEvictGone:
        Become(State::kAbsent);
        break;
      case State::kUpgrade:
        Become(State::kShared);
        break;
      case State::kOwnerUpgrade:
      case State::kEvictOwner:
        Become(State::kOwner);
        break;
      case State::kEvictExclusive:
        Become(State::kExclusive);
        break;
      default:
        break;
    }
    EndRequest();
  }

  void ForwardRead() {
    if (!Owning()) return Reject(PageVerdict::kImpossible);
    if (state() == State::kExclusive && Deferred()) return;
    Serve(Event::kForwardRead, message_);
  }
  void ForwardAway() {
    if (!Owning()) return Reject(PageVerdict::kImpossible);
    if ((state() == State::kExclusive || state() == State::kOwner) && Deferred()) return;
    Serve(event_.type, message_);
  }
  // Answers a forwarded request from the bytes here. REQUIRES: Owning().
  void Serve(Event type, const PageMessage& forward) {
    const bool exclusive = state() == State::kExclusive || state() == State::kEvictExclusive;
    PageMessage answer = To(forward.requester, PageMessageType::kAnswer);
    answer.requester = forward.requester;
    answer.transaction = forward.transaction;
    answer.serial = forward.serial;
    answer.kind = forward.kind;
    answer.acks = forward.acks;
    answer.source = PageSource::kPayload;
    if (type == Event::kForwardRead) {
      if (state() == State::kExclusive && !HK_MUTANT(page_reader_without_protection)) Do(PageActionType::kProtect);
      answer.right = PageRight::kShared;
      Send(answer, PageActionType::kSendPage);
      if (state() == State::kExclusive) Become(State::kOwner);
      if (state() == State::kEvictExclusive) Become(State::kEvictOwner);
      return;
    }
    answer.right = type == Event::kForwardWrite || exclusive ? PageRight::kExclusive : PageRight::kOwner;
    if (!Evicting()) Do(PageActionType::kUnmap);
    Send(answer, PageActionType::kSendPage);
    Retain(forward);
    Gone();
  }
  void Retain(const PageMessage& for_whom) {
    page().retained = true;
    page().retained_serial = for_whom.serial;
    page().retained_for = for_whom.requester;
  }
  // The copy is here no more; what was under way goes on without it.
  void Gone() {
    Become(Evicting()                                                      ? State::kEvictGone
           : state() == State::kUpgrade || state() == State::kOwnerUpgrade ? State::kFetchWrite
                                                                           : State::kAbsent);
  }

  void Invalidate() {
    const bool resting = state() == State::kShared || state() == State::kOwner || state() == State::kExclusive;
    if (resting && Deferred()) return;
    Revoke(message_);
  }
  // Takes the copy away, if there is one, and says so to the requester.
  void Revoke(const PageMessage& invalidate) {
    if (HasBytes(state())) {
      if (!Evicting()) Do(PageActionType::kUnmap);
      if (Owning()) {
        Retain(invalidate);
      } else {
        Do(PageActionType::kDropFrame);
      }
      Gone();
    }
    PageMessage ack = To(invalidate.requester, PageMessageType::kAck);
    ack.requester = invalidate.requester;
    ack.transaction = invalidate.transaction;
    ack.serial = invalidate.serial;
    Send(ack);
  }

  void Release() {
    if (page().retained && (page().retained_serial == message_.serial || HK_MUTANT(page_releases_any_serial))) {
      Do(PageActionType::kDropRetained);
      page().retained = false;
    }
    PageMessage released = To(message_.from, PageMessageType::kReleased);
    released.serial = message_.serial;
    Send(released);
  }

  void EvictGranted() {
    if (state() == State::kEvictGone) return Reject(PageVerdict::kImpossible);  // it had been asked to give it away
    if (!Evicting()) return Reject(PageVerdict::kStale);
    Do(PageActionType::kDropFrame);
    Do(PageActionType::kWake);
    Become(State::kAbsent);
  }
  void EvictDenied() {
    if (!Evicting()) return Reject(PageVerdict::kStale);
    BackToRest();
    if (state() != State::kAbsent) Do(PageActionType::kMap, RightOf(state()));
    Do(PageActionType::kWake);
  }

  // An eviction of which nobody knows whether it was granted stays what it is: bytes without right.
  void EpochChange() {
    page().deferred = DeferredRevoke{};
    if (state() == State::kEvictOwner || state() == State::kEvictExclusive) return;
    DropPeeked();
    BackToRest();
  }
  void Reconciled() {
    const PageRight right = message_.right;
    if (Pending() || state() == State::kEvictGone || page().deferred.active) return Reject(PageVerdict::kNothingToDo);
    if (Evicting() && right == PageRight::kNone) {
      Do(PageActionType::kDropFrame);
      Become(State::kAbsent);
    } else if (right == PageRight::kOwner ? Evicting()
                                          : right == PageRight::kExclusive && state() == State::kEvictExclusive) {
      Become(right == PageRight::kOwner ? State::kOwner : State::kExclusive);
      Do(PageActionType::kMap, right);
    } else if (state() == State::kAbsent && page().retained && right == PageRight::kExclusive) {
      Do(PageActionType::kAdoptRetained, right);
      page().retained = false;
      Become(State::kExclusive);
    } else if (state() == State::kShared && right == PageRight::kOwner) {
      Become(State::kOwner);
    } else if (right != RightOf(state())) {
      return Reject(PageVerdict::kImpossible);
    }
    if (page().retained) Do(PageActionType::kDropRetained);
    page().retained = false;
    Do(PageActionType::kWake);
  }

  const Page& before_;
  const PageEvent& event_;
  const PageMessage& message_;
  const NodeId self_;
  const NodeId home_;
  PageResult& result_;
};

}  // namespace

PageResult Step(const Page& page, const PageEvent& event, NodeId self, NodeId home) {
  PageResult result;  // in the caller's memory: these are large values
  Stepper(page, event, self, home, &result).Run();
  return result;
}

PageReport ReportOf(const Page& page, NodeId self) {
  PageReport report{.node = self, .right = RightOf(page.state)};
  if (page.state == State::kEvictOwner) report.evicting = PageRight::kOwner;
  if (page.state == State::kEvictExclusive) report.evicting = PageRight::kExclusive;
  report.retained = page.retained;
  report.retained_serial = page.retained_serial;
  report.retained_for = page.retained_for;
  return report;
}

PageRight RightOf(PageState state) {
  switch (state) {
    case State::kShared:
    case State::kUpgrade:
      return PageRight::kShared;
    case State::kOwner:
    case State::kOwnerUpgrade:
      return PageRight::kOwner;
    case State::kExclusive:
      return PageRight::kExclusive;
    default:
      return PageRight::kNone;
  }
}

bool HasBytes(PageState state) {
  return RightOf(state) != PageRight::kNone || state == State::kEvictOwner || state == State::kEvictExclusive;
}

const char* Name(PageState state) {
  static constexpr const char* kNames[] = {HK_PAGE_STATES(HK_NAME_ENTRY)};
  return kNames[static_cast<size_t>(state)];
}

const char* Name(PageEventType event) {
  static constexpr const char* kNames[] = {HK_PAGE_EVENTS(HK_NAME_ENTRY)};
  return kNames[static_cast<size_t>(event)];
}

}  // namespace hk
