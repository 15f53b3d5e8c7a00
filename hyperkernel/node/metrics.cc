#include "hyperkernel/node/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <exception>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/node/replica_collector.h"
#include "hyperkernel/node/space_collector.h"
#include "hyperkernel/node/transport_collector.h"

namespace hk {
namespace {

// Scrapes are rare and small; more than one thread, so that a connection that says nothing does not stop them.
constexpr char kServerThreads[] = "4";
// After that such a connection is closed.
constexpr char kRequestTimeoutMs[] = "2000";
// Round trips from a loopback's 50 us to an unreachable peer's seconds.
const prometheus::Histogram::BucketBoundaries& HelloBuckets() {
  static const prometheus::Histogram::BucketBoundaries& buckets =
      *new prometheus::Histogram::BucketBoundaries{1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.1, 0.5, 1, 5};
  return buckets;
}

// A vCPU stands still from some hundreds of microseconds to the seconds after which it is given up (move_steps.h).
const prometheus::Histogram::BucketBoundaries& PauseBuckets() {
  static const prometheus::Histogram::BucketBoundaries& buckets = *new prometheus::Histogram::BucketBoundaries{
      1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 1, 5};
  return buckets;
}

prometheus::MetricFamily GaugeFamily(const std::string& name, const std::string& help, uint64_t value) {
  prometheus::ClientMetric metric;
  metric.gauge.value = static_cast<double>(value);
  return {name, help, prometheus::MetricType::Gauge, {metric}};
}

// Reads the stores when scraped, not on a timer.
class StoreCollector final : public prometheus::Collectable {
 public:
  StoreCollector(const FrameStore& frames, const SwapStore& swap) : frames_(frames), swap_(swap) {}
  std::vector<prometheus::MetricFamily> Collect() const override {
    return {
        GaugeFamily("hyperkernel_frame_budget_bytes", "Most memory that frames may take.", frames_.budget_bytes()),
        GaugeFamily("hyperkernel_frames_reserved_bytes", "Of the budget, what machines and spaces have reserved.",
                    frames_.reserved_bytes()),
        GaugeFamily("hyperkernel_frames_spare_bytes",
                    "Memory of frames of runs before, which go when the room is needed.", frames_.spare_bytes()),
        GaugeFamily("hyperkernel_frames_used_bytes", "Memory that frames take now.", frames_.UsedBytes().value_or(0)),
        GaugeFamily("hyperkernel_swap_budget_bytes", "Most of the disk that swap may take.", swap_.budget_bytes()),
        GaugeFamily("hyperkernel_swap_reserved_bytes", "Of the budget, what spaces have reserved.",
                    swap_.reserved_bytes()),
        GaugeFamily("hyperkernel_swap_used_bytes", "What swap takes of the disk now.", swap_.UsedBytes().value_or(0))};
  }

