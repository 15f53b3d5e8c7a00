#include "hyperkernel/kvm/thread_stall.h"

#include <time.h>

#include <chrono>
#include <memory>
#include <thread>

#include "gtest/gtest.h"

namespace hk {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

nanoseconds Ran() {
  timespec ran{};
  EXPECT_EQ(::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ran), 0);
  return std::chrono::seconds(ran.tv_sec) + nanoseconds(ran.tv_nsec);
}

TEST(ThreadStallTest, WaitingCountsAndRunningDoesNot) {
  const std::unique_ptr<ThreadStall> stall = ThreadStall::OfThisThread();
  if (stall == nullptr) GTEST_SKIP() << "this kernel does not count how long threads wait: no vCPU is paced here";
  const nanoseconds before = stall->Get().value().stalled;
  std::this_thread::sleep_for(milliseconds(20));
  const nanoseconds slept = stall->Get().value().stalled;
  EXPECT_GE(slept - before, milliseconds(19));
  const auto begun = std::chrono::steady_clock::now();
  const nanoseconds ran = Ran();
  while (Ran() - ran < milliseconds(20)) {
  }
  const nanoseconds stalled = stall->Get().value().stalled - slept;
  EXPECT_LE(stalled, std::chrono::steady_clock::now() - begun - milliseconds(19));
}

}  // namespace
}  // namespace hk
