#include "hyperkernel/node/space_collector.h"

#include <prometheus/text_serializer.h>

#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/node/metrics.h"

namespace hk {
namespace {

using testing::HasSubstr;
using testing::Not;

// Every counter has a value of its own, so that none can be told as another.
SpaceSample Sample(const std::string& name, uint64_t first) {
  SpaceSample sample;
  sample.space = name;
  sample.frame_bytes = first++;
  SpaceStatistics& s = sample.statistics;
  for (uint64_t* value :
       {&s.pages_shared,    &s.pages_owned,  &s.pages_exclusive, &s.pages_swapped,  &s.pages_pinned, &s.pages_lost,
        &s.read_faults,     &s.write_faults, &s.upgrades,        &s.served,         &s.revoked,      &s.dropped,
        &s.zeroed,          &s.adopted,      &s.retries,         &s.stale_messages, &s.prefetched,   &s.prefetch_useful,
        &s.prefetch_wasted, &s.swap_writes,  &s.swap_reads,      &s.swap_failures}) {
    *value = first++;
  }
  s.read_latency[14] = 3;   // 16 to 33 us
  s.write_latency[31] = 1;  // more than 2 s
  return sample;
}

TEST(SpaceCollector, EachSpaceHasItsCounters) {
  SpaceSample stopped = Sample("old", 200);
  stopped.running = false;
  Metrics metrics;
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("hyperkernel_space_")));
  metrics.DescribeSpaces([&] { return std::vector<SpaceSample>{Sample("pool", 100), stopped}; });
  const std::string text = metrics.Text();
  for (const std::string line : {"running{space=\"pool\"} 1",
                                 "running{space=\"old\"} 0",
                                 "frame_bytes{space=\"pool\"} 100",
                                 "frame_bytes{space=\"old\"} 200",
                                 "pages{space=\"pool\",right=\"shared\"} 101",
                                 "pages{space=\"pool\",right=\"owned\"} 102",
                                 "pages{space=\"pool\",right=\"exclusive\"} 103",
                                 "swapped_pages{space=\"pool\"} 104",
                                 "pinned_pages{space=\"pool\"} 105",
                                 "lost_pages{space=\"pool\"} 106",
                                 "faults_total{space=\"pool\",kind=\"read\"} 107",
                                 "faults_total{space=\"pool\",kind=\"write\"} 108",
                                 "upgrades_total{space=\"pool\"} 109",
                                 "served_pages_total{space=\"pool\"} 110",
                                 "revoked_pages_total{space=\"pool\"} 111",
                                 "evicted_pages_total{space=\"pool\",what=\"copy\"} 112",
                                 "evicted_pages_total{space=\"pool\",what=\"zero\"} 113",
                                 "adopted_pages_total{space=\"pool\"} 114",
                                 "retries_total{space=\"pool\"} 115",
                                 "stale_messages_total{space=\"pool\"} 116",
                                 "prefetched_pages_total{space=\"pool\"} 117",
                                 "prefetch_useful_pages_total{space=\"pool\"} 118",
                                 "prefetch_wasted_pages_total{space=\"pool\"} 119",
                                 "swap_written_pages_total{space=\"pool\"} 120",
                                 "swap_read_pages_total{space=\"pool\"} 121",
                                 "swap_failures_total{space=\"pool\"} 122",
                                 "swap_failures_total{space=\"old\"} 222",
                                 "fault_seconds_count{space=\"pool\",kind=\"read\"} 3",
                                 "fault_seconds_bucket{space=\"pool\",kind=\"write\",le=\"+Inf\"} 1"}) {
    EXPECT_THAT(text, HasSubstr("\nhyperkernel_space_" + line + "\n"));
  }
  // Each name once, with its help and type.
  std::set<std::string> names;
  for (size_t at = text.find("# TYPE "); at != std::string::npos; at = text.find("# TYPE ", at + 1)) {
    const std::string line = text.substr(at, text.find('\n', at) - at);
    EXPECT_TRUE(names.insert(line).second) << line;
  }
  EXPECT_TRUE(names.contains("# TYPE hyperkernel_space_swapped_pages gauge"));
  EXPECT_TRUE(names.contains("# TYPE hyperkernel_space_prefetch_wasted_pages_total counter"));
  EXPECT_TRUE(names.contains("# TYPE hyperkernel_space_fault_seconds histogram"));
  metrics.ForgetSpaces();
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("hyperkernel_space_")));
}

}  // namespace
}  // namespace hk
