#include "hyperkernel/node/latency_metric.h"

#include <cmath>
#include <cstddef>
#include <limits>

namespace hk {

// Nothing that crosses a network is shorter than 2 us.
constexpr size_t kFirstBucket = 10;

prometheus::ClientMetric::Histogram LatencyHistogram(std::span<const uint64_t> buckets) {
  prometheus::ClientMetric::Histogram histogram;
  uint64_t count = 0;
  for (size_t i = 0; i < buckets.size(); ++i) {
    count += buckets[i];
    const double from_s = std::ldexp(1e-9, static_cast<int>(i));
    histogram.sample_sum += 1.5 * from_s * static_cast<double>(buckets[i]);
    if (i < kFirstBucket) continue;
    const bool last = i + 1 == buckets.size();
    histogram.bucket.push_back({count, last ? std::numeric_limits<double>::infinity() : 2 * from_s});
  }
  histogram.sample_count = count;
  return histogram;
}

}  // namespace hk
