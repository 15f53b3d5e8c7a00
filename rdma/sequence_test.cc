#include "rdma/sequence.h"

#include <cstdlib>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Window = SendWindow<int>;

// `again`: those that an earlier connection carried.
std::vector<uint64_t> SendAll(Window* window, std::vector<uint64_t>* again = nullptr) {
  std::vector<uint64_t> sent;
  uint64_t sequence = 0;
  while (window->Next(&sequence) != nullptr) {
    sent.push_back(sequence);
    if (window->Sent() && again != nullptr) again->push_back(sequence);
  }
  return sent;
}

// What `done` was called with.
struct Done {
  std::vector<int> entries;
  auto Add() {
    return [this](int entry) { entries.push_back(entry); };
  }
};

TEST(SendWindowTest, NumbersFromOneInOrderUpToTheWindow) {
  Window window(8, 2, 0);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(window.Push(i));
  EXPECT_THAT(SendAll(&window), ElementsAre(1, 2));
  Done done;
  ASSERT_TRUE(window.Acknowledge(1, done.Add()));
  EXPECT_THAT(done.entries, ElementsAre(0));
  uint64_t sequence = 0;
  int* next = window.Next(&sequence);
  ASSERT_NE(next, nullptr);
  EXPECT_EQ(*next, 2);
  EXPECT_EQ(sequence, 3u);
  EXPECT_EQ(window.Next(&sequence), next) << "the same until Sent";
}

TEST(SendWindowTest, FullQueueIsRefusedAndSaysWhenHalfIsFree) {
  Window window(4, 4, 1);
  EXPECT_FALSE(window.TakeWritable());
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(window.Push(i));
  EXPECT_FALSE(window.TakeWritable()) << "nobody was refused";
  EXPECT_FALSE(window.Push(4));
  EXPECT_TRUE(window.Push(5, true)) << "the reserve is the transport's";
  EXPECT_FALSE(window.Push(6, true));
  EXPECT_EQ(window.size(), 5u);
  SendAll(&window);
  Done done;
  ASSERT_TRUE(window.Acknowledge(2, done.Add()));
  EXPECT_FALSE(window.TakeWritable());
  ASSERT_TRUE(window.Acknowledge(3, done.Add()));
  EXPECT_TRUE(window.TakeWritable());
  EXPECT_FALSE(window.TakeWritable()) << "once";
}

TEST(SendWindowTest, ImpossibleAcknowledgementsAreRefused) {
  Window window(8, 8, 0);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(window.Push(i));
  uint64_t sequence = 0;
  ASSERT_NE(window.Next(&sequence), nullptr);
  window.Sent();
  Done done;
  EXPECT_FALSE(window.Acknowledge(2, done.Add())) << "pushed, not sent";
  EXPECT_FALSE(window.Acknowledge(~uint64_t{0}, done.Add()));
  EXPECT_THAT(done.entries, IsEmpty());
  EXPECT_TRUE(window.Acknowledge(1, done.Add()));
  EXPECT_TRUE(window.Acknowledge(0, done.Add())) << "an old one is harmless";
  EXPECT_THAT(done.entries, ElementsAre(0));
}

TEST(SendWindowTest, ResumeSendsAgainWhatThePeerHasNot) {
  Window window(8, 4, 0);
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(window.Push(i));
  EXPECT_THAT(SendAll(&window), ElementsAre(1, 2, 3, 4));
  Done done;
  ASSERT_TRUE(window.Acknowledge(1, done.Add()));
  EXPECT_THAT(SendAll(&window), ElementsAre(5));
  EXPECT_FALSE(window.Resume(0, done.Add())) << "it acknowledged 1";
  EXPECT_FALSE(window.Resume(6, done.Add())) << "6 was never sent";
  EXPECT_EQ(window.sent(), 5u);
  ASSERT_TRUE(window.Resume(3, done.Add()));
  EXPECT_THAT(done.entries, ElementsAre(0, 1, 2));
  EXPECT_FALSE(window.Acknowledge(4, done.Add())) << "not sent on this connection yet";
  std::vector<uint64_t> again;
  EXPECT_THAT(SendAll(&window, &again), ElementsAre(4, 5, 6));
  EXPECT_THAT(again, ElementsAre(4, 5));
}

