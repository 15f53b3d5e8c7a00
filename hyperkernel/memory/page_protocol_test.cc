// The node's half of the page protocol: single rules by example, and every pair of state and event in every variant of
// page and message against protocol_table.h. What several nodes make of it: tests/sim/protocol_explorer_test.cc.
#include "hyperkernel/memory/page_protocol.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

namespace hk {
namespace {

constexpr NodeId kSelf(1);
constexpr NodeId kHome(0);
constexpr NodeId kOther(2);
constexpr uint64_t kTransaction = 7;

PageResult Do(const Page& page, PageEventType type, PageMessage message = {}) {
  return Step(page, {.type = type, .message = message}, kSelf, kHome);
}

std::vector<PageActionType> TypesOf(const PageResult& result) {
  std::vector<PageActionType> types;
  for (size_t i = 0; i < result.action_count; ++i) types.push_back(result.actions[i].type);
  return types;
}

PageMessage Message(PageMessageType type, NodeId requester, uint64_t transaction, uint64_t serial) {
  PageMessage message;
  message.type = type;
  message.from = kHome;
  message.to = kSelf;
  message.requester = requester;
  message.transaction = transaction;
  message.serial = serial;
  return message;
}

PageMessage Answer(PageRight right, PageSource source, NodeSet acks = {}) {
  PageMessage answer = Message(PageMessageType::kAnswer, kSelf, kTransaction, 3);
  answer.right = right;
  answer.source = source;
  answer.acks = acks;
  return answer;
}

Page In(PageState state, RequestKind kind = RequestKind::kRead) {
  Page page;
  page.state = state;
  page.kind = kind;
  const bool pending = state == PageState::kFetchRead || state == PageState::kFetchWrite ||
                       state == PageState::kUpgrade || state == PageState::kOwnerUpgrade;
  page.transaction = pending ? kTransaction : 0;
  return page;
}

using T = PageActionType;
using testing::ElementsAre;

TEST(PageProtocol, AWriteRunsAfterTheLastAck) {
  Page page = In(PageState::kFetchWrite, RequestKind::kWrite);
  NodeSet acks;
  acks.Add(kOther);
  acks.Add(NodeId(3));
  PageMessage ack = Message(PageMessageType::kAck, kSelf, kTransaction, 3);
  ack.from = kOther;
  page = Do(page, PageEventType::kAck, ack).page;  // an ack may come before the answer
  PageResult result = Do(page, PageEventType::kAnswer, Answer(PageRight::kExclusive, PageSource::kPayload, acks));
  EXPECT_THAT(TypesOf(result), ElementsAre(T::kKeepData));
  EXPECT_EQ(result.page.state, PageState::kFetchWrite);
  EXPECT_EQ(Do(result.page, PageEventType::kAck, ack).verdict, PageVerdict::kStale);  // twice is not two
  ack.from = NodeId(3);
  result = Do(result.page, PageEventType::kAck, ack);
  EXPECT_THAT(TypesOf(result), ElementsAre(T::kInstall, T::kSend, T::kStartHold, T::kWake));
  EXPECT_EQ(result.actions[0].right, PageRight::kExclusive);
  EXPECT_EQ(result.actions[1].message.type, PageMessageType::kDone);
  EXPECT_EQ(result.page.state, PageState::kExclusive);
}

TEST(PageProtocol, AnUpgradeThatLostItsCopyTakesNoEmptyAnswer) {
  const Page page = In(PageState::kUpgrade, RequestKind::kWrite);
  const PageResult lost = Do(page, PageEventType::kInvalidate, Message(PageMessageType::kInvalidate, kOther, 9, 2));
  EXPECT_THAT(TypesOf(lost), ElementsAre(T::kUnmap, T::kDropFrame, T::kSend));
  EXPECT_EQ(lost.actions[2].message.to, kOther);
  EXPECT_EQ(lost.page.state, PageState::kFetchWrite);
  EXPECT_EQ(Do(lost.page, PageEventType::kAnswer, Answer(PageRight::kExclusive, PageSource::kNone)).verdict,
            PageVerdict::kImpossible);
  EXPECT_EQ(Do(lost.page, PageEventType::kAnswer, Answer(PageRight::kExclusive, PageSource::kPayload)).page.state,
            PageState::kExclusive);
}

TEST(PageProtocol, AHeldPageThatOthersWaitForGetsNoPin) {
  Page page = In(PageState::kExclusive);
  page.held = true;
  page = Do(page, PageEventType::kForwardWrite, Message(PageMessageType::kForward, kOther, 9, 2)).page;
  ASSERT_TRUE(page.deferred.active);
  EXPECT_EQ(Do(page, PageEventType::kPin).verdict, PageVerdict::kRefused);  // or it would never come free
}

TEST(PageProtocol, APinnedPageIsGivenAwayWhenUnpinned) {
  Page page = In(PageState::kExclusive);
  page = Do(page, PageEventType::kPin).page;
  PageMessage forward = Message(PageMessageType::kForward, kOther, 9, 2);
  PageResult result = Do(page, PageEventType::kForwardWrite, forward);
  EXPECT_EQ(result.action_count, 0u);
  EXPECT_EQ(result.page.state, PageState::kExclusive);
  // Who has the one pin may be a device that needs another to come to its end.
  result = Do(result.page, PageEventType::kPin);
  EXPECT_EQ(result.verdict, PageVerdict::kDone);
  EXPECT_EQ(result.page.pins, 2);
  result = Do(result.page, PageEventType::kUnpin);
  EXPECT_EQ(result.action_count, 0u);
  result = Do(result.page, PageEventType::kUnpin);
  EXPECT_THAT(TypesOf(result), ElementsAre(T::kUnmap, T::kSendPage));
  EXPECT_EQ(result.actions[1].message.to, kOther);
  EXPECT_TRUE(result.page.retained);
}

TEST(PageProtocol, AHeldPageServesReadersButKeepsItsRight) {
  Page page = In(PageState::kOwner);
  page.held = true;
  EXPECT_THAT(TypesOf(Do(page, PageEventType::kForwardRead, Message(PageMessageType::kForward, kOther, 9, 2))),
              ElementsAre(T::kSendPage));
  PageResult result = Do(page, PageEventType::kInvalidate, Message(PageMessageType::kInvalidate, kOther, 9, 2));
  EXPECT_EQ(result.action_count, 0u);
  result = Do(result.page, PageEventType::kHoldOver);
  EXPECT_THAT(TypesOf(result), ElementsAre(T::kUnmap, T::kSend));
  EXPECT_EQ(result.page.state, PageState::kAbsent);
}

TEST(PageProtocol, TheWishForMoreEndsTheHold) {
  Page page = In(PageState::kShared);
  page.held = true;
  page = Do(page, PageEventType::kInvalidate, Message(PageMessageType::kInvalidate, kOther, 9, 2)).page;
  PageMessage wish;
  wish.transaction = kTransaction;
  const PageResult result = Do(page, PageEventType::kWrite, wish);
  EXPECT_THAT(TypesOf(result), ElementsAre(T::kUnmap, T::kDropFrame, T::kSend, T::kSend));
  EXPECT_EQ(result.actions[2].message.type, PageMessageType::kAck);
  EXPECT_FALSE(result.actions[3].message.has_copy);
  EXPECT_EQ(result.page.state, PageState::kFetchWrite);
}

TEST(PageProtocol, AnOwnerServesUntilItsEvictionIsGranted) {
  PageMessage stored;
  stored.source = PageSource::kStored;
  PageResult result = Do(In(PageState::kExclusive), PageEventType::kEvict, stored);
  EXPECT_THAT(TypesOf(result), ElementsAre(T::kUnmap, T::kSend));
  result = Do(result.page, PageEventType::kForwardWrite, Message(PageMessageType::kForward, kOther, 9, 2));
  EXPECT_THAT(TypesOf(result), ElementsAre(T::kSendPage));
  EXPECT_EQ(result.page.state, PageState::kEvictGone);
  EXPECT_EQ(Do(result.page, PageEventType::kEvictGranted).verdict, PageVerdict::kImpossible);
  result = Do(result.page, PageEventType::kEvictDenied);
  EXPECT_THAT(TypesOf(result), ElementsAre(T::kWake));
  EXPECT_EQ(result.page.state, PageState::kAbsent);
  EXPECT_TRUE(result.page.retained);
}

// A read of a page of which kOther is taken for the owner.
PageResult ReadPeeking() {
  PageMessage wish;
  wish.transaction = kTransaction;
  wish.peeks = true;
  wish.asked = kOther;
  wish.serial = 2;
  return Do(In(PageState::kAbsent), PageEventType::kRead, wish);
}
PageMessage Peeked(PageSource source) {
  PageMessage peeked = Message(PageMessageType::kPeeked, kSelf, kTransaction, 0);
  peeked.from = kOther;
  peeked.source = source;
  return peeked;
}

TEST(PageProtocol, PeekedBytesAreReadWhenTheHomeSaysSo) {
  const PageResult asked = ReadPeeking();
  ASSERT_THAT(TypesOf(asked), ElementsAre(T::kSend, T::kSend));
  EXPECT_EQ(asked.actions[0].message.type, PageMessageType::kPeek);
  EXPECT_EQ(asked.actions[0].message.to, kOther);
  const PageMessage& request = asked.actions[1].message;
  EXPECT_EQ(request.type, PageMessageType::kRequest);
  EXPECT_EQ(request.to, kHome);
  EXPECT_TRUE(request.peeks);
  EXPECT_EQ(request.asked, kOther);
  EXPECT_EQ(request.serial, 2u);
  const PageMessage granted = Answer(PageRight::kShared, PageSource::kPeeked);
  // In either order.
  const PageResult kept = Do(asked.page, PageEventType::kPeeked, Peeked(PageSource::kPayload));
  EXPECT_THAT(TypesOf(kept), ElementsAre(T::kKeepData));
  EXPECT_EQ(kept.page.state, PageState::kFetchRead);
  const PageResult waits = Do(asked.page, PageEventType::kAnswer, granted);
  EXPECT_EQ(waits.action_count, 0u);
  EXPECT_EQ(waits.page.state, PageState::kFetchRead);
  for (const PageResult& result : {Do(kept.page, PageEventType::kAnswer, granted),
                                   Do(waits.page, PageEventType::kPeeked, Peeked(PageSource::kPayload))}) {
    EXPECT_THAT(TypesOf(result), ElementsAre(T::kInstall, T::kSend, T::kStartHold, T::kWake));
    EXPECT_EQ(result.actions[0].source, PageSource::kPeeked);
    EXPECT_FALSE(result.actions[1].message.declined);
    EXPECT_EQ(result.page.state, PageState::kShared);
    // A Peeked of a request that is over.
    EXPECT_EQ(Do(result.page, PageEventType::kPeeked, Peeked(PageSource::kPayload)).action_count, 0u);
  }
  // The home has asked the owner all the same.
  EXPECT_THAT(TypesOf(Do(kept.page, PageEventType::kAnswer, Answer(PageRight::kShared, PageSource::kPayload))),
              ElementsAre(T::kDropData, T::kInstall, T::kSend, T::kStartHold, T::kWake));
}

TEST(PageProtocol, AGrantWithoutThePeekedBytesIsGivenBack) {
  const PageResult asked = ReadPeeking();
  const PageMessage granted = Answer(PageRight::kShared, PageSource::kPeeked);
  const Page waits = Do(asked.page, PageEventType::kAnswer, granted).page;
  const Page refused = Do(asked.page, PageEventType::kPeeked, Peeked(PageSource::kNone)).page;
  for (const PageResult& result :
       {Do(waits, PageEventType::kPeeked, Peeked(PageSource::kNone)), Do(refused, PageEventType::kAnswer, granted)}) {
    ASSERT_THAT(TypesOf(result), ElementsAre(T::kSend, T::kRetry));
    EXPECT_EQ(result.actions[0].message.type, PageMessageType::kDone);
    EXPECT_TRUE(result.actions[0].message.declined);
    EXPECT_EQ(result.actions[0].message.serial, granted.serial);
    EXPECT_EQ(result.page.state, PageState::kAbsent);
  }
  // Of who has not peeked it is no answer.
  EXPECT_EQ(Do(In(PageState::kFetchRead), PageEventType::kAnswer, granted).verdict, PageVerdict::kImpossible);
}

TEST(PageProtocol, AnOwnerGivesAPeekWhatItCannotWriteSince) {
  PageMessage peek = Message(PageMessageType::kPeek, kOther, 9, 0);
  peek.from = kOther;
  PageResult result = Do(In(PageState::kExclusive), PageEventType::kPeek, peek);
  EXPECT_THAT(TypesOf(result), ElementsAre(T::kProtect, T::kSendPage));
  EXPECT_EQ(result.actions[1].message.to, kOther);
  EXPECT_EQ(result.actions[1].message.transaction, 9u);
  EXPECT_EQ(result.page.state, PageState::kOwner);
  EXPECT_THAT(TypesOf(Do(In(PageState::kOwner), PageEventType::kPeek, peek)), ElementsAre(T::kSendPage));
  Page held = In(PageState::kExclusive);
  held.held = true;
  Page pinned = In(PageState::kExclusive);
  pinned.pins = 1;
  for (const Page& page : {held, pinned, In(PageState::kOwnerUpgrade, RequestKind::kWrite), In(PageState::kShared),
                           In(PageState::kEvictOwner), In(PageState::kAbsent)}) {
    result = Do(page, PageEventType::kPeek, peek);
    ASSERT_THAT(TypesOf(result), ElementsAre(T::kSend)) << Name(page.state);
    EXPECT_EQ(result.actions[0].message.source, PageSource::kNone);
    EXPECT_EQ(result.page.state, page.state);
  }
}

TEST(PageProtocol, RetainedBytesGoWithTheirOwnReleaseOnly) {
  Page page = In(PageState::kAbsent);
  page.retained = true;
  page.retained_serial = 5;
  EXPECT_THAT(TypesOf(Do(page, PageEventType::kRelease, Message(PageMessageType::kRelease, kSelf, 0, 4))),
              ElementsAre(T::kSend));
  EXPECT_THAT(TypesOf(Do(page, PageEventType::kRelease, Message(PageMessageType::kRelease, kSelf, 0, 5))),
              ElementsAre(T::kDropRetained, T::kSend));
}

TEST(PageProtocol, LateAnswersAreDropped) {
  const Page page = In(PageState::kFetchRead);
  PageMessage answer = Answer(PageRight::kShared, PageSource::kPayload);
  answer.transaction = kTransaction - 1;
  EXPECT_EQ(Do(page, PageEventType::kAnswer, answer).verdict, PageVerdict::kStale);
  EXPECT_EQ(Do(In(PageState::kAbsent), PageEventType::kAnswer, answer).verdict, PageVerdict::kStale);
}

TEST(PageProtocol, ALostPageStopsTheGuest) {
  PageMessage nack = Message(PageMessageType::kNack, kSelf, kTransaction, 0);
  nack.reason = NackReason::kLost;
  EXPECT_THAT(TypesOf(Do(In(PageState::kFetchRead), PageEventType::kNack, nack)), ElementsAre(T::kStopGuest));
}

// ---- every pair ----

// The rule by which a pair without a row is rejected.
PageVerdict RuleFor(PageState state, PageEventType event) {
  switch (event) {
    case PageEventType::kAnswer:
    case PageEventType::kNack:
    case PageEventType::kAck:
    case PageEventType::kEvictDenied:
      return PageVerdict::kStale;
    case PageEventType::kEvictGranted:
      return state == PageState::kEvictGone ? PageVerdict::kImpossible : PageVerdict::kStale;
    case PageEventType::kForwardRead:
    case PageEventType::kForwardWrite:
    case PageEventType::kForwardAdopt:
      return PageVerdict::kImpossible;
    case PageEventType::kAdopt:
    case PageEventType::kDrop:
    case PageEventType::kEvict:
    case PageEventType::kPin:
      return PageVerdict::kRefused;
    default:
      return PageVerdict::kNothingToDo;
  }
}

// Every page that the machine can be in, as far as a step can tell them apart.
std::vector<Page> Pages() {
  std::vector<Page> pages;
  for (size_t s = 0; s < kPageStates; ++s) {
    const PageState state = static_cast<PageState>(s);
    std::vector<RequestKind> kinds{RequestKind::kRead};
    if (state == PageState::kFetchWrite) kinds = {RequestKind::kWrite, RequestKind::kOverwrite, RequestKind::kAdopt};
    if (state == PageState::kUpgrade || state == PageState::kOwnerUpgrade) kinds = {RequestKind::kWrite};
    for (RequestKind kind : kinds) {
      for (bool retained : {false, true}) {
        Page page = In(state, kind);
        const bool without = state == PageState::kAbsent || state == PageState::kFetchRead ||
                             state == PageState::kFetchWrite || state == PageState::kEvictGone;
        if (retained && !without) continue;  // an installation ends it
        page.retained = retained;
        page.retained_serial = retained ? 2 : 0;
        pages.push_back(page);
        for (const PeekStage peek : {PeekStage::kAsked, PeekStage::kHere, PeekStage::kRefused}) {
          if (state != PageState::kFetchRead) break;
          Page peeked = page;
          peeked.peek = peek;
          pages.push_back(peeked);
          if (peek != PeekStage::kAsked) continue;
          peeked.answered = true;
          peeked.answer = Answer(PageRight::kShared, PageSource::kPeeked);
          pages.push_back(peeked);
        }
        if (kind == RequestKind::kWrite || kind == RequestKind::kOverwrite) {
          Page answered = page;
          answered.answered = true;
          const bool copy = state != PageState::kFetchWrite;
          answered.answer =
              Answer(PageRight::kExclusive, copy ? PageSource::kNone : PageSource::kPayload, NodeSet::Of(kOther));
          pages.push_back(answered);
        }
      }
    }
    if (state != PageState::kShared && state != PageState::kOwner && state != PageState::kExclusive) continue;
    Page page = In(state);
    page.held = true;
    std::vector<Page> kept{page};
    if (state == PageState::kExclusive) {
      page.held = false;
      page.pins = 1;
      kept.push_back(page);
    }
    for (Page held : kept) {
      pages.push_back(held);
      for (PageEventType type : {PageEventType::kInvalidate, PageEventType::kForwardRead, PageEventType::kForwardWrite,
                                 PageEventType::kForwardAdopt}) {
        if (type != PageEventType::kInvalidate && state == PageState::kShared) continue;
        if (type == PageEventType::kForwardRead && state != PageState::kExclusive) continue;
        held.deferred = {true, type, Message(PageMessageType::kForward, kOther, 9, 4)};
        pages.push_back(held);
      }
    }
  }
  return pages;
}

std::vector<PageMessage> Messages() {
  std::vector<PageMessage> messages;
  for (PageRight right : {PageRight::kNone, PageRight::kShared, PageRight::kOwner, PageRight::kExclusive}) {
    for (PageSource source :
         {PageSource::kNone, PageSource::kZero, PageSource::kStored, PageSource::kPayload, PageSource::kPeeked}) {
      for (bool acks : {false, true}) {
        PageMessage message = Answer(right, source, acks ? NodeSet::Of(kOther) : NodeSet());
        message.from = kOther;
        messages.push_back(message);
        message.transaction = kTransaction + 1;
        messages.push_back(message);
      }
    }
  }
  return messages;
}

struct Row {
  PageState from;
  PageEventType event;
  PageState to;
  auto operator<=>(const Row&) const = default;
};

std::string TextOf(const std::set<Row>& rows) {
  std::string text;
  for (const Row& row : rows) {
    text += std::string("X(") + Name(row.from) + ", " + Name(row.event) + ", " + Name(row.to) + ")\n";
  }
  return text;
}

void CheckActions(const Page& page, const PageResult& result) {
  bool mapped = RightOf(page.state) != PageRight::kNone;
  bool writable = page.state == PageState::kExclusive;
  int answers = 0;
  for (size_t i = 0; i < result.action_count; ++i) {
    const PageAction& action = result.actions[i];
    const PageMessageType type = action.message.type;
    switch (action.type) {
      case T::kInstall:
      case T::kMap:
      case T::kAdoptRetained:
        mapped = true;
        writable = action.right == PageRight::kExclusive;
        break;
      case T::kProtect:
        writable = false;
        break;
      case T::kUnmap:
        mapped = writable = false;
        break;
      case T::kDropFrame:
        EXPECT_FALSE(mapped);
        break;
      case T::kSend:
        EXPECT_FALSE(type == PageMessageType::kAck && mapped);
        EXPECT_FALSE(type == PageMessageType::kDone && mapped == action.message.declined);
        break;
      case T::kSendPage:
        ++answers;
        EXPECT_FALSE(writable);
        EXPECT_FALSE(type != PageMessageType::kPeeked && action.message.right != PageRight::kShared && mapped);
        break;
      default:
        break;
    }
  }
  EXPECT_LE(answers, 1);
  EXPECT_EQ(mapped, RightOf(result.page.state) != PageRight::kNone);
  EXPECT_EQ(writable, result.page.state == PageState::kExclusive);
}

TEST(PageProtocolTable, EveryPairIsInTheTableOrRejectedByRule) {
  std::set<Row> rows;
  std::set<std::pair<PageState, PageEventType>> defined;
  for (const Page& page : Pages()) {
    for (size_t e = 0; e < kPageEvents; ++e) {
      for (const PageMessage& message : Messages()) {
        const PageEventType event = static_cast<PageEventType>(e);
        const PageResult result = Do(page, event, message);
        SCOPED_TRACE(std::string(Name(page.state)) + " " + Name(event));
        if (result.verdict == PageVerdict::kDone || result.verdict == PageVerdict::kWait) {
          rows.insert({page.state, event, result.page.state});
          defined.insert({page.state, event});
          CheckActions(page, result);
        } else {
          EXPECT_EQ(result.page.state, page.state);
          EXPECT_EQ(result.page.transaction, page.transaction);
          EXPECT_EQ(result.page.deferred.active, page.deferred.active);
          EXPECT_EQ(result.page.pins, page.pins);
          EXPECT_EQ(result.action_count, 0u);
        }
      }
    }
  }
  for (const Page& page : Pages()) {
    for (size_t e = 0; e < kPageEvents; ++e) {
      const PageEventType event = static_cast<PageEventType>(e);
      if (defined.contains({page.state, event})) continue;
      EXPECT_EQ(Do(page, event, Messages().front()).verdict, RuleFor(page.state, event))
          << Name(page.state) << " " << Name(event);
    }
  }
  const std::set<Row> table{
#define X(from, event, to, seen) {PageState::k##from, PageEventType::k##event, PageState::k##to},
      HK_PAGE_ROWS(X)
#undef X
  };
  EXPECT_EQ(TextOf(rows), TextOf(table));
}

}  // namespace
}  // namespace hk
