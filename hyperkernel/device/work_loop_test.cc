#include "hyperkernel/device/work_loop.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>

#include "gtest/gtest.h"

namespace hk {
namespace {

TEST(WorkLoopTest, WakesOnceForManyCalls) {
  auto loop = *WorkLoop::Create("test");
  int woken = 0;
  loop->SetWakeHandler([&] { ++woken; });
  loop->RunOnce(0);
  EXPECT_EQ(woken, 0);
  loop->Wake();
  loop->Wake();
  loop->RunOnce(0);
  loop->RunOnce(0);
  EXPECT_EQ(woken, 1);
}

TEST(WorkLoopTest, WatchesWhileArmed) {
  auto loop = *WorkLoop::Create("test");
  int fds[2];
  ASSERT_EQ(::pipe(fds), 0);
  OwnedFd in(fds[0]), out(fds[1]);
  int calls = 0;
  ASSERT_TRUE(loop->Watch(in.get(), [&] { ++calls; }).ok());
  ASSERT_EQ(::write(out.get(), "x", 1), 1);
  loop->RunOnce(0);
  EXPECT_EQ(calls, 1);
  loop->Arm(in.get(), false);
  loop->RunOnce(0);
  EXPECT_EQ(calls, 1);
  loop->Arm(in.get(), true);
  loop->RunOnce(0);
  EXPECT_EQ(calls, 2) << "level-triggered";
  loop->Unwatch(in.get());
  loop->RunOnce(0);
  EXPECT_EQ(calls, 2);
}

TEST(WorkLoopTest, EverySignalOfAnEventIsSeenThoughNobodyReadsIt) {
  auto loop = *WorkLoop::Create("test");
  int calls = 0;
  const auto event = loop->AddEvent([&] { ++calls; });
  ASSERT_TRUE(event.ok()) << event.status();
  loop->RunOnce(0);
  EXPECT_EQ(calls, 0);
  for (int i = 1; i <= 3; ++i) {
    ASSERT_EQ(::eventfd_write(*event, 1), 0);
    ASSERT_EQ(::eventfd_write(*event, 1), 0);
    loop->RunOnce(0);
    loop->RunOnce(0);
    EXPECT_EQ(calls, i);
  }
}

TEST(WorkLoopTest, TimerRunsOnceAndCanBeCancelled) {
  auto loop = *WorkLoop::Create("test");
  int calls = 0;
  const auto now = std::chrono::steady_clock::now();
  loop->SetTimer(now + std::chrono::milliseconds(5), [&] { ++calls; });
  loop->RunOnce(1000);
  loop->RunOnce(1000);
  EXPECT_EQ(calls, 1);
  loop->SetTimer(now, [&] { ++calls; });
  loop->SetTimer(std::nullopt);
  loop->RunOnce(0);
  EXPECT_EQ(calls, 1);
}

TEST(WorkLoopTest, NoWakeIsMissed) {
  auto loop = *WorkLoop::Create("test");
  std::atomic<int> asked = 0, seen = 0;
  loop->SetWakeHandler([&] { seen = asked.load(); });
  ASSERT_TRUE(loop->Start().ok());
  EXPECT_FALSE(loop->Start().ok());
  for (int i = 1; i <= 2000; ++i) {
    asked = i;
    loop->Wake();
    if (i % 50 == 0) {
      while (seen < i) std::this_thread::yield();
    }
  }
  while (seen < 2000) std::this_thread::yield();
  loop->Stop();
  loop->Stop();
}

}  // namespace
}  // namespace hk
