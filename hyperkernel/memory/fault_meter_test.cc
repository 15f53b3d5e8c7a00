#include "hyperkernel/memory/fault_meter.h"

#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;

constexpr Monotonic kStart{std::chrono::hours(1)};
constexpr uint32_t kOne = 1000, kOther = 1001;

uint64_t Ns(milliseconds time) {
  return static_cast<uint64_t>(std::chrono::nanoseconds(time).count());
}

class FaultMeterTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(meter_->Watch(kOne)); }

  const std::unique_ptr<FaultMeter> meter_ = std::make_unique<FaultMeter>();
};

TEST_F(FaultMeterTest, WaitsAreCountedByCause) {
  meter_->Began(kOne, Gfn(7), FaultCause::kRead, kStart);
  meter_->Woken(Gfn(7), 1, kStart + milliseconds(2));
  meter_->Began(kOne, Gfn(7), FaultCause::kUpgrade, kStart + milliseconds(5));
  meter_->Woken(Gfn(4), 4, kStart + milliseconds(6));
  EXPECT_FALSE(meter_->Waits(kOne));
  meter_->Began(kOne, Gfn(9), FaultCause::kWrite, kStart + milliseconds(8));
  EXPECT_TRUE(meter_->Waits(kOne));
  EXPECT_FALSE(meter_->Waits(kOther));
  const FaultTimes times = meter_->Of(kOne);
  EXPECT_THAT(times.faults, ElementsAre(1, 1, 1));
  EXPECT_THAT(times.ns, ElementsAre(Ns(milliseconds(2)), 0, Ns(milliseconds(1))));
}

TEST_F(FaultMeterTest, OnlyWhoWaitsForThePageIsWoken) {
  ASSERT_TRUE(meter_->Watch(kOther));
  meter_->Began(kOne, Gfn(7), FaultCause::kRead, kStart);
  meter_->Began(kOther, Gfn(8), FaultCause::kRead, kStart);
  meter_->Woken(Gfn(8), 100, kStart + milliseconds(1));
  meter_->Woken(Gfn(0), 7, kStart + milliseconds(1));
  EXPECT_THAT(meter_->Of(kOne).ns, ElementsAre(0, 0, 0));
  EXPECT_THAT(meter_->Of(kOther).ns, ElementsAre(Ns(milliseconds(1)), 0, 0));
  // Once.
  meter_->Woken(Gfn(8), 1, kStart + milliseconds(9));
  EXPECT_THAT(meter_->Of(kOther).ns, ElementsAre(Ns(milliseconds(1)), 0, 0));
}

TEST_F(FaultMeterTest, OthersAreNotCounted) {
  meter_->Began(kOther, Gfn(7), FaultCause::kRead, kStart);
  meter_->Began(0, Gfn(7), FaultCause::kRead, kStart);
  meter_->Woken(Gfn(7), 1, kStart + milliseconds(1));
  EXPECT_THAT(meter_->Of(kOther).faults, ElementsAre(0, 0, 0));
  EXPECT_THAT(meter_->Of(kOne).faults, ElementsAre(0, 0, 0));
}

TEST_F(FaultMeterTest, APlaceIsTakenAgain) {
  meter_->Began(kOne, Gfn(7), FaultCause::kRead, kStart);
  meter_->Forget(kOne);
  for (uint32_t i = 0; i < FaultMeter::kMostThreads; ++i) ASSERT_TRUE(meter_->Watch(2000 + i)) << i;
  EXPECT_FALSE(meter_->Watch(kOther));
  meter_->Woken(Gfn(7), 1, kStart + milliseconds(1));
  EXPECT_THAT(meter_->Of(2000).ns, ElementsAre(0, 0, 0));
  EXPECT_THAT(meter_->Of(2000).faults, ElementsAre(0, 0, 0));
}

TEST_F(FaultMeterTest, ManyThreadsAtATime) {
  constexpr uint32_t kThreads = 4;
  constexpr uint64_t kRounds = 20000;
  std::vector<std::thread> threads;
  for (uint32_t id = 1; id <= kThreads; ++id) {
    threads.emplace_back([this, id] {
      EXPECT_TRUE(meter_->Watch(id));
      for (uint64_t i = 0; i < kRounds; ++i) {
        meter_->Began(id, Gfn(id), FaultCause::kWrite, kStart);
        meter_->Woken(Gfn(id), 1, kStart + std::chrono::nanoseconds(3));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (uint32_t id = 1; id <= kThreads; ++id) {
    EXPECT_THAT(meter_->Of(id).faults, ElementsAre(0, kRounds, 0));
    EXPECT_THAT(meter_->Of(id).ns, ElementsAre(0, 3 * kRounds, 0));
  }
}

}  // namespace
}  // namespace hk
