#include "hyperkernel/memory/fault_meter.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;

constexpr Monotonic kStart{std::chrono::hours(1)};
constexpr uint32_t kOne = 1000, kOther = 1001;

uint64_t Ns(milliseconds time) {
  return static_cast<uint64_t>(std::chrono::nanoseconds(time).count());
}

class FaultMeterTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(meter_->Watch(kOne)); }

  const std::unique_ptr<FaultMeter> meter_ = std::make_unique<FaultMeter>();
};

TEST_F(FaultMeterTest, WaitsAreCountedByCause) {
  meter_->Began(kOne, Gfn(7), FaultCause::kRead, kStart);
  meter_->Woken(Gfn(7), 1, kStart + milliseconds(2));
  meter_->Began(kOne, Gfn(7), FaultCause::kUpgrade, kStart + milliseconds(5));
  meter_->Woken(Gfn(4), 4, kStart + milliseconds(6));
  EXPECT_FALSE(meter_->Waits(kOne));
  meter_->Began(kOne, Gfn(9), FaultCause::kWrite, kStart + milliseconds(8));
  EXPECT_TRUE(meter_->Waits(kOne));
  EXPECT_FALSE(meter_->Waits(kOther));
  const FaultTimes times = meter_->Of(kOne);
  EXPECT_THAT(times.faults, ElementsAre(1, 1, 1));
  EXPECT_THAT(times.ns, ElementsAre(Ns(milliseconds(2)), 0, Ns(milliseconds(1))));
}

TEST_F(FaultMeterTest, OnlyWhoWaitsForThePageIsWoken) {
  ASSERT_TRUE(meter_->Watch(kOther));
  meter_->Began(kOne, Gfn(7), FaultCause::kRead, kStart);
  meter_->Began(kOther, Gfn(8), FaultCause::kRead, kStart);
  meter_->Woken(Gfn(8), 100, kStart + milliseconds(1));
  meter_->Woken(Gfn(0), 7, kStart + milliseconds(1));
  EXPECT_THAT(meter_->Of(kOne).ns, ElementsAre(0, 0, 0));
  EXPECT_THAT(meter_->Of(kOther).ns, ElementsAre(Ns(milliseconds(1)), 0, 0));
  // Once.
  meter_->Woken(Gfn(8), 1, kStart + milliseconds(9));
  EXPECT_THAT(meter_->Of(kOther).ns, ElementsAre(Ns(milliseconds(1)), 0, 0));
}

TEST_F(FaultMeterTest, OthersAreNotCounted) {
  meter_->Began(kOther, Gfn(7), FaultCause::kRead, kStart);
  meter_->Began(0, Gfn(7), FaultCause::kRead, kStart);
  meter_->Woken(Gfn(7), 1, kStart + milliseconds(1));
  EXPECT_THAT(meter_->Of(kOther).faults, ElementsAre(0, 0, 0));
  EXPECT_THAT(meter_->Of(kOne).faults, ElementsAre(0, 0, 0));
}

TEST_F(FaultMeterTest, APlaceIsTakenAgain) {
  meter_->Began(kOne, Gfn(7), FaultCause::kRead, kStart);
  meter_->Forget(kOne);
  for (uint32_t i = 0; i < FaultMeter::kMostThreads; ++i) ASSERT_TRUE(meter_->Watch(2000 + i)) << i;
  EXPECT_FALSE(meter_->Watch(kOther));
  meter_->Woken(Gfn(7), 1, kStart + milliseconds(1));
  EXPECT_THAT(meter_->Of(2000).ns, ElementsAre(0, 0, 0));
  EXPECT_THAT(meter_->Of(2000).faults, ElementsAre(0, 0, 0));
}

// Of a thread that waits for pages, and another.
std::atomic<uint32_t> kicked{0};

