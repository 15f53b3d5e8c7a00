// The part of the Admin service that is about machines.

#include <thread>
#include <utility>

#include "hyperkernel/base/status.h"
#include "hyperkernel/node/caller.h"
#include "hyperkernel/node/serve.h"
#include "hyperkernel/node/services.h"

namespace hk {
namespace {

// Bytes of console output in one message.
constexpr size_t kConsolePieceBytes = 16 << 10;
// How long a console stream waits for output before it looks whether its client is still there.
constexpr std::chrono::milliseconds kConsoleWait(500);

using ConsoleStream = grpc::ServerReaderWriter<v1::ConsoleResponse, v1::ConsoleRequest>;

// Sends what the guest writes until it ends or the client goes away.
void FollowConsole(const ConsoleLog& log, const grpc::ServerContext& context, ConsoleStream* stream) {
  uint64_t next = 0;
  while (!context.IsCancelled()) {
    ConsoleLog::Piece piece = log.Read(next, kConsolePieceBytes, std::chrono::steady_clock::now() + kConsoleWait);
    next = piece.next;
    if (!piece.bytes.empty()) {
      v1::ConsoleResponse response;
      response.set_output(std::move(piece.bytes));
      if (!stream->Write(response)) return;
    }
    if (piece.ended) return;
  }
}

}  // namespace

grpc::Status AdminService::CreateVm(grpc::ServerContext* context, const v1::CreateVmRequest* request,
                                    v1::CreateVmResponse* response) {
  return Serve(metrics_, "CreateVm", *context, Role::kAdmin, [&] {
    absl::StatusOr<v1::Vm> vm = guests_->Create(request->spec(), request->dry_run());
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
    return ToGrpc(vm.status());
  });
}

grpc::Status AdminService::Console(grpc::ServerContext* context, ConsoleStream* stream) {
  return Serve(metrics_, "Console", *context, Role::kAdmin, [&] {
    v1::ConsoleRequest first;
    if (!stream->Read(&first))
      return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "a console needs a machine's name");
    const std::string name = first.name();
    const auto log = guests_->Console(name);
    if (!log.ok()) return ToGrpc(log.status());
    // Ends when the client closes its half, goes away, or the stream is cancelled below.
    std::thread input([&] {
      v1::ConsoleRequest request;
      while (stream->Read(&request)) static_cast<void>(guests_->ConsoleInput(name, request.input()).ok());
    });
    FollowConsole(**log, *context, stream);
    context->TryCancel();
    input.join();
    return grpc::Status::OK;
  });
}

}  // namespace hk
