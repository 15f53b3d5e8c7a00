// The part of the Admin service that is about machines: what is defined, and their states.

#include <utility>

#include "hyperkernel/base/status.h"
#include "hyperkernel/node/auto_placement.h"
#include "hyperkernel/node/caller.h"
#include "hyperkernel/node/serve.h"
#include "hyperkernel/node/services.h"

namespace hk {
grpc::Status AdminService::CreateVm(grpc::ServerContext* context, const v1::CreateVmRequest* request,
                                    v1::CreateVmResponse* response) {
  return Serve(metrics_, "CreateVm", *context, Role::kAdmin, [&] {
    v1::VmSpec spec = request->spec();
    if (const absl::Status placed = PlaceMachine(&spec, cluster_->name(), cluster_->Members()); !placed.ok())
      return ToGrpc(placed);
    absl::StatusOr<v1::Vm> vm = guests_->Create(spec, request->dry_run());
    if (vm.ok()) *response->mutable_vm() = *std::move(vm);
    return ToGrpc(vm.status());
  });
}

grpc::Status AdminService::ListVms(grpc::ServerContext* context, const v1::ListVmsRequest*,
                                   v1::ListVmsResponse* response) {
  return Serve(metrics_, "ListVms", *context, Role::kViewer, [&] {
    for (v1::Vm& vm : guests_->List()) *response->add_vms() = std::move(vm);
    return grpc::Status::OK;
  });
}

grpc::Status AdminService::GetVm(grpc::ServerContext* context, const v1::GetVmRequest* request,
                                 v1::GetVmResponse* response) {
  return Serve(metrics_, "GetVm", *context, Role::kViewer, [&] {
    absl::StatusOr<v1::Vm> vm = guests_->Get(request->name());
    if (vm.ok()) *response->mutable_vm() = *std::move(vm);
    return ToGrpc(vm.status());
  });
}

grpc::Status AdminService::DeleteVm(grpc::ServerContext* context, const v1::DeleteVmRequest* request,
                                    v1::DeleteVmResponse*) {
  return Serve(metrics_, "DeleteVm", *context, Role::kAdmin, [&] { return ToGrpc(guests_->Delete(request->name())); });
}

grpc::Status AdminService::ControlVm(grpc::ServerContext* context, const v1::ControlVmRequest* request,
                                     v1::ControlVmResponse* response) {
  return Serve(metrics_, "ControlVm", *context, Role::kAdmin, [&] {
    absl::StatusOr<v1::Vm> vm = guests_->Control(request->name(), request->action());
    if (vm.ok()) *response->mutable_vm() = *std::move(vm);
    // It is another node that is not up: this one answers.
    if (absl::IsUnavailable(vm.status())) return ToGrpc(absl::FailedPreconditionError(MessageOf(vm.status())));
    return ToGrpc(vm.status());
  });
}

grpc::Status AdminService::MoveVcpu(grpc::ServerContext* context, const v1::MoveVcpuRequest* request,
                                    v1::MoveVcpuResponse* response) {
  return Serve(metrics_, "MoveVcpu", *context, Role::kAdmin, [&] {
    const absl::StatusOr<VcpuMoved> moved =
        guests_->MoveVcpu(request->name(), VcpuId(request->vcpu()), request->node());
    // It is another node that is not up: this one answers.
    if (absl::IsUnavailable(moved.status())) return ToGrpc(absl::FailedPreconditionError(MessageOf(moved.status())));
    if (!moved.ok()) return ToGrpc(moved.status());
    response->set_from(moved->from);
    response->set_to(moved->to);
    response->set_stopped_ns(static_cast<uint64_t>(moved->stopped.count()));
    return grpc::Status::OK;
  });
}

grpc::Status AdminService::VmMap(grpc::ServerContext* context, const v1::SpaceMapRequest* request,
                                 v1::SpaceMapResponse* response) {
  return Serve(metrics_, "VmMap", *context, Role::kViewer, [&] {
    const absl::StatusOr<bool> placed = guests_->MemoryIsSpace(request->name());
    if (!placed.ok()) return ToGrpc(placed.status());
    absl::StatusOr<v1::SpaceMapResponse> map = *placed ? spaces_->Map(request->name(), request->first_extent())
                                                       : guests_->MemoryMap(request->name(), request->first_extent());
    if (map.ok()) *response = *std::move(map);
    return ToGrpc(map.status());
  });
}

grpc::Status AdminService::VmTop(grpc::ServerContext* context, const v1::SpaceTopRequest* request,
                                 v1::SpaceTopResponse* response) {
  return Serve(metrics_, "VmTop", *context, Role::kViewer, [&] {
    const absl::StatusOr<bool> placed = guests_->MemoryIsSpace(request->name());
    if (!placed.ok()) return ToGrpc(placed.status());
    absl::StatusOr<v1::SpaceTopResponse> top =
        *placed ? spaces_->Top(request->name()) : guests_->MemoryTop(request->name());
    if (top.ok()) *response = *std::move(top);
    if (const absl::StatusOr<v1::Vm> vm = guests_->Get(request->name()); vm.ok()) {
      for (v1::SpaceNodeCounters& node : *response->mutable_nodes()) {
        for (const v1::VcpuTimes& times : vm->vcpu_times()) {
          if (times.node() == node.part().node()) node.add_vcpus(times.vcpu());
        }
      }
    }
    return ToGrpc(top.status());
  });
}

}  // namespace hk
