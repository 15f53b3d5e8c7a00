// Control-plane connections to the configured peers: says hello to each at the configured interval, and carries other
// requests to them. Thread-safe.
//
// Deadlines: a hello that is not answered within `hello_deadline` has failed, and its connection is thrown away, so
// that a healed link is used at the next hello and not when TCP's back-off ends.
#pragma once

#include <grpcpp/channel.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/node/config.h"
#include "hyperkernel/node/membership.h"
#include "proto/peer.grpc.pb.h"

namespace hk {

// What a hello came to, one call per event and peer; calls for one peer do not overlap. Called on gRPC's threads; must
// not block.
class HelloObserver {
 public:
  virtual ~HelloObserver() = default;
  virtual void OnHelloAnswered(const std::string& peer, const v1::HelloResponse& response,
                               std::chrono::microseconds round_trip) = 0;
  virtual void OnHelloFailed(const std::string& peer, const absl::Status& status) = 0;
};

// The connections of one node.
class PeerLinks {
 public:
  // `observer` must outlive this object. Nothing is sent before Start.
  PeerLinks(const NodeSettings& settings, HelloObserver* observer);
  // Cancels what is in flight and waits for its end; bounded, since cancelled calls end at once.
  ~PeerLinks();

  void Start();
  // Asks a peer for a probe of its host. Errors: kNotFound for a name that is not in the list, or what the call ended
  // with.
  absl::StatusOr<v1::ProbeReport> Probe(const std::string& peer, std::chrono::system_clock::time_point deadline);

 private:
  struct Link;
  struct HelloCall;

  void Run();
  void SendHello(Link* link);
  void Finish(Link* link, HelloCall* call, const grpc::Status& status);
  std::shared_ptr<v1::PeerControl::Stub> StubOf(Link* link) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string name_;
  const std::string cluster_;
  const std::chrono::milliseconds interval_;
  const std::chrono::milliseconds hello_deadline_;
  const std::optional<TlsSettings> tls_;
  HelloObserver* const observer_;
  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::unique_ptr<Link>> links_;  // the vector is fixed; a link's fields are guarded by mutex_
  std::thread thread_;
};

}  // namespace hk