TEST_F(FaultMeterTest, WhoWaitsForAPageThatIsAskedForIsStopped) {
  kicked = 0;
  meter_->SetKick([](uint32_t thread) { kicked = thread; });
  meter_->Began(kOne, Gfn(7), FaultCause::kRead, kStart);
  EXPECT_EQ(meter_->TakeLookedFor(kOne), std::nullopt) << "nobody asks";
  meter_->lookout().Want(std::vector<Gfn>{Gfn(7)});
  meter_->Began(kOther, Gfn(7), FaultCause::kRead, kStart);
  EXPECT_EQ(kicked, 0u) << "nobody watches it";
  meter_->Began(kOne, Gfn(8), FaultCause::kRead, kStart);
  EXPECT_EQ(kicked, 0u) << "another page";
  meter_->Began(kOne, Gfn(7), FaultCause::kRead, kStart);
  EXPECT_EQ(kicked, kOne);
  EXPECT_EQ(meter_->TakeLookedFor(kOne), Gfn(7));
  EXPECT_EQ(meter_->TakeLookedFor(kOne), std::nullopt) << "once";
}

TEST_F(FaultMeterTest, AnotherPageIsAnotherPlace) {
  meter_->lookout().Want(std::vector<Gfn>{Gfn(7)});
  meter_->Began(kOne, Gfn(7), FaultCause::kRead, kStart);
  meter_->Began(kOne, Gfn(8), FaultCause::kRead, kStart);
  EXPECT_EQ(meter_->TakeLookedFor(kOne), std::nullopt) << "the instruction is that of page 8";
}

class StallsTest : public FaultMeterTest {
 protected:
  // A wait of 2 ms that ends now.
  void Wait(uint32_t thread, Gfn page, FaultCause cause, std::optional<std::optional<NodeId>> holder) {
    meter_->Began(thread, page, cause, now_ - milliseconds(2));
    if (holder.has_value()) meter_->NoteHolder(page, 1, *holder);
    meter_->Woken(page, 1, now_);
  }
  std::vector<RemoteStall> Take(uint64_t dropped = 0) {
    std::vector<RemoteStall> stalls;
    EXPECT_EQ(meter_->TakeStalls(&stalls), dropped);
    return stalls;
  }
  Monotonic now_ = kStart + milliseconds(100);
};

TEST_F(StallsTest, WaitsForOtherNodesAreToldToWhoListens) {
  ASSERT_TRUE(meter_->Watch(kOther, 7));
  Wait(kOther, Gfn(1), FaultCause::kRead, NodeId(3));
  EXPECT_TRUE(Take().empty()) << "nobody listens";
  meter_->Listen(true);
  Wait(kOther, Gfn(2), FaultCause::kWrite, NodeId(3));
  Wait(kOther, Gfn(3), FaultCause::kRead, std::optional<NodeId>());
  Wait(kOther, Gfn(4), FaultCause::kRead, std::nullopt);  // no other node had to do with it
  Wait(kOne, Gfn(5), FaultCause::kUpgrade, NodeId(0));
  Wait(12345, Gfn(6), FaultCause::kRead, NodeId(3));  // nobody's
  const std::vector<RemoteStall> stalls = Take();
  ASSERT_EQ(stalls.size(), 3u);
  EXPECT_EQ(stalls[0].who, 7u);
  EXPECT_EQ(stalls[0].page, Gfn(2));
  EXPECT_EQ(stalls[0].cause, FaultCause::kWrite);
  EXPECT_EQ(stalls[0].holder, NodeId(3));
  EXPECT_EQ(stalls[0].end, now_);
  EXPECT_EQ(stalls[0].waited_ns, Ns(milliseconds(2)));
  EXPECT_EQ(stalls[1].page, Gfn(3));
  EXPECT_EQ(stalls[1].holder, std::nullopt);
  EXPECT_EQ(stalls[2].who, 0u);
  EXPECT_EQ(stalls[2].holder, NodeId(0));
  meter_->Listen(false);
  Wait(kOther, Gfn(7), FaultCause::kRead, NodeId(3));
  EXPECT_TRUE(Take().empty());
}

