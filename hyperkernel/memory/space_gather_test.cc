// Whose turn it is at pages that threads of several nodes need: one engine, node 0, and a thread of its own. Who gets
// them at last is the simulator's matter (tests/sim/space_sim_test.cc).
#include <algorithm>
#include <chrono>
#include <cstdint>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/memory/space_engine_fixture.h"

namespace hk {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using testing::IsEmpty;

class SpaceGatherTest : public SpaceEngineTest {
 protected:
  static constexpr uint32_t kThread = 77, kOther = 78;
  // What a turn holds at most (space_engine_hold.cc), and how often a hold is looked at.
  static constexpr milliseconds kMostHold{100};
  static constexpr microseconds kSlack{500};

  SpaceGatherTest() {
    Make({kSelf, kPeer, kThird});
    Know(kThread);
    // Others' tickets go far above ours.
    Hear(1000);
  }
  ~SpaceGatherTest() override { engine_->Stop(absl::CancelledError("enough")); }

  void Know(uint32_t thread) {
    frames_.run_times[thread] = std::chrono::seconds(3);
    frames_.gathers.try_emplace(thread);
  }
  Gfn Page() { return Gfn(next_ += 20); }  // no stream
  // Node 2 asks for what this node is said to own.
  void Want(Gfn page, uint64_t ticket) {
    PageMessage m = Of(Type::kForward);
    m.kind = RequestKind::kWrite;
    m.requester = kThird;
    m.transaction = ++transaction_;
    m.serial = page.value();
    m.ticket = ticket;
    Receive(kPeer, page, m, SlotId(m.transaction << 16), kThird);
  }
  // Node 1 asks for a page that nobody has.
  void Hear(uint64_t ticket) {
    PageMessage m = Of(Type::kRequest);
    m.kind = RequestKind::kWrite;
    m.transaction = ++transaction_;
    m.ticket = ticket;
    const Gfn page(heard_++);
    Receive(kPeer, page, m, SlotId(m.transaction << 16), kPeer);
    ReceiveDone(page, m.transaction);
  }
  // The thread's touch of a page; the ticket that the home is told.
  uint64_t Fault(Gfn page, uint32_t thread = kThread) {
    frames_.waiting.insert(thread);
    engine_->OnFault(page, true, thread);
    asked_ = transport_.sent.back();
    return asked_.page.ticket;
  }
  void GrantIt(Gfn page, uint32_t thread = kThread) {
    ASSERT_EQ(asked_.message.gfn, page);
    GrantTo(asked_, PageRight::kExclusive, PageSource::kPayload, 'x');
    frames_.waiting.erase(thread);
  }
  void Run(microseconds time) {
    frames_.run_times[kThread] += time;
    timers_.Advance(time);
  }
  // How long the page stays, in which the thread runs for `runs` of each 100 us.
  microseconds Stays(microseconds runs = microseconds(0)) {
    const Monotonic since = clock_.now;
    for (log_.clear(); log_.empty() && clock_.now - since < std::chrono::seconds(1);) {
      frames_.run_times[kThread] += runs;
      timers_.Advance(microseconds(100));
    }
    return std::chrono::duration_cast<microseconds>(clock_.now - since);
  }

  FakeTransport::Sent asked_;  // the last

