#include "hyperkernel/cli/space_rates.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk::cli {
namespace {

using testing::ElementsAre;

v1::SpaceNodeCounters* AddNode(v1::SpaceTopResponse* top, const std::string& name, uint64_t at_ms, uint64_t reads) {
  v1::SpaceNodeCounters* node = top->add_nodes();
  node->mutable_part()->set_node(name);
  node->mutable_counters()->set_counted_at_ns(at_ms * 1'000'000);
  node->mutable_counters()->set_read_faults(reads);
  return node;
}

void AddBuckets(v1::FaultLatency* latency, std::initializer_list<uint64_t> buckets) {
  for (const uint64_t bucket : buckets) latency->add_buckets(bucket);
}

void AddPage(v1::SpaceNodeCounters* node, uint64_t address, uint64_t losses, uint64_t owner, const std::string& taker) {
  v1::HotPage* page = node->add_hot_pages();
  page->set_address(address);
  page->set_losses(losses);
  page->set_owner_losses(owner);
  page->set_taker(taker);
}

TEST(SpaceRates, AreTheDifferenceByTheNodesOwnClock) {
  v1::SpaceTopResponse before, after;
  v1::SpaceNodeCounters* a = AddNode(&before, "a", 1000, 100);
  AddBuckets(a->mutable_counters()->mutable_read_latency(), {0, 1000, 0, 0});
  a->mutable_counters()->set_fetched(900);
  AddNode(&before, "b", 777'000, 5);
  a = AddNode(&after, "a", 1500, 200);
  AddBuckets(a->mutable_counters()->mutable_read_latency(), {0, 1000, 98, 2});
  a->mutable_counters()->set_fetched(960);
  v1::SpaceNodeCounters* const b = AddNode(&after, "b", 779'000, 9);
  AddBuckets(b->mutable_counters()->mutable_write_latency(), {0, 100});
  AddRates(before, &after);
  EXPECT_DOUBLE_EQ(after.nodes(0).rates().fetched_share(), 0.6);
  EXPECT_DOUBLE_EQ(after.nodes(1).rates().fetched_share(), 0);
  EXPECT_DOUBLE_EQ(SumOfRates(after).fetched_share(), 0.3);
  EXPECT_DOUBLE_EQ(after.nodes(0).rates().read_faults(), 200);
  EXPECT_DOUBLE_EQ(after.nodes(1).rates().read_faults(), 2);
  EXPECT_DOUBLE_EQ(after.interval_seconds(), 2);
  const v1::FaultLatency& latency = after.nodes(0).rates().read_latency();
  EXPECT_EQ(latency.count(), 100u);
  EXPECT_EQ(latency.p50_ns(), 6u);
  EXPECT_EQ(latency.p99_ns(), 12u);
  EXPECT_EQ(latency.max_ns(), 16u);
  EXPECT_DOUBLE_EQ(SumOfRates(after).read_faults(), 202);
  EXPECT_EQ(SumOfRates(after).read_latency().p99_ns(), 12u);
}

TEST(SpaceRates, ANodeThatBeganAnewHasNone) {
  v1::SpaceTopResponse before, after;
  AddNode(&before, "a", 1000, 100);
  AddNode(&before, "b", 1000, 100);
  before.add_nodes()->mutable_part()->set_node("c");
  AddNode(&after, "a", 2000, 99);
  AddNode(&after, "b", 900, 100);
  AddNode(&after, "c", 2000, 99);
  AddNode(&after, "d", 2000, 99);
  after.add_nodes()->mutable_part()->set_node("e");
  AddRates(before, &after);
  for (const v1::SpaceNodeCounters& node : after.nodes()) EXPECT_FALSE(node.has_rates()) << node.part().node();
  EXPECT_EQ(after.interval_seconds(), 0);
}

TEST(SpaceRates, WhoTouchesAPageIsToldByNode) {
  v1::SpaceTopResponse before, after;
  for (v1::SpaceTopResponse* const top : {&before, &after}) {
    for (const char* const name : {"a", "b", "c"}) {
      AddPage(AddNode(top, name, top == &before ? 0 : 1000, 0), 0x1000, top == &before ? 0 : 1000, 0, "c");
    }
  }
  for (const int node : {0, 2}) {
    v1::GuestAccess* const access = after.mutable_nodes(node)->mutable_hot_pages(0)->mutable_access();
    access->set_vcpu(static_cast<uint32_t>(node) + 5);
    access->set_code(0x4000);
  }
  AddRates(before, &after);
  ASSERT_EQ(after.ping_pong_size(), 1);
  ASSERT_EQ(after.ping_pong(0).accesses_size(), 2);
  EXPECT_EQ(after.ping_pong(0).accesses(0).node(), "a");
  EXPECT_EQ(after.ping_pong(0).accesses(0).vcpu(), 5u);
  EXPECT_EQ(after.ping_pong(0).accesses(1).node(), "c");
  EXPECT_EQ(after.ping_pong(0).accesses(1).code(), 0x4000u);
}

TEST(SpaceRates, PagesThatGoToAndFro) {
  v1::SpaceTopResponse before, after;
  v1::SpaceNodeCounters* a = AddNode(&before, "a", 0, 0);
  AddPage(a, 0x1000, 50, 40, "b");  // goes on
  AddPage(a, 0x2000, 50, 50, "b");  // does not
  AddPage(a, 0x3000, 50, 50, "b");  // was forgotten, and noticed again
  v1::SpaceNodeCounters* b = AddNode(&before, "b", 0, 0);
  AddPage(b, 0x1000, 10, 10, "a");
  a = AddNode(&after, "a", 2000, 0);
  AddPage(a, 0x1000, 60, 44, "c");
  AddPage(a, 0x2000, 50, 50, "b");
  AddPage(a, 0x3000, 4, 4, "b");
  AddPage(a, 0x4000, 1, 1, "b");  // moved once
  b = AddNode(&after, "b", 2000, 0);
  AddPage(b, 0x1000, 20, 20, "a");
  AddRates(before, &after);
  ASSERT_EQ(after.ping_pong_size(), 2);
  EXPECT_EQ(after.ping_pong(0).address(), 0x1000u);
  EXPECT_DOUBLE_EQ(after.ping_pong(0).losses_per_second(), 10);
  EXPECT_DOUBLE_EQ(after.ping_pong(0).owner_changes_per_second(), 7);
  EXPECT_THAT(after.ping_pong(0).nodes(), ElementsAre("a", "b", "c"));
  EXPECT_EQ(after.ping_pong(1).address(), 0x3000u);
  EXPECT_DOUBLE_EQ(after.ping_pong(1).losses_per_second(), 2);
}

}  // namespace
}  // namespace hk::cli
