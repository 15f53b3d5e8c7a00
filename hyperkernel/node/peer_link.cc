#include "hyperkernel/node/peer_link.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/caller.h"

namespace hk {
namespace {

// A hello may take this share of the time after which its peer is unreachable: two failures in a row fit.
constexpr int kHelloDeadlineShare = 2;
// Reconnects are tried at every hello; gRPC's own back-off (to 120 s) must not be in the way.
constexpr int kReconnectBackoffMs = 100;
// Longest that the destructor's wait for cancelled calls may take before it is a bug worth a crash report.
constexpr std::chrono::seconds kStopDeadline(10);

// A peer is given up this much before whoever asked for it gives up on us: it must hear that the peer, not this node, is silent.
constexpr std::chrono::milliseconds kAnswerMargin(500);

std::string TargetOf(const Address& address) {
  // gRPC reads "unix:/path" and "host:port" as they are written.
  return address.ToString();
}

}  // namespace

struct PeerLinks::HelloCall {
  grpc::ClientContext context;
  v1::HelloRequest request;
  v1::HelloResponse response;
  std::shared_ptr<v1::PeerControl::Stub> stub;  // keeps the connection while the call lasts
  std::chrono::steady_clock::time_point sent;
};

struct PeerLinks::Link {
  PeerSettings peer;
  std::shared_ptr<v1::PeerControl::Stub> stub;  // null: connect anew
  std::shared_ptr<HelloCall> call;              // null: none in flight
};

PeerLinks::PeerLinks(const NodeSettings& settings, HelloObserver* observer)
    : name_(settings.name),
      cluster_(settings.cluster),
      interval_(settings.hello_interval),
      hello_deadline_(settings.unreachable_after / kHelloDeadlineShare),
      tls_(settings.tls),
      observer_(observer) {
  for (const PeerSettings& peer : settings.peers) {
    links_.push_back(std::make_unique<Link>(Link{.peer = peer, .stub = nullptr, .call = nullptr}));
  }
}

PeerLinks::~PeerLinks() {
  std::vector<std::shared_ptr<HelloCall>> in_flight;
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    for (const auto& link : links_) {
      if (link->call != nullptr) in_flight.push_back(link->call);
    }
  }
  changed_.SignalAll();
  if (thread_.joinable()) thread_.join();
  for (const auto& call : in_flight) call->context.TryCancel();
  const auto deadline = std::chrono::steady_clock::now() + kStopDeadline;
  const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return std::all_of(links_.begin(), links_.end(), [](const auto& link) { return link->call == nullptr; });
  };
  MutexLock lock(&mutex_);
  while (!idle() && changed_.WaitUntil(&mutex_, deadline)) {
  }
}

void PeerLinks::Start() { thread_ = std::thread(&PeerLinks::Run, this); }

std::shared_ptr<v1::PeerControl::Stub> PeerLinks::StubOf(Link* link) {
  if (link->stub != nullptr) return link->stub;
  grpc::ChannelArguments arguments;
  // A connection of its own per channel: throwing the channel away must close it.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnectBackoffMs);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, static_cast<int>(hello_deadline_.count()));
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, static_cast<int>(hello_deadline_.count()));
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (tls_.has_value() && link->peer.admin.kind == Address::Kind::kTcp) {
    credentials = grpc::SslCredentials({tls_->ca_pem, tls_->key_pem, tls_->certificate_pem});
    // The certificate must be that very node's, wherever it answers.
    arguments.SetSslTargetNameOverride(link->peer.name);
  }
  link->stub = v1::PeerControl::NewStub(grpc::CreateCustomChannel(TargetOf(link->peer.admin), credentials, arguments));
  return link->stub;
}

void PeerLinks::Run() {
  auto next = std::chrono::steady_clock::now();
  while (true) {
    {
      MutexLock lock(&mutex_);
      while (!stopping_ && changed_.WaitUntil(&mutex_, next)) {
      }
      if (stopping_) return;
    }
    for (const auto& link : links_) SendHello(link.get());
    // After a stall, go on from now: missed hellos are not made up for.
    next = std::max(next + interval_, std::chrono::steady_clock::now());
  }
}

void PeerLinks::SendHello(Link* link) {
  auto call = std::make_shared<HelloCall>();
  {
    MutexLock lock(&mutex_);
    if (stopping_ || link->call != nullptr) return;
    link->call = call;
    call->stub = StubOf(link);
  }
  call->request.set_protocol_version(kPeerProtocolVersion);
  call->request.set_cluster(cluster_);
  call->request.set_from(name_);
  call->request.set_to(link->peer.name);
  call->context.set_deadline(std::chrono::system_clock::now() + hello_deadline_);
  call->sent = std::chrono::steady_clock::now();
  HelloCall* raw = call.get();
  raw->stub->async()->Hello(&raw->context, &raw->request, &raw->response,
                            [this, link, raw](const grpc::Status& status) { Finish(link, raw, status); });
}

void PeerLinks::Finish(Link* link, HelloCall* call, const grpc::Status& status) {
  const auto round_trip = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - call->sent);
  if (status.ok()) {
    observer_->OnHelloAnswered(link->peer.name, call->response, round_trip);
  } else {
    observer_->OnHelloFailed(link->peer.name, FromGrpc(status));
  }
  std::shared_ptr<HelloCall> done;  // freed after unlocking
  MutexLock lock(&mutex_);
  done = std::move(link->call);
  link->call = nullptr;
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED || status.error_code() == grpc::StatusCode::UNAVAILABLE) link->stub = nullptr;
  changed_.SignalAll();
}

absl::StatusOr<v1::ProbeReport> PeerLinks::Probe(const std::string& peer, std::chrono::system_clock::time_point deadline) {
  const auto found = std::find_if(links_.begin(), links_.end(), [&](const auto& link) { return link->peer.name == peer; });
  if (found == links_.end()) return absl::NotFoundError(fmt::format("no node '{}' in this cluster; see hkctl node list", peer));
  std::shared_ptr<v1::PeerControl::Stub> stub;
  {
    MutexLock lock(&mutex_);
    stub = StubOf(found->get());
  }
  grpc::ClientContext context;
  const auto left = deadline - std::chrono::system_clock::now();
  context.set_deadline(deadline - std::min<std::chrono::system_clock::duration>(kAnswerMargin, left / 2));
  v1::PeerProbeRequest request;
  request.set_from(name_);
  v1::PeerProbeResponse response;
  const grpc::Status status = stub->Probe(&context, request, &response);
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
    return absl::DeadlineExceededError(fmt::format("node '{}': no answer in time; see hkctl node list, or give it longer (--timeout)", peer));
  }
  if (!status.ok()) return WithContext(FromGrpc(status), fmt::format("node '{}'", peer));
  return response.report();
}

}  // namespace hk
