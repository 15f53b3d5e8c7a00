// The cluster as this node sees it: the membership table, kept by hellos, and this node itself. Thread-safe.
#pragma once

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

// Owns the links to the peers.
class Cluster final : private HelloObserver {
 public:
  // `frames`, `metrics` and `clock` must outlive this object.
  Cluster(const NodeSettings& settings, v1::NodeInfo self, const FrameStore& frames, Metrics* metrics,
          const Clock& clock);

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
  // Why a hello must be refused; empty if it is fine.
  std::string ObjectionTo(const v1::HelloRequest& hello) const;

 private:
  void OnHelloAnswered(const std::string& peer, const v1::HelloResponse& response,
                       std::chrono::microseconds round_trip) override;
  void OnHelloFailed(const std::string& peer, const absl::Status& status) override;
  // Logs and counts a change of a peer's state.
  void Note(const std::string& peer);

  const v1::NodeInfo self_;
  const FrameStore& frames_;
  Metrics* const metrics_;
  const Clock& clock_;
  const std::optional<WallTime> expires_;  // of this node's certificate
  mutable Mutex mutex_;
  MembershipTable table_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, v1::MemberState> noted_ ABSL_GUARDED_BY(mutex_);
  Mutex probe_mutex_;
  PeerLinks links_;  // last: its callbacks use everything above, so it must end first
};

}  // namespace hk
