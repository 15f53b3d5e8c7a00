#include "hyperkernel/cli/vcpu_shares.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/cli/space_output.h"

namespace hk::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr uint64_t kMs = 1'000'000;

v1::VcpuTimes* AddTimes(v1::SpaceTopResponse* top, uint32_t vcpu, const std::string& node, uint64_t lived_ms) {
  v1::VcpuTimes* times = top->add_vcpus();
  times->set_vcpu(vcpu);
  times->set_node(node);
  times->set_lived_ns(lived_ms * kMs);
  return times;
}

double Sum(const v1::VcpuShares& shares) {
  return shares.guest() + shares.halted() + shares.fetch() + shares.upgrade() + shares.forwarded() + shares.exits() +
         shares.interrupt() + shares.other();
}

TEST(VcpuShares, AreTheDifferenceOfWhatANodeTold) {
  v1::SpaceTopResponse before, after;
  v1::VcpuTimes* times = AddTimes(&before, 1, "b", 5000);
  times->set_halted_ns(4000 * kMs);
  times = AddTimes(&after, 1, "b", 7000);
  times->set_halted_ns(4200 * kMs);           // 0.1
  times->mutable_reads()->set_ns(100 * kMs);  // 0.05
  times->mutable_reads()->set_count(300);
  times->mutable_writes()->set_ns(300 * kMs);    // 0.15
  times->mutable_upgrades()->set_ns(400 * kMs);  // 0.2
  times->mutable_upgrades()->set_count(100);
  times->set_exits_ns(160 * kMs);
  times->set_forwarded_ns(100 * kMs);  // 0.05, and 0.03 here
  times->set_settling_ns(40 * kMs);    // 0.02
  times->set_ready_ns(200 * kMs);
  times->set_running_ns(900 * kMs);  // but 0.3 are left
  AddVcpuShares(before, &after);
  ASSERT_EQ(after.vcpu_shares_size(), 1);
  const v1::VcpuShares& shares = after.vcpu_shares(0);
  EXPECT_EQ(shares.node(), "b");
  EXPECT_DOUBLE_EQ(shares.interval_seconds(), 2);
  EXPECT_DOUBLE_EQ(shares.halted(), 0.1);
  EXPECT_DOUBLE_EQ(shares.fetch(), 0.2);
  EXPECT_DOUBLE_EQ(shares.upgrade(), 0.2);
  EXPECT_DOUBLE_EQ(shares.forwarded(), 0.05);
  EXPECT_DOUBLE_EQ(shares.exits(), 0.03);
  EXPECT_DOUBLE_EQ(shares.interrupt(), 0.02);
  EXPECT_DOUBLE_EQ(shares.guest(), 0.3);
  EXPECT_DOUBLE_EQ(shares.other(), 0.1);
  EXPECT_DOUBLE_EQ(shares.faults(), 200);
  EXPECT_DOUBLE_EQ(Sum(shares), 1);
}

TEST(VcpuShares, PausedIsNotTheGuests) {
  v1::SpaceTopResponse before, after;
  AddTimes(&before, 0, "a", 0);
  AddTimes(&after, 0, "a", 1000)->set_running_ns(250 * kMs);
  AddVcpuShares(before, &after);
  EXPECT_DOUBLE_EQ(after.vcpu_shares(0).guest(), 0.25);
  EXPECT_DOUBLE_EQ(after.vcpu_shares(0).other(), 0.75);
}

TEST(VcpuShares, AWaitThatBeganEarlierIsNoMoreThanAllOfTheTime) {
  v1::SpaceTopResponse before, after;
  AddTimes(&before, 0, "a", 1000);
  v1::VcpuTimes* times = AddTimes(&after, 0, "a", 2000);
  times->mutable_reads()->set_ns(4000 * kMs);
  times->set_halted_ns(1000 * kMs);
  times->set_running_ns(100 * kMs);
  AddVcpuShares(before, &after);
  EXPECT_DOUBLE_EQ(after.vcpu_shares(0).fetch(), 0.8);
  EXPECT_DOUBLE_EQ(after.vcpu_shares(0).halted(), 0.2);
  EXPECT_DOUBLE_EQ(Sum(after.vcpu_shares(0)), 1);
}

// The I/O node asks the others once a second.
TEST(VcpuShares, WhatANodeHasNotToldAnewIsAsBefore) {
  v1::SpaceTopResponse first, second, third;
  AddTimes(&first, 2, "b", 1000);
  AddTimes(&second, 2, "b", 2000)->set_halted_ns(500 * kMs);
  AddTimes(&third, 2, "b", 2000)->set_halted_ns(500 * kMs);
  AddVcpuShares(first, &second);
  AddVcpuShares(second, &third);
  ASSERT_EQ(third.vcpu_shares_size(), 1);
  EXPECT_DOUBLE_EQ(third.vcpu_shares(0).halted(), 0.5);
}

TEST(VcpuShares, WhatBeganAnewOrElsewhereHasNone) {
  v1::SpaceTopResponse before, after;
  AddTimes(&before, 0, "a", 1000);
  AddTimes(&before, 1, "a", 1000);
  AddTimes(&after, 0, "a", 900);
  AddTimes(&after, 1, "b", 2000);
  AddTimes(&after, 2, "b", 2000);
  AddVcpuShares(before, &after);
  EXPECT_EQ(after.vcpu_shares_size(), 0);
  EXPECT_EQ(VcpuSharesText(after), "");
}

TEST(VcpuShares, RowsAreAlignedByNumberAndNoWiderThanATerminal) {
  v1::SpaceTopResponse before, after;
  AddTimes(&before, 254, "a-node-whose-name-is-long", 0);
  AddTimes(&before, 3, "b\x1b[2J", 0);
  AddTimes(&after, 254, "a-node-whose-name-is-long", 1000)->set_running_ns(1000 * kMs);
  v1::VcpuTimes* times = AddTimes(&after, 3, "b\x1b[2J", 1000);
  times->set_halted_ns(997 * kMs);
  times->set_settling_ns(3 * kMs);
  AddVcpuShares(before, &after);
  EXPECT_EQ(VcpuSharesText(after),
            "VCPU  NODE          GUEST  HALTED  FETCH  UPGRADE  FORWARDED  EXITS  IRQ  OTHER\n"
            "3     b?[2J         0%     100%    0%     0%       0%         0%     <1%  0%\n"
            "254   a-node-whose  100%   0%      0%     0%       0%         0%     0%   0%\n");
  after.mutable_vcpu_shares(0)->set_interrupt(1);
  const std::string text = VcpuSharesText(after);
  EXPECT_EQ(text.find('\n'), 80u);
  EXPECT_THAT(SpaceTopText(after), HasSubstr("\n\n" + text));
  after.clear_vcpu_shares();
  EXPECT_THAT(SpaceTopText(after), Not(HasSubstr("VCPU")));
}

}  // namespace
}  // namespace hk::cli
