#include "hyperkernel/node/replica_collector.h"

#include <prometheus/client_metric.h>
#include <prometheus/metric_family.h>
#include <prometheus/metric_type.h>

#include <string>

namespace hk {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

// A value of each replica: how it is called, and what it is.
struct Column {
  const char* name;
  const char* help;
  MetricType type;
  uint64_t (*value)(const v1::Replica& replica);
};

constexpr Column kColumns[] = {
    {"entries", "Pages whose bytes are known to be those of a block.", MetricType::Gauge,
     [](const v1::Replica& r) -> uint64_t { return r.entries(); }},
    {"warm_bytes", "Memory that frames of runs before the last reset take.", MetricType::Gauge,
     [](const v1::Replica& r) -> uint64_t { return r.warm_bytes(); }},
    {"table_bytes", "Memory of the table.", MetricType::Gauge,
     [](const v1::Replica& r) -> uint64_t { return r.table_bytes(); }},
    {"hits_total", "Blocks that were read from memory instead of a disk.", MetricType::Counter,
     [](const v1::Replica& r) -> uint64_t { return r.hits(); }},
    {"misses_total", "Blocks that were read from a disk.", MetricType::Counter,
     [](const v1::Replica& r) -> uint64_t { return r.misses(); }},
    {"saved_bytes_total", "Bytes that were read from memory instead of a disk.", MetricType::Counter,
     [](const v1::Replica& r) -> uint64_t { return r.bytes_saved(); }},
    {"mismatched_total", "Entries whose page was not what it was when the daemon before was killed.",
     MetricType::Counter, [](const v1::Replica& r) -> uint64_t { return r.mismatched(); }},
    {"durable", "1: it has a durable form.", MetricType::Gauge,
     [](const v1::Replica& r) -> uint64_t { return r.durable() ? 1 : 0; }},
};

}  // namespace

std::vector<MetricFamily> ReplicaCollector::Collect() const {
  std::vector<v1::Replica> samples;
  {
    MutexLock lock(&mutex_);
    if (samples_) samples = samples_();
  }
  std::vector<MetricFamily> families;
  if (samples.empty()) return families;
  for (const Column& column : kColumns) {
    MetricFamily family{std::string("hyperkernel_replica_") + column.name, column.help, column.type, {}};
    for (const v1::Replica& sample : samples) {
      ClientMetric metric;
      metric.label.push_back({"vm", sample.vm()});
      const auto value = static_cast<double>(column.value(sample));
      (column.type == MetricType::Gauge ? metric.gauge.value : metric.counter.value) = value;
      family.metric.push_back(std::move(metric));
    }
    families.push_back(std::move(family));
  }
  return families;
}

void ReplicaCollector::Forget() {
  MutexLock lock(&mutex_);
  samples_ = nullptr;
}

}  // namespace hk
