// The gRPC services of a daemon: Admin for operators, PeerControl for other nodes. Thin: checks the role, asks the
// cluster, counts. Thread-safe.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <utility>

#include "hyperkernel/node/cluster.h"
#include "hyperkernel/node/guest_manager.h"
#include "hyperkernel/node/guest_replicas.h"
#include "hyperkernel/node/machine_parts.h"
#include "hyperkernel/node/metrics.h"
#include "hyperkernel/node/space_manager.h"
#include "hyperkernel/node/tls.h"
#include "proto/admin.grpc.pb.h"
#include "proto/peer.grpc.pb.h"

namespace hk {

// Calls that may hold a thread for seconds, so many at once and no more: there are kMaxServerThreads (daemon.cc), and
// hellos of 63 peers must always find one.
class CallLimit {
 public:
  explicit CallLimit(int most) : most_(most) {}
  grpc::Status Run(const std::function<grpc::Status()>& body);

 private:
  const int most_;
  std::atomic<int> running_{0};
};

// What operators ask (proto/admin.proto).
class AdminService final : public v1::Admin::Service {
 public:
  // All must outlive this object.
  // `replicas` may be null; `restart` begins one (daemon.h), and may be empty.
  AdminService(Cluster* cluster, GuestManager* guests, SpaceManager* spaces, Metrics* metrics,
               GuestReplicas* replicas = nullptr, std::function<absl::Status()> restart = nullptr)
      : cluster_(cluster),
        guests_(guests),
        spaces_(spaces),
        metrics_(metrics),
        replicas_(replicas),
        restart_(std::move(restart)) {}
  grpc::Status GetVersion(grpc::ServerContext* context, const v1::GetVersionRequest* request,
                          v1::GetVersionResponse* response) override;
  grpc::Status ListNodes(grpc::ServerContext* context, const v1::ListNodesRequest* request,
                         v1::ListNodesResponse* response) override;
  grpc::Status GetNode(grpc::ServerContext* context, const v1::GetNodeRequest* request,
                       v1::GetNodeResponse* response) override;
  grpc::Status ProbeNode(grpc::ServerContext* context, const v1::ProbeNodeRequest* request,
                         v1::ProbeNodeResponse* response) override;
  grpc::Status RestartNode(grpc::ServerContext* context, const v1::RestartNodeRequest* request,
                           v1::RestartNodeResponse* response) override;
  grpc::Status CreateVm(grpc::ServerContext* context, const v1::CreateVmRequest* request,
                        v1::CreateVmResponse* response) override;
  grpc::Status ListVms(grpc::ServerContext* context, const v1::ListVmsRequest* request,
                       v1::ListVmsResponse* response) override;
  grpc::Status GetVm(grpc::ServerContext* context, const v1::GetVmRequest* request,
                     v1::GetVmResponse* response) override;
  grpc::Status DeleteVm(grpc::ServerContext* context, const v1::DeleteVmRequest* request,
                        v1::DeleteVmResponse* response) override;
  grpc::Status ControlVm(grpc::ServerContext* context, const v1::ControlVmRequest* request,
                         v1::ControlVmResponse* response) override;
  grpc::Status MoveVcpu(grpc::ServerContext* context, const v1::MoveVcpuRequest* request,
                        v1::MoveVcpuResponse* response) override;
  grpc::Status Console(grpc::ServerContext* context,
                       grpc::ServerReaderWriter<v1::ConsoleResponse, v1::ConsoleRequest>* stream) override;
  grpc::Status ReadLog(grpc::ServerContext* context, const v1::ReadLogRequest* request,
                       grpc::ServerWriter<v1::ReadLogResponse>* writer) override;
  grpc::Status Exec(grpc::ServerContext* context, const v1::ExecRequest* request,
                    grpc::ServerWriter<v1::ExecResponse>* writer) override;
  grpc::Status CreateSpace(grpc::ServerContext* context, const v1::CreateSpaceRequest* request,
                           v1::CreateSpaceResponse* response) override;
  grpc::Status ListSpaces(grpc::ServerContext* context, const v1::ListSpacesRequest* request,
                          v1::ListSpacesResponse* response) override;
  grpc::Status GetSpace(grpc::ServerContext* context, const v1::GetSpaceRequest* request,
                        v1::GetSpaceResponse* response) override;
  grpc::Status DeleteSpace(grpc::ServerContext* context, const v1::DeleteSpaceRequest* request,
                           v1::DeleteSpaceResponse* response) override;
  grpc::Status DrainSpace(grpc::ServerContext* context, const v1::DrainSpaceRequest* request,
                          v1::DrainSpaceResponse* response) override;
  grpc::Status JoinSpace(grpc::ServerContext* context, const v1::JoinSpaceRequest* request,
                         v1::JoinSpaceResponse* response) override;
  grpc::Status ReadSpace(grpc::ServerContext* context, const v1::ReadSpaceRequest* request,
                         v1::ReadSpaceResponse* response) override;
  grpc::Status WriteSpace(grpc::ServerContext* context, const v1::WriteSpaceRequest* request,
                          v1::WriteSpaceResponse* response) override;
  grpc::Status SpaceMap(grpc::ServerContext* context, const v1::SpaceMapRequest* request,
                        v1::SpaceMapResponse* response) override;
  grpc::Status SpaceTop(grpc::ServerContext* context, const v1::SpaceTopRequest* request,
                        v1::SpaceTopResponse* response) override;
  grpc::Status VmMap(grpc::ServerContext* context, const v1::SpaceMapRequest* request,
                     v1::SpaceMapResponse* response) override;
  grpc::Status VmTop(grpc::ServerContext* context, const v1::SpaceTopRequest* request,
                     v1::SpaceTopResponse* response) override;
  grpc::Status TraceVm(grpc::ServerContext* context, const v1::TraceVmRequest* request,
                       grpc::ServerWriter<v1::TraceRecord>* writer) override;
  grpc::Status ShowReplica(grpc::ServerContext* context, const v1::ShowReplicaRequest* request,
                           v1::ShowReplicaResponse* response) override;
  grpc::Status DropReplica(grpc::ServerContext* context, const v1::DropReplicaRequest* request,
                           v1::DropReplicaResponse* response) override;
  grpc::Status VerifyReplica(grpc::ServerContext* context, const v1::VerifyReplicaRequest* request,
                             grpc::ServerWriter<v1::ReplicaVerification>* writer) override;

