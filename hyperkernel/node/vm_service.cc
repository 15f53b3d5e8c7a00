// The part of the Admin service that is about machines: what is defined, and their states.

#include <algorithm>
#include <chrono>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/auto_placement.h"
#include "hyperkernel/node/caller.h"
#include "hyperkernel/node/machine_policy.h"
#include "hyperkernel/node/serve.h"
#include "hyperkernel/node/services.h"

namespace hk {
namespace {

using std::chrono::steady_clock;

constexpr uint64_t kMostTraceMs = 24 * 3600 * 1000;
// Between two looks at what this node's vCPUs wait for.
constexpr std::chrono::milliseconds kTraceWait(250);

}  // namespace

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
    absl::StatusOr<v1::Vm> vm = guests_->Control(request->name(), request->action(), request->cold());
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
    if (!top.ok()) return ToGrpc(top.status());
    *response = *std::move(top);
    if (absl::StatusOr<v1::Vm> vm = guests_->Get(request->name()); vm.ok()) {
      for (v1::SpaceNodeCounters& node : *response->mutable_nodes()) {
        for (const v1::VcpuTimes& times : vm->vcpu_times()) {
          if (times.node() == node.part().node()) node.add_vcpus(times.vcpu());
        }
      }
      *response->mutable_vcpus() = std::move(*vm->mutable_vcpu_times());
    }
    return grpc::Status::OK;
  });
}

grpc::Status AdminService::TraceVm(grpc::ServerContext* context, const v1::TraceVmRequest* request,
                                   grpc::ServerWriter<v1::TraceRecord>* writer) {
  const auto body = [&] {
    if (request->for_ms() > kMostTraceMs) {
      return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                          fmt::format("for_ms: {} is more than {}", request->for_ms(), kMostTraceMs));
    }
    const absl::StatusOr<std::shared_ptr<MachinePolicy>> policy = guests_->PolicyOf(request->name());
    if (!policy.ok()) return ToGrpc(policy.status());
    const absl::StatusOr<std::shared_ptr<StallRecording>> recording = (*policy)->Record();
    if (!recording.ok()) return ToGrpc(recording.status());
    auto end = Monotonic::max();
    if (request->for_ms() != 0) end = steady_clock::now() + std::chrono::milliseconds(request->for_ms());
    for (bool more = true; more && !context->IsCancelled();) {
      more = steady_clock::now() < end && !(*recording)->ended();
      (*policy)->Collect();
      for (const v1::TraceRecord& record : (*recording)->Read(std::min(end, steady_clock::now() + kTraceWait))) {
        if (!writer->Write(record)) return grpc::Status::OK;
      }
    }
    return grpc::Status::OK;
  };
  return ServeLong("TraceVm", *context, body, Role::kViewer);
}

}  // namespace hk
