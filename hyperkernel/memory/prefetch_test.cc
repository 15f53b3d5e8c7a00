#include "hyperkernel/memory/prefetch.h"

#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr uint64_t kPages = 1 << 20;

// A program and its memory: what was named is there at once.
class Program {
 public:
  // True: it had to wait.
  bool Touch(uint64_t page) {
    if (!here_.insert(page).second) return false;
    std::vector<Gfn> fetch;
    streams.OnWanted(Gfn(page), kPages, &fetch);
    named = fetch.size();
    for (const Gfn one : fetch) {
      EXPECT_LT(one.value(), kPages);
      EXPECT_TRUE(here_.insert(one.value()).second) << one.value() << " is named again";
    }
    total += fetch.size();
    return true;
  }
  PrefetchStreams streams;
  size_t named = 0, total = 0;

 private:
  std::set<uint64_t> here_;
};

std::vector<uint64_t> Wanted(PrefetchStreams* streams, uint64_t page, uint64_t pages = kPages) {
  std::vector<Gfn> fetch;
  streams->OnWanted(Gfn(page), pages, &fetch);
  std::vector<uint64_t> numbers;
  for (const Gfn one : fetch) numbers.push_back(one.value());
  return numbers;
}

TEST(PrefetchStreams, TheNextPageBeginsAStreamThatGrows) {
  PrefetchStreams streams;
  EXPECT_THAT(Wanted(&streams, 100), IsEmpty());
  EXPECT_THAT(Wanted(&streams, 101), ElementsAre(102, 103, 105));  // 104 shows that the program came there
  EXPECT_EQ(streams.counts().useful, 0u);
  EXPECT_THAT(Wanted(&streams, 104), ElementsAre(106, 107, 108, 110, 111, 112));
  EXPECT_EQ(streams.counts().useful, 2u);
  EXPECT_THAT(Wanted(&streams, 104), IsEmpty());
  EXPECT_EQ(streams.counts().wasted, 0u);
}

TEST(PrefetchStreams, AProgramThatWaitsForWhatIsOnItsWayUsesIt) {
  PrefetchStreams streams;
  Wanted(&streams, 100);
  Wanted(&streams, 101);
  Wanted(&streams, 102);
  EXPECT_EQ(streams.counts().useful, 1u);
  Wanted(&streams, 103);
  EXPECT_EQ(streams.counts().useful, 2u);
}

TEST(PrefetchStreams, ALongScanWaitsSeldomAndWastesNothing) {
  Program program;
  uint64_t waits = 0;
  for (uint64_t page = 5000; page < 15000; ++page) {
    waits += program.Touch(page) ? 1 : 0;
    EXPECT_LE(program.named, PrefetchStreams::kMostAhead);
  }
  EXPECT_LT(waits, 10000u / 15);
  EXPECT_GT(program.streams.counts().useful, 9000u);
  EXPECT_EQ(program.streams.counts().wasted, 0u);
}

TEST(PrefetchStreams, StridesUpAndDown) {
  for (const int64_t step : {3, -1, -7, 256}) {
    Program program;
    uint64_t waits = 0;
    for (int64_t i = 0; i < 1000; ++i) waits += program.Touch(static_cast<uint64_t>(500'000 + i * step)) ? 1 : 0;
    EXPECT_LT(waits, 1000u / 10) << step;
    EXPECT_EQ(program.streams.counts().wasted, 0u) << step;
  }
}

TEST(PrefetchStreams, StreamsSideBySide) {
  Program program;
  uint64_t waits = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    for (uint64_t thread = 0; thread < 4; ++thread) waits += program.Touch(thread * 100'000 + i) ? 1 : 0;
  }
  EXPECT_LT(waits, 4000u / 10);
}

TEST(PrefetchStreams, BothEndsOfTheSpace) {
  PrefetchStreams streams;
  Wanted(&streams, 6, 10);
  EXPECT_THAT(Wanted(&streams, 7, 10), ElementsAre(8, 9));
  PrefetchStreams down;
  Wanted(&down, 5);
  Wanted(&down, 4);
  EXPECT_THAT(Wanted(&down, 3), ElementsAre(2, 1));
}

TEST(PrefetchStreams, RandomPagesNameLittle) {
  Program program;
  uint64_t seed = 1;
  for (int i = 0; i < 20'000; ++i) {
    seed = seed * 6364136223846793005U + 1442695040888963407U;
    program.Touch((seed >> 33) % kPages);
  }
  EXPECT_LT(program.total, 200u);
}

// Runs of a few pages, after which the program goes elsewhere.
TEST(PrefetchStreams, WhatIsInVainEnds) {
  Program program;
  for (uint64_t run = 0; run < 200; ++run) {
    for (uint64_t i = 0; i < 2; ++i) program.Touch(run * 5000 + i);
  }
  const size_t begun = program.total;
  EXPECT_GT(program.streams.counts().wasted, 10u);
  for (uint64_t run = 0; run < 200; ++run) {
    for (uint64_t i = 0; i < 2; ++i) program.Touch(2500 + run * 5000 + i);
  }
  EXPECT_LT(program.total - begun, 200u * PrefetchStreams::kFirstAhead / 10);
  // A long scan earns trust again.
  for (uint64_t run = 0; run < 64; ++run) {
    for (uint64_t i = 0; i < 40; ++i) program.Touch(200 + run * 5000 + i);
  }
  EXPECT_GT(program.total - begun, 30u);
}

TEST(PrefetchStreams, WhatIsTakenAwayMakesTheStreamSmaller) {
  PrefetchStreams streams;
  uint64_t last = 0;
  for (uint64_t page = 100; page < 140; ++page) {
    for (const uint64_t named : Wanted(&streams, page)) last = std::max(last, named);
  }
  const uint64_t useful = streams.counts().useful;
  for (uint64_t page = 140; page <= last; ++page) streams.OnGone(Gfn(page));
  EXPECT_GE(streams.counts().wasted, 4u);
  EXPECT_EQ(streams.counts().useful, useful);
  // It ended; another one begins small.
  EXPECT_THAT(Wanted(&streams, last + 1), IsEmpty());
  EXPECT_LT(Wanted(&streams, last + 2).size(), PrefetchStreams::kFirstAhead);
  // What was not fetched is nobody's fault, and not counted when the program comes there.
  PrefetchStreams others;
  Wanted(&others, 100);
  Wanted(&others, 101);
  others.OnDeclined(Gfn(102));
  others.OnDeclined(Gfn(103));
  Wanted(&others, 104);
  EXPECT_EQ(others.counts().useful + others.counts().wasted, 0u);
}

}  // namespace
}  // namespace hk
