// The spaces of this node as Prometheus metrics (hyperkernel_space_*), read at each scrape.
#pragma once

#include <prometheus/collectable.h>

#include <functional>
#include <utility>
#include <vector>

#include "hyperkernel/base/mutex.h"
#include "hyperkernel/node/space_sample.h"

namespace hk {

// Thread-safe if `samples` is.
class SpaceCollector final : public prometheus::Collectable {
 public:
  // This node's parts, by name.
  using Samples = std::function<std::vector<SpaceSample>()>;

  explicit SpaceCollector(Samples samples) : samples_(std::move(samples)) {}
  std::vector<prometheus::MetricFamily> Collect() const override;
  // What is asked goes: when it returned, it is not asked any more.
  void Forget();

 private:
  mutable Mutex mutex_;  // held while it is asked: scrapes are rare
  Samples samples_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hk
