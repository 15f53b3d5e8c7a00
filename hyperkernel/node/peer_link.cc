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
// More is of no use where peers are told apart by their silence within seconds.
constexpr std::chrono::milliseconds kMaxHelloDeadline(2000);
// Reconnects are tried at every hello; gRPC's own back-off (to 120 s) must not be in the way.
constexpr int kReconnectBackoffMs = 100;
// A peer is given up this much before whoever asked for it gives up on us: it must hear that the peer, not this node,
// is silent.
constexpr std::chrono::milliseconds kAnswerMargin(500);

}  // namespace

struct PeerLinks::HelloCall {
  grpc::ClientContext context;
  v1::HelloRequest request;
  v1::HelloResponse response;
  grpc::Status status;
  std::unique_ptr<grpc::ClientAsyncResponseReader<v1::HelloResponse>> reader;
  std::chrono::steady_clock::time_point sent;
};

struct PeerLinks::Link {
  PeerSettings peer;
  std::unique_ptr<v1::PeerControl::Stub> stub;  // null: connect anew
  std::unique_ptr<HelloCall> call;              // null: none in flight
};

PeerLinks::PeerLinks(const NodeSettings& settings, HelloObserver* observer)
    : name_(settings.name),
      cluster_(settings.cluster),
      number_(settings.number),
      interval_(settings.hello_interval),
      hello_deadline_(std::min(settings.unreachable_after / kHelloDeadlineShare, kMaxHelloDeadline)),
      tls_(settings.tls),
      observer_(observer) {
  for (const PeerSettings& peer : settings.peers) {
    links_.push_back(std::make_unique<Link>(Link{.peer = peer, .stub = nullptr, .call = nullptr}));
  }
}

PeerLinks::~PeerLinks() {
  if (thread_.joinable()) {
    stop_.Set(&queue_, std::chrono::system_clock::now(), this);
    thread_.join();
  } else {
    queue_.Shutdown();
  }
}

void PeerLinks::Start() {
  thread_ = std::thread(&PeerLinks::Run, this);
}

std::unique_ptr<v1::PeerControl::Stub> PeerLinks::Connect(const PeerSettings& peer) const {
  grpc::ChannelArguments arguments;
  // A connection of its own per channel: throwing the channel away must close it.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnectBackoffMs);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, static_cast<int>(hello_deadline_.count()));
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, static_cast<int>(hello_deadline_.count()));
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (tls_.has_value() && peer.admin.kind == Address::Kind::kTcp) {
    credentials = grpc::SslCredentials({tls_->ca_pem, tls_->key_pem, tls_->certificate_pem});
    // The certificate must be that very node's, wherever it answers.
    arguments.SetSslTargetNameOverride(peer.name);
  }
  // gRPC reads "unix:/path" and "host:port" as operators write them.
  return v1::PeerControl::NewStub(grpc::CreateCustomChannel(peer.admin.ToString(), credentials, arguments));
}

void PeerLinks::Run() {
  // The schedule is on the monotonic clock: gRPC takes wall-clock deadlines, and the wall clock may step.
  auto next = std::chrono::steady_clock::now();
  void* tag = nullptr;
  bool ok = false;
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(next - std::chrono::steady_clock::now());
    const auto event = queue_.AsyncNext(&tag, &ok, std::chrono::system_clock::now() + left);
    if (event == grpc::CompletionQueue::GOT_EVENT && tag == this) break;
    if (event == grpc::CompletionQueue::GOT_EVENT) {
      Finish(static_cast<Link*>(tag));
      continue;
    }
    const auto now = std::chrono::steady_clock::now();
    if (now < next) continue;  // woken early by a step of the wall clock
    for (const auto& link : links_) SendHello(link.get());
    // After a stall, go on from now: missed hellos are not made up for.
    next = std::max(next + interval_, now);
  }
  for (const auto& link : links_) {
    if (link->call != nullptr) link->call->context.TryCancel();
  }
  queue_.Shutdown();
  while (queue_.Next(&tag, &ok)) {
    if (tag != this) static_cast<Link*>(tag)->call = nullptr;
  }
}

