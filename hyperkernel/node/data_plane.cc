#include "hyperkernel/node/data_plane.h"

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/membership.h"
#include "rdma/tcp_transport.h"
#include "rdma/verbs_transport.h"

namespace hk {
namespace {

// A cluster that starts makes three TLS connections per peer at once. What is given up half-way is done again, so that
// a busy host would make none at all.
constexpr uint32_t kTlsHandshakeMs = 5000;

const char* NameOf(PeerFailure why) {
  switch (why) {
    case PeerFailure::kLeaseExpired:
      return "silent for too long";
    case PeerFailure::kMalformed:
      return "it sent what is no message";
    case PeerFailure::kRejected:
      return "refused";
    case PeerFailure::kFenced:
      return "fenced";
    case PeerFailure::kRestarted:
      return "restarted";
    case PeerFailure::kLeft:
      return "left";
    case PeerFailure::kLocal:
      return "a failure here";
  }
  return "failed";
}

std::string ReasonOf(PeerFailure why, const std::string& detail) {
  return detail.empty() ? NameOf(why) : fmt::format("{}: {}", NameOf(why), detail);
}

}  // namespace

absl::StatusOr<std::string> DataAddressOf(const v1::NodeInfo& peer, std::string_view boot_id) {
  const absl::StatusOr<Address> address = ParseAddress(peer.data_address(), AddressForm::kConnectTcp);
  if (!address.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("says that its data plane is at '{}': {}", peer.data_address(), MessageOf(address.status())));
  }
  const bool same_host = peer.boot_id() == boot_id;
  if (address->IsWildcard() || (address->IsLocal() && !same_host && !HK_MUTANT(data_address_unchecked))) {
    return absl::InvalidArgumentError(
        fmt::format("listens for the data plane at {}, which leads nowhere from here: set data in its entry of peers, "
                    "or its listen.data to the address of one of its interfaces",
                    address->ToString()));
  }
  return address->ToString();
}

DataPlane::DataPlane(const NodeSettings& settings, const std::string& transport, const Clock& clock)
    : self_(settings.name),
      transport_name_(transport),
      clock_(clock),
      router_({.up = [this](NodeId node) { OnUp(node); },
               .failed = [this](NodeId node, PeerFailure why,
                                const std::string& detail) { OnFailed(node, why, detail); }}) {
  for (const PeerSettings& peer : settings.peers) {
    Peer& entry = peers_[peer.name];
    entry.number = peer.number;
    entry.configured = peer.data.has_value();
    entry.reason = "where its data plane is, is not known yet";
    entry.since = clock.Wall();
  }
}

DataPlane::~DataPlane() {
  if (transport_ != nullptr) transport_->Stop();
}

absl::Status DataPlane::MakeTransport(const NodeSettings& settings, const std::string& transport, OwnedFd listener) {
  TransportSettings limits;
  limits.cluster = settings.cluster;
  limits.self = settings.number;
  absl::StatusOr<std::unique_ptr<Transport>> made;
  if (transport == "tcp") {
    TcpOptions options;
    options.listener = std::move(listener);
    if (settings.tls.has_value()) {
      std::map<NodeId, std::string> names;
      for (const PeerSettings& peer : settings.peers) names[peer.number] = peer.name;
      const auto name_of = [names](NodeId node) {
        const auto found = names.find(node);
        return found == names.end() ? std::string() : found->second;
      };
      limits.handshake_ms = kTlsHandshakeMs;
      options.tls = {settings.tls->ca_pem, settings.tls->certificate_pem, settings.tls->key_pem, name_of};
    }
    made = MakeTcpTransport(limits, std::move(options), &router_);
  } else {
    made = MakeVerbsTransport(limits, settings.data_listen.ToString(), &router_);
  }
  if (!made.ok()) return WithContext(made.status(), "listen.data");
  transport_ = *std::move(made);
  router_.SetTransport(transport_.get());
  return WithContext(transport_->Start(), fmt::format("listen.data: {}", settings.data_listen.ToString()));
}

absl::StatusOr<std::unique_ptr<DataPlane>> DataPlane::Start(const NodeSettings& settings, const std::string& transport,
                                                            OwnedFd listener, const Clock& clock) {
  auto plane = std::unique_ptr<DataPlane>(new DataPlane(settings, transport, clock));
  HK_RETURN_IF_ERROR(plane->MakeTransport(settings, transport, std::move(listener)));
  MutexLock lock(&plane->mutex_);
  for (const PeerSettings& peer : settings.peers) {
    if (!peer.data.has_value()) continue;
    Peer& entry = plane->peers_[peer.name];
    entry.address = peer.data->ToString();
    entry.reason = "connecting";
    HK_RETURN_IF_ERROR(WithContext(plane->transport_->AddPeer(entry.number, entry.address),
                                   fmt::format("peers: data of '{}'", peer.name)));
  }
  return plane;
}

