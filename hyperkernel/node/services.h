// The gRPC services of a daemon: Admin for operators, PeerControl for other nodes. Thin: checks the role, asks the
// cluster, counts. Thread-safe.
#pragma once

#include <atomic>
#include <functional>

#include "hyperkernel/node/cluster.h"
#include "hyperkernel/node/guest_manager.h"
#include "hyperkernel/node/metrics.h"
#include "proto/admin.grpc.pb.h"
#include "proto/peer.grpc.pb.h"

namespace hk {

// What operators ask (proto/admin.proto).
class AdminService final : public v1::Admin::Service {
 public:
  // All must outlive this object.
  AdminService(Cluster* cluster, GuestManager* guests, Metrics* metrics)
      : cluster_(cluster), guests_(guests), metrics_(metrics) {}
  grpc::Status GetVersion(grpc::ServerContext* context, const v1::GetVersionRequest* request,
                          v1::GetVersionResponse* response) override;
  grpc::Status ListNodes(grpc::ServerContext* context, const v1::ListNodesRequest* request,
                         v1::ListNodesResponse* response) override;
  grpc::Status GetNode(grpc::ServerContext* context, const v1::GetNodeRequest* request,
                       v1::GetNodeResponse* response) override;
  grpc::Status ProbeNode(grpc::ServerContext* context, const v1::ProbeNodeRequest* request,
                         v1::ProbeNodeResponse* response) override;
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
  grpc::Status Console(grpc::ServerContext* context,
                       grpc::ServerReaderWriter<v1::ConsoleResponse, v1::ConsoleRequest>* stream) override;
  grpc::Status ReadLog(grpc::ServerContext* context, const v1::ReadLogRequest* request,
                       grpc::ServerWriter<v1::ReadLogResponse>* writer) override;
  grpc::Status Exec(grpc::ServerContext* context, const v1::ExecRequest* request,
                    grpc::ServerWriter<v1::ExecResponse>* writer) override;

 private:
  // Calls that last as long as their client wants hold a thread each. There are 96 (daemon.cc), and hellos of 63 peers
  // must always find one.
  static constexpr int kMaxLongCalls = 24;

  // Runs `body` as one of kMaxLongCalls.
  grpc::Status ServeLong(const char* method, const grpc::ServerContext& context,
                         const std::function<grpc::Status()>& body);

  std::atomic<int> long_calls_{0};
  Cluster* const cluster_;
  GuestManager* const guests_;
  Metrics* const metrics_;
};

// What other nodes ask (proto/peer.proto).
class PeerControlService final : public v1::PeerControl::Service {
 public:
  // Both must outlive this object.
  PeerControlService(Cluster* cluster, Metrics* metrics) : cluster_(cluster), metrics_(metrics) {}
  grpc::Status Hello(grpc::ServerContext* context, const v1::HelloRequest* request,
                     v1::HelloResponse* response) override;
  grpc::Status Probe(grpc::ServerContext* context, const v1::PeerProbeRequest* request,
                     v1::PeerProbeResponse* response) override;

 private:
  Cluster* const cluster_;
  Metrics* const metrics_;
};

}  // namespace hk
