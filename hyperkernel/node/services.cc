#include "hyperkernel/node/services.h"

#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/base/version.h"
#include "hyperkernel/node/caller.h"
#include "hyperkernel/node/serve.h"

namespace hk {
namespace {

// With TLS, a node speaks for itself only.
grpc::Status CheckSpeaksForItself(const grpc::ServerContext& context, const std::string& from) {
  const Caller caller = CallerOf(context);
  if (caller.name.empty() || caller.name == from) return grpc::Status::OK;
  return grpc::Status(grpc::StatusCode::PERMISSION_DENIED,
                      fmt::format("the certificate is node '{}', the request says '{}'", caller.name, from));
}

}  // namespace

grpc::Status CallLimit::Run(const std::function<grpc::Status()>& body) {
  if (running_.fetch_add(1) >= most_) {
    running_--;
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                        fmt::format("{} of these are under way already; try again", most_));
  }
  const grpc::Status status = body();
  running_--;
  return status;
}

grpc::Status PeerControlService::CheckPeer(const grpc::ServerContext& context, const std::string& from) const {
  if (const grpc::Status status = CheckSpeaksForItself(context, from); !status.ok()) return status;
  if (from != cluster_->name() && cluster_->NumberOf(from).ok()) return grpc::Status::OK;
  return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION,
                      fmt::format("node '{}' is not in the peer list of node '{}'", from, cluster_->name()));
}

grpc::Status AdminService::GetVersion(grpc::ServerContext* context, const v1::GetVersionRequest*,
                                      v1::GetVersionResponse* response) {
  return Serve(metrics_, "GetVersion", *context, Role::kViewer, [&] {
    response->set_version(kVersion);
    response->set_node(cluster_->name());
    return grpc::Status::OK;
  });
}

grpc::Status AdminService::ListNodes(grpc::ServerContext* context, const v1::ListNodesRequest*,
                                     v1::ListNodesResponse* response) {
  return Serve(metrics_, "ListNodes", *context, Role::kViewer, [&] {
    for (v1::Member& member : cluster_->Members()) *response->add_members() = std::move(member);
    return grpc::Status::OK;
  });
}

grpc::Status AdminService::GetNode(grpc::ServerContext* context, const v1::GetNodeRequest* request,
                                   v1::GetNodeResponse* response) {
  return Serve(metrics_, "GetNode", *context, Role::kViewer, [&] {
    absl::StatusOr<v1::Member> member = cluster_->Find(request->name());
    if (member.ok()) *response->mutable_member() = *std::move(member);
    return ToGrpc(member.status());
  });
}

grpc::Status AdminService::ProbeNode(grpc::ServerContext* context, const v1::ProbeNodeRequest* request,
                                     v1::ProbeNodeResponse* response) {
  return Serve(metrics_, "ProbeNode", *context, Role::kAdmin, [&] {
    absl::StatusOr<v1::ProbeReport> report = cluster_->Probe(request->name(), context->deadline());
    if (report.ok()) *response->mutable_report() = *std::move(report);
    return ToGrpc(report.status());
  });
}

grpc::Status PeerControlService::Hello(grpc::ServerContext* context, const v1::HelloRequest* request,
                                       v1::HelloResponse* response) {
  return Serve(metrics_, "Hello", *context, Role::kNode, [&] {
    if (const grpc::Status status = CheckSpeaksForItself(*context, request->from()); !status.ok()) return status;
    const std::string objection = cluster_->ObjectionTo(*request);
    if (!objection.empty()) return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, objection);
    response->set_protocol_version(kPeerProtocolVersion);
    *response->mutable_info() = cluster_->Self();
    response->set_from_number(request->from_number());  // no objection: it is what this node has
    for (const uint64_t id : spaces_->UnknownOf(request->from(), {request->spaces().begin(), request->spaces().end()}))
      response->add_unknown_spaces(id);
    return grpc::Status::OK;
  });
}

grpc::Status PeerControlService::Probe(grpc::ServerContext* context, const v1::PeerProbeRequest* request,
                                       v1::PeerProbeResponse* response) {
  return Serve(metrics_, "Probe", *context, Role::kNode, [&] {
    if (const grpc::Status status = CheckSpeaksForItself(*context, request->from()); !status.ok()) return status;
    absl::StatusOr<v1::ProbeReport> report = cluster_->ProbeSelf();
    if (report.ok()) *response->mutable_report() = *std::move(report);
    return ToGrpc(report.status());
  });
}

}  // namespace hk
