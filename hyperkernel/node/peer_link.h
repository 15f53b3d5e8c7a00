// Control-plane connections to the configured peers: says hello to each at the configured interval, and carries other
// requests to them. Thread-safe.
//
// One thread does everything for the hellos: sends them, takes their answers from a completion queue of its own, makes
// and throws away connections. (Not gRPC's callbacks: in 1.51 a channel that is destroyed inside one takes its own
// poller down.)
//
// Deadlines: a hello that is not answered within half of `unreachable_after`, 2 s at most, has failed, and its
// connection is thrown away, so that a healed link is used at the next hello and not when TCP's back-off ends.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/completion_queue.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/node/config.h"
#include "hyperkernel/node/membership.h"
#include "proto/peer.grpc.pb.h"

namespace hk {

// What a hello says and came to, each called once per hello. Called on the hellos' thread; must not block.
class HelloObserver {
 public:
  virtual ~HelloObserver() = default;
  // Before a hello: fills in what changes from one to the next.
  virtual void OnHello(const std::string& peer, v1::HelloRequest* request) = 0;
  virtual void OnHelloAnswered(const std::string& peer, const v1::HelloResponse& response,
                               std::chrono::microseconds round_trip) = 0;
  virtual void OnHelloFailed(const std::string& peer, const absl::Status& status) = 0;
};

// The connections of one node.
class PeerLinks {
 public:
  // `observer` must outlive this object. Nothing is sent before Start.
  PeerLinks(const NodeSettings& settings, HelloObserver* observer);
  // Cancels what is in flight and waits for its end, which comes at once.
  ~PeerLinks();

  // Starts to say hello. Call once.
  void Start();
  // Runs one call to a peer, on a connection of its own, in the caller's thread. The errors are for people and name the
  // node: kNotFound for a name that is not in the list, kDeadlineExceeded, or what the call ended with.
  using Body = std::function<grpc::Status(v1::PeerControl::Stub*, grpc::ClientContext*)>;
  absl::Status Call(const std::string& peer, std::chrono::system_clock::time_point deadline, const Body& body) const;
  // The same on a connection that is kept for the next such call, until one fails: a connection takes longer to make
  // than an answer.
  absl::Status CallKept(const std::string& peer, std::chrono::system_clock::time_point deadline,
                        const Body& body) const;
  // Asks a peer for a probe of its host. Errors: as Call.
  absl::StatusOr<v1::ProbeReport> Probe(const std::string& peer, std::chrono::system_clock::time_point deadline) const;

 private:
  struct Link;
  struct HelloCall;

  std::unique_ptr<v1::PeerControl::Stub> Connect(const PeerSettings& peer) const;
  // Errors: kNotFound.
  absl::StatusOr<const PeerSettings*> SettingsOf(const std::string& peer) const;
  absl::Status CallOn(v1::PeerControl::Stub* stub, const std::string& peer,
                      std::chrono::system_clock::time_point deadline, const Body& body) const;
  // The hellos' thread.
  void Run();
  void SendHello(Link* link);
  void Finish(Link* link);

  const std::string name_;
  const std::string cluster_;
  const NodeId number_;
  const std::chrono::milliseconds interval_;
  const std::chrono::milliseconds hello_deadline_;
  const std::optional<TlsSettings> tls_;
  HelloObserver* const observer_;
  grpc::CompletionQueue queue_;
  grpc::Alarm stop_;                          // wakes the thread to stop
  std::vector<std::unique_ptr<Link>> links_;  // the vector and the peers' settings are fixed; the rest is the thread's
  std::thread thread_;
  mutable Mutex kept_mutex_;
  mutable std::map<std::string, std::shared_ptr<v1::PeerControl::Stub>> kept_ ABSL_GUARDED_BY(kept_mutex_);  // by peer
};

}  // namespace hk
