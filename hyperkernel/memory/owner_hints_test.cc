#include "hyperkernel/memory/owner_hints.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace hk {
namespace {

constexpr NodeId kOne(1), kTwo(2);

TEST(OwnerHints, AnOwnerCountsWhenItWasNamedTwice) {
  OwnerHints hints;
  EXPECT_EQ(hints.Find(7), nullptr);
  hints.Told(7, kOne, 10);
  EXPECT_EQ(hints.Find(7), nullptr);
  hints.Told(7, kOne, 9);  // by another way, and late
  ASSERT_NE(hints.Find(7), nullptr);
  EXPECT_EQ(hints.Find(7)->owner, kOne);
  EXPECT_EQ(hints.Find(7)->serial, 10u);
  hints.Heard(7, 12);
  EXPECT_EQ(hints.Find(7)->serial, 12u);
  hints.Told(7, kTwo, 13);
  EXPECT_EQ(hints.Find(7), nullptr);
  hints.Told(7, kTwo, 14);
  ASSERT_NE(hints.Find(7), nullptr);
  EXPECT_EQ(hints.Find(7)->owner, kTwo);
  hints.Refused(7);
  EXPECT_EQ(hints.Find(7), nullptr);
  hints.Told(7, kTwo, 14);
  EXPECT_NE(hints.Find(7), nullptr);
  hints.Clear();
  EXPECT_EQ(hints.Find(7), nullptr);
  hints.Told(7, kTwo, 15);
  EXPECT_EQ(hints.Find(7), nullptr);
}

TEST(OwnerHints, OneExtentsPlaceIsTakenByAnotherAsAWhole) {
  OwnerHints hints;
  uint64_t other = 8;
  for (; other < 100'000; ++other) {
    hints.Clear();
    hints.Told(7, kOne, 10);
    hints.Told(7, kOne, 10);
    hints.Told(other, kOne, 5);
    if (hints.Find(7) == nullptr) break;
  }
  EXPECT_EQ(hints.Find(other), nullptr) << other;
  hints.Told(other, kOne, 6);
  ASSERT_NE(hints.Find(other), nullptr);
  EXPECT_EQ(hints.Find(other)->serial, 6u) << "a serial of another extent may be another home's";
  hints.Heard(7, 20);
  hints.Refused(7);
  ASSERT_NE(hints.Find(other), nullptr);
  EXPECT_EQ(hints.Find(other)->serial, 6u);
}

TEST(OwnerSerials, NeverTooLow) {
  OwnerSerials serials;
  serials.Reset(100);
  std::map<uint64_t, uint64_t> last;
  std::mt19937_64 random(1);
  uint64_t exact = 0;
  for (uint64_t serial = 101; serial < 10'000; ++serial) {
    const uint64_t page = random() % 1000;
    EXPECT_GE(serials.Last(Gfn(page)), last.contains(page) ? last[page] : 100);
    exact += serials.Last(Gfn(page)) == (last.contains(page) ? last[page] : 100) ? 1 : 0;
    serials.Note(Gfn(page), serial);
    last[page] = serial;
  }
  EXPECT_GT(exact, 1000u);
  serials.Reset(20'000);
  for (uint64_t page = 0; page < 1000; ++page) EXPECT_EQ(serials.Last(Gfn(page)), 20'000u);
}

}  // namespace
}  // namespace hk
