#include "hyperkernel/node/vcpu_waits.h"

#include <vector>

#include "gtest/gtest.h"

namespace hk {
namespace {

TEST(VcpuWaits, OneThatHasLeftIsCountedNoLonger) {
  VcpuWaits waits(2);
  const VcpuGroup vcpus(2);
  EXPECT_TRUE(waits.Times(vcpus).empty());
  waits.OnThread(VcpuId(1), 7);
  waits.OnThread(VcpuId(1), 8);  // renewed
  waits.OnThreadEnd(VcpuId(1), 7);
  std::vector<v1::VcpuTimes> before = waits.Times(vcpus);
  ASSERT_EQ(before.size(), 1u);
  EXPECT_EQ(before[0].vcpu(), 1u);
  waits.OnThreadEnd(VcpuId(1), 8);
  const uint64_t lived = waits.Times(vcpus).at(0).lived_ns();
  EXPECT_GE(lived, before[0].lived_ns());
  EXPECT_EQ(waits.Times(vcpus).at(0).lived_ns(), lived) << "it is elsewhere";
  waits.OnThread(VcpuId(1), 9);
  EXPECT_GE(waits.Times(vcpus).at(0).lived_ns(), lived) << "and comes back";
  waits.OnThreadEnd(VcpuId(1), 9);
}

TEST(VcpuWaits, TimesAreAddedUp) {
  v1::VcpuTimes sum, more;
  sum.set_node("a");
  sum.set_lived_ns(1);
  more.set_node("b");
  more.set_lived_ns(10);
  more.set_halted_ns(20);
  more.set_exits_ns(30);
  more.mutable_reads()->set_count(1);
  more.mutable_writes()->set_ns(2);
  more.mutable_upgrades()->set_ns(3);
  AddTimes(more, &sum);
  AddTimes(more, &sum);
  EXPECT_EQ(sum.node(), "a");
  EXPECT_EQ(sum.lived_ns(), 21u);
  EXPECT_EQ(sum.halted_ns(), 40u);
  EXPECT_EQ(sum.exits_ns(), 60u);
  EXPECT_EQ(sum.reads().count(), 2u);
  EXPECT_EQ(sum.writes().ns(), 4u);
  EXPECT_EQ(sum.upgrades().ns(), 6u);
}

}  // namespace
}  // namespace hk
