#include "migration/page_sketch.h"

#include "gtest/gtest.h"

namespace hk {
namespace {

TEST(PageSketch, CountsDifferentPages) {
  for (const uint64_t pages : {0, 1, 16, 100, 1000, 5000}) {
    PageSketch sketch;
    for (int round = 0; round < 3; ++round) {
      for (uint64_t i = 0; i < pages; ++i) sketch.Add(Gfn(1000 + 7 * i));
    }
    EXPECT_NEAR(sketch.Count(), static_cast<double>(pages), 0.5 + 0.07 * static_cast<double>(pages));
  }
}

TEST(PageSketch, IsBounded) {
  PageSketch sketch;
  for (uint64_t i = 0; i < 1'000'000; ++i) sketch.Add(Gfn(i));
  EXPECT_GT(sketch.Count(), 10000);
  EXPECT_LT(sketch.Count(), 20000);
}

TEST(PageSketch, TwoCountWhatIsInBothOnce) {
  PageSketch one, other;
  for (uint64_t i = 0; i < 200; ++i) one.Add(Gfn(i));
  for (uint64_t i = 100; i < 300; ++i) other.Add(Gfn(i));
  EXPECT_NEAR(PageSketch::CountOf(one, other), 300, 25);
  PageSketch all = one;
  all.Add(other);
  EXPECT_EQ(all.Count(), PageSketch::CountOf(one, other));
  one.Clear();
  EXPECT_EQ(one.Count(), 0);
  EXPECT_NEAR(PageSketch::CountOf(one, other), 200, 20);
}

}  // namespace
}  // namespace hk
