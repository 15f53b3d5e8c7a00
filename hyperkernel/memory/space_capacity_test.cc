// The fault engine when frames are short: swap. One node, whose swap ends when the test says so. Offers and copies
// between nodes: space_engine_room_test.cc; whole clusters: tests/sim/space_sim_test.cc.
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/memory/engine_testing.h"
#include "hyperkernel/memory/space_engine.h"
#include "hyperkernel/memory/space_testing.h"

namespace hk {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

// What is written stays under way until the test ends it.
class HeldSwap final : public PageSwap {
 public:
  void Write(Gfn gfn, std::shared_ptr<const SwapPage> page, Done done) override {
    writes.push_back({gfn, std::move(page), nullptr, std::move(done)});
  }
  void Read(Gfn gfn, std::shared_ptr<SwapPage> page, Done done) override {
    EXPECT_TRUE(pages.contains(gfn.value())) << gfn.value() << " is not in the swap";
    reads.push_back({gfn, nullptr, std::move(page), std::move(done)});
  }
  void Forget(Gfn gfn) override { EXPECT_EQ(pages.erase(gfn.value()), 1u) << gfn.value(); }

  void EndWrite(const absl::Status& status = absl::OkStatus()) {
    ASSERT_FALSE(writes.empty());
    const Order order = std::move(writes.front());
    writes.erase(writes.begin());
    if (status.ok()) pages[order.gfn.value()] = *order.from;
    order.done(status);
  }
  void EndRead(const absl::Status& status = absl::OkStatus()) {
    ASSERT_FALSE(reads.empty());
    const Order order = std::move(reads.front());
    reads.erase(reads.begin());
    if (status.ok()) *order.to = pages.at(order.gfn.value());
    order.done(status);
  }

  struct Order {
    Gfn gfn;
    std::shared_ptr<const SwapPage> from;
    std::shared_ptr<SwapPage> to;
    Done done;
  };
  std::vector<Order> writes, reads;
  std::map<uint64_t, SwapPage> pages;
};

constexpr NodeId kSelf(0);

class SpaceCapacityTest : public testing::Test {
 protected:
  void Make(uint64_t swap_pages) {
    engine_.reset();
    SpaceConfig config;
    config.guest = GuestId(5);
    config.self = kSelf;
    config.nodes = {kSelf};
    config.pages = 4 * kExtentPages;
    config.max_pages = most_;
    frames_.most = most_;
    config.swap_pages = swap_pages;
    config_ = config;
    auto made = SpaceEngine::Create(
        config, &transport_, &frames_, &timers_, clock_, [this](const absl::Status& why) { stops_.push_back(why); },
        &swap_);
    ASSERT_TRUE(made.ok()) << made.status();
    engine_ = *std::move(made);
  }
  void Want(uint64_t page, PageAccess access, Wish* wish) { engine_->Want(Gfn(page), access, wish->End()); }
  // Writes a byte of the page's own into it. Needs a frame at once.
  void Fill(uint64_t page) {
    Wish wish;
    Want(page, PageAccess::kWrite, &wish);
    ASSERT_EQ(wish.ends, 1);
    ASSERT_TRUE(wish.status.ok()) << wish.status;
    frames_.pages.at(page).second[100] = static_cast<std::byte>(page + 1);
  }
  std::chrono::microseconds LongestHold() const { return LongestOf(config_.hold); }
  // As many pages as there are frames, none held any more.
  void FillAll() {
    for (uint64_t page = 0; page < kLeastFrames; ++page) Fill(page);
    clock_.now += LongestHold();
  }
  // With a swap, and all frames full; then one more page is wanted. Returns the one that is being written for it.
  uint64_t WantOneMore() {
    Make(100);
    FillAll();
    Want(50, PageAccess::kWrite, &more_);
    EXPECT_THAT(swap_.writes, SizeIs(1));
    return swap_.writes.at(0).gfn.value();
  }
  // The same until that page is in the swap, and nothing is held.
  uint64_t SwapOneOut() {
    const uint64_t gone = WantOneMore();
    swap_.EndWrite();
    EXPECT_EQ(more_.ends, 1);
    clock_.now += LongestHold();
    return gone;
  }
  void ExpectStopped(const std::string& reason) {
    ASSERT_THAT(stops_, SizeIs(1));
    EXPECT_THAT(std::string(stops_[0].message()), HasSubstr(reason));
  }
  std::byte ByteOf(uint64_t page) { return frames_.pages.at(page).second[100]; }