 private:
  // Calls that last as long as their client wants hold a thread each. There are 96 (daemon.cc), and hellos of 63 peers
  // must always find one.
  static constexpr int kMaxLongCalls = 24;
  // Making and deleting a space, and waiting for its pages.
  static constexpr int kMaxSpaceCalls = 16;

  // Runs `body` as one of kMaxLongCalls.
  grpc::Status ServeLong(const char* method, const grpc::ServerContext& context,
                         const std::function<grpc::Status()>& body, Role role = Role::kAdmin);
  // Errors: kNotFound, or why the machine has none.
  absl::StatusOr<std::shared_ptr<GuestReplica>> FindReplica(const std::string& name);

  std::atomic<int> long_calls_{0};
  CallLimit space_calls_{kMaxSpaceCalls};
  Cluster* const cluster_;
  GuestManager* const guests_;
  SpaceManager* const spaces_;
  Metrics* const metrics_;
  GuestReplicas* const replicas_;
  const std::function<absl::Status()> restart_;
};

// What other nodes ask (proto/peer.proto).
class PeerControlService final : public v1::PeerControl::Service {
 public:
  // All must outlive this object.
  PeerControlService(Cluster* cluster, SpaceManager* spaces, MachineParts* machines, std::string boot_id,
                     Metrics* metrics)
      : cluster_(cluster), spaces_(spaces), machines_(machines), boot_id_(std::move(boot_id)), metrics_(metrics) {}
  grpc::Status Hello(grpc::ServerContext* context, const v1::HelloRequest* request,
                     v1::HelloResponse* response) override;
  grpc::Status Probe(grpc::ServerContext* context, const v1::PeerProbeRequest* request,
                     v1::PeerProbeResponse* response) override;
  grpc::Status AttachSpace(grpc::ServerContext* context, const v1::AttachSpaceRequest* request,
                           v1::AttachSpaceResponse* response) override;
  grpc::Status DetachSpace(grpc::ServerContext* context, const v1::DetachSpaceRequest* request,
                           v1::DetachSpaceResponse* response) override;
  grpc::Status SpaceStatus(grpc::ServerContext* context, const v1::SpaceStatusRequest* request,
                           v1::SpaceStatusResponse* response) override;
  grpc::Status RemoveSpace(grpc::ServerContext* context, const v1::RemoveSpaceRequest* request,
                           v1::RemoveSpaceResponse* response) override;
  grpc::Status ChangeSpaceEpoch(grpc::ServerContext* context, const v1::ChangeSpaceEpochRequest* request,
                                v1::ChangeSpaceEpochResponse* response) override;
  grpc::Status LeaveSpace(grpc::ServerContext* context, const v1::LeaveSpaceRequest* request,
                          v1::LeaveSpaceResponse* response) override;
  grpc::Status SpaceNodeLost(grpc::ServerContext* context, const v1::SpaceNodeLostRequest* request,
                             v1::SpaceNodeLostResponse* response) override;
  grpc::Status DescribeMachineHost(grpc::ServerContext* context, const v1::DescribeMachineHostRequest* request,
                                   v1::DescribeMachineHostResponse* response) override;
  grpc::Status AttachMachine(grpc::ServerContext* context, const v1::AttachMachineRequest* request,
                             v1::AttachMachineResponse* response) override;
  grpc::Status OrderMachine(grpc::ServerContext* context, const v1::OrderMachineRequest* request,
                            v1::OrderMachineResponse* response) override;
  grpc::Status MoveMachineVcpu(grpc::ServerContext* context, const v1::MoveMachineVcpuRequest* request,
                               v1::MoveMachineVcpuResponse* response) override;

 private:
  // With TLS a node speaks for itself only; and it is one of this node's peers.
  grpc::Status CheckPeer(const grpc::ServerContext& context, const std::string& from) const;

  Cluster* const cluster_;
  SpaceManager* const spaces_;
  MachineParts* const machines_;
  const std::string boot_id_;  // of this host's kernel
  Metrics* const metrics_;
};

}  // namespace hk
