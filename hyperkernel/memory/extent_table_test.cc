#include "hyperkernel/memory/extent_table.h"

#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace hk {
namespace {

RestingEntry Private(uint16_t node) {
  RestingEntry entry;
  entry.state = DirectoryState::kExclusive;
  entry.ever_written = true;
  entry.owner = NodeId(node);
  return entry;
}

TEST(ExtentTable, PagesThatBecomeAlikeAreFusedAgain) {
  ExtentDirectory directory;
  EXPECT_TRUE(directory.fused());
  for (size_t page = 0; page < kExtentPages; ++page) {
    EXPECT_EQ(directory.Get(page), RestingEntry{});
    directory.Set(page, Private(2));
    EXPECT_EQ(directory.fused(), page + 1 == kExtentPages);
    EXPECT_EQ(directory.Get(page), Private(2));
  }
  EXPECT_EQ(directory.heap_bytes(), 0u);
  directory.Set(7, Private(2));
  EXPECT_TRUE(directory.fused());
}

TEST(ExtentTable, AnyMixtureIsKept) {
  std::mt19937_64 random(3);
  ExtentDirectory directory;
  std::vector<RestingEntry> expected(kExtentPages);
  for (int i = 0; i < 50'000; ++i) {
    const size_t page = random() % kExtentPages;
    RestingEntry entry = Private(static_cast<uint16_t>(random() % 3));
    if (random() % 2 == 0) entry.state = DirectoryState::kShared, entry.copyset = NodeSet(random());
    directory.Set(page, entry);
    expected[page] = entry;
    if (i % 100 == 0) {
      for (size_t p = 0; p < kExtentPages; ++p) ASSERT_EQ(directory.Get(p), expected[p]);
    }
  }
  // README, "The engine": at most 1.2 % of the extent, whatever the mixture.
  EXPECT_LT(directory.heap_bytes() + sizeof(Extent) + kExtentPages, kExtentPages * kPageSize * 12 / 1000);
}

TEST(ExtentTable, PrivateDataTakesLittle) {
  Extent extent;
  for (size_t page = 0; page < kExtentPages; ++page) {
    extent.pages.Set(page, PageState::kExclusive, page % 2 == 0, false);
    extent.pages.Count(PageRight::kNone, PageRight::kExclusive);
    if (page < kExtentPages / 2) extent.home.Set(page, Private(0));
  }
  EXPECT_LT(extent.home.heap_bytes() + extent.pages.heap_bytes() + sizeof(Extent), kExtentPages * kPageSize * 3 / 1000);
  EXPECT_EQ(extent.pages.count(PageRight::kExclusive), kExtentPages);
  EXPECT_EQ(extent.pages.count(PageRight::kNone), 0u);
  EXPECT_TRUE(extent.pages.held(2));
  EXPECT_FALSE(extent.pages.held(3));
  EXPECT_EQ(extent.pages.state(3), PageState::kExclusive);
}

TEST(ExtentTable, AnEntryAtRestComesBack) {
  DirectoryEntry entry;
  entry.state = DirectoryState::kShared;
  entry.owner = NodeId(4);
  entry.copyset = NodeSet(0x30);
  entry.ever_written = true;
  const DirectoryEntry back = EntryOf(RestOf(entry));
  EXPECT_EQ(back.state, entry.state);
  EXPECT_EQ(back.owner, entry.owner);
  EXPECT_EQ(back.copyset, entry.copyset);
  EXPECT_TRUE(back.ever_written);
  entry.releasing = true;
  EXPECT_FALSE(IsAtRest(entry));
}

}  // namespace
}  // namespace hk
