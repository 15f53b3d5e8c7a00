#include "hyperkernel/cli/client.h"

#include <fmt/format.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <fstream>
#include <optional>
#include <sstream>

#include "hyperkernel/cli/output.h"

namespace hk::cli {
namespace {

// Name that every node's certificate carries (node/tls.h): any node of the cluster may answer.
constexpr char kAnyNodeDnsName[] = "hyperkernel-node";

// False, after a line to standard error, if the file cannot be read.
bool ReadFile(const std::string& path, std::string* content) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();  // unlike an iterator over it, does not throw when the path is a directory
  *content = text.str();
  if (file.good() && !content->empty()) return true;
  fmt::print(stderr, "hkctl: cannot read {}; check --tls-ca, --tls-cert and --tls-key\n", Printable(path));
  return false;
}

// Null after a line to standard error.
std::shared_ptr<grpc::ChannelCredentials> CredentialsFor(const Options& options) {
  const bool any = !options.tls_ca.empty() || !options.tls_certificate.empty() || !options.tls_key.empty();
  const bool all = !options.tls_ca.empty() && !options.tls_certificate.empty() && !options.tls_key.empty();
  if (!any || options.endpoint.rfind("unix:", 0) == 0) return grpc::InsecureChannelCredentials();
  if (!all) {
    fmt::print(stderr, "hkctl: --tls-ca, --tls-cert and --tls-key go together\n");
    return nullptr;
  }
  grpc::SslCredentialsOptions ssl;
  if (!ReadFile(options.tls_ca, &ssl.pem_root_certs) || !ReadFile(options.tls_certificate, &ssl.pem_cert_chain) ||
      !ReadFile(options.tls_key, &ssl.pem_private_key)) {
    return nullptr;
  }
  return grpc::SslCredentials(ssl);
}

// A connection that is closed in the middle tells nothing of the reason: a daemon that wants TLS, or another
// certificate, looks the same as one that is going down. So the question to the operator depends on what was tried.
const char* WhatToCheck(const Options& options) {
  if (options.endpoint.rfind("unix:", 0) == 0) return "and is --endpoint right?";
  if (options.tls_ca.empty()) return "is --endpoint right, and does it want TLS (--tls-ca, --tls-cert, --tls-key)?";
  return "is --endpoint right, and are --tls-ca and --tls-cert of its cluster's authority and valid now (its log says "
         "what it refused)?";
}

int CannotReach(const Options& options, const std::string& what, const std::string& why) {
  fmt::print(stderr,
             "hkctl: {}: cannot reach {}: {}; is hyperkerneld running there (systemctl status hyperkerneld), {}\n",
             Printable(what), Printable(options.endpoint), PlainReason(why), WhatToCheck(options));
  return kExitCannotReach;
}

// gRPC's words when it cannot make credentials from the files it was given.
bool IsUnusableIdentity(const Options& options, const grpc::Status& status) {
  return !options.tls_ca.empty() && status.error_message().rfind("empty address list", 0) == 0;
}

}  // namespace

int Client::Call(const std::string& what, const Body& body) {
  return Run(what, options_.timeout_ms, body);
}

int Client::Work(const std::string& what, const Body& body) {
  return Run(what, options_.timeout_given ? options_.timeout_ms : kWorkTimeoutMs, body);
}

int Client::Stream(const std::string& what, const Body& body) {
  return Run(what, std::nullopt, body);
}

int Client::Run(const std::string& what, std::optional<uint64_t> timeout_ms, const Body& body) {
  const std::shared_ptr<grpc::ChannelCredentials> credentials = CredentialsFor(options_);
  if (credentials == nullptr) return kExitUsage;
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetSslTargetNameOverride(kAnyNodeDnsName);
  const auto channel = grpc::CreateCustomChannel(options_.endpoint, credentials, arguments);
  const auto stub = v1::Admin::NewStub(channel);
  auto waited = std::chrono::milliseconds(options_.timeout_ms);
  const auto after = [](std::chrono::milliseconds time) { return std::chrono::system_clock::now() + time; };
  grpc::Status status;
  if (timeout_ms != options_.timeout_ms) {
    // Whether there is a daemon must not take as long to find out as its work takes: first a call that waits less.
    grpc::ClientContext first;
    first.set_deadline(after(waited));
    v1::GetVersionResponse version;
    status = stub->GetVersion(&first, v1::GetVersionRequest(), &version);
  }
  if (status.ok()) {
    grpc::ClientContext context;
    if (timeout_ms.has_value()) {
      waited = std::chrono::milliseconds(*timeout_ms);
      context.set_deadline(after(waited));
    }
    status = body(stub.get(), &context);
  }
  switch (status.error_code()) {
    case grpc::StatusCode::OK:
      return kExitOk;
    case grpc::StatusCode::UNAVAILABLE:
      // The daemon's own word about a peer of its carries the peer's name; the rest is about the endpoint.
      if (status.error_message().rfind("node '", 0) == 0) break;
      if (IsUnusableIdentity(options_, status)) {
        fmt::print(stderr, "hkctl: --tls-ca, --tls-cert and --tls-key: not PEM, or the key is not the certificate's\n");
        return kExitUsage;
      }
      return CannotReach(options_, what, status.error_message());
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      if (status.error_message().rfind("node '", 0) == 0) break;
      return CannotReach(options_, what, fmt::format("no answer within {}", HumanDuration(waited)));
    default:
      break;
  }
  fmt::print(stderr, "hkctl: {}: {}\n", Printable(what), PlainReason(status.error_message()));
  return kExitClusterSaidNo;
}

}  // namespace hk::cli