void PeerLinks::SendHello(Link* link) {
  if (link->call != nullptr) return;
  if (link->stub == nullptr) link->stub = Connect(link->peer);
  link->call = std::make_unique<HelloCall>();
  HelloCall& call = *link->call;
  call.request.set_protocol_version(kPeerProtocolVersion);
  call.request.set_cluster(cluster_);
  call.request.set_from(name_);
  call.request.set_to(link->peer.name);
  call.request.set_from_number(number_.value());
  call.request.set_to_number(link->peer.number.value());
  observer_->OnHello(link->peer.name, &call.request);
  call.context.set_deadline(std::chrono::system_clock::now() + hello_deadline_);
  call.sent = std::chrono::steady_clock::now();
  call.reader = link->stub->AsyncHello(&call.context, call.request, &queue_);
  call.reader->Finish(&call.response, &call.status, link);
}

void PeerLinks::Finish(Link* link) {
  const std::unique_ptr<HelloCall> call = std::move(link->call);
  if (call->status.ok()) {
    const auto round_trip = std::chrono::steady_clock::now() - call->sent;
    observer_->OnHelloAnswered(link->peer.name, call->response,
                               std::chrono::duration_cast<std::chrono::microseconds>(round_trip));
    return;
  }
  const grpc::StatusCode code = call->status.error_code();
  const absl::Status failure =
      code == grpc::StatusCode::DEADLINE_EXCEEDED
          ? absl::DeadlineExceededError(fmt::format("no answer within {} ms", hello_deadline_.count()))
          : FromGrpc(call->status);
  observer_->OnHelloFailed(link->peer.name, failure);
  if (code == grpc::StatusCode::DEADLINE_EXCEEDED || code == grpc::StatusCode::UNAVAILABLE) link->stub = nullptr;
}

absl::StatusOr<const PeerSettings*> PeerLinks::SettingsOf(const std::string& peer) const {
  const auto found =
      std::find_if(links_.begin(), links_.end(), [&](const auto& link) { return link->peer.name == peer; });
  if (found == links_.end()) {
    return absl::NotFoundError(fmt::format("no node '{}' in this cluster; see hkctl node list", peer));
  }
  return &(*found)->peer;
}

absl::Status PeerLinks::CallOn(v1::PeerControl::Stub* stub, const std::string& peer,
                               std::chrono::system_clock::time_point deadline, const Body& body) const {
  grpc::ClientContext context;
  const auto left = deadline - std::chrono::system_clock::now();
  context.set_deadline(deadline - std::min<std::chrono::system_clock::duration>(kAnswerMargin, left / 2));
  const grpc::Status status = body(stub, &context);
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
    return absl::DeadlineExceededError(fmt::format("node '{}': no answer in time; see hkctl node list", peer));
  }
  return WithContext(FromGrpc(status), fmt::format("node '{}'", peer));
}

absl::Status PeerLinks::Call(const std::string& peer, std::chrono::system_clock::time_point deadline,
                             const Body& body) const {
  HK_ASSIGN_OR_RETURN(const PeerSettings* const settings, SettingsOf(peer));
  return CallOn(Connect(*settings).get(), peer, deadline, body);
}

absl::Status PeerLinks::CallKept(const std::string& peer, std::chrono::system_clock::time_point deadline,
                                 const Body& body) const {
  HK_ASSIGN_OR_RETURN(const PeerSettings* const settings, SettingsOf(peer));
  std::shared_ptr<v1::PeerControl::Stub> stub;
  {
    MutexLock lock(&kept_mutex_);
    std::shared_ptr<v1::PeerControl::Stub>& kept = kept_[peer];
    if (kept == nullptr) kept = Connect(*settings);
    stub = kept;
  }
  const absl::Status status = CallOn(stub.get(), peer, deadline, body);
  if (status.ok()) return status;
  MutexLock lock(&kept_mutex_);
  if (kept_[peer] == stub) kept_.erase(peer);
  return status;
}

absl::StatusOr<v1::ProbeReport> PeerLinks::Probe(const std::string& peer,
                                                 std::chrono::system_clock::time_point deadline) const {
  v1::PeerProbeRequest request;
  request.set_from(name_);
  v1::PeerProbeResponse response;
  const absl::Status status = Call(peer, deadline, [&](v1::PeerControl::Stub* stub, grpc::ClientContext* context) {
    return stub->Probe(context, request, &response);
  });
  if (absl::IsDeadlineExceeded(status))
    return absl::DeadlineExceededError(MessageOf(status) + ", or give it longer (--timeout)");
  if (!status.ok()) return status;
  return response.report();
}

}  // namespace hk