 private:
  const FrameStore& frames_;
  const SwapStore& swap_;
};

}  // namespace

struct Metrics::Impl {
  std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  std::shared_ptr<StoreCollector> stores;
  std::shared_ptr<TransportCollector> transport;
  std::shared_ptr<SpaceCollector> spaces;
  std::shared_ptr<ReplicaCollector> replicas;
  prometheus::Family<prometheus::Gauge>& build = prometheus::BuildGauge()
                                                     .Name("hyperkernel_build_info")
                                                     .Help("Always 1; the labels say what runs.")
                                                     .Register(*registry);
  prometheus::Family<prometheus::Gauge>& start = prometheus::BuildGauge()
                                                     .Name("hyperkernel_start_time_seconds")
                                                     .Help("When this daemon began to serve, Unix time.")
                                                     .Register(*registry);
  prometheus::Family<prometheus::Gauge>& peer_up =
      prometheus::BuildGauge().Name("hyperkernel_peer_up").Help("1 if the peer answers, 0 if not.").Register(*registry);
  prometheus::Family<prometheus::Histogram>& hello = prometheus::BuildHistogram()
                                                         .Name("hyperkernel_hello_seconds")
                                                         .Help("Round trip of hellos to a peer.")
                                                         .Register(*registry);
  prometheus::Family<prometheus::Counter>& hello_failures = prometheus::BuildCounter()
                                                                .Name("hyperkernel_hello_failures_total")
                                                                .Help("Hellos a peer did not answer, or refused.")
                                                                .Register(*registry);
  prometheus::Family<prometheus::Counter>& requests = prometheus::BuildCounter()
                                                          .Name("hyperkernel_requests_total")
                                                          .Help("Requests served, by method and gRPC code.")
                                                          .Register(*registry);
  prometheus::Family<prometheus::Counter>& moves = prometheus::BuildCounter()
                                                       .Name("hyperkernel_vcpu_moves_total")
                                                       .Help(
                                                           "Moves of vCPUs of this node's machines between nodes: "
                                                           "made, refused (it is where it was), failed (lost).")
                                                       .Register(*registry);
  prometheus::Counter& moves_made = moves.Add({{"result", "made"}});
  prometheus::Counter& moves_refused = moves.Add({{"result", "refused"}});
  prometheus::Counter& moves_failed = moves.Add({{"result", "failed"}});
  prometheus::Histogram& move_pause = prometheus::BuildHistogram()
                                          .Name("hyperkernel_vcpu_move_pause_seconds")
                                          .Help("For how long a vCPU stood still in a move that was made, at most.")
                                          .Register(*registry)
                                          .Add({}, PauseBuckets());
  std::unique_ptr<prometheus::Exposer> exposer;  // last: it reads the others from its own thread
};

Metrics::Metrics() : impl_(std::make_unique<Impl>()) {}
Metrics::~Metrics() = default;

void Metrics::DescribeNode(const v1::NodeInfo& info, const FrameStore& frames, const SwapStore& swap) {
  impl_->build
      .Add({{"version", info.version()},
            {"node", info.name()},
            {"node_id", info.node_id()},
            {"cluster", info.cluster()},
            {"transport", info.transport()}})
      .Set(1);
  impl_->start.Add({}).Set(static_cast<double>(info.started().seconds()));
  impl_->stores = std::make_shared<StoreCollector>(frames, swap);
}

void Metrics::DescribeTransport(const Transport& transport,
                                std::function<std::vector<std::pair<NodeId, std::string>>()> peers) {
  impl_->transport = std::make_shared<TransportCollector>(transport, std::move(peers));
}

void Metrics::DescribeSpaces(std::function<std::vector<SpaceSample>()> samples) {
  impl_->spaces = std::make_shared<SpaceCollector>(std::move(samples));
}

void Metrics::ForgetSpaces() {
  if (impl_->spaces != nullptr) impl_->spaces->Forget();
}

void Metrics::DescribeReplicas(std::function<std::vector<v1::Replica>()> samples) {
  impl_->replicas = std::make_shared<ReplicaCollector>(std::move(samples));
}

void Metrics::ForgetReplicas() {
  if (impl_->replicas != nullptr) impl_->replicas->Forget();
}

void Metrics::SetPeerUp(const std::string& peer, bool up) {
  impl_->peer_up.Add({{"peer", peer}}).Set(up ? 1 : 0);
}

void Metrics::ObserveHello(const std::string& peer, std::chrono::microseconds round_trip) {
  impl_->hello.Add({{"peer", peer}}, HelloBuckets()).Observe(std::chrono::duration<double>(round_trip).count());
}

void Metrics::CountHelloFailure(const std::string& peer) {
  impl_->hello_failures.Add({{"peer", peer}}).Increment();
}

void Metrics::CountMove(std::chrono::nanoseconds pause) {
  impl_->moves_made.Increment();
  impl_->move_pause.Observe(std::chrono::duration<double>(pause).count());
}

void Metrics::CountMoveNotMade(bool lost) {
  (lost ? impl_->moves_failed : impl_->moves_refused).Increment();
}

void Metrics::CountRequest(const std::string& method, int code) {
  impl_->requests.Add({{"method", method}, {"code", fmt::to_string(code)}}).Increment();
}

absl::Status Metrics::Serve(const Address& address) {
  try {
    impl_->exposer = std::make_unique<prometheus::Exposer>(std::vector<std::string>{
        "listening_ports", address.ToString(), "num_threads", kServerThreads, "request_timeout_ms", kRequestTimeoutMs});
  } catch (const std::exception&) {
    return absl::UnavailableError(
        fmt::format("cannot listen on {}; is another daemon there? (ss -ltnp)", address.ToString()));
  }
  impl_->exposer->RegisterCollectable(impl_->registry);
  if (impl_->stores != nullptr) impl_->exposer->RegisterCollectable(impl_->stores);
  if (impl_->transport != nullptr) impl_->exposer->RegisterCollectable(impl_->transport);
  if (impl_->spaces != nullptr) impl_->exposer->RegisterCollectable(impl_->spaces);
  if (impl_->replicas != nullptr) impl_->exposer->RegisterCollectable(impl_->replicas);
  return absl::OkStatus();
}

std::string Metrics::Text() const {
  std::vector<prometheus::MetricFamily> families = impl_->registry->Collect();
  const auto add = [&families](const prometheus::Collectable* collectable) {
    if (collectable == nullptr) return;
    for (prometheus::MetricFamily& family : collectable->Collect()) families.push_back(std::move(family));
  };
  add(impl_->stores.get());
  add(impl_->transport.get());
  add(impl_->spaces.get());
  add(impl_->replicas.get());
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace hk
