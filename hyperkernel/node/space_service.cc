// The parts of both services that are about spaces.

#include <algorithm>
#include <chrono>
#include <utility>

#include "hyperkernel/base/status.h"
#include "hyperkernel/memory/space_version.h"
#include "hyperkernel/node/caller.h"
#include "hyperkernel/node/serve.h"
#include "hyperkernel/node/services.h"
#include "hyperkernel/node/space_rules.h"

namespace hk {
namespace {

// The answer's way to the caller, who is to hear why, and not only that it took too long.
constexpr std::chrono::milliseconds kAnswerMargin(500);

// The caller's deadline on the monotonic clock. gRPC's are on the wall clock, and "none" is its end: an hour is as
// good.
Monotonic DeadlineOf(const grpc::ServerContext& context) {
  using Duration = std::chrono::system_clock::duration;
  const Duration left =
      std::min<Duration>(context.deadline() - std::chrono::system_clock::now(), std::chrono::hours(1));
  return std::chrono::steady_clock::now() + left - std::min<Duration>(kAnswerMargin, left / 2);
}

template <typename Value>
grpc::Status Answer(absl::StatusOr<Value> value, Value* response) {
  if (value.ok()) *response = *std::move(value);
  return ToGrpc(value.status());
}

template <typename Response>
grpc::Status AnswerNotes(const absl::StatusOr<std::vector<std::string>>& notes, Response* response) {
  if (!notes.ok()) return ToGrpc(notes.status());
  for (const std::string& note : *notes) response->add_notes(note);
  return grpc::Status::OK;
}

}  // namespace

grpc::Status AdminService::CreateSpace(grpc::ServerContext* context, const v1::CreateSpaceRequest* request,
                                       v1::CreateSpaceResponse* response) {
  return Serve(metrics_, "CreateSpace", *context, Role::kAdmin, [&] {
    return space_calls_.Run([&] { return Answer(spaces_->Create(*request), response->mutable_space()); });
  });
}

grpc::Status AdminService::ListSpaces(grpc::ServerContext* context, const v1::ListSpacesRequest*,
                                      v1::ListSpacesResponse* response) {
  return Serve(metrics_, "ListSpaces", *context, Role::kViewer, [&] {
    for (v1::Space& space : spaces_->List()) *response->add_spaces() = std::move(space);
    return grpc::Status::OK;
  });
}

grpc::Status AdminService::GetSpace(grpc::ServerContext* context, const v1::GetSpaceRequest* request,
                                    v1::GetSpaceResponse* response) {
  return Serve(metrics_, "GetSpace", *context, Role::kViewer, [&] {
    return space_calls_.Run([&] { return Answer(spaces_->Get(request->name()), response->mutable_space()); });
  });
}

grpc::Status AdminService::DeleteSpace(grpc::ServerContext* context, const v1::DeleteSpaceRequest* request,
                                       v1::DeleteSpaceResponse* response) {
  return Serve(metrics_, "DeleteSpace", *context, Role::kAdmin, [&] {
    return space_calls_.Run([&] { return AnswerNotes(spaces_->Delete(request->name()), response); });
  });
}

grpc::Status AdminService::DrainSpace(grpc::ServerContext* context, const v1::DrainSpaceRequest* request,
                                      v1::DrainSpaceResponse*) {
  return Serve(metrics_, "DrainSpace", *context, Role::kAdmin,
               [&] { return space_calls_.Run([&] { return ToGrpc(spaces_->Drain(*request)); }); });
}

grpc::Status AdminService::JoinSpace(grpc::ServerContext* context, const v1::JoinSpaceRequest* request,
                                     v1::JoinSpaceResponse* response) {
  return Serve(metrics_, "JoinSpace", *context, Role::kAdmin, [&] {
    return space_calls_.Run([&] { return Answer(spaces_->Join(*request), response->mutable_space()); });
  });
}

grpc::Status AdminService::ReadSpace(grpc::ServerContext* context, const v1::ReadSpaceRequest* request,
                                     v1::ReadSpaceResponse* response) {
  return Serve(metrics_, "ReadSpace", *context, Role::kAdmin, [&] {
    return space_calls_.Run([&] {
      return Answer(spaces_->Read(request->name(), request->address(), request->bytes(), DeadlineOf(*context)),
                    response->mutable_data());
    });
  });
}

grpc::Status AdminService::WriteSpace(grpc::ServerContext* context, const v1::WriteSpaceRequest* request,
                                      v1::WriteSpaceResponse*) {
  return Serve(metrics_, "WriteSpace", *context, Role::kAdmin, [&] {
    return space_calls_.Run([&] {
      return ToGrpc(spaces_->Write(request->name(), request->address(), request->data(), DeadlineOf(*context)));
    });
  });
}

grpc::Status AdminService::SpaceMap(grpc::ServerContext* context, const v1::SpaceMapRequest* request,
                                    v1::SpaceMapResponse* response) {
  return Serve(metrics_, "SpaceMap", *context, Role::kViewer, [&] {
    return space_calls_.Run([&] { return Answer(spaces_->Map(request->name(), request->first_extent()), response); });
  });
}

grpc::Status AdminService::SpaceTop(grpc::ServerContext* context, const v1::SpaceTopRequest* request,
                                    v1::SpaceTopResponse* response) {
  return Serve(metrics_, "SpaceTop", *context, Role::kViewer,
               [&] { return space_calls_.Run([&] { return Answer(spaces_->Top(request->name()), response); }); });
}

grpc::Status PeerControlService::AttachSpace(grpc::ServerContext* context, const v1::AttachSpaceRequest* request,
                                             v1::AttachSpaceResponse* response) {
  return Serve(metrics_, "AttachSpace", *context, Role::kNode, [&] {
    if (const grpc::Status status = CheckPeer(*context, request->from()); !status.ok()) return status;
    const absl::Status same = CheckSpaceProtocol(request->space_protocol(), "node '" + request->from() + "'");
    if (!same.ok()) return ToGrpc(same);
    response->set_space_protocol(kSpaceProtocolVersion);
    return ToGrpc(spaces_->Attach(*request));
  });
}

grpc::Status PeerControlService::DetachSpace(grpc::ServerContext* context, const v1::DetachSpaceRequest* request,
                                             v1::DetachSpaceResponse*) {
  return Serve(metrics_, "DetachSpace", *context, Role::kNode, [&] {
    if (const grpc::Status status = CheckPeer(*context, request->from()); !status.ok()) return status;
    return ToGrpc(spaces_->Detach(*request));
  });
}

grpc::Status PeerControlService::SpaceStatus(grpc::ServerContext* context, const v1::SpaceStatusRequest* request,
                                             v1::SpaceStatusResponse* response) {
  return Serve(metrics_, "SpaceStatus", *context, Role::kNode, [&] {
    if (const grpc::Status status = CheckPeer(*context, request->from()); !status.ok()) return status;
    return Answer(spaces_->Status(*request), response);
  });
}

grpc::Status PeerControlService::RemoveSpace(grpc::ServerContext* context, const v1::RemoveSpaceRequest* request,
                                             v1::RemoveSpaceResponse* response) {
  return Serve(metrics_, "RemoveSpace", *context, Role::kNode, [&] {
    if (const grpc::Status status = CheckPeer(*context, request->from()); !status.ok()) return status;
    return AnswerNotes(spaces_->Remove(*request), response);
  });
}

grpc::Status PeerControlService::ChangeSpaceEpoch(grpc::ServerContext* context,
                                                  const v1::ChangeSpaceEpochRequest* request,
                                                  v1::ChangeSpaceEpochResponse* response) {
  return Serve(metrics_, "ChangeSpaceEpoch", *context, Role::kNode, [&] {
    if (const grpc::Status status = CheckPeer(*context, request->from()); !status.ok()) return status;
    return Answer(spaces_->ChangeEpoch(*request), response);
  });
}

grpc::Status PeerControlService::LeaveSpace(grpc::ServerContext* context, const v1::LeaveSpaceRequest* request,
                                            v1::LeaveSpaceResponse* response) {
  return Serve(metrics_, "LeaveSpace", *context, Role::kNode, [&] {
    if (const grpc::Status status = CheckPeer(*context, request->from()); !status.ok()) return status;
    return Answer(spaces_->Leave(*request), response);
  });
}

grpc::Status PeerControlService::SpaceNodeLost(grpc::ServerContext* context, const v1::SpaceNodeLostRequest* request,
                                               v1::SpaceNodeLostResponse*) {
  return Serve(metrics_, "SpaceNodeLost", *context, Role::kNode, [&] {
    if (const grpc::Status status = CheckPeer(*context, request->from()); !status.ok()) return status;
    return ToGrpc(spaces_->NodeLost(*request));
  });
}

}  // namespace hk
