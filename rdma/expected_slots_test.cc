#include "rdma/expected_slots.h"

#include "gtest/gtest.h"

namespace hk {
namespace {

TEST(ExpectedSlotsTest, TheOldestIsFirst) {
  ExpectedSlots slots;
  EXPECT_EQ(slots.First(), SlotId());
  for (uint64_t i = 1; i <= 3; ++i) slots.Push(SlotId(i));
  EXPECT_EQ(slots.First(), SlotId(1));
  slots.Erase(SlotId(2));
  EXPECT_EQ(slots.First(), SlotId(1));
  slots.Erase(SlotId(1));
  EXPECT_EQ(slots.First(), SlotId(3));
  slots.Clear();
  EXPECT_EQ(slots.First(), SlotId());
}

// An answer that is read to where another was expected is copied, so one that never comes must not stay expected.
TEST(ExpectedSlotsTest, WhatOthersPassAgainAndAgainIsGivenUp) {
  ExpectedSlots slots;
  slots.Push(SlotId(1));  // never answered
  for (uint64_t i = 2; i <= 1000; ++i) {
    slots.Push(SlotId(i));
    // Each answer is expected where it belongs, but for the first few.
    EXPECT_EQ(slots.First(), i < 2 + ExpectedSlots::kMostPasses ? SlotId(1) : SlotId(i)) << i;
    slots.Erase(SlotId(i));
  }
  EXPECT_EQ(slots.First(), SlotId());
}

TEST(ExpectedSlotsTest, AnswersThatWereNotExpectedPassToo) {
  ExpectedSlots slots;
  slots.Push(SlotId(1));
  slots.Push(SlotId(2));
  for (int i = 0; i < ExpectedSlots::kMostPasses; ++i) {
    EXPECT_EQ(slots.First(), SlotId(1));
    slots.Erase(SlotId(100));
  }
  EXPECT_EQ(slots.First(), SlotId(2));
  // It was given up, not answered: the count begins again.
  slots.Erase(SlotId(1));
  EXPECT_EQ(slots.First(), SlotId(2));
}

TEST(ExpectedSlotsTest, AnswersInAnyOrderAreForgottenWhole) {
  ExpectedSlots slots;
  for (uint64_t round = 0; round < 100; ++round) {
    for (uint64_t i = 1; i <= ExpectedSlots::kSize; ++i) slots.Push(SlotId(round * 1000 + i));
    for (uint64_t i = ExpectedSlots::kSize; i >= 1; --i) slots.Erase(SlotId(round * 1000 + i));
    EXPECT_EQ(slots.First(), SlotId()) << round;
  }
}

}  // namespace
}  // namespace hk
