// Batches between engines: two or three of them, whose messages are delivered when the test says so. Single steps of
// one engine: space_engine_test.cc; whole clusters: tests/sim/space_sim_test.cc.
#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/memory/page_batch.h"
#include "hyperkernel/memory/space_network_testing.h"

namespace hk {
namespace {

using testing::HasSubstr;

class SpaceBatchTest : public SpaceNetworkTest {
 protected:
  static constexpr uint16_t TypeOf(PageBatchType type) {
    return static_cast<uint16_t>(kFirstBatchType + static_cast<uint16_t>(type));
  }
};

// Extents whose home reads, and whose home owns; two ends of extents.
TEST_F(SpaceBatchTest, AScanComesInBatchesAndEveryPageIsRight) {
  Make(2);
  Write(1, 0, 2 * kExtentPages);
  ReadInOrder(0, 0, 2 * kExtentPages);
  const SpaceStatistics statistics = Of(0);
  EXPECT_GT(statistics.prefetched, 2 * kExtentPages * 9 / 10);
  EXPECT_LT(statistics.batches, statistics.prefetched / 10);
  EXPECT_EQ(statistics.empties, 0u);
  EXPECT_EQ(statistics.prefetch_wasted, 0u);
  EXPECT_EQ(Of(1).served, 2 * kExtentPages);
  // The owner writes again: every copy is taken away first.
  Write(1, 100, 4);
  for (uint64_t page = 100; page < 104; ++page) EXPECT_EQ(nodes_[0]->engine->RightOf(Gfn(page)), PageRight::kNone);
}

// The home is neither, pages of two owners lie side by side: each page comes, by a batch or by itself.
TEST_F(SpaceBatchTest, PagesOfOthersThanTheFirstOwnerAreDeclined) {
  Make(4);
  for (uint64_t page = 0; page < 120; ++page) Write(page % 3 == 0 ? 2 : 3, kExtentPages + page, 1);
  ReadInOrder(0, kExtentPages, 120);
  EXPECT_GT(Of(0).batches, 3u);
  EXPECT_GT(Of(0).prefetch_useful, 20u);
}

// Zeroes have no bytes on the way, also beside pages that have.
TEST_F(SpaceBatchTest, PagesThatNobodyWroteComeAsZeroes) {
  Make(3);
  for (uint64_t page = 1; page < 60; page += 2) Write(2, kExtentPages + page, 1);
  for (uint64_t page = 0; page < 60; ++page) {
    if (!nodes_[0]->frames.pages.contains(kExtentPages + page))
      nodes_[0]->engine->OnFault(Gfn(kExtentPages + page), false);
    DeliverAll();
    Expect(0, kExtentPages + page, page % 2 == 0 ? '\0' : ByteOf(kExtentPages + page));
  }
  EXPECT_GT(Of(0).batches, 2u);
  EXPECT_EQ(Of(2).served, 30u);
}

// Held and pinned pages of an owner that is not the home: the rest of the batch comes at once, these without bytes
// later.
TEST_F(SpaceBatchTest, WhatIsHeldOrPinnedDoesNotDelayTheRest) {
  Make(3);
  const uint64_t first = kExtentPages;  // at home at node 1
  Write(2, first, 12);
  nodes_[2]->engine->Pin(Gfn(first + 5), 1, [](const absl::Status& status) { EXPECT_TRUE(status.ok()); });
  ReadInOrder(0, first, 4);
  // The next ones: with the first four, named when page 4 is wanted.
  nodes_[0]->engine->OnFault(Gfn(first + 4), false);
  DeliverAll();
  EXPECT_FALSE(nodes_[0]->frames.pages.contains(first + 5));
  Expect(0, first + 6, ByteOf(first + 6));
  Expect(0, first + 7, ByteOf(first + 7));
  nodes_[0]->engine->OnFault(Gfn(first + 5), false);
  DeliverAll();
  EXPECT_FALSE(nodes_[0]->frames.pages.contains(first + 5));
  nodes_[2]->engine->Unpin(Gfn(first + 5), 1);
  Pass(std::chrono::milliseconds(1));
  Expect(0, first + 5, ByteOf(first + 5));
  EXPECT_EQ(Of(0).empties, 1u);
  EXPECT_GT(Woken(0, first + 5), 0);
}

// A program may come to a page that was put off when nobody else waits for anything: it waits no longer than others do.
TEST_F(SpaceBatchTest, WhoWaitsForAPageThatWasPutOffHasADeadline) {
  Make(3);
  const uint64_t first = kExtentPages;
  Write(2, first, 12);
  nodes_[2]->engine->Pin(Gfn(first + 5), 1, [](const absl::Status& status) { EXPECT_TRUE(status.ok()); });
  ReadInOrder(0, first, 5);
  const std::chrono::milliseconds limit = SpaceConfig().request_limit;
  for (int quarter = 0; quarter < 8; ++quarter) Pass(limit / 4);  // no look is on its way any more
  nodes_[0]->engine->OnFault(Gfn(first + 5), false);
  for (int quarter = 0; quarter < 6; ++quarter) Pass(limit / 4);
  ASSERT_FALSE(stops_.empty());
  EXPECT_THAT(stops_[0], HasSubstr("it could not be had within 30000 ms"));
  for (const auto& node : nodes_) node->engine->Stop(absl::CancelledError("enough"));
  Forget();
}

// What no correct owner says: Empty for a page that it gave or never put off; an answer for pages of another shard.
TEST_F(SpaceBatchTest, AnswersToWhatWasNotAskedStopTheSpace) {
  for (const bool empty : {true, false}) {
    Make(2);
    const uint64_t first = kExtentPages;
    Write(1, first, 12);
    ReadInOrder(0, first, 1);
    nodes_[0]->engine->OnFault(Gfn(first + 1), false);
    ASSERT_TRUE(DeliverOne([](const Sent& s) { return s.message.type == TypeOf(PageBatchType::kRequest); }));
    const auto answer = std::find_if(network_.begin(), network_.end(),
                                     [](const Sent& s) { return s.message.type == TypeOf(PageBatchType::kAnswer); });
    ASSERT_NE(answer, network_.end());
    if (empty) {
      PageBody body;
      Message message = SpaceEmptyMessage(answer->message.transaction, 1, &body);
      message.guest = answer->message.guest;
      message.generation = answer->message.generation;
      message.epoch = answer->message.epoch;
      message.gfn = Gfn(first + 2);
      nodes_[0]->engine->OnMessage(NodeId(1), message, {}, false);
    } else {
      answer->message.gfn = Gfn(answer->message.gfn.value() + 2 * kExtentPages);
      ASSERT_TRUE(DeliverOne([](const Sent& s) { return s.message.type == TypeOf(PageBatchType::kAnswer); }));
    }
    ASSERT_FALSE(stops_.empty());
    EXPECT_THAT(stops_[0], HasSubstr(empty ? "did not put off" : "asked of other pages"));
    for (const auto& node : nodes_) node->engine->Stop(absl::CancelledError("enough"));
    Forget();
  }
}

// The owner has no slot to send from: all are granted without bytes, and come when they are wanted.
TEST_F(SpaceBatchTest, WithoutASlotNothingWaits) {
  Make(3);
  Write(2, kExtentPages, 40);
  nodes_[2]->transport.bulk_send_slots = 0;
  ReadInOrder(0, kExtentPages, 40);
  EXPECT_GT(Of(0).empties, 10u);
}

// A program that waits for a page of a batch is woken by its installation, and a writer that wants one of the pages
// waits until all is done.
TEST_F(SpaceBatchTest, ProgramsAndWritersWaitForWhatIsUnderWay) {
  Make(2);
  const uint64_t first = kExtentPages;
  Write(1, first, 12);
  ReadInOrder(0, first, 1);
  nodes_[0]->engine->OnFault(Gfn(first + 1), false);
  const auto is = [](PageBatchType type) { return [type](const Sent& s) { return s.message.type == TypeOf(type); }; };
  ASSERT_TRUE(DeliverOne(is(PageBatchType::kRequest)));
  // The home, which is the owner, wants one of the pages that are on their way; a program waits for another.
  int written = 0;
  nodes_[1]->engine->Want(Gfn(first + 3), PageAccess::kWrite, [&](const absl::Status& status) {
    EXPECT_TRUE(status.ok());
    ++written;
  });
  nodes_[0]->engine->OnFault(Gfn(first + 2), false);
  EXPECT_EQ(written, 0);
  EXPECT_EQ(Woken(0, first + 2), 0);
  ASSERT_TRUE(DeliverOne(is(PageBatchType::kAnswer)));
  EXPECT_EQ(Woken(0, first + 2), 1);
  EXPECT_EQ(nodes_[1]->frames.pages[first + 3].first, PageAccess::kRead);
  EXPECT_EQ(written, 0);
  ASSERT_EQ(Waiting(TypeOf(PageBatchType::kDone)), 1u);
  DeliverAll();
  Pass(std::chrono::milliseconds(1));  // the reader's hold
  EXPECT_EQ(written, 1);
  EXPECT_FALSE(nodes_[0]->frames.pages.contains(first + 3));
  Pass(std::chrono::milliseconds(1));
}

}  // namespace
}  // namespace hk
