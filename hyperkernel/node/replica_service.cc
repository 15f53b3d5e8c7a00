// The part of the Admin service that is about storage replicas.

#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/caller.h"
#include "hyperkernel/node/guest_replicas.h"
#include "hyperkernel/node/serve.h"
#include "hyperkernel/node/services.h"

namespace hk {
namespace {

constexpr uint32_t kMostMibPerSecond = 65536;

}  // namespace

absl::StatusOr<std::shared_ptr<GuestReplica>> AdminService::FindReplica(const std::string& name) {
  HK_ASSIGN_OR_RETURN(const v1::Vm vm, guests_->Get(name));
  std::shared_ptr<GuestReplica> replica = replicas_ == nullptr ? nullptr : replicas_->Find(name);
  if (replica == nullptr) return WhyNoReplica(vm);
  return replica;
}

grpc::Status AdminService::ShowReplica(grpc::ServerContext* context, const v1::ShowReplicaRequest* request,
                                       v1::ShowReplicaResponse* response) {
  return Serve(metrics_, "ShowReplica", *context, Role::kViewer, [&] {
    const auto replica = FindReplica(request->name());
    if (replica.ok()) *response->mutable_replica() = (*replica)->Describe();
    return ToGrpc(replica.status());
  });
}

grpc::Status AdminService::DropReplica(grpc::ServerContext* context, const v1::DropReplicaRequest* request,
                                       v1::DropReplicaResponse* response) {
  return Serve(metrics_, "DropReplica", *context, Role::kAdmin, [&] {
    const auto replica = FindReplica(request->name());
    if (!replica.ok()) return ToGrpc(replica.status());
    *response->mutable_replica() = (*replica)->Describe();
    (*replica)->Drop();
    return grpc::Status::OK;
  });
}

grpc::Status AdminService::VerifyReplica(grpc::ServerContext* context, const v1::VerifyReplicaRequest* request,
                                         grpc::ServerWriter<v1::ReplicaVerification>* writer) {
  const auto body = [&] {
    if (request->mib_per_second() > kMostMibPerSecond) {
      return grpc::Status(
          grpc::StatusCode::INVALID_ARGUMENT,
          fmt::format("mib_per_second: {} is more than {}", request->mib_per_second(), kMostMibPerSecond));
    }
    const auto replica = FindReplica(request->name());
    if (!replica.ok()) return ToGrpc(replica.status());
    return ToGrpc((*replica)->Verify(request->mib_per_second(), [&](const v1::ReplicaVerification& found) {
      return writer->Write(found) && !context->IsCancelled();
    }));
  };
  return ServeLong("VerifyReplica", *context, body, Role::kAdmin);
}

}  // namespace hk
