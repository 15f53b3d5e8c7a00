// Times that were counted by powers of two of nanoseconds, as a Prometheus histogram. Pure; thread-safe.
#pragma once

#include <prometheus/client_metric.h>

#include <cstdint>
#include <span>

namespace hk {

// `buckets`: [i] counts times from 2^i ns to 2^(i+1) ns, the last one all that are longer. Told from 2 us on. Only
// counts are kept, so the sum is what it would be if each took the middle of its bucket.
prometheus::ClientMetric::Histogram LatencyHistogram(std::span<const uint64_t> buckets);

}  // namespace hk
