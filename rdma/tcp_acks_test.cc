#include "rdma/tcp_acks.h"

#include "gtest/gtest.h"

namespace hk {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kPatience(1000);

Monotonic At(int ms) {
  return Monotonic() + std::chrono::hours(1) + milliseconds(ms);
}

TEST(AckWatchTest, NothingForTooLongIsDead) {
  AckWatch watch;
  // Idle for long, then something is sent: the time begins when that is seen.
  EXPECT_FALSE(watch.IsDead({.waits = false, .acked_bytes = 5}, At(0), kPatience));
  EXPECT_FALSE(watch.IsDead({.waits = true, .acked_bytes = 5}, At(5000), kPatience));
  EXPECT_FALSE(watch.IsDead({.waits = true, .acked_bytes = 5}, At(5999), kPatience));
  EXPECT_TRUE(watch.IsDead({.waits = true, .acked_bytes = 5}, At(6000), kPatience));
}

TEST(AckWatchTest, WhoeverAnswersLives) {
  AckWatch watch;
  // Something waits at each look, and each time it is something else.
  for (int ms = 0; ms < 100'000; ms += 500) {
    EXPECT_FALSE(watch.IsDead({.waits = true, .acked_bytes = static_cast<uint64_t>(ms)}, At(ms), kPatience)) << ms;
  }
}

TEST(AckWatchTest, AReaderThatIsSlowLives) {
  AckWatch watch;
  // All is acknowledged but now and then a question about the window, which is answered.
  for (int ms = 0; ms < 100'000; ms += 500) {
    EXPECT_FALSE(watch.IsDead({.waits = ms % 1000 == 0, .acked_bytes = 5}, At(ms), kPatience)) << ms;
  }
}

}  // namespace
}  // namespace hk
