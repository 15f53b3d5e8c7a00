#include "hyperkernel/memory/timers.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::chrono::seconds kHangGuard{30};

// Numbers in the order in which they came. Thread-safe.
class Order {
 public:
  void Add(int number) {
    MutexLock lock(&mutex_);
    numbers_.push_back(number);
    changed_.SignalAll();
  }
  std::vector<int> Wait(size_t count) {
    MutexLock lock(&mutex_);
    const auto guard = steady_clock::now() + kHangGuard;
    while (numbers_.size() < count && changed_.WaitUntil(&mutex_, guard)) {
    }
    return numbers_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::vector<int> numbers_;
};

TEST(RealTimersTest, RunsInTheOrderOfTheTimesAndNeverEarly) {
  Order order;
  RealTimers timers;
  const auto start = steady_clock::now();
  const auto run = [&](int number, milliseconds delay) {
    timers.After(delay, [&, number, delay] {
      EXPECT_GE(steady_clock::now() - start, delay);
      order.Add(number);
    });
  };
  run(3, milliseconds(60));
  run(1, milliseconds(20));
  run(2, milliseconds(40));
  run(4, milliseconds(60));
  EXPECT_THAT(order.Wait(4), testing::ElementsAre(1, 2, 3, 4));
}

TEST(RealTimersTest, ARunMayAskForMore) {
  Order order;
  RealTimers timers;
  std::function<void(int)> chain = [&](int number) {
    order.Add(number);
    if (number < 100) timers.After(microseconds(0), [&, number] { chain(number + 1); });
  };
  timers.After(microseconds(0), [&] { chain(1); });
  EXPECT_EQ(order.Wait(100).size(), 100u);
}

TEST(RealTimersTest, StopDropsWhatIsNotDueAndWaitsForWhatRuns) {
  auto captured = std::make_shared<int>(0);
  const std::weak_ptr<int> watched = captured;
  Order order;
  std::atomic<bool> ended{false};
  RealTimers timers;
  timers.After(std::chrono::hours(1), [captured = std::move(captured)] { FAIL(); });
  timers.After(microseconds(0), [&] {
    order.Add(1);
    std::this_thread::sleep_for(milliseconds(20));  // Stop is called meanwhile, or before; both must do
    ended = true;
  });
  ASSERT_EQ(order.Wait(1).size(), 1u);
  timers.Stop();
  EXPECT_TRUE(ended);
  EXPECT_TRUE(watched.expired());
  timers.After(microseconds(0), [] { FAIL(); });
  timers.Stop();
}

TEST(RealTimersTest, ManyThreadsAsk) {
  constexpr int kThreads = 4, kEach = 2000;
  std::atomic<int> runs{0};
  Order order;
  RealTimers timers;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; i++) {
    threads.emplace_back([&] {
      for (int n = 0; n < kEach; n++) {
        timers.After(microseconds(n % 300), [&] {
          if (++runs == kThreads * kEach) order.Add(1);
        });
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(order.Wait(1).size(), 1u);
}

}  // namespace
}  // namespace hk
