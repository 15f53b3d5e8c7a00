// Metrics in Prometheus form. Names begin with hyperkernel_; base units (seconds, bytes). Thread-safe.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/address.h"
#include "hyperkernel/memory/frame_store.h"
#include "hyperkernel/memory/swap_store.h"
#include "hyperkernel/node/space_sample.h"
#include "proto/node.pb.h"
#include "proto/replica.pb.h"
#include "rdma/transport.h"

namespace hk {

// All metrics of this daemon, and the HTTP endpoint they are read at (GET /metrics).
class Metrics {
 public:
  Metrics();
  ~Metrics();

  // Constant facts as labels, and the gauges of frames and swap, which are read from `frames` and `swap` at each
  // scrape; both must outlive this.
  void DescribeNode(const v1::NodeInfo& info, const FrameStore& frames, const SwapStore& swap);
  // What the transport counts, read from it at each scrape; it must outlive this. Before Serve. `peers`: see
  // transport_collector.h.
  void DescribeTransport(const Transport& transport,
                         std::function<std::vector<std::pair<NodeId, std::string>>()> peers);
  // What this node's parts of spaces count, asked for at each scrape, by its threads. Before Serve.
  void DescribeSpaces(std::function<std::vector<SpaceSample>()> samples);
  // Nobody asks for them any more when it returned.
  void ForgetSpaces();
  // The same of the machines' storage replicas.
  void DescribeReplicas(std::function<std::vector<v1::Replica>()> samples);
  void ForgetReplicas();
  void SetPeerUp(const std::string& peer, bool up);
  void ObserveHello(const std::string& peer, std::chrono::microseconds round_trip);
  void CountHelloFailure(const std::string& peer);
  // One move of a vCPU that this node has had made, as the machine's I/O node, for as long as the guest missed it.
  void CountMove(std::chrono::nanoseconds pause);
  // One that was not made: the vCPU is where it was, or `lost`.
  void CountMoveNotMade(bool lost);
  // One request of an operator or peer served; `code` is the gRPC code's number.
  void CountRequest(const std::string& method, int code);

  // Serves the endpoint. Errors: kUnavailable naming the address if it cannot be listened on.
  absl::Status Serve(const Address& address);
  // The text a scrape would see, for tests.
  std::string Text() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hk