TEST(SendWindowTest, ClearGivesAllBack) {
  SendWindow<std::unique_ptr<int>> window(4, 4, 0);
  ASSERT_TRUE(window.Push(std::make_unique<int>(1)));
  ASSERT_TRUE(window.Push(std::make_unique<int>(2)));
  uint64_t sequence = 0;
  ASSERT_NE(window.Next(&sequence), nullptr);
  window.Sent();
  int sum = 0;
  window.Clear([&](const std::unique_ptr<int>& entry) { sum += *entry; });
  EXPECT_EQ(sum, 3);
  EXPECT_EQ(window.size(), 0u);
  ASSERT_TRUE(window.Push(std::make_unique<int>(3)));
  ASSERT_NE(window.Next(&sequence), nullptr);
  EXPECT_EQ(sequence, 1u);
}

TEST(ReceiveSequenceTest, NextDuplicateGap) {
  ReceiveSequence receive;
  EXPECT_EQ(receive.Receive(2), Arrival::kGap);
  EXPECT_EQ(receive.received(), 0u);
  EXPECT_EQ(receive.unacknowledged(), 0u);
  EXPECT_EQ(receive.Receive(1), Arrival::kDeliver);
  EXPECT_EQ(receive.Receive(2), Arrival::kDeliver);
  receive.AckSent();
  EXPECT_EQ(receive.Receive(1), Arrival::kDuplicate);
  EXPECT_EQ(receive.Receive(2), Arrival::kDuplicate);
  EXPECT_EQ(receive.unacknowledged(), 2u) << "the acknowledgement may have been lost";
  EXPECT_EQ(receive.received(), 2u);
  EXPECT_EQ(receive.Receive(~uint64_t{0}), Arrival::kGap);
  receive.Clear();
  EXPECT_EQ(receive.Receive(1), Arrival::kDeliver);
}

// Both halves over a connection that breaks at any moment, losing what is under way in both directions.
void BreakAndResume(uint32_t seed) {
  SCOPED_TRACE("HK_SEED=" + std::to_string(seed));
  std::mt19937 random(seed);
  constexpr int kMessages = 400;
  Window window(16, 5, 0);
  ReceiveSequence receive;
  std::deque<std::pair<uint64_t, int>> wire;
  std::deque<uint64_t> acks;
  std::vector<int> delivered;
  int next = 0;
  Done done;
  for (int steps = 0; done.entries.size() < kMessages; ++steps) {
    ASSERT_LT(steps, 1000000) << "no progress";
    switch (random() % 8) {
      case 0:
      case 1:
        if (next < kMessages && window.Push(next)) ++next;
        break;
      case 2:
      case 3: {
        uint64_t sequence = 0;
        if (const int* entry = window.Next(&sequence)) {
          wire.emplace_back(sequence, *entry);
          window.Sent();
          ASSERT_LE(window.sent() - window.acknowledged(), 5u);
        }
        break;
      }
      case 4:
      case 5:
        if (wire.empty()) break;
        if (const Arrival arrival = receive.Receive(wire.front().first); arrival == Arrival::kDeliver) {
          delivered.push_back(wire.front().second);
        } else {
          ASSERT_EQ(arrival, Arrival::kDuplicate);
        }
        if (random() % 16 != 0) wire.pop_front();  // else it comes twice: a replay
        acks.push_back(receive.received());
        break;
      case 6:
        if (acks.empty()) break;
        ASSERT_TRUE(window.Acknowledge(acks.front(), done.Add()));
        acks.pop_front();
        break;
      default:
        if (random() % 4 != 0) break;
        wire.clear();
        acks.clear();
        ASSERT_TRUE(window.Resume(receive.received(), done.Add()));
    }
  }
  std::vector<int> all(kMessages);
  for (int i = 0; i < kMessages; ++i) all[i] = i;
  EXPECT_EQ(delivered, all) << "each once, in order";
  EXPECT_EQ(done.entries, all) << "each given back once";
}

TEST(SequenceTest, BrokenConnectionsLoseAndRepeatNothing) {
  if (const char* seed = std::getenv("HK_SEED")) return BreakAndResume(std::stoul(seed));
  for (uint32_t seed = 1; seed <= 200 && !HasFailure(); ++seed) BreakAndResume(seed);
}

}  // namespace
}  // namespace hk
