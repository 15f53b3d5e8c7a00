#include "hyperkernel/node/space_collector.h"

#include <prometheus/client_metric.h>
#include <prometheus/metric_family.h>
#include <prometheus/metric_type.h>

#include <array>
#include <string>
#include <string_view>

#include "hyperkernel/node/latency_metric.h"

namespace hk {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

// A value of each space: how it is called, and what it is.
struct Column {
  const char* name;
  const char* help;
  MetricType type;
  const char* label;  // beside the space; null: none
  const char* label_value;
  uint64_t (*value)(const SpaceSample& sample);
};

// Columns of one name stand together.
constexpr Column kColumns[] = {
    {"running", "1 if this node's part of the space runs, 0 if it is stopped.", MetricType::Gauge, nullptr, nullptr,
     [](const SpaceSample& s) { return uint64_t{s.running}; }},
    {"frame_bytes", "Memory that the space's frames take on this node.", MetricType::Gauge, nullptr, nullptr,
     [](const SpaceSample& s) { return s.frame_bytes; }},
    {"pages", "Pages on this node, in frames or swapped, by right.", MetricType::Gauge, "right", "shared",
     [](const SpaceSample& s) { return s.statistics.pages_shared; }},
    {"pages", "", MetricType::Gauge, "right", "owned", [](const SpaceSample& s) { return s.statistics.pages_owned; }},
    {"pages", "", MetricType::Gauge, "right", "exclusive",
     [](const SpaceSample& s) { return s.statistics.pages_exclusive; }},
    {"swapped_pages", "Pages of this node in its swap, without a frame.", MetricType::Gauge, nullptr, nullptr,
     [](const SpaceSample& s) { return s.statistics.pages_swapped; }},
    {"pinned_pages", "Pages pinned on this node, as often as they are.", MetricType::Gauge, nullptr, nullptr,
     [](const SpaceSample& s) { return s.statistics.pages_pinned; }},
    {"lost_pages", "Pages with their home here whose only copy was on a lost node.", MetricType::Gauge, nullptr,
     nullptr, [](const SpaceSample& s) { return s.statistics.pages_lost; }},
    {"faults_total", "Faults that had to ask the page's home, by what was wished.", MetricType::Counter, "kind", "read",
     [](const SpaceSample& s) { return s.statistics.read_faults; }},
    {"faults_total", "", MetricType::Counter, "kind", "write",
     [](const SpaceSample& s) { return s.statistics.write_faults; }},
    {"upgrades_total", "Faults for writing of pages that were readable here.", MetricType::Counter, nullptr, nullptr,
     [](const SpaceSample& s) { return s.statistics.upgrades; }},
    {"served_pages_total", "Pages given to other nodes with their bytes.", MetricType::Counter, nullptr, nullptr,
     [](const SpaceSample& s) { return s.statistics.served; }},
    {"revoked_pages_total", "Pages taken away for other nodes.", MetricType::Counter, nullptr, nullptr,
     [](const SpaceSample& s) { return s.statistics.revoked; }},
    {"evicted_pages_total", "Pages given up for their frames: copies, and pages of zeroes.", MetricType::Counter,
     "what", "copy", [](const SpaceSample& s) { return s.statistics.dropped; }},
    {"evicted_pages_total", "", MetricType::Counter, "what", "zero",
     [](const SpaceSample& s) { return s.statistics.zeroed; }},
    {"adopted_pages_total", "Pages taken over from nodes that had no frames left.", MetricType::Counter, nullptr,
     nullptr, [](const SpaceSample& s) { return s.statistics.adopted; }},
    {"retries_total", "Requests sent again, because the page was busy.", MetricType::Counter, nullptr, nullptr,
     [](const SpaceSample& s) { return s.statistics.retries; }},
    {"stale_messages_total", "Messages that came too late to matter.", MetricType::Counter, nullptr, nullptr,
     [](const SpaceSample& s) { return s.statistics.stale_messages; }},
    {"prefetched_pages_total", "Pages asked for ahead of a stream of faults for reading.", MetricType::Counter, nullptr,
     nullptr, [](const SpaceSample& s) { return s.statistics.prefetched; }},
    {"prefetch_useful_pages_total", "Prefetched pages that were used, as far as it is known.", MetricType::Counter,
     nullptr, nullptr, [](const SpaceSample& s) { return s.statistics.prefetch_useful; }},
    {"prefetch_wasted_pages_total", "Prefetched pages that went, or were left behind, unused.", MetricType::Counter,
     nullptr, nullptr, [](const SpaceSample& s) { return s.statistics.prefetch_wasted; }},
    {"swap_written_pages_total", "Pages written to the swap.", MetricType::Counter, nullptr, nullptr,
     [](const SpaceSample& s) { return s.statistics.swap_writes; }},
    {"swap_read_pages_total", "Pages read from the swap.", MetricType::Counter, nullptr, nullptr,
     [](const SpaceSample& s) { return s.statistics.swap_reads; }},
    {"swap_failures_total", "Writes to the swap that failed; the pages stayed in memory.", MetricType::Counter, nullptr,
     nullptr, [](const SpaceSample& s) { return s.statistics.swap_failures; }},
};

std::string NameOf(std::string_view name) {
  return "hyperkernel_space_" + std::string(name);
}

void AddColumn(const Column& column, const std::vector<SpaceSample>& samples, MetricFamily* family) {
  for (const SpaceSample& sample : samples) {
    ClientMetric metric;
    metric.label.push_back({"space", sample.space});
    if (column.label != nullptr) metric.label.push_back({column.label, column.label_value});
    const auto value = static_cast<double>(column.value(sample));
    (column.type == MetricType::Gauge ? metric.gauge.value : metric.counter.value) = value;
    family->metric.push_back(std::move(metric));
  }
}

ClientMetric LatencyOf(const std::string& space, const char* kind,
                       const std::array<uint64_t, SpaceStatistics::kLatencyBuckets>& latency) {
  ClientMetric metric;
  metric.label = {{"space", space}, {"kind", kind}};
  metric.histogram = LatencyHistogram(latency);
  return metric;
}

}  // namespace

std::vector<MetricFamily> SpaceCollector::Collect() const {
  std::vector<SpaceSample> samples;
  {
    MutexLock lock(&mutex_);
    if (samples_) samples = samples_();
  }
  std::vector<MetricFamily> families;
  if (samples.empty()) return families;
  for (const Column& column : kColumns) {
    if (families.empty() || families.back().name != NameOf(column.name)) {
      families.push_back({NameOf(column.name), column.help, column.type, {}});
    }
    AddColumn(column, samples, &families.back());
  }
  MetricFamily latency{NameOf("fault_seconds"),
                       "From a fault to the page's installation; the sum is estimated.",
                       MetricType::Histogram,
                       {}};
  for (const SpaceSample& sample : samples) {
    latency.metric.push_back(LatencyOf(sample.space, "read", sample.statistics.read_latency));
    latency.metric.push_back(LatencyOf(sample.space, "write", sample.statistics.write_latency));
  }
  families.push_back(std::move(latency));
  return families;
}

void SpaceCollector::Forget() {
  MutexLock lock(&mutex_);
  samples_ = nullptr;
}

}  // namespace hk