void DataPlane::Heard(const std::string& peer, const v1::NodeInfo& info, const std::string& boot_id) {
  MutexLock lock(&mutex_);
  const auto found = peers_.find(peer);
  if (found == peers_.end()) return;
  Peer& entry = found->second;
  if (!Agrees(&entry, peer, info.transport()) || entry.configured) return;
  absl::StatusOr<std::string> address = DataAddressOf(info, boot_id);
  if (address.ok() && *address == entry.address) return;
  if (!entry.address.empty()) transport_->RemovePeer(entry.number);
  absl::Status added = address.status();
  if (added.ok()) added = transport_->AddPeer(entry.number, *address);
  const std::string reason = added.ok() ? "connecting" : MessageOf(added);
  entry.address = added.ok() ? *address : "";
  if (reason == entry.reason) return;
  if (!added.ok()) log::Warning("data_plane", "no data plane to a peer", {{"peer", peer}, {"reason", reason}});
  entry.reason = reason;
  entry.since = clock_.Wall();
}

bool DataPlane::Agrees(Peer* entry, const std::string& peer, const std::string& its_transport) {
  // What is up is not told to be down: the connection is about to end, if the peer was started anew with another one.
  const bool agrees = its_transport.empty() || its_transport == transport_name_ || entry->up;
  if (agrees) {
    if (entry->other_transport && !entry->up) {
      entry->reason = "connecting";
      entry->since = clock_.Wall();
    }
    entry->other_transport = false;
    return true;
  }
  if (!entry->configured && !entry->address.empty()) {
    transport_->RemovePeer(entry->number);
    entry->address.clear();
  }
  std::string reason = fmt::format(
      "its pages travel over {}, this node's over {}: set transport: TRANSPORT_TCP on both, or TRANSPORT_VERBS if both "
      "have a device (AUTO takes verbs where one has the address of listen.data)",
      its_transport, transport_name_);
  if (entry->reason != reason) {
    log::Warning("data_plane", "no data plane to a peer", {{"peer", peer}, {"reason", reason}});
    entry->reason = std::move(reason);
  }
  if (!entry->other_transport) entry->since = clock_.Wall();
  entry->other_transport = true;
  return false;
}

std::pair<const std::string, DataPlane::Peer>* DataPlane::Find(NodeId node) {
  for (auto& entry : peers_) {
    if (entry.second.number == node) return &entry;
  }
  return nullptr;
}

void DataPlane::OnUp(NodeId node) {
  MutexLock lock(&mutex_);
  auto* const found = Find(node);
  if (found == nullptr) return;
  found->second.up = true;
  found->second.reason.clear();
  found->second.since = clock_.Wall();
  changed_.SignalAll();
}

void DataPlane::OnFailed(NodeId node, PeerFailure why, const std::string& detail) {
  MutexLock lock(&mutex_);
  auto* const found = Find(node);
  if (found == nullptr) return;
  found->second.up = false;
  found->second.reason = ReasonOf(why, detail);
  found->second.since = clock_.Wall();
}

v1::DataLink DataPlane::LinkTo(const std::string& peer) const {
  MutexLock lock(&mutex_);
  v1::DataLink link;
  const auto found = peers_.find(peer);
  if (found == peers_.end()) return link;
  const Peer& entry = found->second;
  link.set_state(entry.up ? v1::DATA_LINK_STATE_UP : v1::DATA_LINK_STATE_DOWN);
  link.set_address(entry.address);
  link.set_reason(entry.reason);
  *link.mutable_since() = ToTimestamp(entry.since);
  return link;
}

absl::Status DataPlane::WaitUp(const std::vector<std::string>& names, Monotonic deadline) {
  MutexLock lock(&mutex_);
  for (const std::string& name : names) {
    if (name == self_) continue;
    const auto found = peers_.find(name);
    if (found == peers_.end())
      return absl::NotFoundError(fmt::format("no node '{}' in this cluster; see hkctl node list", name));
    while (!found->second.up) {
      if (!changed_.WaitUntil(&mutex_, deadline) && !found->second.up) {
        return absl::UnavailableError(
            fmt::format("node '{}': the data plane to it is down: {}", name, found->second.reason));
      }
    }
  }
  return absl::OkStatus();
}

std::vector<std::pair<NodeId, std::string>> DataPlane::Peers() const {
  MutexLock lock(&mutex_);
  std::vector<std::pair<NodeId, std::string>> peers;
  for (const auto& [name, peer] : peers_) peers.emplace_back(peer.number, name);
  return peers;
}

}  // namespace hk
