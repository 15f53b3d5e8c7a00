// The part of PeerControl that is about machines over several nodes.

#include <utility>

#include "hyperkernel/base/status.h"
#include "hyperkernel/node/machine_cpu.h"
#include "hyperkernel/node/machine_peers.h"
#include "hyperkernel/node/serve.h"
#include "hyperkernel/node/services.h"

namespace hk {

grpc::Status PeerControlService::DescribeMachineHost(grpc::ServerContext* context,
                                                     const v1::DescribeMachineHostRequest* request,
                                                     v1::DescribeMachineHostResponse* response) {
  return Serve(metrics_, "DescribeMachineHost", *context, Role::kNode, [&] {
    if (const grpc::Status status = CheckPeer(*context, request->from()); !status.ok()) return status;
    response->set_machine_protocol(kMachineProtocolVersion);
    const absl::Status same = CheckMachineProtocol(request->machine_protocol(), request->from());
    if (!same.ok()) return ToGrpc(same);
    absl::StatusOr<v1::DescribeMachineHostResponse> host = hk::DescribeMachineHost(request->cpu());
    if (!host.ok()) return ToGrpc(host.status());
    *response = *std::move(host);
    response->set_machine_protocol(kMachineProtocolVersion);
    response->set_boot_id(boot_id_);
    return grpc::Status::OK;
  });
}

grpc::Status PeerControlService::AttachMachine(grpc::ServerContext* context, const v1::AttachMachineRequest* request,
                                               v1::AttachMachineResponse* response) {
  return Serve(metrics_, "AttachMachine", *context, Role::kNode, [&] {
    if (const grpc::Status status = CheckPeer(*context, request->from()); !status.ok()) return status;
    absl::StatusOr<v1::AttachMachineResponse> attached = machines_->Attach(*request);
    if (attached.ok()) *response = *std::move(attached);
    return ToGrpc(attached.status());
  });
}

grpc::Status PeerControlService::OrderMachine(grpc::ServerContext* context, const v1::OrderMachineRequest* request,
                                              v1::OrderMachineResponse* response) {
  return Serve(metrics_, "OrderMachine", *context, Role::kNode, [&] {
    if (const grpc::Status status = CheckPeer(*context, request->from()); !status.ok()) return status;
    absl::StatusOr<v1::OrderMachineResponse> done = machines_->Order(*request);
    if (done.ok()) *response = *std::move(done);
    return ToGrpc(done.status());
  });
}

grpc::Status PeerControlService::MoveMachineVcpu(grpc::ServerContext* context,
                                                 const v1::MoveMachineVcpuRequest* request,
                                                 v1::MoveMachineVcpuResponse* response) {
  return Serve(metrics_, "MoveMachineVcpu", *context, Role::kNode, [&] {
    if (const grpc::Status status = CheckPeer(*context, request->from()); !status.ok()) return status;
    absl::StatusOr<v1::MoveMachineVcpuResponse> done = machines_->Move(*request);
    if (done.ok()) *response = *std::move(done);
    return ToGrpc(done.status());
  });
}

}  // namespace hk
