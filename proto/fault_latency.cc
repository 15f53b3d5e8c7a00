#include "proto/fault_latency.h"

#include <cstdint>

namespace hk {

void SummarizeBuckets(v1::FaultLatency* latency) {
  uint64_t count = 0;
  for (int i = 0; i < latency->buckets_size(); i++) {
    count += latency->buckets(i);
    if (latency->buckets(i) > 0 && i < 63) latency->set_max_ns(uint64_t{2} << i);
  }
  latency->set_count(count);
  if (count == 0) return;
  const auto percentile = [&](uint64_t percent) -> uint64_t {
    uint64_t seen = 0;
    // The smallest time that at least `percent` of 100 do not exceed.
    const uint64_t wanted = (count * percent + 99) / 100;
    for (int i = 0; i < latency->buckets_size() && i < 62; i++) {
      seen += latency->buckets(i);
      if (seen >= wanted && seen > 0) return (uint64_t{3} << i) / 2;
    }
    return 0;
  };
  latency->set_p50_ns(percentile(50));
  latency->set_p90_ns(percentile(90));
  latency->set_p99_ns(percentile(99));
}

}  // namespace hk
