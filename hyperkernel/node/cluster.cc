#include "hyperkernel/node/cluster.h"

#include <utility>

#include "fmt/chrono.h"
#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/probe_report.h"

namespace hk {
namespace {

// How long before a certificate's end node list says so.
constexpr std::chrono::hours kExpiryWarning(30 * 24);

std::vector<MembershipTable::Peer> PeersOf(const NodeSettings& settings) {
  std::vector<MembershipTable::Peer> peers;
  for (const PeerSettings& peer : settings.peers) peers.push_back({peer.name, peer.admin.ToString(), peer.number});
  return peers;
}

// A refusal is an answer: the peer is alive and says no. Everything else is a failure to answer.
bool IsRefusal(const absl::Status& status) {
  return status.code() == absl::StatusCode::kFailedPrecondition ||
         status.code() == absl::StatusCode::kPermissionDenied || status.code() == absl::StatusCode::kUnimplemented;
}

}  // namespace

const char* StateName(v1::MemberState state) {
  switch (state) {
    case v1::MEMBER_STATE_UP:
      return "up";
    case v1::MEMBER_STATE_CONNECTING:
      return "connecting";
    case v1::MEMBER_STATE_UNREACHABLE:
      return "unreachable";
    case v1::MEMBER_STATE_REJECTED:
      return "rejected";
    default:
      return "self";
  }
}

Cluster::Cluster(const NodeSettings& settings, v1::NodeInfo self, const FrameStore& frames, const SwapStore& swap,
                 Metrics* metrics, const Clock& clock, ClusterHooks hooks)
    : self_(std::move(self)),
      frames_(frames),
      swap_(swap),
      metrics_(metrics),
      clock_(clock),
      hooks_(std::move(hooks)),
      expires_(settings.tls.has_value() ? std::optional(settings.tls->expires) : std::nullopt),
      table_(PeersOf(settings), settings.cluster, settings.number, settings.unreachable_after, clock.Now(),
             clock.Wall()),
      links_(settings, this) {
  for (const PeerSettings& peer : settings.peers) metrics_->SetPeerUp(peer.name, false);
}

void Cluster::Start() {
  links_.Start();
}

v1::NodeInfo Cluster::Self() const {
  v1::NodeInfo info = self_;
  RefreshNodeInfo(frames_, swap_, &info);
  if (expires_.has_value() && clock_.Wall() > *expires_ - kExpiryWarning) {
    info.add_warnings(
        fmt::format("certificate ends at {:%Y-%m-%d %H:%M}Z, and with it all connections; renew it and restart",
                    fmt::gmtime(std::chrono::system_clock::to_time_t(*expires_))));
  }
  return info;
}

std::vector<v1::Member> Cluster::Members() const {
  v1::Member self;
  self.set_name(self_.name());
  self.set_state(v1::MEMBER_STATE_SELF);
  *self.mutable_info() = Self();
  std::vector<v1::Member> members{std::move(self)};
  {
    MutexLock lock(&mutex_);
    for (v1::Member& member : table_.Snapshot(clock_.Now())) members.push_back(std::move(member));
  }
  for (size_t i = 1; i < members.size() && hooks_.data_link != nullptr; i++) {
    *members[i].mutable_data_link() = hooks_.data_link(members[i].name());
  }
  return members;
}

absl::StatusOr<NodeId> Cluster::NumberOf(const std::string& name) const {
  if (name == self_.name()) return NodeId(static_cast<uint16_t>(self_.number()));
  MutexLock lock(&mutex_);
  const std::optional<NodeId> number = table_.NumberOf(name);
  if (number.has_value()) return *number;
  return absl::NotFoundError(fmt::format("no node '{}' in this cluster; see hkctl node list", name));
}

absl::StatusOr<v1::Member> Cluster::Find(const std::string& name) const {
  for (v1::Member& member : Members()) {
    if (name.empty() || member.name() == name) return std::move(member);
  }
  return absl::NotFoundError(fmt::format("no node '{}' in this cluster; see hkctl node list", name));
}

absl::StatusOr<v1::ProbeReport> Cluster::Probe(const std::string& name,
                                               std::chrono::system_clock::time_point deadline) {
  if (name.empty() || name == self_.name()) return ProbeSelf();
  return links_.Probe(name, deadline);
}

absl::StatusOr<v1::ProbeReport> Cluster::ProbeSelf() {
  // Not queued: whoever waited would hold a server thread, and a stop, for as long as the queue is.
  if (!probe_mutex_.TryLock()) {
    return absl::UnavailableError(fmt::format("node '{}': a probe is running already; try again", self_.name()));
  }
  v1::ProbeReport report = ProbeThisHost(self_.name());
  probe_mutex_.Unlock();
  return report;
}

std::string Cluster::ObjectionTo(const v1::HelloRequest& hello) const {
  if (hello.protocol_version() != kPeerProtocolVersion) {
    return fmt::format("control protocol {} is spoken here, not {}: run the same release on both", kPeerProtocolVersion,
                       hello.protocol_version());
  }
  if (hello.cluster() != self_.cluster())
    return fmt::format("this node belongs to cluster '{}', not to '{}'", self_.cluster(), hello.cluster());
  if (hello.to() != self_.name())
    return fmt::format("this is node '{}', not '{}': check the peer's address", self_.name(), hello.to());
  MutexLock lock(&mutex_);
  const std::optional<NodeId> number = table_.NumberOf(hello.from());
  if (!number.has_value())
    return fmt::format("node '{}' is not in the peer list of node '{}'", hello.from(), self_.name());
  return MembershipTable::NumberObjection(hello.from(), hello.from_number(), hello.to_number(), *number,
                                          NodeId(static_cast<uint16_t>(self_.number())));
}

void Cluster::OnHello(const std::string& peer, v1::HelloRequest* request) {
  if (hooks_.spaces_of == nullptr) return;
  for (const uint64_t id : hooks_.spaces_of(peer)) request->add_spaces(id);
}

void Cluster::OnHelloAnswered(const std::string& peer, const v1::HelloResponse& response,
                              std::chrono::microseconds round_trip) {
  {
    MutexLock lock(&mutex_);
    table_.OnAnswer(peer, {response.protocol_version(), response.from_number(), response.info()}, round_trip,
                    clock_.Now(), clock_.Wall());
  }
  metrics_->ObserveHello(peer, round_trip);
  if (Note(peer) != v1::MEMBER_STATE_UP) return;
  if (hooks_.heard != nullptr) hooks_.heard(peer, response.info());
  if (hooks_.spaces_unknown != nullptr && response.unknown_spaces_size() > 0)
    hooks_.spaces_unknown(peer, {response.unknown_spaces().begin(), response.unknown_spaces().end()});
}

void Cluster::OnHelloFailed(const std::string& peer, const absl::Status& status) {
  {
    MutexLock lock(&mutex_);
    if (IsRefusal(status)) {
      // The peer's words: "this node" in them is the peer.
      table_.OnRefused(peer, fmt::format("refuses this node, saying: {}", MessageOf(status)), clock_.Now(),
                       clock_.Wall());
    } else {
      table_.OnFailure(peer, MessageOf(status));
    }
  }
  metrics_->CountHelloFailure(peer);
  Note(peer);
}

v1::MemberState Cluster::Note(const std::string& peer) {
  v1::Member now;
  {
    MutexLock lock(&mutex_);
    for (v1::Member& member : table_.Snapshot(clock_.Now())) {
      if (member.name() == peer) now = std::move(member);
    }
    v1::MemberState& noted = noted_[peer];
    if (noted == now.state()) return now.state();
    noted = now.state();
  }
  metrics_->SetPeerUp(peer, now.state() == v1::MEMBER_STATE_UP);
  const log::Level level = now.state() == v1::MEMBER_STATE_UP || now.state() == v1::MEMBER_STATE_CONNECTING
                               ? log::Level::kInfo
                               : log::Level::kWarning;
  log::Write(level, "membership", fmt::format("peer is {}", StateName(now.state())),
             {{"peer", peer}, {"address", now.admin_address()}, {"reason", now.reason()}});
  return now.state();
}

}  // namespace hk
