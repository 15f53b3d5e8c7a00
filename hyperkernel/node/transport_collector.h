// The statistics of a transport as Prometheus metrics (hyperkernel_transport_*), read at each scrape.
#pragma once

#include <prometheus/collectable.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "rdma/transport.h"

namespace hk {

// Thread-safe if `peers` is.
class TransportCollector final : public prometheus::Collectable {
 public:
  // The peers to tell of, with the name that goes into the label. A peer that the transport does not have is left out.
  using Peers = std::function<std::vector<std::pair<NodeId, std::string>>()>;

  // The transport outlives this.
  TransportCollector(const Transport& transport, Peers peers) : transport_(transport), peers_(std::move(peers)) {}

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const Transport& transport_;
  const Peers peers_;
};

}  // namespace hk
