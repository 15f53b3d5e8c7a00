#include "hyperkernel/cli/space_output.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

const std::chrono::system_clock::time_point kNow{std::chrono::seconds(2000)};

v1::Space Pool() {
  v1::Space space;
  space.set_name("pool");
  space.set_id(0x1234);
  space.set_memory_bytes(uint64_t{640} << 20);
  for (const char* node : {"a", "b"}) space.add_nodes(node);
  space.set_coordinator("a");
  space.set_state(v1::SPACE_STATE_RUNNING);
  space.mutable_since()->set_seconds(1990);
  space.mutable_created()->set_seconds(1940);
  return space;
}

TEST(SpaceOutput, ListHasOneRowEachAndTheReasonsBelow) {
  v1::Space stopped = Pool();
  stopped.set_name("old");
  stopped.set_state(v1::SPACE_STATE_STOPPED);
  stopped.set_reason("peer 2 failed\x1b[2J");
  const std::string text = SpaceTable({Pool(), stopped}, kNow);
  EXPECT_THAT(text, HasSubstr("NAME  STATE    FOR  MEMORY   FRAMES  NODES  COORDINATOR  AGE\n"
                              "pool  running  10s  640 MiB  0       a,b    a            1m0s\n"));
  EXPECT_THAT(text, HasSubstr("\nold: peer 2 failed?[2J\n"));
}

TEST(SpaceOutput, ShowTellsOfNodesThatDoNotAnswer) {
  v1::Space space = Pool();
  v1::SpacePart* part = space.add_parts();
  part->set_node("a");
  part->set_state(v1::SPACE_STATE_RUNNING);
  part->mutable_since()->set_seconds(1990);
  part->set_frame_bytes(8192);
  part = space.add_parts();
  part->set_node("b");
  part->set_reason("node 'b' is unreachable");
  const std::string text = SpaceText(space, kNow);
  EXPECT_THAT(text, HasSubstr("Id:                0x1234\n"));
  EXPECT_THAT(text, HasSubstr("a     running  10s  8 KiB\n"));
  EXPECT_THAT(text, HasSubstr("b     unknown  -    -\n\nb: node 'b' is unreachable\n"));
}

TEST(SpaceOutput, ShowTellsWhatWasLostWithWhomAndSinceWhen) {
  v1::Space space = Pool();
  space.set_epoch(3);
  for (const char* node : {"c", "d", "e"}) {
    v1::SpaceLoss* loss = space.add_lost();
    loss->set_node(node);
    loss->set_epoch(3);
    loss->mutable_since()->set_seconds(1980);
  }
  space.mutable_lost(0)->set_pages_lost(3);
  space.mutable_lost(2)->set_pages_lost(1);
  space.set_pages_lost(5);
  const std::string text = SpaceText(space, kNow);
  EXPECT_THAT(text, HasSubstr("Lost node:         c, since 1970-01-01 00:33:00Z (20s), epoch 3\n"));
  EXPECT_THAT(text,
              HasSubstr("Lost pages:        5 (20 KiB), whose only copy was on a lost node: 3 with c, 1 with e\n"));
}

TEST(SpaceOutput, MapHasAColumnPerNode) {
  v1::SpaceMapResponse map;
  *map.mutable_space() = Pool();
  v1::SpaceExtent* extent = map.add_extents();
  extent->set_extent(1);
  extent->set_home("b");
  v1::ExtentHolding* holder = extent->add_holders();
  holder->set_node("b");
  holder->set_exclusive(2);
  holder->set_shared(1);
  holder->set_heat(7);
  EXPECT_EQ(SpaceMapText(map),
            "ADDRESS   HOME  HEAT  a  b\n"
            "0x200000  b     7     -  2 exclusive, 1 shared\n");
  map.clear_extents();
  EXPECT_THAT(SpaceMapText(map), HasSubstr("no node has a page\n"));
}

