// The data plane of a node: its one transport, the peers that it is told of, and what becomes of them. Thread-safe.
//
// Invariants:
//  1. A peer is added when it is known where its data plane is: the configuration says so, else the peer does in its
//     answer to a hello. What the configuration says is not overridden.
//  2. An address that can only mean this host (loopback, wildcard) is not taken from a peer on another host.
//  3. A peer whose pages travel by another transport than this node's is not dialled, and its link says so.
//  4. The transport ends before its handler, the router, and both end after all that was attached to them.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/memory/space_router.h"
#include "hyperkernel/node/config.h"
#include "proto/node.pb.h"
#include "rdma/transport.h"

namespace hk {

// Where a peer's data plane is by its own words, HOST:PORT. Pure. Errors: the address is of no use to a node whose host
// has this boot id; the message says what to set.
absl::StatusOr<std::string> DataAddressOf(const v1::NodeInfo& peer, std::string_view boot_id);

// Owns the transport and the router.
class DataPlane {
 public:
  // Serves when it returns: listens, and connects to the peers whose address is configured. `transport`: what
  // ResolveTransport said. `listener`: a bound TCP socket for settings.data_listen. `clock` outlives this. Errors: what
  // the transport says.
  static absl::StatusOr<std::unique_ptr<DataPlane>> Start(const NodeSettings& settings, const std::string& transport,
                                                          OwnedFd listener, const Clock& clock);
  // REQUIRES: nothing uses transport() or router() any more.
  ~DataPlane();

  Transport* transport() { return transport_.get(); }
  SpaceRouter* router() { return &router_; }

  // A peer said this of itself. `boot_id`: of this host.
  void Heard(const std::string& peer, const v1::NodeInfo& info, const std::string& boot_id);
  // The state of the connections to a peer.
  v1::DataLink LinkTo(const std::string& peer) const;
  // Waits until all these nodes (this one apart) are connected. Errors: kUnavailable, naming the first that is not.
  absl::Status WaitUp(const std::vector<std::string>& names, Monotonic deadline);
  // For the metrics.
  std::vector<std::pair<NodeId, std::string>> Peers() const;

 private:
  struct Peer {
    NodeId number{};
    bool configured = false;  // the address is the configuration's
    std::string address;      // empty: not known
    bool up = false;
    bool other_transport = false;  // than this node's
    std::string reason;            // why not
    WallTime since;
  };

  DataPlane(const NodeSettings& settings, const std::string& transport, const Clock& clock);
  absl::Status MakeTransport(const NodeSettings& settings, const std::string& transport, OwnedFd listener);
  void OnUp(NodeId node);
  void OnFailed(NodeId node, PeerFailure why, const std::string& detail);
  // The peer said that it uses this transport. True: so does this node.
  bool Agrees(Peer* entry, const std::string& peer, const std::string& its_transport)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Null for a number that is no peer's.
  std::pair<const std::string, Peer>* Find(NodeId node) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string self_;
  const std::string transport_name_;  // "tcp", "verbs"
  const Clock& clock_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::map<std::string, Peer> peers_ ABSL_GUARDED_BY(mutex_);
  SpaceRouter router_;
  std::unique_ptr<Transport> transport_;  // after the router: ends before it
};

}  // namespace hk
