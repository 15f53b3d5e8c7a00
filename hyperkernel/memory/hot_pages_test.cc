#include "hyperkernel/memory/hot_pages.h"

#include <algorithm>
#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk {
namespace {

const Monotonic kStart = Monotonic() + std::chrono::hours(1000);

std::map<uint64_t, HotPage> Tracked(const HotPages& pages, Monotonic now) {
  std::vector<HotPage> all;
  pages.AppendTo(now, &all);
  std::map<uint64_t, HotPage> by_page;
  for (const HotPage& page : all) EXPECT_TRUE(by_page.emplace(page.page.value(), page).second) << "twice";
  return by_page;
}

TEST(DecayedCount, HalvesInItsHalfLife) {
  DecayedCount count;
  EXPECT_EQ(count.At(kStart), 0);
  for (int i = 0; i < 64; ++i) count.Add(kStart);
  EXPECT_EQ(count.At(kStart), 64);
  EXPECT_NEAR(count.At(kStart + DecayedCount::kHalfLife), 32, 0.01);
  EXPECT_NEAR(count.At(kStart + 6 * DecayedCount::kHalfLife), 1, 0.01);
  EXPECT_NEAR(count.At(kStart + std::chrono::hours(24 * 365)), 0, 0.01);
  EXPECT_EQ(count.At(kStart - std::chrono::seconds(5)), 64) << "a clock that goes back";
  count.Add(kStart + DecayedCount::kHalfLife);
  EXPECT_NEAR(count.At(kStart + DecayedCount::kHalfLife), 33, 0.01);
}

TEST(HotPages, CountsLossesByPage) {
  HotPages pages;
  pages.Lost(Gfn(7), true, NodeId(2), kStart);
  pages.Lost(Gfn(7), false, NodeId(3), kStart);
  pages.Lost(Gfn(9), false, NodeId(2), kStart);
  const auto tracked = Tracked(pages, kStart);
  ASSERT_EQ(tracked.size(), 2u);
  EXPECT_EQ(tracked.at(7).losses, 2u);
  EXPECT_EQ(tracked.at(7).owner_losses, 1u);
  EXPECT_EQ(tracked.at(7).taker, NodeId(3));
  EXPECT_EQ(tracked.at(7).lately, 2);
  EXPECT_EQ(tracked.at(9).losses, 1u);
}

// The bound: whoever has more than one in kTracked of all losses is there, with a weight that is not too low.
TEST(HotPages, FrequentPagesAreNotLostAmongOthers) {
  HotPages pages;
  uint64_t total = 0, next = 1000;
  std::map<uint64_t, uint64_t> hot{{1, 0}, {2, 0}, {3, 0}};
  for (int i = 0; i < 20'000; ++i) {
    for (auto& [page, losses] : hot) {
      pages.Lost(Gfn(page), true, NodeId(1), kStart);
      ++losses, ++total;
    }
    for (int other = 0; other < 10; ++other, ++total) pages.Lost(Gfn(next++), false, NodeId(1), kStart);
  }
  const auto tracked = Tracked(pages, kStart);
  ASSERT_EQ(tracked.size(), HotPages::kTracked);
  for (const auto& [page, losses] : hot) {
    ASSERT_GT(losses * HotPages::kTracked, total);
    ASSERT_TRUE(tracked.contains(page));
    EXPECT_GE(tracked.at(page).lately, static_cast<float>(losses));
    EXPECT_LE(tracked.at(page).losses, losses);
  }
}

TEST(HotPages, WhatWasHotLongAgoMakesRoom) {
  HotPages pages;
  for (uint64_t page = 0; page < HotPages::kTracked; ++page) {
    for (int i = 0; i < 100'000; ++i) pages.Lost(Gfn(page), true, NodeId(1), kStart);
  }
  const Monotonic later = kStart + 20 * DecayedCount::kHalfLife;
  for (int i = 0; i < 200; ++i) {
    pages.Lost(Gfn(100), true, NodeId(1), later);
    pages.Lost(Gfn(200), true, NodeId(2), later);
  }
  const auto tracked = Tracked(pages, later);
  ASSERT_TRUE(tracked.contains(100));
  ASSERT_TRUE(tracked.contains(200));
  EXPECT_EQ(tracked.at(100).losses, 200u);
  EXPECT_EQ(tracked.at(200).losses, 200u);
}

}  // namespace
}  // namespace hk
