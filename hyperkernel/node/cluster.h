// The cluster as this node sees it: the membership table, kept by hellos, and this node itself. Thread-safe.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/memory/frame_store.h"
#include "hyperkernel/node/membership.h"
#include "hyperkernel/node/metrics.h"
#include "hyperkernel/node/node_info.h"
#include "hyperkernel/node/peer_link.h"

namespace hk {

// What the rest of the node has to do with hellos and members. All are called from any thread, must not block, and may
// be empty.
struct ClusterHooks {
  // State of the data plane to a peer.
  std::function<v1::DataLink(const std::string& peer)> data_link;
  // A peer that can be worked with said this of itself.
  std::function<void(const std::string& peer, const v1::NodeInfo& info)> heard;
  // Spaces that this node takes part in and a peer coordinates.
  std::function<std::vector<uint64_t>(const std::string& peer)> spaces_of;
  // Some of them that the peer does not know.
  std::function<void(const std::string& peer, const std::vector<uint64_t>& ids)> spaces_unknown;
};

// "up", "unreachable", ...: for logs and errors.
const char* StateName(v1::MemberState state);

// Owns the links to the peers.
class Cluster final : private HelloObserver {
 public:
  // `frames`, `swap`, `metrics`, `clock` and what the hooks use must outlive this object.
  Cluster(const NodeSettings& settings, v1::NodeInfo self, const FrameStore& frames, const SwapStore& swap,
          Metrics* metrics, const Clock& clock, ClusterHooks hooks = {});

  // Starts to say hello. Call once.
  void Start();
  // This node first, then the others by name.
  std::vector<v1::Member> Members() const;
  // One member; empty name means this node. Errors: kNotFound.
  absl::StatusOr<v1::Member> Find(const std::string& name) const;
  const std::string& name() const { return self_.name(); }
  // This node, as it is now.
  v1::NodeInfo Self() const;
  // Probes the host of a member; empty name means this node. Errors: kNotFound, or what the call to the peer ended
  // with.
  absl::StatusOr<v1::ProbeReport> Probe(const std::string& name, std::chrono::system_clock::time_point deadline);
  // Probes this host; takes up to a few seconds. Errors: kUnavailable while another probe runs.
  absl::StatusOr<v1::ProbeReport> ProbeSelf();
  // Runs one call to a peer; see PeerLinks::Call and CallKept.
  absl::Status Call(const std::string& peer, std::chrono::system_clock::time_point deadline,
                    const PeerLinks::Body& body) const {
    return links_.Call(peer, deadline, body);
  }
  absl::Status CallKept(const std::string& peer, std::chrono::system_clock::time_point deadline,
                        const PeerLinks::Body& body) const {
    return links_.CallKept(peer, deadline, body);
  }
  // A node's number, this one's too. Errors: kNotFound.
  absl::StatusOr<NodeId> NumberOf(const std::string& name) const;
  // Why a hello must be refused; empty if it is fine.
  std::string ObjectionTo(const v1::HelloRequest& hello) const;

 private:
  void OnHello(const std::string& peer, v1::HelloRequest* request) override;
  void OnHelloAnswered(const std::string& peer, const v1::HelloResponse& response,
                       std::chrono::microseconds round_trip) override;
  void OnHelloFailed(const std::string& peer, const absl::Status& status) override;
  // Logs and counts a change of a peer's state; returns the state.
  v1::MemberState Note(const std::string& peer);

  const v1::NodeInfo self_;
  const FrameStore& frames_;
  const SwapStore& swap_;
  Metrics* const metrics_;
  const Clock& clock_;
  const ClusterHooks hooks_;
  const std::optional<WallTime> expires_;  // of this node's certificate
  mutable Mutex mutex_;
  MembershipTable table_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, v1::MemberState> noted_ ABSL_GUARDED_BY(mutex_);
  Mutex probe_mutex_;
  PeerLinks links_;  // last: its callbacks use everything above, so it must end first
};

}  // namespace hk
