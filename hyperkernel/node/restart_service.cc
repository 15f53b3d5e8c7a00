// The part of the admin service that restarts the daemon.

#include "fmt/format.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/placed_memory.h"
#include "hyperkernel/node/serve.h"
#include "hyperkernel/node/services.h"

namespace hk {

grpc::Status AdminService::RestartNode(grpc::ServerContext* context, const v1::RestartNodeRequest* request,
                                       v1::RestartNodeResponse* response) {
  return Serve(metrics_, "RestartNode", *context, Role::kAdmin, [&]() -> grpc::Status {
    if (!restart_) return grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "this daemon cannot restart itself");
    const absl::StatusOr<v1::Member> self = cluster_->Find("");
    if (!self.ok()) return ToGrpc(self.status());
    *response->mutable_started() = self->info().started();
    for (const v1::Vm& vm : guests_->List()) {
      if (!IsLive(vm.state())) continue;
      IsPlaced(vm.spec()) ? response->add_ended(vm.spec().name()) : response->add_kept(vm.spec().name());
    }
    if (spaces_ != nullptr) {
      for (const v1::Space& space : spaces_->List()) response->add_ended("space " + space.name());
    }
    if (response->ended_size() > 0 && !request->force()) {
      return ToGrpc(absl::FailedPreconditionError(
          fmt::format("these are over several nodes and would end here: {}; stop them first, or use --force",
                      fmt::join(response->ended(), ", "))));
    }
    return ToGrpc(restart_());
  });
}

}  // namespace hk
