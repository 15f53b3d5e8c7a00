// The storage replicas of this node's machines as Prometheus metrics (hyperkernel_replica_*), read at each scrape.
#pragma once

#include <prometheus/collectable.h>

#include <functional>
#include <utility>
#include <vector>

#include "hyperkernel/base/mutex.h"
#include "proto/replica.pb.h"

namespace hk {

// Thread-safe if `samples` is.
class ReplicaCollector final : public prometheus::Collectable {
 public:
  // One for each machine that has one.
  using Samples = std::function<std::vector<v1::Replica>()>;

  explicit ReplicaCollector(Samples samples) : samples_(std::move(samples)) {}
  std::vector<prometheus::MetricFamily> Collect() const override;
  // What is asked goes: when it returned, it is not asked any more.
  void Forget();

 private:
  mutable Mutex mutex_;  // held while it is asked: scrapes are rare
  Samples samples_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hk
