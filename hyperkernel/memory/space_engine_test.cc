// The fault engine between a transport, frames, timers and a clock that do what the test says (space_engine_fixture.h):
// what it sends, in which order, for a page that comes, is held and goes. What it waits for, and when that does not
// come: space_engine_failure_test.cc; what no correct node sends: space_engine_hostile_test.cc; when frames are short:
// space_engine_room_test.cc, space_capacity_test.cc. Whole clusters: tests/sim/space_sim_test.cc.
#include "hyperkernel/memory/space_engine.h"

#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/memory/space_engine_fixture.h"

namespace hk {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::IsEmpty;

// The length of a hold that was set to that.
testing::Matcher<microseconds> IsHold(microseconds set) {
  return testing::AllOf(testing::Ge(set), testing::Le(LongestOf(set)));
}

TEST_F(SpaceEngineTest, AFirstTouchAtHomeAsksNobody) {
  transport_.receive_slots = transport_.send_slots = 0;
  Wish read, write;
  Want(kHere, PageAccess::kRead, &read);
  Want(kHere, PageAccess::kWrite, &write);
  EXPECT_EQ(read.ends + write.ends, 2);
  EXPECT_TRUE(read.status.ok());
  EXPECT_THAT(log_, ElementsAre("install 7 1", "granted", "access 7 2", "granted"));
  EXPECT_EQ(engine_->RightOf(kHere), PageRight::kExclusive);
  engine_->OnFault(kHere, true);
  EXPECT_EQ(log_.back(), "wake 7");
  EXPECT_EQ(engine_->Residue().active_pages + engine_->Residue().busy_entries, 0u);
  EXPECT_THAT(engine_->Uses(0, 10), testing::SizeIs(1));
}

// A space that its coordinator uses most: a machine whose vCPUs are here.
TEST_F(SpaceEngineTest, AFirstWriteFillsWhatIsAround) {
  MakeOwnHomes(4);
  EXPECT_EQ(engine_->HomeOf(kThere), kSelf);
  Wish read;
  Want(Gfn(kThere.value() - 1), PageAccess::kRead, &read);
  log_.clear();
  engine_->OnFault(kThere, true);
  const std::string first = std::to_string(kThere.value());
  EXPECT_EQ(log_[0], "install " + first + " 2") << "what the program waits for comes first";
  const uint64_t begin = kThere.value() / 4 * 4;
  for (uint64_t page = begin; page < begin + 4; ++page) {
    const bool was_read = page == kThere.value() - 1;
    EXPECT_EQ(engine_->RightOf(Gfn(page)), was_read ? PageRight::kShared : PageRight::kExclusive) << page;
  }
  EXPECT_EQ(engine_->RightOf(Gfn(begin - 1)), PageRight::kNone);
  EXPECT_EQ(engine_->RightOf(Gfn(begin + 4)), PageRight::kNone);
  EXPECT_EQ(engine_->Statistics().filled_around, 2u);
  EXPECT_EQ(engine_->Residue().active_pages + engine_->Residue().busy_entries, 0u);
  EXPECT_EQ(engine_->Residue().frames, 4u);
  EXPECT_THAT(transport_.sent, IsEmpty()) << "with the coordinator the space ends: nobody need know what was written";
  // Not by reading, and not of a page that has been written.
  engine_->OnFault(Gfn(begin + 40), false);
  EXPECT_EQ(engine_->Statistics().filled_around, 2u);
}

TEST_F(SpaceEngineTest, WhatIsAroundTakesNoFramesThatAreNeeded) {
  MakeOwnHomes(512);
  engine_->OnFault(kHere, true);
  const uint64_t filled = engine_->Statistics().filled_around;
  EXPECT_GT(filled, 10u);
  EXPECT_LE(filled, 64u - 64u / 8u) << "the last eighth is for what programs touch";
  EXPECT_EQ(engine_->Residue().frames, filled + 1);
  EXPECT_EQ(engine_->Statistics().pages_exclusive, filled + 1);
}

TEST_F(SpaceEngineTest, BadRulesOfHomesAreRefused) {
  config_.homes_at_coordinator = true;
  const auto refusal = [this] {
    return SpaceEngine::Create(config_, &transport_, &frames_, &timers_, clock_, [](const absl::Status&) {}).status();
  };
  EXPECT_THAT(refusal().ToString(), testing::HasSubstr("homes_at_coordinator"));
  config_.coordinator = kSelf;
  for (const uint32_t around : {3U, 1024U}) {
    config_.fill_around = around;
    EXPECT_THAT(refusal().ToString(), testing::HasSubstr("fill_around"));
  }
}

// For operators: where a space is busy, and which pages change hands.
TEST_F(SpaceEngineTest, LossesToOthersAreNoticedAndExtentsHeated) {
  Wish write;
  Want(kHere, PageAccess::kWrite, &write);
  Want(Gfn(9), PageAccess::kWrite, &write);
  clock_.now += LongestHold();
  ReceiveRequest(kPeer, kHere, RequestKind::kWrite, 11);
  std::vector<HotPage> lost = engine_->MostLost(10);
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(lost[0].page, kHere);
  EXPECT_EQ(lost[0].losses, 1u);
  EXPECT_EQ(lost[0].owner_losses, 1u);
  EXPECT_EQ(lost[0].taker, kPeer);
  // One that waits for the end of the hold, and leaves the right to read.
  Want(Gfn(11), PageAccess::kWrite, &write);
  ReceiveRequest(kPeer, Gfn(11), RequestKind::kRead, 12);
  EXPECT_EQ(engine_->MostLost(10).size(), 1u);
  timers_.Advance(LongestHold());
  lost = engine_->MostLost(10);
  ASSERT_EQ(lost.size(), 2u);
  EXPECT_EQ(lost[1].page, Gfn(11));
  EXPECT_EQ(lost[1].owner_losses, 0u);
  EXPECT_EQ(lost[1].taker, kPeer);
  EXPECT_EQ(engine_->MostLost(1).size(), 1u);
  // Three pages came, one went, one became read-only.
  const std::vector<ExtentUse> uses = engine_->Uses(0, 1);
  ASSERT_EQ(uses.size(), 1u);
  EXPECT_EQ(uses[0].heat, 5);
  clock_.now += 2 * DecayedCount::kHalfLife;
  EXPECT_NEAR(engine_->Uses(0, 1)[0].heat, 1.25, 0.02);
}

TEST_F(SpaceEngineTest, AFaultRunsOnBeforeItsHomeIsTold) {
  engine_->OnFault(kThere, false);
  Grant(kThere, PageRight::kShared, PageSource::kPayload, 'x');
  EXPECT_THAT(log_, ElementsAre("send Request 1", "install 519 1", "wake 519", "send Done 1"));
  EXPECT_EQ(frames_.First(kThere), 'x');
  EXPECT_EQ(transport_.sent[1].page.serial, 77u);
  // An upgrade: no data, no second installation.
  engine_->OnFault(kThere, true);
  EXPECT_TRUE(transport_.sent.back().page.has_copy);
  Grant(kThere, PageRight::kExclusive, PageSource::kNone);
  EXPECT_EQ(log_[5], "access 519 2");
  const SpaceStatistics statistics = engine_->Statistics();
  EXPECT_EQ(statistics.read_faults, 1u);
  EXPECT_EQ(statistics.write_faults, 1u);
  EXPECT_EQ(statistics.upgrades, 1u);
  EXPECT_EQ(statistics.pages_exclusive, 1u);
}

TEST_F(SpaceEngineTest, APageIsWrittenAfterTheLastAcknowledgementFromTheSlotThatWasKept) {
  Make({kSelf, kPeer, kThird});
  Wish write;
  Want(kThere, PageAccess::kWrite, &write);
  NodeSet acks;
  acks.Add(kThird);
  Grant(kThere, PageRight::kExclusive, PageSource::kPayload, 'y', acks);
  EXPECT_EQ(write.ends, 0);
  EXPECT_EQ(transport_.lent.size(), 1u);
  PageMessage ack = Of(Type::kAck);
  ack.transaction = transport_.sent[0].message.transaction;
  Receive(kThird, kThere, ack);
  EXPECT_EQ(write.ends, 1);
  EXPECT_EQ(frames_.First(kThere), 'y');
}

// A thread that has got a page, and waits for another one or for a processor, has not used it.
TEST_F(SpaceEngineTest, AHoldLastsUntilTheThreadHasRun) {
  Make({kSelf, kPeer, kThird});
  uint64_t next = kThere.value();
  constexpr uint32_t kThread = 77;
  // For how long a page is kept that a thread waited for; `runs`: it uses so much of each 10 us.
  const auto hold_of_next = [&](std::chrono::nanoseconds runs, bool known) {
    const Gfn page(next += 20);  // no stream
    frames_.run_times.clear();
    if (known) frames_.run_times[kThread] = std::chrono::seconds(3);
    engine_->OnFault(page, true, kThread);
    Grant(page, PageRight::kExclusive, PageSource::kPayload, 'x');
    ReceiveForward(page, RequestKind::kWrite, kThird, next, 78);
    const Monotonic since = clock_.now;
    for (log_.clear(); log_.empty() && clock_.now - since < std::chrono::seconds(1);) {
      if (known) frames_.run_times[kThread] += runs;
      timers_.Advance(microseconds(10));
    }
    return std::chrono::duration_cast<microseconds>(clock_.now - since);
  };
  // A slow peer: a hold may be long.
  transport_.pings.clear();
  for (int i = 0; i < 3; ++i) hold_of_next(std::chrono::nanoseconds(0), false);
  for (int i = 0; transport_.pings.empty() && i < 200'000; ++i) timers_.Advance(microseconds(1));
  ASSERT_FALSE(transport_.pings.empty());
  clock_.now += microseconds(1000);
  Message pong = SpacePingMessage(true, transport_.pings[0]);
  pong.guest = config_.guest;
  pong.generation = config_.generation;
  pong.epoch = config_.epoch;
  engine_->OnMessage(kPeer, pong, {}, false);
  const microseconds most(6000);
  EXPECT_THAT(hold_of_next(std::chrono::nanoseconds(0), false), IsHold(most)) << "nothing is known of the thread";
  EXPECT_THAT(hold_of_next(std::chrono::nanoseconds(0), true), IsHold(most)) << "it never ran";
  EXPECT_LE(hold_of_next(microseconds(10), true), LongestHold() + microseconds(200)) << "it ran all the time";
  frames_.waiting = {kThread};
  EXPECT_THAT(hold_of_next(microseconds(10), true), IsHold(most)) << "it ran into its next fault";
  frames_.waiting.clear();
  // A quarter of a round trip is enough, and takes so long.
  const microseconds half = hold_of_next(microseconds(1), true);
  EXPECT_GE(half, microseconds(2400));
  EXPECT_LE(half, microseconds(3200));
  engine_->Stop(absl::CancelledError("enough"));
}

// With a hold that is shorter than the way of a second page two nodes that each need the same two pages at once would
// go on taking them from each other.
TEST_F(SpaceEngineTest, AHoldIsLongerThanTheWaysOfASecondPage) {
  Make({kSelf, kPeer, kThird});
  const auto tell = [this](NodeId from, uint16_t type, uint64_t number) {
    Message message = SpacePingMessage(type == kSpacePongType, number);
    message.guest = config_.guest;
    message.generation = config_.generation;
    message.epoch = config_.epoch;
    engine_->OnMessage(from, message, {}, false);
  };
  uint64_t next = kThere.value();
  const auto hold_of_next = [&] {
    const Gfn page(next += 20);  // no stream
    Wish wish;
    Want(page, PageAccess::kWrite, &wish);
    Grant(page, PageRight::kExclusive, PageSource::kPayload, 'x');
    EXPECT_EQ(wish.ends, 1);
    ReceiveForward(page, RequestKind::kWrite, kThird, next, 78);
    const Monotonic since = clock_.now;
    for (log_.clear(); log_.empty() && clock_.now - since < std::chrono::seconds(1);) timers_.Advance(microseconds(10));
    return std::chrono::duration_cast<microseconds>(clock_.now - since);
  };
  // A round of pings, answered by these nodes after these times.
  const auto measure = [&](const std::vector<std::pair<NodeId, microseconds>>& answers) {
    transport_.pings.clear();
    for (int i = 0; transport_.pings.empty() && i < 200'000; ++i) timers_.Advance(microseconds(1));
    ASSERT_EQ(transport_.pings.size(), 2u);
    const Monotonic sent = clock_.now;
    for (const auto& [node, took] : answers) {
      clock_.now = sent + took;
      tell(node, kSpacePongType, transport_.pings[0]);
    }
  };
  EXPECT_THAT(hold_of_next(), IsHold(config_.hold));
  // The farther of them counts, and of each the least.
  measure({{kPeer, microseconds(20)}, {kThird, microseconds(300)}});
  EXPECT_THAT(hold_of_next(), IsHold(microseconds(1800)));
  measure({{kPeer, microseconds(20)}, {kThird, microseconds(5000)}});
  EXPECT_THAT(hold_of_next(), IsHold(microseconds(1800)));
  // What nobody was asked, and what comes twice or late, counts for nothing.
  tell(kThird, kSpacePongType, transport_.pings[0]);
  tell(kThird, kSpacePongType, 12345);
  tell(NodeId(40), kSpacePongType, transport_.pings[0]);
  EXPECT_THAT(hold_of_next(), IsHold(microseconds(1800)));
  // Later all is slow; there is a limit. Then it is as fast as it was set.
  for (const microseconds took : {microseconds(9000), microseconds(1)}) {
    for (int i = 0; i < 3; ++i) {
      clock_.now += std::chrono::seconds(1);  // a window of the least
      measure({{kPeer, took}, {kThird, took}});
      EXPECT_LE(hold_of_next(), LongestOf(microseconds(10'000)));
    }
    EXPECT_THAT(hold_of_next(), IsHold(took < config_.hold ? config_.hold : microseconds(10'000)));
  }
  // Nobody is asked when no pages come.
  timers_.Advance(std::chrono::seconds(1));
  transport_.pings.clear();
  timers_.Advance(std::chrono::seconds(10));
  EXPECT_TRUE(transport_.pings.empty());
  tell(kPeer, kSpacePingType, 77);
  EXPECT_THAT(transport_.pings, ElementsAre(77));
  engine_->Stop(absl::CancelledError("enough"));
}

TEST_F(SpaceEngineTest, APageThatIsReplacedIsInstalledWithItsNewBytesAndWrittenOnce) {
  replacement_.fill(std::byte{'n'});
  Wish here;
  Want(kHere, PageAccess::kWrite, &here, true);
  EXPECT_EQ(here.ends, 1);
  EXPECT_EQ(frames_.installed, 'n');
  Wish there;
  Want(kThere, PageAccess::kWrite, &there, true);
  EXPECT_EQ(transport_.sent[0].page.kind, RequestKind::kOverwrite);
  frames_.installed = '?';
  Grant(kThere, PageRight::kExclusive, PageSource::kNone);
  EXPECT_EQ(there.ends, 1);
  EXPECT_EQ(frames_.installed, 'n');
  EXPECT_EQ(frames_.writes, 0);
  replacement_.fill(std::byte{'m'});
  Want(kThere, PageAccess::kWrite, &there, true);  // it is here
  EXPECT_EQ(frames_.First(kThere), 'm');
  EXPECT_EQ(frames_.writes, 1);
}

TEST_F(SpaceEngineTest, AGrantedPageIsHeld) {
  Wish write;
  Want(kHere, PageAccess::kWrite, &write);
  frames_.First(kHere) = 'h';
  EXPECT_EQ(timers_.DueWithin(LongestHold()), 0u);  // nothing waits for it yet
  log_.clear();
  ReceiveRequest(kPeer, kHere, RequestKind::kWrite, 9);
  EXPECT_THAT(log_, IsEmpty());
  timers_.Advance(config_.hold - microseconds(1));
  EXPECT_THAT(log_, IsEmpty());
  timers_.Advance(LongestHold() - config_.hold + microseconds(1));
  EXPECT_THAT(log_, ElementsAre("remove 7", "send Answer 1"));
  EXPECT_EQ(transport_.sent.back().payload, 'h');
  EXPECT_EQ(transport_.sent.back().message.slot, SlotId(9 << 16));
  EXPECT_EQ(transport_.lent.size(), 1u);  // kept until it is confirmed
  ReceiveDone(kHere, 9);
  EXPECT_THAT(transport_.lent, IsEmpty());
  EXPECT_EQ(engine_->Residue().active_pages + engine_->Residue().busy_entries, 0u);
}

TEST_F(SpaceEngineTest, HoldsDifferByChance) {
  std::set<microseconds> lengths;
  for (uint64_t page = 0; page < 32; ++page) {
    Wish write;
    Want(Gfn(page), PageAccess::kWrite, &write);
    ReceiveRequest(kPeer, Gfn(page), RequestKind::kWrite, page + 1);
    const Monotonic since = clock_.now;
    for (log_.clear(); log_.empty() && clock_.now - since < std::chrono::seconds(1);) timers_.Advance(microseconds(1));
    const auto length = std::chrono::duration_cast<microseconds>(clock_.now - since);
    EXPECT_THAT(length, IsHold(config_.hold)) << page;
    lengths.insert(length);
    ReceiveDone(Gfn(page), page + 1);
  }
  EXPECT_GE(lengths.size(), 16u);
}

TEST_F(SpaceEngineTest, AHoldThatIsOverNeedsNoTimer) {
  Wish write;
  Want(kHere, PageAccess::kWrite, &write);
  clock_.now += LongestHold();
  log_.clear();
  ReceiveRequest(kPeer, kHere, RequestKind::kRead, 9);
  EXPECT_THAT(log_, ElementsAre("access 7 1", "send Answer 1"));
}

TEST_F(SpaceEngineTest, ACopyIsGoneBeforeItIsSaidToBe) {
  Wish read;
  Want(kThere, PageAccess::kRead, &read);
  Grant(kThere, PageRight::kShared, PageSource::kZero);
  Make({kSelf, kPeer, kThird});
  Want(kThere, PageAccess::kRead, &read);
  frames_.pages.clear();
  Grant(kThere, PageRight::kShared, PageSource::kZero);
  clock_.now += LongestHold();
  log_.clear();
  PageMessage invalidate = Of(Type::kInvalidate);
  invalidate.requester = kThird;
  invalidate.transaction = 4;
  Receive(kPeer, kThere, invalidate);
  EXPECT_THAT(log_, ElementsAre("remove 519", "send Ack 2"));
}

TEST_F(SpaceEngineTest, ASparseSpaceOfATebibyteTakesNothing) {
  config_.nodes = {kSelf, kPeer};
  config_.pages = uint64_t{1} << 28;
  auto made = SpaceEngine::Create(config_, &transport_, &frames_, &timers_, clock_, {});
  ASSERT_TRUE(made.ok());
  const size_t untouched = (*made)->Residue().table_bytes;
  EXPECT_LT(untouched, 512u << 10);
  for (uint64_t i = 0; i < 1000; ++i) {
    (*made)->Want(Gfn(i * 2 * kExtentPages), PageAccess::kWrite, [](const absl::Status& s) { EXPECT_TRUE(s.ok()); });
  }
  EXPECT_LT((*made)->Residue().table_bytes - untouched, 1000u * 2048);
  EXPECT_EQ((*made)->Uses(600, 5).size(), 5u);
  EXPECT_EQ((*made)->Uses(600, 5)[0].extent, 600u);
}

TEST_F(SpaceEngineTest, DoneTakesItsTimeUnlessOthersWait) {
  const auto hurry = [this](Gfn page, uint64_t transaction) {
    Message message = SpaceHurryMessage(transaction);
    message.guest = config_.guest;
    message.generation = config_.generation;
    message.epoch = config_.epoch;
    message.gfn = page;
    engine_->OnMessage(kPeer, message, {}, false);
  };
  engine_->OnFault(kThere, false);
  Grant(kThere, PageRight::kShared, PageSource::kPayload, 'x');
  EXPECT_EQ(transport_.sent.back().page.type, Type::kDone);
  EXPECT_EQ(transport_.sent.back().options.when, SendWhen::kWithNext);
  // Of a page of which nothing is under way, and of another transaction: nothing to do but what the transport does.
  hurry(kThere, 1);
  engine_->OnFault(kThere, true);
  const uint64_t transaction = transport_.sent.back().message.transaction;
  hurry(kThere, transaction + 1);
  Grant(kThere, PageRight::kExclusive, PageSource::kNone);
  EXPECT_EQ(transport_.sent.back().options.when, SendWhen::kWithNext);
  // Others wait already when the answer comes.
  const Gfn other(kThere.value() + 1);
  engine_->OnFault(other, true);
  hurry(other, transport_.sent.back().message.transaction);
  Grant(other, PageRight::kExclusive, PageSource::kZero);
  EXPECT_EQ(transport_.sent.back().page.type, Type::kDone);
  EXPECT_EQ(transport_.sent.back().options.when, SendWhen::kNow);
}

TEST_F(SpaceEngineTest, WhoeverIsWaitedForIsToldOnce) {
  Make({kSelf, kPeer, kThird});
  ReceiveRequest(kPeer, kHere, RequestKind::kRead, 5);
  EXPECT_THAT(transport_.hurried, IsEmpty());
  ReceiveRequest(kThird, kHere, RequestKind::kRead, 6);
  EXPECT_THAT(transport_.hurried, ElementsAre("1: 5"));
  Wish wish;
  Want(kHere, PageAccess::kWrite, &wish);
  EXPECT_THAT(transport_.hurried, ElementsAre("1: 5"));
  // The next transaction has somebody behind it from the beginning.
  ReceiveDone(kHere, 5);
  EXPECT_THAT(transport_.hurried, ElementsAre("1: 5", "2: 6"));
  engine_->Stop(absl::CancelledError("enough"));
}

TEST_F(SpaceEngineTest, TheHomesOwnAcknowledgementIsInItsAnswer) {
  Wish wish;
  Want(kHere, PageAccess::kWrite, &wish);
  timers_.Advance(LongestHold());
  ReceiveRequest(kPeer, kHere, RequestKind::kRead, 5);
  ReceiveDone(kHere, 5);
  log_.clear();
  PageMessage upgrade = Of(Type::kRequest);
  upgrade.kind = RequestKind::kWrite;
  upgrade.has_copy = true;
  upgrade.transaction = 6;
  Receive(kPeer, kHere, upgrade, SlotId(6 << 16), kPeer);
  EXPECT_THAT(log_, ElementsAre("remove 7", "send Answer 1"));
  EXPECT_TRUE(transport_.sent.back().page.acks.empty());
  EXPECT_EQ(transport_.sent.back().page.right, PageRight::kExclusive);
  engine_->Stop(absl::CancelledError("enough"));
}

TEST_F(SpaceEngineTest, TheHomesAcknowledgementFollowsItsAnswerIfThePageIsHeld) {
  Wish wish;
  Want(kHere, PageAccess::kRead, &wish);
  ReceiveRequest(kPeer, kHere, RequestKind::kWrite, 7);
  ASSERT_EQ(transport_.sent.back().page.type, Type::kAnswer);
  EXPECT_EQ(transport_.sent.back().page.acks, NodeSet::Of(kSelf));
  timers_.Advance(LongestHold());
  EXPECT_EQ(transport_.sent.back().page.type, Type::kAck);
  engine_->Stop(absl::CancelledError("enough"));
}

TEST_F(SpaceEngineTest, AStreamIsFetchedAheadOnTheBulkClass) {
  const uint64_t first = kThere.value();
  engine_->OnFault(Gfn(first), false);
  engine_->OnFault(Gfn(first + 1), false);
  ASSERT_EQ(transport_.sent.size(), 3u);
  EXPECT_EQ(transport_.sent[1].message.message_class, MessageClass::kFault);
  EXPECT_EQ(transport_.sent[1].options.when, SendWhen::kNow);
  // One message for all of them.
  const FakeTransport::Sent& asked = transport_.sent[2];
  EXPECT_EQ(asked.message.message_class, MessageClass::kBulk);
  EXPECT_EQ(asked.options.when, SendWhen::kWithNext);
  EXPECT_EQ(asked.message.gfn, Gfn(first + 2));
  ASSERT_EQ(asked.batch.count, 3u);  // the one in the middle shows that the program came there
  EXPECT_EQ(asked.batch.pages[0].index, 9);
  EXPECT_EQ(asked.batch.pages[1].index, 10);
  EXPECT_EQ(asked.batch.pages[2].index, 12);
  // Who comes to a page that is on its way waits for it, and asks nobody.
  engine_->OnFault(Gfn(first + 2), false);
  EXPECT_EQ(transport_.sent.size(), 3u);
  log_.clear();
  AnswerBatch(2, {BatchFate::kTaken, BatchFate::kTaken, BatchFate::kZero});
  EXPECT_THAT(
      log_, ElementsAre("install 521 1", "wake 521", "install 522 1", "wake 522", "install 524 1", "send BatchDone 1"));
  SpaceStatistics statistics = engine_->Statistics();
  EXPECT_EQ(statistics.read_faults, 2u);
  EXPECT_EQ(statistics.prefetched, 3u);
  EXPECT_EQ(statistics.prefetch_useful, 1u);
  EXPECT_EQ(statistics.batches, 1u);
}

// Declined pages are as if nobody had asked; a program that waits for one asks itself, at once.
TEST_F(SpaceEngineTest, PagesThatABatchDoesNotBringAreAskedForWhenTheyAreWanted) {
  const uint64_t first = kThere.value();
  engine_->OnFault(Gfn(first), false);
  engine_->OnFault(Gfn(first + 1), false);
  engine_->OnFault(Gfn(first + 3), false);
  ASSERT_EQ(transport_.sent.size(), 3u);
  AnswerBatch(2, {BatchFate::kDeclined, BatchFate::kDeclined, BatchFate::kLater});
  ASSERT_EQ(transport_.sent.size(), 4u);
  EXPECT_EQ(transport_.sent[3].page.type, Type::kRequest);
  EXPECT_EQ(transport_.sent[3].message.gfn, Gfn(first + 3));
  EXPECT_EQ(transport_.sent[3].message.message_class, MessageClass::kFault);
  // The last one is granted later, without bytes: home and owner are told that all is done, and nobody sees a page.
  engine_->OnFault(Gfn(first + 5), false);
  const size_t sent = transport_.sent.size();
  const uint64_t transaction = transport_.sent[2].message.transaction;
  ReceiveEmpty(Gfn(first + 5), transaction + 1);
  EXPECT_EQ(transport_.sent.size(), sent);
  EXPECT_EQ(engine_->Statistics().stale_messages, 1u);
  log_.clear();
  ReceiveEmpty(Gfn(first + 5), transaction);
  EXPECT_THAT(log_, ElementsAre("send Done 1", "send Request 1"));
  EXPECT_EQ(transport_.sent.back().message.gfn, Gfn(first + 5));
  EXPECT_EQ(engine_->Statistics().prefetch_wasted, 0u);
  engine_->Stop(absl::CancelledError("enough"));
}

TEST_F(SpaceEngineTest, AnAnswerToOtherPagesThanABatchAskedForStopsTheSpace) {
  engine_->OnFault(kThere, false);
  engine_->OnFault(Gfn(kThere.value() + 1), false);
  transport_.sent[2].batch.pages[1].index = 11;
  AnswerBatch(2, {BatchFate::kTaken, BatchFate::kTaken, BatchFate::kTaken});
  ExpectStopped("answers other pages than were asked for");
}

TEST_F(SpaceEngineTest, PagesFetchedAheadAreBounded) {
  // Nothing is answered: each page under way stays so.
  for (uint64_t page = 0; page < 400; ++page) {
    for (uint64_t extent = 0; extent < 4; ++extent) engine_->OnFault(Gfn(extent * kExtentPages + page), false);
  }
  const auto bulk = [this] {
    return std::count_if(transport_.sent.begin(), transport_.sent.end(), [](const FakeTransport::Sent& one) {
      return one.message.message_class == MessageClass::kBulk;
    });
  };
  EXPECT_GT(bulk(), 10);
  EXPECT_LE(bulk(), 32);
  EXPECT_LE(engine_->Statistics().prefetched, 2 * 256u);
  // Without slots nothing is fetched ahead, and what is wanted is asked for as ever.
  Make({kSelf, kPeer});
  transport_.sent.clear();
  transport_.receive_slots = 2;
  engine_->OnFault(kThere, false);
  engine_->OnFault(Gfn(kThere.value() + 1), false);
  EXPECT_EQ(transport_.sent.size(), 2u);
  EXPECT_EQ(bulk(), 0);
}

TEST_F(SpaceEngineTest, APageFetchedAheadAndTakenAwayIsCounted) {
  Make({kSelf, kPeer, kThird});
  const uint64_t first = kThere.value();
  engine_->OnFault(Gfn(first), false);
  engine_->OnFault(Gfn(first + 1), false);
  AnswerBatch(2, {BatchFate::kTaken, BatchFate::kTaken, BatchFate::kTaken});
  timers_.Advance(LongestHold());
  PageMessage gone = Of(Type::kInvalidate);
  gone.requester = kThird;
  gone.serial = 78;
  Receive(kPeer, Gfn(first + 2), gone);
  EXPECT_EQ(engine_->Statistics().prefetch_wasted, 1u);
  engine_->Stop(absl::CancelledError("enough"));
}

TEST_F(SpaceEngineTest, APinnedPageGoesWhenItIsUnpinned) {
  Make({kSelf, kPeer});
  Wish pin;
  engine_->Pin(kThere, 1, pin.End());
  EXPECT_EQ(pin.ends, 0);
  Grant(kThere, PageRight::kExclusive, PageSource::kPayload, 'a');
  ASSERT_EQ(pin.ends, 1);
  engine_->Pin(kThere, 1, [](const absl::Status& status) { EXPECT_TRUE(status.ok()); });
  ReceiveForward(kThere, RequestKind::kWrite, kPeer, 9, 80);
  timers_.Advance(milliseconds(10));
  EXPECT_TRUE(frames_.pages.contains(kThere.value())) << "a hold is over, a pin is not";
  // Somebody waits; but who has the pins may need another one before they end.
  Wish more;
  engine_->Pin(kThere, 1, more.End());
  EXPECT_EQ(more.ends, 1);
  engine_->Unpin(kThere, 1);
  engine_->Unpin(kThere, 1);
  EXPECT_TRUE(frames_.pages.contains(kThere.value()));
  // Without a send slot it stays a little longer.
  transport_.send_slots = 0;
  engine_->Unpin(kThere, 1);
  EXPECT_TRUE(frames_.pages.contains(kThere.value()));
  transport_.send_slots = 1;
  engine_->OnSlotsFree(MessageClass::kFault, SlotUse::kSend);
  EXPECT_FALSE(frames_.pages.contains(kThere.value()));
  // A late one asks for it anew.
  Wish late;
  engine_->Pin(kThere, 1, late.End());
  EXPECT_EQ(late.ends, 0);
  ASSERT_EQ(transport_.sent.back().page.type, Type::kRequest);
  Grant(kThere, PageRight::kExclusive, PageSource::kPayload, 'b');
  EXPECT_EQ(late.ends, 1);
  engine_->Unpin(kThere, 1);
  PageMessage release = Of(Type::kRelease);
  release.serial = 80;
  Receive(kPeer, kThere, release);
  EXPECT_EQ(engine_->Residue().active_pages, 0u);
}

}  // namespace
}  // namespace hk
