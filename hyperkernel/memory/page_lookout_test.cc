#include "hyperkernel/memory/page_lookout.h"

#include <atomic>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk {
namespace {

GuestAccess Access(uint64_t page, uint64_t code) {
  return {.page = Gfn(page), .vcpu = VcpuId(1), .code = code, .user = true, .address = std::nullopt};
}

TEST(PageLookoutTest, NobodyIsStoppedWhereNobodyAsks) {
  PageLookout lookout;
  EXPECT_FALSE(lookout.Take(Gfn(0)));
  lookout.Want({});
  EXPECT_FALSE(lookout.Take(Gfn(0)));
}

TEST(PageLookoutTest, APageIsTakenOnceForEachTimeItIsAskedFor) {
  PageLookout lookout;
  const std::vector<Gfn> pages = {Gfn(0), Gfn(7)};
  for (int i = 0; i < 2; ++i) {
    lookout.Want(pages);
    EXPECT_FALSE(lookout.Take(Gfn(8)));
    EXPECT_TRUE(lookout.Take(Gfn(7)));
    EXPECT_FALSE(lookout.Take(Gfn(7)));
    EXPECT_TRUE(lookout.Take(Gfn(0)));
    EXPECT_FALSE(lookout.Take(Gfn(0)));
  }
}

TEST(PageLookoutTest, WhatIsNoLongerAskedForIsForgotten) {
  PageLookout lookout;
  lookout.Want(std::vector<Gfn>{Gfn(1), Gfn(2)});
  lookout.Want(std::vector<Gfn>{Gfn(3)});
  EXPECT_FALSE(lookout.Take(Gfn(1)));
  EXPECT_FALSE(lookout.Take(Gfn(2)));
  EXPECT_TRUE(lookout.Take(Gfn(3)));
}

TEST(PageLookoutTest, AsManyAsItSays) {
  PageLookout lookout;
  std::vector<Gfn> pages;
  for (uint64_t i = 0; i <= PageLookout::kMostPages; ++i) pages.emplace_back(100 + i);
  lookout.Want(pages);
  for (uint64_t i = 0; i < PageLookout::kMostPages; ++i) EXPECT_TRUE(lookout.Take(pages[i])) << i;
  EXPECT_FALSE(lookout.Take(pages.back()));
}

TEST(PageLookoutTest, TheLastAccessIsRemembered) {
  PageLookout lookout;
  EXPECT_EQ(lookout.Seen(Gfn(1)), std::nullopt);
  lookout.Note(Access(1, 0x10));
  lookout.Note(Access(2, 0x20));
  lookout.Note(Access(1, 0x30));
  EXPECT_EQ(lookout.Seen(Gfn(1)), Access(1, 0x30));
  EXPECT_EQ(lookout.Seen(Gfn(2)), Access(2, 0x20));
}

TEST(PageLookoutTest, ABoundedNumberIsRemembered) {
  PageLookout lookout;
  for (uint64_t i = 0; i < PageLookout::kMostSeen + 2; ++i) lookout.Note(Access(i, i));
  EXPECT_EQ(lookout.Seen(Gfn(0)), std::nullopt);
  EXPECT_EQ(lookout.Seen(Gfn(1)), std::nullopt);
  for (uint64_t i = 2; i < PageLookout::kMostSeen + 2; ++i) EXPECT_EQ(lookout.Seen(Gfn(i)), Access(i, i));
}

TEST(PageLookoutTest, OneOfManyThreadsIsStopped) {
  constexpr int kRounds = 200;
  PageLookout lookout;
  const std::vector<Gfn> pages = {Gfn(5)};
  for (int round = 0; round < kRounds; ++round) {
    lookout.Want(pages);
    std::atomic<int> taken{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back([&] { taken += lookout.Take(Gfn(5)) ? 1 : 0; });
    }
    for (std::thread& thread : threads) thread.join();
    ASSERT_EQ(taken, 1);
  }
}

}  // namespace
}  // namespace hk
