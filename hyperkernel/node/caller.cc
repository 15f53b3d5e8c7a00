#include "hyperkernel/node/caller.h"

#include <string>

#include "fmt/format.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

const char* NameOf(Role role) {
  switch (role) {
    case Role::kNone:
      return "none";
    case Role::kViewer:
      return "viewer";
    case Role::kAdmin:
      return "admin";
    case Role::kNode:
      return "node";
  }
  return "none";
}

}  // namespace

Caller CallerOf(const grpc::ServerContext& context) {
  const auto auth = context.auth_context();
  const auto transport =
      auth == nullptr ? std::vector<grpc::string_ref>() : auth->FindPropertyValues("transport_security_type");
  const bool tls = !transport.empty() && (transport.front() == "ssl" || transport.front() == "tls");
  if (!tls) return {Role::kNode, ""};
  const auto names = auth->FindPropertyValues("x509_common_name");
  if (!auth->IsPeerAuthenticated() || names.size() != 1) return {};
  return CallerOfCommonName(std::string_view(names.front().data(), names.front().size()));
}

grpc::Status Authorize(const grpc::ServerContext& context, Role needed) {
  const Caller caller = CallerOf(context);
  if (caller.role >= needed || HK_MUTANT(roles_unchecked)) return grpc::Status::OK;
  return grpc::Status(
      grpc::StatusCode::PERMISSION_DENIED,
      fmt::format("this needs role {}, and the certificate gives {}", NameOf(needed), NameOf(caller.role)));
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), MessageOf(status));
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace hk