TEST(SpaceOutput, TopHasARowPerNodeAndThePagesThatGoToAndFro) {
  v1::SpaceTopResponse top;
  *top.mutable_space() = Pool();
  top.set_interval_seconds(1);
  v1::SpaceNodeCounters* node = top.add_nodes();
  node->mutable_part()->set_node("a");
  node->mutable_counters()->set_pages_shared(12);
  node->mutable_counters()->set_prefetched(800);
  node->mutable_counters()->set_prefetch_useful(780);
  node->mutable_counters()->set_prefetch_wasted(7);
  node->mutable_rates()->set_read_faults(1700);
  node->mutable_rates()->set_retries(0.5);
  v1::FaultLatency* latency = node->mutable_rates()->mutable_read_latency();
  latency->set_count(17);
  latency->add_buckets(17);
  latency->set_p50_ns(98304);
  latency->set_max_ns(1 << 20);
  node->mutable_rates()->set_fetched_share(0.25);
  node = top.add_nodes();
  node->mutable_part()->set_node("b");
  node->mutable_part()->set_reason("silent");
  v1::PingPongPage* page = top.add_ping_pong();
  page->set_address(0x5000);
  page->set_losses_per_second(2400.4);
  page->set_owner_changes_per_second(1200);
  page->add_nodes("a");
  page->add_nodes("b");
  const std::string text = SpaceTopText(top);
  EXPECT_THAT(text, HasSubstr("pool running, 640 MiB on a,b; per second, over 1.0 s\n"));
  EXPECT_THAT(text, HasSubstr("a         1700         98 us / 0 ns / 1.0 ms  0             -                0         "
                              "0       0        0.5      12"));
  EXPECT_THAT(text, HasSubstr("\nb         -            -"));
  EXPECT_THAT(text, HasSubstr("\ntogether  1700 "));
  EXPECT_THAT(text, HasSubstr("\nAnother node had the page: together 25% of the faults, a 25%\n"));
  EXPECT_THAT(text,
              HasSubstr("\n\nNODE  FETCHED AHEAD IN ALL  USEFUL  WASTED\na     800                   780     7\n\n"));
  EXPECT_THAT(text, HasSubstr("BETWEEN\n0x5000  2400        1200       a,b\n"));
  EXPECT_THAT(text, HasSubstr("\nb: silent\n"));
  v1::GuestAccess* access = page->add_accesses();
  access->set_node("a");
  access->set_vcpu(3);
  access->set_code(0xffffffff81000010);
  access->set_address(0xffff888000005000);
  access = page->add_accesses();
  access->set_node("b");
  access->set_code(0x401000);
  access->set_user(true);
  top.add_ping_pong()->set_address(0x6000);
  EXPECT_THAT(
      SpaceTopText(top),
      HasSubstr("BETWEEN  BY           CODE                       ITS ADDRESS THERE\n"
                "0x5000  2400        1200       a,b      vCPU 3 on a  kernel 0xffffffff81000010  0xffff888000005000\n"
                "                                        vCPU 0 on b  user 0x401000              -\n"
                "0x6000  0           0                   -            -                          -\n"));
  top.mutable_nodes(0)->mutable_counters()->clear_prefetched();
  EXPECT_THAT(SpaceTopText(top), Not(HasSubstr("AHEAD")));
  EXPECT_THAT(SpaceTopText(top), Not(HasSubstr("vCPUs")));
  top.mutable_nodes(1)->add_vcpus(0);
  top.mutable_nodes(1)->add_vcpus(2);
  top.mutable_nodes(0)->add_vcpus(1);
  EXPECT_THAT(SpaceTopText(top), HasSubstr("\n\nvCPUs: 1 on a; 0, 2 on b\n\nNODE"));
}

TEST(SpaceOutput, TimesAndDumps) {
  EXPECT_EQ(HumanNanoseconds(999), "999 ns");
  EXPECT_EQ(HumanNanoseconds(1536), "1.5 us");
  EXPECT_EQ(HumanNanoseconds(12'000'000), "12 ms");
  EXPECT_EQ(HumanNanoseconds(90'000'000'000), "90 s");
  EXPECT_EQ(HexDump(0x1000, "hello\n"),
            "0000000000001000  68 65 6c 6c 6f 0a                                 |hello.|\n");
  const std::string zeroes = HexDump(0, std::string(64, '\0'));
  EXPECT_THAT(zeroes, HasSubstr("\n*\n0000000000000030"));
  EXPECT_THAT(zeroes, Not(HasSubstr("0000000000000020")));
  EXPECT_EQ(HexDump(0, ""), "");
}

}  // namespace
}  // namespace hk::cli
