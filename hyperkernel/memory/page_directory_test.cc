// The home's half of the page protocol: single rules by example, and every pair of state and event in variants of entry
// and message against protocol_table.h.
#include "hyperkernel/memory/page_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

namespace hk {
namespace {

constexpr NodeId kHome(0);
constexpr NodeId kOne(1);
constexpr NodeId kTwo(2);
constexpr NodeId kThree(3);

NodeSet Set(std::initializer_list<NodeId> nodes) {
  NodeSet set;
  for (NodeId node : nodes) set.Add(node);
  return set;
}

DirectoryResult Do(const DirectoryEntry& entry, DirectoryEventType type, PageMessage message = {}) {
  return Step(entry, {.type = type, .message = message, .serial = 11}, kHome);
}

PageMessage Request(NodeId from, RequestKind kind, bool has_copy = false) {
  PageMessage message;
  message.from = message.requester = from;
  message.transaction = 7;
  message.kind = kind;
  message.has_copy = has_copy;
  return message;
}
DirectoryResult Ask(const DirectoryEntry& entry, NodeId from, RequestKind kind, bool has_copy = false) {
  return Do(entry, EventOf(kind), Request(from, kind, has_copy));
}
PageMessage From(NodeId from, uint64_t serial) {
  PageMessage message;
  message.from = from;
  message.serial = serial;
  return message;
}

DirectoryEntry In(DirectoryState state) {
  DirectoryEntry entry;
  entry.state = state;
  entry.ever_written = true;
  if (state == DirectoryState::kShared || state == DirectoryState::kExclusive) entry.owner = kOne;
  if (state == DirectoryState::kShared) entry.copyset = Set({kOne, kTwo});
  if (state == DirectoryState::kDormant || state == DirectoryState::kStored) entry.copyset = Set({kTwo});
  return entry;
}

using D = DirectoryActionType;

TEST(PageDirectory, ADormantPageIsGrantedWithoutDataAndItsReadersAreKnown) {
  DirectoryEntry entry;
  DirectoryResult result = Ask(entry, kOne, RequestKind::kRead);
  ASSERT_EQ(result.action_count, 1u);
  EXPECT_EQ(result.actions[0].message.source, PageSource::kZero);
  EXPECT_EQ(result.actions[0].message.to, kOne);
  result = Do(result.entry, DirectoryEventType::kDone, From(kOne, 11));
  EXPECT_EQ(result.entry.state, DirectoryState::kDormant);
  EXPECT_EQ(result.entry.copyset, Set({kOne}));
  result = Ask(result.entry, kTwo, RequestKind::kWrite);  // never written: the second node first
  EXPECT_EQ(result.entry.state, DirectoryState::kMirroring);
  EXPECT_EQ(result.actions[0].type, D::kMirror);
  result = Do(result.entry, DirectoryEventType::kMirrored);
  ASSERT_EQ(result.action_count, 2u);
  EXPECT_EQ(result.actions[0].message.source, PageSource::kZero);
  EXPECT_EQ(result.actions[0].message.acks, Set({kOne}));
  EXPECT_EQ(result.actions[1].nodes, Set({kOne}));
}

TEST(PageDirectory, AnUpgradeHasNoDataIfBothSaySo) {
  DirectoryResult result = Ask(In(DirectoryState::kShared), kTwo, RequestKind::kWrite, true);
  ASSERT_EQ(result.action_count, 2u);
  EXPECT_EQ(result.actions[0].message.type, PageMessageType::kAnswer);
  EXPECT_EQ(result.actions[0].message.source, PageSource::kNone);
  EXPECT_EQ(result.actions[0].message.acks, Set({kOne}));
  result = Ask(In(DirectoryState::kShared), kTwo, RequestKind::kWrite, false);  // it dropped its copy
  EXPECT_EQ(result.actions[0].message.type, PageMessageType::kForward);
  result = Ask(In(DirectoryState::kShared), kThree, RequestKind::kWrite, true);  // it was invalidated meanwhile
  EXPECT_EQ(result.actions[0].message.type, PageMessageType::kForward);
  EXPECT_EQ(result.actions[0].message.acks, Set({kTwo}));
  EXPECT_EQ(result.actions[1].nodes, Set({kTwo}));
}

TEST(PageDirectory, WhoHasThePageIsToldTheTicket) {
  PageMessage request = Request(kThree, RequestKind::kWrite);
  request.ticket = 99;
  const DirectoryResult result = Do(In(DirectoryState::kShared), DirectoryEventType::kWrite, request);
  size_t told = 0;
  for (size_t i = 0; i < result.action_count; ++i) {
    const PageMessageType type = result.actions[i].message.type;
    if (type != PageMessageType::kForward && type != PageMessageType::kInvalidate) continue;
    EXPECT_EQ(result.actions[i].message.ticket, 99u);
    ++told;
  }
  EXPECT_EQ(told, 2u);
}

TEST(PageDirectory, OneTransactionAtATimeInOrder) {
  DirectoryEntry entry = Ask(In(DirectoryState::kExclusive), kTwo, RequestKind::kRead).entry;
  DirectoryResult result = Ask(entry, kThree, RequestKind::kWrite);
  EXPECT_EQ(result.action_count, 0u);
  EXPECT_EQ(Ask(result.entry, kThree, RequestKind::kRead).verdict, DirectoryVerdict::kImpossible);
  result = Do(result.entry, DirectoryEventType::kDone, From(kTwo, 11));
  ASSERT_EQ(result.action_count, 2u);
  EXPECT_EQ(result.actions[0].message.type, PageMessageType::kForward);
  EXPECT_EQ(result.actions[0].message.requester, kThree);
  EXPECT_EQ(result.actions[1].nodes, Set({kTwo}));
}

TEST(PageDirectory, TheQueueIsBounded) {
  DirectoryEntry entry = Ask(In(DirectoryState::kExclusive), kTwo, RequestKind::kRead).entry;
  for (uint16_t n = 0; n < kMaxWaitingRequests; ++n) {
    const DirectoryResult result = Ask(entry, NodeId(static_cast<uint16_t>(10 + n)), RequestKind::kRead);
    EXPECT_EQ(result.action_count, 0u);
    entry = result.entry;
  }
  const DirectoryResult result = Ask(entry, NodeId(40), RequestKind::kRead);
  ASSERT_EQ(result.action_count, 1u);
  EXPECT_EQ(result.actions[0].message.reason, NackReason::kBusy);
  // All Nacked at once, when the page is moved away, still fits.
  DirectoryEntry frozen = Do(result.entry, DirectoryEventType::kFreeze).entry;
  frozen = Do(frozen, DirectoryEventType::kDone, From(kTwo, 11)).entry;
  EXPECT_EQ(Do(frozen, DirectoryEventType::kMoveOut).action_count, kMaxWaitingRequests);
}

TEST(PageDirectory, TheNextReleaseWaitsForTheLast) {
  DirectoryEntry entry = Ask(In(DirectoryState::kExclusive), kTwo, RequestKind::kWrite).entry;
  DirectoryResult result = Do(entry, DirectoryEventType::kDone, From(kTwo, 11));
  ASSERT_EQ(result.action_count, 1u);
  EXPECT_EQ(result.actions[0].message.type, PageMessageType::kRelease);
  EXPECT_EQ(result.actions[0].message.to, kOne);
  PageMessage stored = From(kTwo, 0);
  stored.source = PageSource::kStored;
  EXPECT_EQ(Do(result.entry, DirectoryEventType::kEvict, stored).actions[0].message.type,
            PageMessageType::kEvictDenied);
  result =
      Step(result.entry,
           {.type = DirectoryEventType::kWrite, .message = Request(kThree, RequestKind::kWrite), .serial = 12}, kHome);
  EXPECT_EQ(result.entry.state, DirectoryState::kBusy);  // it may begin
  result = Do(result.entry, DirectoryEventType::kDone, From(kThree, 12));
  EXPECT_EQ(result.entry.state, DirectoryState::kSettling);  // but not end
  EXPECT_EQ(result.action_count, 0u);
  result = Do(result.entry, DirectoryEventType::kReleased, From(kOne, 11));
  ASSERT_EQ(result.action_count, 1u);
  EXPECT_EQ(result.actions[0].message.to, kTwo);
  EXPECT_EQ(result.entry.owner, kThree);
}

TEST(PageDirectory, AnEvictionIsGrantedToTheOwnerAtRestOnly) {
  PageMessage zero = From(kOne, 0);
  zero.source = PageSource::kZero;
  DirectoryResult result = Do(In(DirectoryState::kShared), DirectoryEventType::kEvict, zero);
  EXPECT_EQ(result.actions[0].message.type, PageMessageType::kEvictGranted);
  EXPECT_EQ(result.entry.state, DirectoryState::kDormant);
  EXPECT_EQ(result.entry.copyset, Set({kTwo}));  // who reads zeroes goes on
  zero.from = kTwo;
  EXPECT_EQ(Do(In(DirectoryState::kShared), DirectoryEventType::kEvict, zero).actions[0].message.type,
            PageMessageType::kEvictDenied);
  zero.from = kOne;
  const DirectoryEntry busy = Ask(In(DirectoryState::kExclusive), kTwo, RequestKind::kRead).entry;
  EXPECT_EQ(Do(busy, DirectoryEventType::kEvict, zero).actions[0].message.type, PageMessageType::kEvictDenied);
}

TEST(PageDirectory, WhatIsNowhereIsLostNotZero) {
  const std::vector<PageReport> none{{.node = kTwo}, {.node = kThree}};
  DirectoryEvent rebuild{.type = DirectoryEventType::kRebuild, .reports = none, .survivors = Set({kTwo, kThree})};
  EXPECT_EQ(Step(In(DirectoryState::kExclusive), rebuild, kHome).entry.state, DirectoryState::kLost);
  EXPECT_EQ(Step(In(DirectoryState::kDormant), rebuild, kHome).entry.state, DirectoryState::kDormant);
  DirectoryEntry unknown = In(DirectoryState::kElsewhere);
  EXPECT_EQ(Step(unknown, rebuild, kHome).entry.state, DirectoryState::kLost);
  unknown.ever_written = false;
  EXPECT_EQ(Step(unknown, rebuild, kHome).entry.state, DirectoryState::kDormant);
}

// The home left with nothing lost, and all others are here: so what nobody has was never written, or was zeroes when it
// was evicted.
TEST(PageDirectory, NothingIsLostWithAHomeThatLeft) {
  std::vector<PageReport> reports{{.node = kTwo, .evicting = PageRight::kExclusive}, {.node = kThree}};
  DirectoryEvent rebuild{
      .type = DirectoryEventType::kRebuild, .reports = reports, .survivors = Set({kTwo, kThree}), .home_moved = true};
  const DirectoryEntry unknown = In(DirectoryState::kElsewhere);
  DirectoryEntry rebuilt = Step(unknown, rebuild, kHome).entry;
  EXPECT_EQ(rebuilt.state, DirectoryState::kExclusive);
  EXPECT_EQ(rebuilt.owner, kTwo);
  reports[0].evicting = PageRight::kOwner;
  rebuilt = Step(unknown, rebuild, kHome).entry;
  EXPECT_EQ(rebuilt.state, DirectoryState::kShared);
  EXPECT_EQ(rebuilt.owner, kTwo);
  EXPECT_EQ(rebuilt.copyset, Set({kTwo}));
  reports[1].right = PageRight::kExclusive;
  EXPECT_EQ(Step(unknown, rebuild, kHome).entry.owner, kThree) << "it was granted, and written again";
  reports[0].evicting = reports[1].right = PageRight::kNone;
  rebuilt = Step(unknown, rebuild, kHome).entry;
  EXPECT_EQ(rebuilt.state, DirectoryState::kDormant);
  EXPECT_TRUE(rebuilt.ever_written) << "the second node is not asked for what it knows already";
  rebuild.home_moved = false;
  EXPECT_EQ(Step(unknown, rebuild, kHome).entry.state, DirectoryState::kLost);
}

TEST(PageDirectory, ALostPageNamesWhoHadItOrNobody) {
  const std::vector<PageReport> none{{.node = kThree}};
  DirectoryEvent rebuild{.type = DirectoryEventType::kRebuild,
                         .reports = none,
                         .survivors = Set({kHome, kThree}),
                         .lost = Set({kOne, kTwo})};
  const auto lost_with = [&](const DirectoryEntry& before) {
    const DirectoryEntry entry = Step(before, rebuild, kHome).entry;
    EXPECT_EQ(entry.state, DirectoryState::kLost);
    const DirectoryResult asked = Ask(entry, kThree, RequestKind::kRead);
    EXPECT_EQ(asked.actions[0].message.reason, NackReason::kLost);
    EXPECT_EQ(asked.actions[0].message.home, entry.owner);
    return entry.owner;
  };
  EXPECT_EQ(lost_with(In(DirectoryState::kExclusive)), kOne) << "the owner";
  const DirectoryEntry writes = Ask(In(DirectoryState::kExclusive), kTwo, RequestKind::kWrite).entry;
  EXPECT_EQ(lost_with(writes), kHome) << "the owner, or who was to have it";
  rebuild.lost = Set({kTwo});
  EXPECT_EQ(lost_with(writes), kTwo) << "the owner lives, and has given it away";
  EXPECT_EQ(lost_with(In(DirectoryState::kElsewhere)), kTwo) << "nobody else was lost";
  rebuild.lost = Set({kOne, kTwo});
  EXPECT_EQ(lost_with(In(DirectoryState::kElsewhere)), kHome) << "either of them";
  DirectoryEntry before = In(DirectoryState::kLost);
  before.owner = kTwo;
  rebuild.lost = Set({kOne});
  EXPECT_EQ(lost_with(before), kTwo) << "it stays as it was";
}

TEST(PageDirectory, ARetainedCopyServesIfItsRequesterLivesWithoutIt) {
  std::vector<PageReport> reports{{.node = kOne, .retained = true, .retained_serial = 4, .retained_for = kTwo},
                                  {.node = kTwo}};
  DirectoryEvent rebuild{.type = DirectoryEventType::kRebuild, .reports = reports, .survivors = Set({kOne, kTwo})};
  const DirectoryEntry entry = Step(In(DirectoryState::kElsewhere), rebuild, kHome).entry;
  EXPECT_EQ(entry.state, DirectoryState::kExclusive);
  EXPECT_EQ(RightAt(entry, kOne), PageRight::kExclusive);
  reports[0].retained_for = kThree;  // dead, and may have written
  EXPECT_EQ(Step(In(DirectoryState::kElsewhere), rebuild, kHome).entry.state, DirectoryState::kLost);
  // Only ever read, and adopted: no node may write it before its second knows.
  reports[0].retained_for = kTwo;
  DirectoryEntry read = In(DirectoryState::kElsewhere);
  read.ever_written = false;
  EXPECT_EQ(Step(read, rebuild, kHome).entry.state, DirectoryState::kDormant);
}

TEST(PageDirectory, AReaderUsesWhatItPeekedOnlyIfNobodyCanHaveWrittenSince) {
  PageMessage request = Request(kThree, RequestKind::kRead);
  request.peeks = true;
  request.asked = kOne;
  request.serial = 9;
  const auto ask = [&](DirectoryState state, uint64_t owned) {
    return Step(In(state), {.type = DirectoryEventType::kRead, .message = request, .serial = 11, .owned = owned},
                kHome);
  };
  for (const DirectoryState state : {DirectoryState::kShared, DirectoryState::kExclusive}) {
    DirectoryResult result = ask(state, 9);
    ASSERT_EQ(result.action_count, 1u);
    EXPECT_EQ(result.actions[0].message.type, PageMessageType::kAnswer);
    EXPECT_EQ(result.actions[0].message.to, kThree);
    EXPECT_EQ(result.actions[0].message.source, PageSource::kPeeked);
    EXPECT_EQ(result.actions[0].message.right, PageRight::kShared);
    EXPECT_FALSE(result.owns);
    const DirectoryEntry busy = result.entry;
    result = Do(busy, DirectoryEventType::kDone, From(kThree, 11));
    EXPECT_EQ(result.entry.state, DirectoryState::kShared);
    EXPECT_TRUE(result.entry.copyset.Contains(kThree));
    EXPECT_EQ(result.entry.owner, kOne);
    PageMessage declined = From(kThree, 11);
    declined.declined = true;
    result = Do(busy, DirectoryEventType::kDone, declined);
    EXPECT_EQ(result.entry.state, state);
    EXPECT_EQ(result.entry.copyset, In(state).copyset);
    EXPECT_EQ(result.entry.owner, kOne);
    EXPECT_EQ(ask(state, 10).actions[0].message.type, PageMessageType::kForward);
  }
  request.asked = kTwo;  // has a copy, and does not own it
  EXPECT_EQ(ask(DirectoryState::kShared, 9).actions[0].message.type, PageMessageType::kForward);
  EXPECT_EQ(ask(DirectoryState::kDormant, 9).actions[0].message.source, PageSource::kZero);
  // Nothing to decline.
  const DirectoryEntry busy = Ask(In(DirectoryState::kShared), kThree, RequestKind::kRead).entry;
  PageMessage declined = From(kThree, 11);
  declined.declined = true;
  EXPECT_EQ(Do(busy, DirectoryEventType::kDone, declined).verdict, DirectoryVerdict::kImpossible);
}

TEST(PageDirectory, EachGrantThatMakesAnOwnerOrAWriterSaysSo) {
  for (const RequestKind kind : {RequestKind::kWrite, RequestKind::kOverwrite, RequestKind::kAdopt}) {
    EXPECT_TRUE(Ask(In(DirectoryState::kShared), kThree, kind).owns);
    EXPECT_TRUE(Ask(In(DirectoryState::kExclusive), kThree, kind).owns);
  }
  EXPECT_FALSE(Ask(In(DirectoryState::kShared), kThree, RequestKind::kRead).owns);
}

TEST(PageDirectory, AnOwnerGetsBackTheRightThatAPeekTook) {
  const DirectoryResult result = Ask(In(DirectoryState::kExclusive), kOne, RequestKind::kWrite, true);
  ASSERT_EQ(result.action_count, 1u);
  EXPECT_EQ(result.actions[0].message.right, PageRight::kExclusive);
  EXPECT_EQ(result.actions[0].message.source, PageSource::kNone);
  EXPECT_TRUE(result.actions[0].message.acks.empty());
  EXPECT_TRUE(result.owns);
  const std::vector<PageReport> reports{{.node = kOne, .right = PageRight::kOwner}, {.node = kTwo}};
  const DirectoryEvent rebuild{
      .type = DirectoryEventType::kRebuild, .reports = reports, .survivors = Set({kOne, kTwo})};
  const DirectoryEntry entry = Step(In(DirectoryState::kExclusive), rebuild, kHome).entry;
  EXPECT_EQ(entry.state, DirectoryState::kShared);
  EXPECT_EQ(entry.owner, kOne);
}

// ---- every pair ----

std::vector<DirectoryEntry> Entries() {
  std::vector<DirectoryEntry> entries;
  const DirectoryState rest[] = {DirectoryState::kDormant,   DirectoryState::kStored, DirectoryState::kShared,
                                 DirectoryState::kExclusive, DirectoryState::kLost,   DirectoryState::kElsewhere};
  for (DirectoryState state : rest) {
    for (bool written : {false, true}) {
      DirectoryEntry entry = In(state);
      entry.ever_written = written;
      if (!written && (state == DirectoryState::kExclusive || state == DirectoryState::kLost)) continue;
      entries.push_back(entry);
      if (state == DirectoryState::kElsewhere) continue;
      entry.releasing = true;
      entry.released_node = kThree;
      entry.released_serial = 5;
      entries.push_back(entry);
      entry.frozen = true;
      entries.push_back(entry);
      entry.releasing = false;
      entries.push_back(entry);
      for (RequestKind kind : {RequestKind::kRead, RequestKind::kWrite}) {  // what Thaw begins
        entry.waiting_count = 1;
        entry.waiting[0] = Request(kThree, kind);
        entries.push_back(entry);
      }
    }
  }
  // Under way: from each state, by each kind; alone, frozen, behind a Release, and with one waiting.
  const size_t at_rest = entries.size();
  for (size_t i = 0; i < at_rest; ++i) {
    if (entries[i].frozen) continue;
    for (RequestKind kind : {RequestKind::kRead, RequestKind::kWrite, RequestKind::kOverwrite, RequestKind::kAdopt}) {
      for (NodeId from : {kTwo, kThree}) {
        DirectoryEntry entry = Ask(entries[i], from, kind, from == kTwo).entry;
        if (entry.state != DirectoryState::kBusy && entry.state != DirectoryState::kMirroring) continue;
        entries.push_back(entry);
        const DirectoryEntry settling = Do(entry, DirectoryEventType::kDone, From(from, entry.serial)).entry;
        if (settling.state == DirectoryState::kSettling) entries.push_back(settling);
        for (DirectoryEntry more : {entry, settling}) {
          if (more.state != DirectoryState::kSettling && more.state != DirectoryState::kBusy) continue;
          DirectoryEntry frozen = more;
          frozen.frozen = true;
          entries.push_back(frozen);
          for (RequestKind next : {RequestKind::kRead, RequestKind::kWrite, RequestKind::kAdopt}) {
            more.waiting_count = 1;
            more.waiting[0] = Request(kHome, next);
            entries.push_back(more);
            more.ever_written = false;  // of a page that is read or adopted before its first write
            if (more.after != DirectoryState::kExclusive) entries.push_back(more);
            more.ever_written = true;
          }
        }
      }
    }
  }
  return entries;
}

struct Row {
  DirectoryState from;
  DirectoryEventType event;
  DirectoryState to;
  auto operator<=>(const Row&) const = default;
};

std::string TextOf(const std::set<Row>& rows) {
  std::string text;
  for (const Row& row : rows) {
    text += std::string("X(") + Name(row.from) + ", " + Name(row.event) + ", " + Name(row.to) + ")\n";
  }
  return text;
}

// The rule by which a pair without a row is rejected.
DirectoryVerdict RuleFor(DirectoryEventType event) {
  switch (event) {
    case DirectoryEventType::kDone:
    case DirectoryEventType::kReleased:
      return DirectoryVerdict::kStale;
    case DirectoryEventType::kMirrored:
    case DirectoryEventType::kFreeze:
    case DirectoryEventType::kThaw:
    case DirectoryEventType::kMoveOut:
      return DirectoryVerdict::kNotNow;
    default:
      return DirectoryVerdict::kImpossible;
  }
}

// Invariants 1, 3 and 5 of page_directory.h as far as one step shows them.
void CheckActions(const DirectoryEntry& before, const DirectoryResult& result) {
  int grants = 0;
  NodeSet invalidated;
  NodeSet told;
  for (size_t i = 0; i < result.action_count; ++i) {
    const DirectoryAction& action = result.actions[i];
    const PageMessageType type = action.message.type;
    if (action.type == D::kSendToEach) invalidated = action.nodes;
    if (action.type != D::kSend) continue;
    if (type == PageMessageType::kForward || type == PageMessageType::kAnswer) {
      ++grants;
      told = action.message.acks;
      EXPECT_FALSE(told.Contains(action.message.requester));
      EXPECT_FALSE(type == PageMessageType::kForward && told.Contains(action.message.to));
    }
    EXPECT_FALSE(type == PageMessageType::kRelease && before.releasing && before.state != DirectoryState::kSettling);
  }
  EXPECT_LE(grants, 1);
  EXPECT_EQ(told, invalidated);
  EXPECT_FALSE(grants == 1 && result.entry.state != DirectoryState::kBusy);
}

TEST(PageDirectoryTable, EveryPairIsInTheTableOrRejectedByRule) {
  std::vector<PageMessage> messages;
  for (NodeId from : {kHome, kOne, kTwo, kThree}) {
    for (bool copy : {false, true}) {
      for (uint64_t serial : {uint64_t{0}, uint64_t{5}, uint64_t{11}}) {
        for (PageSource source : {PageSource::kNone, PageSource::kZero, PageSource::kStored}) {
          PageMessage message = Request(from, RequestKind::kRead, copy);
          message.serial = serial;
          message.source = source;
          messages.push_back(message);
        }
      }
    }
  }
  std::vector<std::vector<PageReport>> reports{{{.node = kTwo}, {.node = kThree}}};
  for (PageRight right : {PageRight::kShared, PageRight::kExclusive}) {
    reports.push_back({{.node = kTwo, .right = right}, {.node = kThree}});
    reports.push_back({{.node = kOne, .right = right}, {.node = kTwo}});
  }
  reports.push_back({{.node = kOne, .right = PageRight::kOwner}, {.node = kTwo}});
  reports.push_back({{.node = kTwo, .retained = true, .retained_serial = 1, .retained_for = kThree}, {.node = kThree}});

  std::set<Row> rows;
  std::set<std::pair<DirectoryState, DirectoryEventType>> defined;
  std::set<std::pair<DirectoryState, DirectoryEventType>> rejected;
  for (const DirectoryEntry& entry : Entries()) {
    for (size_t e = 0; e < kDirectoryEvents; ++e) {
      const DirectoryEventType type = static_cast<DirectoryEventType>(e);
      for (const PageMessage& with : messages) {
        DirectoryEvent event{.type = type, .message = with, .serial = 12};
        for (RequestKind kind :
             {RequestKind::kRead, RequestKind::kWrite, RequestKind::kOverwrite, RequestKind::kAdopt}) {
          if (EventOf(kind) == type) event.message.kind = kind;
        }
        for (const std::vector<PageReport>& some : reports) {
          event.reports = some;
          event.survivors = Set({some[0].node, some[1].node});
          const DirectoryResult result = Step(entry, event, kHome);
          SCOPED_TRACE(std::string(Name(entry.state)) + " " + Name(type));
          if (result.verdict == DirectoryVerdict::kDone) {
            rows.insert({entry.state, type, result.entry.state});
            defined.insert({entry.state, type});
            CheckActions(entry, result);
          } else {
            rejected.insert({entry.state, type});
            EXPECT_EQ(result.verdict == DirectoryVerdict::kImpossible || result.verdict == RuleFor(type), true);
            EXPECT_EQ(result.entry.state, entry.state);
            EXPECT_EQ(result.action_count, 0u);
          }
          if (type != DirectoryEventType::kRebuild) break;
        }
      }
    }
  }
  const std::set<Row> table{
#define X(from, event, to, seen) {DirectoryState::k##from, DirectoryEventType::k##event, DirectoryState::k##to},
      HK_DIRECTORY_ROWS(X)
#undef X
  };
  EXPECT_EQ(TextOf(rows), TextOf(table));
  for (size_t s = 0; s < kDirectoryStates; ++s) {
    for (size_t e = 0; e < kDirectoryEvents; ++e) {
      const std::pair pair{static_cast<DirectoryState>(s), static_cast<DirectoryEventType>(e)};
      EXPECT_TRUE(defined.contains(pair) || rejected.contains(pair)) << Name(pair.first) << " " << Name(pair.second);
    }
  }
}

}  // namespace
}  // namespace hk
