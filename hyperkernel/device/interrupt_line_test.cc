#include "hyperkernel/device/interrupt_line.h"

#include <thread>

#include "gtest/gtest.h"
#include "hyperkernel/device/testing_interrupts.h"

namespace hk {
namespace {

TEST(InterruptLineTest, DeliversTheNewestLevelOnce) {
  RecordingInterrupts sink;
  InterruptLine line(&sink, 4);
  line.Deliver();
  EXPECT_EQ(sink.rises(4), 0);
  line.Set(true);
  line.Set(true);
  EXPECT_FALSE(sink.level(4)) << "before Deliver";
  line.Deliver();
  line.Deliver();
  EXPECT_TRUE(sink.level(4));
  EXPECT_EQ(sink.rises(4), 1);
  line.Set(false);
  line.Deliver();
  EXPECT_FALSE(sink.level(4));
}

TEST(InterruptLineTest, AFallBetweenDeliveriesIsAnEdge) {
  RecordingInterrupts sink;
  InterruptLine line(&sink, 4);
  line.Set(true);
  line.Deliver();
  line.Set(false);
  line.Set(true);
  line.Deliver();
  EXPECT_EQ(sink.rises(4), 2);
  EXPECT_TRUE(sink.level(4));
  line.Set(false);
  line.Set(true);
  line.Set(false);
  line.Deliver();
  EXPECT_FALSE(sink.level(4));
}

TEST(InterruptLineTest, EndsWithTheNewestLevelFromManyThreads) {
  RecordingInterrupts sink;
  InterruptLine line(&sink, 4);
  Mutex device;
  auto toggle = [&](bool level) {
    for (int i = 0; i < 2000; ++i) {
      device.Lock();
      line.Set(level);
      device.Unlock();
      line.Deliver();
    }
  };
  std::thread up(toggle, true), down(toggle, false);
  up.join();
  down.join();
  device.Lock();
  line.Set(true);
  device.Unlock();
  line.Deliver();
  EXPECT_TRUE(sink.level(4));
}

}  // namespace
}  // namespace hk