 private:
  uint64_t next_ = kExtentPages, heard_ = 0, transaction_ = 500;
};

TEST_F(SpaceGatherTest, OneTurnHasOneTicketUntilTheThreadHasRunAsLongAsItWaited) {
  const Gfn first = Page(), second = Page(), third = Page(), fourth = Page();
  const uint64_t ticket = Fault(first);
  EXPECT_GT(ticket, 1000u) << "younger than those that others have";
  timers_.Advance(microseconds(300));
  GrantIt(first);
  EXPECT_EQ(Fault(second), ticket) << "it has not run";
  timers_.Advance(microseconds(700));
  GrantIt(second);
  Run(microseconds(900));
  EXPECT_EQ(Fault(third), ticket) << "it waited for longer";
  GrantIt(third);
  Run(microseconds(200));
  EXPECT_GT(Fault(fourth), ticket);
  GrantIt(fourth);
}

TEST_F(SpaceGatherTest, WhoWaitsGivesWayToAnOlderTicketAtOnceAndToNoYoungerOne) {
  for (const bool older : {true, false}) {
    const Gfn mine = Page(), next = Page();
    const uint64_t ticket = Fault(mine);
    GrantIt(mine);
    EXPECT_EQ(Fault(next), ticket);  // and waits
    Want(mine, older ? ticket - 1 : ticket + 1);
    const microseconds stays = Stays();
    if (older) {
      EXPECT_LE(stays, LongestHold() + kSlack);
    } else {
      EXPECT_GE(stays, kMostHold - milliseconds(1));
      EXPECT_LE(stays, kMostHold + milliseconds(1));
    }
    GrantIt(next);
    Run(milliseconds(30));  // the turn is over
  }
}

// Node 2's number is above this node's.
TEST_F(SpaceGatherTest, OfEqualTicketsTheLowerNodesIsTheOlder) {
  const Gfn mine = Page(), next = Page();
  const uint64_t ticket = Fault(mine);
  GrantIt(mine);
  Fault(next);
  Want(mine, ticket);
  EXPECT_GE(Stays(), kMostHold - milliseconds(1));
  GrantIt(next);
}

TEST_F(SpaceGatherTest, WhoRunsKeepsItsPagesForAsLongAsItWaitedAndNoLonger) {
  for (const milliseconds waits : {milliseconds(5), milliseconds(60)}) {
    const Gfn mine = Page();
    const uint64_t ticket = Fault(mine);
    timers_.Advance(waits);
    GrantIt(mine);
    Want(mine, ticket - 1);
    // It runs half of the time.
    const microseconds stays = Stays(microseconds(50)), most = std::min<microseconds>(waits, milliseconds(20)) * 2;
    EXPECT_GE(stays, most - kSlack) << waits.count();
    EXPECT_LE(stays, most + milliseconds(1)) << waits.count();
    Run(milliseconds(30));
  }
}

TEST_F(SpaceGatherTest, AThreadThatRestsKeepsNothing) {
  const Gfn mine = Page(), next = Page();
  const uint64_t ticket = Fault(mine);
  timers_.Advance(milliseconds(5));
  GrantIt(mine);
  frames_.gathers.at(kThread).rests = true;
  Want(mine, ticket + 1);
  EXPECT_LE(Stays(), LongestHold() + kSlack);
  frames_.gathers.at(kThread).rests = false;
  EXPECT_EQ(Fault(next), ticket) << "it goes on with its turn";
  GrantIt(next);
}

// Whoever asks for as many pages as that without running once is not let go on for ever.
TEST_F(SpaceGatherTest, ATurnEnds) {
  Gfn page = Page();
  const uint64_t ticket = Fault(page);
  for (const Monotonic since = clock_.now; clock_.now - since < milliseconds(299); page = Page(), Fault(page)) {
    timers_.Advance(milliseconds(23));
    GrantIt(page);
  }
  GrantIt(page);
  timers_.Advance(milliseconds(23));
  page = Page();
  EXPECT_GT(Fault(page), ticket);
  GrantIt(page);
}

TEST_F(SpaceGatherTest, TheOldestOfThoseWhoWaitForThePageSpeaksForThem) {
  Know(kOther);
  const Gfn first = Page(), both = Page();
  const uint64_t ticket = Fault(first, kOther);
  GrantIt(first, kOther);
  transport_.receive_slots = 0;  // the request waits
  frames_.waiting = {kThread, kOther};
  engine_->OnFault(both, true, kThread);
  engine_->OnFault(both, true, kOther);
  transport_.receive_slots = 10;
  engine_->OnSlotsFree(MessageClass::kFault, SlotUse::kReceive);
  ASSERT_EQ(transport_.sent.back().message.gfn, both);
  asked_ = transport_.sent.back();
  EXPECT_EQ(asked_.page.ticket, ticket);
  GrantIt(both);
  frames_.waiting.clear();
}

TEST_F(SpaceGatherTest, ATicketThatCannotBeIsNotBelieved) {
  const uint64_t before = Fault(Page());
  Refuse(transport_.sent.back());
  frames_.waiting.clear();
  Run(milliseconds(400));
  for (const uint64_t lie : {~uint64_t{0}, uint64_t{1} << 62}) Hear(lie);
  const Gfn page = Page();
  const uint64_t ticket = Fault(page);
  EXPECT_GT(ticket, before);
  EXPECT_LT(ticket, before + 10);
}

// Programs of a node whose threads nobody watches say none, and are held for as long as ever.
TEST_F(SpaceGatherTest, WhoIsNotKnownHasNoTicket) {
  frames_.gathers.clear();
  const Gfn page = Page();
  EXPECT_EQ(Fault(page), 0u);
  GrantIt(page);
  Want(page, 1);
  frames_.waiting = {kThread};
  EXPECT_LE(Stays(), milliseconds(11));
  frames_.waiting.clear();
}

}  // namespace
}  // namespace hk
