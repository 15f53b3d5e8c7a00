#include "hyperkernel/node/transport_collector.h"

#include <prometheus/client_metric.h>
#include <prometheus/metric_family.h>
#include <prometheus/metric_type.h>

#include <array>
#include <string_view>

#include "hyperkernel/node/latency_metric.h"

namespace hk {

namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

constexpr std::array<std::string_view, kMessageClasses> kClassNames = {"fault", "invalidate", "bulk"};
constexpr std::array<std::string_view, kDropReasons> kDropNames = {"old-epoch", "duplicate", "stale-slot",
                                                                   "peer-failed"};
// One family that is being filled.
class Family {
 public:
  Family(std::string_view name, std::string_view help, MetricType type)
      : family_{"hyperkernel_transport_" + std::string(name), std::string(help), type, {}} {}

  void Add(Labels labels, double value) {
    ClientMetric metric;
    metric.label = std::move(labels);
    (family_.type == MetricType::Gauge ? metric.gauge.value : metric.counter.value) = value;
    family_.metric.push_back(std::move(metric));
  }
  void Add(Labels labels, uint64_t value) { Add(std::move(labels), static_cast<double>(value)); }
  void AddHistogram(Labels labels, const std::array<uint64_t, ClassStatistics::kLatencyBuckets>& latency);
  MetricFamily Take() { return std::move(family_); }

 private:
  MetricFamily family_;
};

void Family::AddHistogram(Labels labels, const std::array<uint64_t, ClassStatistics::kLatencyBuckets>& latency) {
  ClientMetric metric;
  metric.label = std::move(labels);
  metric.histogram = LatencyHistogram(latency);
  family_.metric.push_back(std::move(metric));
}

// All families with one value or more for each peer.
struct PeerFamilies {
  Family up{"peer_up", "1 if all classes of the data plane are connected to the peer.", MetricType::Gauge};
  Family sessions{"sessions_total", "Times the peer came up.", MetricType::Counter};
  Family messages{"messages_total", "Messages, each counted once.", MetricType::Counter};
  Family bytes{"bytes_total", "Bytes of messages with headers, each counted once.", MetricType::Counter};
  Family resent{"resent_messages_total", "Messages sent again on a new connection.", MetricType::Counter};
  Family reconnects{"reconnects_total", "Connections made anew within a session.", MetricType::Counter};
  Family refused{"queue_full_total", "Messages refused because the peer's queue was full.", MetricType::Counter};
  Family expired{"expired_requests_total", "Requests that ended without an answer.", MetricType::Counter};
  Family dropped{"dropped_messages_total", "Messages dropped without harm.", MetricType::Counter};
  Family latency{"request_seconds", "From a request's sending to its answer; the sum is estimated.",
                 MetricType::Histogram};

  void Add(const std::string& peer, const PeerStatistics& statistics);
  void AddClass(const Labels& labels, const ClassStatistics& one);
};

void PeerFamilies::Add(const std::string& peer, const PeerStatistics& statistics) {
  up.Add({{"peer", peer}}, statistics.up ? 1.0 : 0.0);
  sessions.Add({{"peer", peer}}, statistics.sessions);
  for (size_t i = 0; i < kMessageClasses; ++i) {
    AddClass({{"class", std::string(kClassNames[i])}, {"peer", peer}}, statistics.classes[i]);
  }
}

void PeerFamilies::AddClass(const Labels& labels, const ClassStatistics& one) {
  const auto with = [&labels](const char* name, std::string_view value) {
    Labels more = labels;
    more.push_back({name, std::string(value)});
    return more;
  };
  messages.Add(with("direction", "sent"), one.sent_messages);
  messages.Add(with("direction", "received"), one.received_messages);
  bytes.Add(with("direction", "sent"), one.sent_bytes);
  bytes.Add(with("direction", "received"), one.received_bytes);
  resent.Add(labels, one.resent_messages);
  reconnects.Add(labels, one.reconnects);
  refused.Add(labels, one.refused_full);
  expired.Add(labels, one.expired_requests);
  for (size_t i = 0; i < kDropReasons; ++i) dropped.Add(with("reason", kDropNames[i]), one.dropped[i]);
  latency.AddHistogram(labels, one.latency);
}

}  // namespace

std::vector<MetricFamily> TransportCollector::Collect() const {
  PeerFamilies peers;
  for (const auto& [node, name] : peers_()) {
    const absl::StatusOr<PeerStatistics> statistics = transport_.Statistics(node);
    if (statistics.ok()) peers.Add(name, *statistics);
  }
  const TransportStatistics all = transport_.Statistics();
  Family slots("slots", "Slots that are not free.", MetricType::Gauge);
  slots.Add({{"state", "lent"}}, all.slots_lent);
  slots.Add({{"state", "in-flight"}}, all.slots_in_flight);
  slots.Add({{"state", "sending"}}, all.slots_sending);
  slots.Add({{"state", "quarantined"}}, all.slots_quarantined);
  Family refused("handshakes_refused_total", "Hellos that were read and refused.", MetricType::Counter);
  refused.Add({}, all.handshakes_refused);
  Family strangers("strangers_closed_total", "Connections closed before they were a peer's.", MetricType::Counter);
  strangers.Add({}, all.strangers_closed);
  Family malformed("malformed_total", "Messages and hellos that break the format.", MetricType::Counter);
  malformed.Add({}, all.malformed);

  std::vector<MetricFamily> families;
  for (Family* family :
       {&peers.up, &peers.sessions, &peers.messages, &peers.bytes, &peers.resent, &peers.reconnects, &peers.refused,
        &peers.expired, &peers.dropped, &peers.latency, &slots, &refused, &strangers, &malformed}) {
    families.push_back(family->Take());
  }
  return families;
}

}  // namespace hk
