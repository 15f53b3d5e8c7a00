#include "hyperkernel/irq/apic_event_queue.h"

#include <gtest/gtest.h>

#include <vector>

namespace hk {
namespace {

using Kind = ApicEvent::Kind;

TEST(ApicEventQueue, NmisCollapseToTwo) {
  ApicEventQueue queue;
  EXPECT_TRUE(queue.PushNmi());
  EXPECT_TRUE(queue.PushNmi());
  EXPECT_FALSE(queue.PushNmi());
  EXPECT_EQ(queue.events().size(), 2u);
}

TEST(ApicEventQueue, InitForgetsWhatWasBefore) {
  ApicEventQueue queue;
  queue.PushNmi();
  queue.PushSipi(1, true);
  queue.PushInit();
  ASSERT_EQ(queue.events().size(), 1u);
  EXPECT_EQ(queue.Next(false)->kind, Kind::kInit);
}

TEST(ApicEventQueue, SipiNeedsAWaitingVcpu) {
  ApicEventQueue queue;
  EXPECT_FALSE(queue.PushSipi(1, false));
  queue.PushInit();
  EXPECT_TRUE(queue.PushSipi(2, false)) << "the queued INIT will make it wait";
  EXPECT_FALSE(queue.PushSipi(3, false)) << "one is enough";
  EXPECT_TRUE(queue.Take({Kind::kInit, 0}));
  EXPECT_EQ(queue.Next(true), (ApicEvent{Kind::kSipi, 2}));
}

TEST(ApicEventQueue, OrderIsKept) {
  ApicEventQueue queue;
  queue.PushInit();
  queue.PushNmi();
  queue.PushSipi(7, false);
  queue.PushNmi();
  EXPECT_EQ(queue.events().size(), ApicEventQueue::kCapacity);
  EXPECT_TRUE(queue.Take({Kind::kInit, 0}));
  EXPECT_EQ(queue.Next(true), (ApicEvent{Kind::kSipi, 7})) << "NMIs wait for the start";
  EXPECT_TRUE(queue.Take({Kind::kSipi, 7}));
  EXPECT_EQ(queue.Next(false)->kind, Kind::kNmi);
}

TEST(ApicEventQueue, ATakeThatComesTooLateTakesNothing) {
  ApicEventQueue queue;
  queue.PushNmi();
  queue.PushInit();
  EXPECT_FALSE(queue.Take({Kind::kNmi, 0}));
  EXPECT_EQ(queue.Next(false)->kind, Kind::kInit);
}

TEST(ApicEventQueue, RestoreChecks) {
  const ApicEvent nmi{Kind::kNmi, 0};
  const ApicEvent init{Kind::kInit, 0};
  const ApicEvent sipi{Kind::kSipi, 9};
  ApicEventQueue queue;
  EXPECT_TRUE(queue.Restore(std::vector{init, nmi, sipi, nmi}, false));
  EXPECT_EQ(queue.events().size(), 4u);
  EXPECT_FALSE(queue.Restore(std::vector{nmi, nmi, nmi}, false));
  EXPECT_FALSE(queue.Restore(std::vector{nmi, init}, false));
  EXPECT_FALSE(queue.Restore(std::vector{sipi}, false));
  EXPECT_FALSE(queue.Restore(std::vector{sipi, sipi}, true));
  EXPECT_EQ(queue.events().size(), 4u) << "unchanged";
  EXPECT_TRUE(queue.Restore(std::vector{sipi}, true));
}

}  // namespace
}  // namespace hk