TEST_F(StallsTest, AHolderIsThatOfThePageThatIsWaitedFor) {
  meter_->Listen(true);
  meter_->Began(kOne, Gfn(5), FaultCause::kRead, kStart);
  meter_->NoteHolder(Gfn(0), 5, NodeId(1));
  meter_->Woken(Gfn(5), 1, now_);
  EXPECT_TRUE(Take().empty());
  // One that was noted for an earlier wait does not count.
  meter_->Began(kOne, Gfn(5), FaultCause::kRead, kStart);
  meter_->NoteHolder(Gfn(4), 2, NodeId(1));
  meter_->Began(kOne, Gfn(5), FaultCause::kRead, kStart);
  meter_->Woken(Gfn(5), 1, now_);
  EXPECT_TRUE(Take().empty());
}

TEST_F(StallsTest, WhatFindsNoRoomIsDroppedAndCounted) {
  meter_->Listen(true);
  for (uint64_t i = 0; i < StallRing::kCapacity + 5; ++i) Wait(kOne, Gfn(i), FaultCause::kRead, NodeId(1));
  const std::vector<RemoteStall> stalls = Take(5);
  ASSERT_EQ(stalls.size(), StallRing::kCapacity);
  EXPECT_EQ(stalls.front().page, Gfn(0));
  EXPECT_EQ(stalls.back().page, Gfn(StallRing::kCapacity - 1));
  Wait(kOne, Gfn(9), FaultCause::kRead, NodeId(1));
  EXPECT_EQ(Take().size(), 1u);
}

TEST_F(StallsTest, NoneIsLostOrTornBetweenThreads) {
  constexpr uint32_t kThreads = 3;
  constexpr uint64_t kRounds = 30000;
  meter_->Listen(true);
  std::vector<std::thread> threads;
  std::atomic<uint32_t> running{kThreads};
  for (uint32_t id = 1; id <= kThreads; ++id) {
    threads.emplace_back([this, id, &running] {
      EXPECT_TRUE(meter_->Watch(id, id));
      for (uint64_t i = 0; i < kRounds; ++i) {
        const Gfn page(id * kRounds + i);
        meter_->Began(id, page, FaultCause::kWrite, kStart);
        meter_->NoteHolder(page, 1, NodeId(static_cast<uint16_t>(id)));
        meter_->Woken(page, 1, kStart + std::chrono::nanoseconds(page.value()));
      }
      running.fetch_sub(1);
    });
  }
  uint64_t taken = 0, dropped = 0;
  std::vector<uint64_t> last(kThreads + 1);
  for (bool more = true; more;) {
    more = running.load() > 0;
    std::vector<RemoteStall> stalls;
    dropped += meter_->TakeStalls(&stalls);
    taken += stalls.size();
    for (const RemoteStall& stall : stalls) {
      ASSERT_TRUE(stall.who >= 1 && stall.who <= kThreads);
      EXPECT_EQ(stall.holder, NodeId(static_cast<uint16_t>(stall.who)));
      EXPECT_EQ(stall.page.value() / kRounds, stall.who);
      EXPECT_EQ(stall.waited_ns, stall.page.value());
      EXPECT_GT(stall.page.value(), last[stall.who]) << "a thread's are in order";
      last[stall.who] = stall.page.value();
    }
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(taken + dropped, kThreads * kRounds);
}

TEST_F(FaultMeterTest, ManyThreadsAtATime) {
  constexpr uint32_t kThreads = 4;
  constexpr uint64_t kRounds = 20000;
  std::vector<std::thread> threads;
  for (uint32_t id = 1; id <= kThreads; ++id) {
    threads.emplace_back([this, id] {
      EXPECT_TRUE(meter_->Watch(id));
      for (uint64_t i = 0; i < kRounds; ++i) {
        meter_->Began(id, Gfn(id), FaultCause::kWrite, kStart);
        meter_->Woken(Gfn(id), 1, kStart + std::chrono::nanoseconds(3));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (uint32_t id = 1; id <= kThreads; ++id) {
    EXPECT_THAT(meter_->Of(id).faults, ElementsAre(0, kRounds, 0));
    EXPECT_THAT(meter_->Of(id).ns, ElementsAre(0, 3 * kRounds, 0));
  }
}

}  // namespace
}  // namespace hk