  FakeClock clock_;
  FakeTimers timers_{&clock_};
  FakeFrames frames_;
  HeldSwap swap_;
  NotingTransport transport_;
  SpaceConfig config_;
  Wish more_;  // WantOneMore's
  uint64_t most_ = kLeastFrames;
  std::vector<absl::Status> stops_;
  std::unique_ptr<SpaceEngine> engine_;
};

TEST_F(SpaceCapacityTest, APageGoesToTheSwapAndComesBack) {
  const uint64_t gone = WantOneMore();
  // Its frame is given to nobody before it is written.
  EXPECT_EQ(more_.ends, 0);
  EXPECT_EQ(engine_->Statistics().pages_swapped, 0u);
  swap_.EndWrite();
  EXPECT_EQ(more_.ends, 1);
  EXPECT_TRUE(more_.status.ok());
  EXPECT_EQ(engine_->Statistics().pages_swapped, 1u);
  EXPECT_FALSE(frames_.pages.contains(gone));
  // This node has it still, and nobody else is asked.
  EXPECT_EQ(engine_->RightOf(Gfn(gone)), PageRight::kExclusive);
  // Somebody touches it: another one leaves first.
  clock_.now += LongestHold();
  engine_->OnFault(Gfn(gone), true);
  EXPECT_THAT(swap_.reads, IsEmpty());
  ASSERT_THAT(swap_.writes, SizeIs(1));
  EXPECT_NE(swap_.writes[0].gfn.value(), gone);
  swap_.EndWrite();
  ASSERT_THAT(swap_.reads, SizeIs(1));
  EXPECT_THAT(frames_.woken, IsEmpty());
  swap_.EndRead();
  EXPECT_THAT(frames_.woken, testing::ElementsAre(gone));
  EXPECT_EQ(frames_.pages.at(gone).first, PageAccess::kWrite);
  EXPECT_EQ(ByteOf(gone), static_cast<std::byte>(gone + 1));
  EXPECT_FALSE(swap_.pages.contains(gone));
  EXPECT_EQ(engine_->Residue().active_pages, 0u);
  EXPECT_EQ(engine_->Statistics().swap_reads, 1u);
}

TEST_F(SpaceCapacityTest, WhatIsTouchedOnItsWayComesBackAtOnce) {
  Wish back;
  const uint64_t gone = WantOneMore();
  Want(gone, PageAccess::kWrite, &back);
  EXPECT_EQ(back.ends, 1);
  EXPECT_EQ(ByteOf(gone), static_cast<std::byte>(gone + 1));
  frames_.pages.at(gone).second[100] = std::byte{0xee};
  // What was written is old, and forgotten.
  swap_.EndWrite();
  EXPECT_THAT(swap_.pages, IsEmpty());
  EXPECT_EQ(ByteOf(gone), std::byte{0xee});
  EXPECT_EQ(engine_->Statistics().pages_swapped, 0u);
  // And another page goes for it.
  timers_.Advance(std::chrono::milliseconds(10));
  ASSERT_THAT(swap_.writes, SizeIs(1));
  swap_.EndWrite();
  EXPECT_EQ(more_.ends, 1);
}

TEST_F(SpaceCapacityTest, AFailedWriteKeepsThePage) {
  const uint64_t kept = WantOneMore();
  swap_.EndWrite(absl::ResourceExhaustedError("the disk is full"));
  EXPECT_EQ(ByteOf(kept), static_cast<std::byte>(kept + 1));
  EXPECT_EQ(frames_.pages.size(), kLeastFrames);
  EXPECT_EQ(engine_->Statistics().swap_failures, 1u);
  // Not again at once; but later.
  timers_.Advance(std::chrono::milliseconds(100));
  EXPECT_THAT(swap_.writes, IsEmpty());
  timers_.Advance(std::chrono::seconds(1));
  ASSERT_THAT(swap_.writes, SizeIs(1));
  for (int i = 0; i < 100 && stops_.empty(); ++i) {
    if (!swap_.writes.empty()) swap_.EndWrite(absl::ResourceExhaustedError("the disk is full"));
    timers_.Advance(std::chrono::seconds(1));
  }
  ExpectStopped("all 8 frames");
  EXPECT_THAT(std::string(stops_[0].message()), HasSubstr("the disk is full"));
  EXPECT_TRUE(absl::IsResourceExhausted(more_.status));
}

TEST_F(SpaceCapacityTest, AFailedReadStopsTheSpace) {
  const uint64_t gone = SwapOneOut();
  Wish back;
  Want(gone, PageAccess::kRead, &back);
  swap_.EndWrite();
  swap_.EndRead(absl::DataLossError("swap file x: these are not the bytes"));
  EXPECT_EQ(back.ends, 1);
  EXPECT_TRUE(absl::IsDataLoss(back.status));
  ExpectStopped("swap file x");
  EXPECT_THAT(std::string(stops_[0].message()), HasSubstr("page at GPA"));
}

TEST_F(SpaceCapacityTest, ADiskThatDoesNotAnswerIsNamed) {
  const uint64_t gone = SwapOneOut();
  Wish back;
  Want(gone, PageAccess::kRead, &back);
  swap_.EndWrite();
  ASSERT_THAT(swap_.reads, SizeIs(1));
  timers_.Advance(config_.request_limit * 2);
  ExpectStopped("the disk of the swap did not answer");
  EXPECT_EQ(back.ends, 1);
  swap_.EndRead();  // late
}

TEST_F(SpaceCapacityTest, AFullSwapIsNamed) {
  Make(1);
  FillAll();
  Wish one, two;
  Want(50, PageAccess::kWrite, &one);
  swap_.EndWrite();
  EXPECT_EQ(one.ends, 1);
  clock_.now += LongestHold();
  Want(51, PageAccess::kWrite, &two);
  EXPECT_THAT(swap_.writes, IsEmpty());
  timers_.Advance(config_.request_limit * 2);
  ExpectStopped("its swap of 1 pages is full");
}

TEST_F(SpaceCapacityTest, AStopWhileItReadsAndWrites) {
  const uint64_t gone = SwapOneOut();
  Wish back, third;
  Want(gone, PageAccess::kRead, &back);
  swap_.EndWrite();
  Want(60, PageAccess::kRead, &third);
  engine_->Stop(absl::CancelledError("enough"));
  EXPECT_EQ(back.ends + third.ends, 2);
  while (!swap_.reads.empty()) swap_.EndRead();
  while (!swap_.writes.empty()) swap_.EndWrite();
  EXPECT_EQ(engine_->Residue().active_pages, 0u);
}

TEST_F(SpaceCapacityTest, PagesOfZeroesAreGivenUpWithoutAnything) {
  Make(100);
  Wish wishes[kLeastFrames];
  for (uint64_t page = 0; page < kLeastFrames; ++page) Want(page, PageAccess::kWrite, &wishes[page]);
  clock_.now += LongestHold();
  frames_.pages.at(0).second[kPageSize - 1] = std::byte{1};
  Wish more[kLeastFrames];
  for (uint64_t i = 0; i < kLeastFrames - 1; ++i) {
    Want(50 + i, PageAccess::kWrite, &more[i]);
    if (more[i].ends == 0) swap_.EndWrite();  // the one that is not
    ASSERT_EQ(more[i].ends, 1) << i;
    timers_.Advance(LongestHold());
  }
  EXPECT_LE(engine_->Statistics().swap_writes, 1u);
  EXPECT_THAT(swap_.writes, IsEmpty());
  EXPECT_GE(engine_->Statistics().zeroed, kLeastFrames - 2);
  // It is zero still, for whoever comes, and can be written.
  while (!swap_.writes.empty()) swap_.EndWrite();
  Wish again;
  Want(3, PageAccess::kWrite, &again);
  while (!swap_.writes.empty()) swap_.EndWrite();
  ASSERT_EQ(again.ends, 1);
  EXPECT_EQ(frames_.pages.at(3).second, FakeFrames::Bytes{});
  EXPECT_THAT(stops_, IsEmpty());
}

// The last store comes before the page is protected, and after it looked like zeroes.
TEST_F(SpaceCapacityTest, AStoreAtTheLastMomentKeepsAPageOfZeroes) {
  Make(100);
  Wish wishes[kLeastFrames], more;
  for (uint64_t page = 0; page < kLeastFrames; ++page) Want(page, PageAccess::kWrite, &wishes[page]);
  clock_.now += LongestHold();
  frames_.before_protection = [this](uint64_t page) { frames_.pages.at(page).second[2000] = std::byte{7}; };
  Want(50, PageAccess::kWrite, &more);
  EXPECT_EQ(engine_->Statistics().zeroed, 0u);
  ASSERT_THAT(swap_.writes, SizeIs(1));
  EXPECT_EQ(swap_.writes[0].from->bytes[2000], std::byte{7});
  frames_.before_protection = nullptr;
  swap_.EndWrite();
  EXPECT_EQ(more.ends, 1);
}

// The hand stands before the page that was granted last.
TEST_F(SpaceCapacityTest, WhatWasJustGrantedIsNotGivenUp) {
  Make(100);
  for (uint64_t page = 8; page < 8 + 2 * kLeastFrames; page += 2) Fill(page);
  clock_.now += LongestHold();
  Wish one, two;
  Want(9, PageAccess::kWrite, &one);
  ASSERT_THAT(swap_.writes, SizeIs(1));
  EXPECT_EQ(swap_.writes[0].gfn.value(), 8u);
  swap_.EndWrite();
  ASSERT_EQ(one.ends, 1);
  frames_.pages.at(9).second[0] = std::byte{1};
  clock_.now += LongestHold();
  Want(30, PageAccess::kWrite, &two);
  ASSERT_THAT(swap_.writes, SizeIs(1));
  EXPECT_EQ(swap_.writes[0].gfn.value(), 10u);
  swap_.EndWrite();
}

TEST_F(SpaceCapacityTest, FramesAreFreedAheadOfNeed) {
  most_ = 512;
  Make(1000);
  // No wish waits, as long as the swap keeps up.
  for (uint64_t page = 0; page < 1000; ++page) {
    Fill(page);
    timers_.Advance(LongestHold() * 20);
    while (!swap_.writes.empty()) swap_.EndWrite();
  }
  const SpaceStatistics statistics = engine_->Statistics();
  EXPECT_GT(statistics.pages_swapped, 1000u - most_);
  EXPECT_LT(statistics.pages_swapped, 1000u - most_ + 2 * most_ / 32);
  // And nothing goes on without anybody.
  timers_.Advance(std::chrono::seconds(1));
  EXPECT_THAT(swap_.writes, IsEmpty());
}

TEST_F(SpaceCapacityTest, APinnedPageIsNeverGivenUp) {
  Make(100);
  FillAll();
  Wish pin;
  engine_->Pin(Gfn(2), 3, pin.End());
  ASSERT_EQ(pin.ends, 1);
  ASSERT_TRUE(pin.status.ok()) << pin.status;
  EXPECT_EQ(engine_->Statistics().pages_pinned, 3u);
  Wish wishes[2 * kLeastFrames];
  for (uint64_t i = 0; i < 2 * kLeastFrames; ++i) {
    Want(50 + i, PageAccess::kWrite, &wishes[i]);
    for (int tries = 0; tries < 10 && wishes[i].ends == 0; ++tries) {
      if (!swap_.writes.empty()) swap_.EndWrite();
      timers_.Advance(LongestHold());
    }
    ASSERT_EQ(wishes[i].ends, 1) << i;
    frames_.pages.at(50 + i).second[0] = std::byte{1};
    timers_.Advance(LongestHold());
    for (uint64_t page = 2; page < 5; ++page) ASSERT_TRUE(frames_.pages.contains(page)) << page << " is gone";
  }
  // More than half of the frames, out of the space, nothing.
  const auto refused = [this](Gfn first, uint64_t count) {
    absl::Status end = absl::UnknownError("not yet");
    engine_->Pin(first, count, [&end](const absl::Status& status) { end = status; });
    return end.code();
  };
  EXPECT_EQ(refused(Gfn(60), 2), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused(Gfn(config_.pages - 1), 2), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(refused(Gfn(0), 0), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(refused(Gfn(1), ~uint64_t{0}), absl::StatusCode::kOutOfRange);
  engine_->Unpin(Gfn(2), 3);
  EXPECT_EQ(engine_->Statistics().pages_pinned, 0u);
  EXPECT_EQ(engine_->Residue().active_pages, 0u);
  EXPECT_EQ(refused(Gfn(2), 2), absl::StatusCode::kOk);
  engine_->Unpin(Gfn(2), 2);
}

TEST_F(SpaceCapacityTest, ASwappedPageIsPinnedWhenItIsBack) {
  Wish pin;
  const uint64_t gone = WantOneMore();
  swap_.EndWrite();
  timers_.Advance(LongestHold());
  engine_->Pin(Gfn(gone), 2, pin.End());
  EXPECT_EQ(pin.ends, 0);
  swap_.EndWrite();
  swap_.EndRead();
  timers_.Advance(Monotonic::duration(0));
  while (!swap_.writes.empty()) swap_.EndWrite();
  while (!swap_.reads.empty()) swap_.EndRead();
  timers_.Advance(Monotonic::duration(0));
  EXPECT_EQ(pin.ends, 1);
  EXPECT_TRUE(pin.status.ok());
  EXPECT_EQ(ByteOf(gone), static_cast<std::byte>(gone + 1));
  engine_->Unpin(Gfn(gone), 2);
}

TEST_F(SpaceCapacityTest, ASwapNeedsABoundOfFrames) {
  SpaceConfig config;
  config.guest = GuestId(5);
  config.self = kSelf;
  config.nodes = {kSelf};
  config.pages = 100;
  config.swap_pages = 10;
  EXPECT_TRUE(absl::IsInvalidArgument(
      SpaceEngine::Create(config, &transport_, &frames_, &timers_, clock_, {}, &swap_).status()));
  config.max_pages = kLeastFrames;
  EXPECT_TRUE(
      absl::IsInvalidArgument(SpaceEngine::Create(config, &transport_, &frames_, &timers_, clock_, {}).status()));
}

}  // namespace
}  // namespace hk
