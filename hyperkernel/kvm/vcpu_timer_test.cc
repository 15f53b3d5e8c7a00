#include "hyperkernel/kvm/vcpu_timer.h"

#include <chrono>
#include <thread>

#include "gtest/gtest.h"
#include "hyperkernel/base/check.h"

namespace hk {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;

// This thread with the kick signal's handler and a run page.
class VcpuTimerTest : public testing::Test {
 protected:
  VcpuTimerTest() {
    struct sigaction action = {};
    action.sa_sigaction = VcpuTimer::OnSignal;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    HK_CHECK(sigaction(KickSignal(), &action, &before_) == 0);
    absl::StatusOr<std::unique_ptr<VcpuTimer>> made = VcpuTimer::Create(KickSignal());
    HK_CHECK(made.ok());
    timer_ = *std::move(made);
    timer_->SetRunPage(&run_);
  }
  ~VcpuTimerTest() override {
    timer_.reset();
    sigaction(KickSignal(), &before_, nullptr);
  }

  bool Set() { return std::atomic_ref<uint8_t>(run_.immediate_exit).load() != 0; }
  void Clear() { std::atomic_ref<uint8_t>(run_.immediate_exit).store(0); }
  // As a vCPU that is in the guest until the alarm. False after a minute, which is a hang.
  bool WaitForAlarm() {
    const Monotonic limit = RealClock().Now() + std::chrono::minutes(1);
    while (!Set() && RealClock().Now() < limit) std::this_thread::yield();
    return Set();
  }

  struct sigaction before_ = {};
  kvm_run run_ = {};
  std::unique_ptr<VcpuTimer> timer_;
};

TEST_F(VcpuTimerTest, SetsImmediateExitAtTheDeadline) {
  const Monotonic deadline = RealClock().Now() + milliseconds(5);
  timer_->ArmFor(deadline);
  EXPECT_TRUE(WaitForAlarm());
  EXPECT_GE(RealClock().Now(), deadline);
}

TEST_F(VcpuTimerTest, ADeadlineInThePastIsAtOnce) {
  for (const Monotonic deadline : {RealClock().Now() - hours(1), Monotonic()}) {
    Clear();
    timer_->ArmFor(deadline);
    EXPECT_TRUE(WaitForAlarm());
  }
}

TEST_F(VcpuTimerTest, AnEarlierDeadlineMovesTheAlarm) {
  for (int i = 0; i < 50; ++i) {
    timer_->ArmFor(RealClock().Now() + hours(1));
    timer_->ArmFor(RealClock().Now() + std::chrono::microseconds(200));
    ASSERT_TRUE(WaitForAlarm()) << "round " << i;
    Clear();
  }
}

// Early is allowed, but after it the alarm must be there for the later deadline.
TEST_F(VcpuTimerTest, ALaterDeadlineIsNotForgotten) {
  timer_->ArmFor(RealClock().Now() + milliseconds(2));
  const Monotonic later = RealClock().Now() + milliseconds(20);
  timer_->ArmFor(later);
  while (true) {
    ASSERT_TRUE(WaitForAlarm());
    if (RealClock().Now() >= later) break;
    Clear();
    timer_->ArmFor(later);
  }
}

TEST_F(VcpuTimerTest, OtherSignalsAndNoPageAreHarmless) {
  pthread_kill(pthread_self(), KickSignal());
  EXPECT_FALSE(Set()) << "a kick sets it by itself";
  timer_->SetRunPage(nullptr);
  timer_->ArmFor(RealClock().Now());
  timer_->SetRunPage(&run_);
  // The alarm may have gone off while there was no page: the next one is armed all the same.
  while (!Set()) timer_->ArmFor(RealClock().Now());
  timer_->ArmFor(Monotonic::max());
}

// Each thread's alarm is its own; a thread may end with one pending.
TEST_F(VcpuTimerTest, ThreadsHaveTheirOwn) {
  for (int i = 0; i < 20; ++i) {
    std::thread([] {
      auto other = VcpuTimer::Create(KickSignal());
      ASSERT_TRUE(other.ok()) << other.status();
      (*other)->ArmFor(RealClock().Now());
    }).join();
  }
  EXPECT_FALSE(Set());
}

}  // namespace
}  // namespace hk
