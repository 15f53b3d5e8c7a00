// hkctl's side of a call: where to, with which identity, for how long, and what its end means for the exit code.
// Not thread-safe.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "proto/admin.grpc.pb.h"

namespace hk::cli {

// Exit codes, as in README.md.
inline constexpr int kExitOk = 0;
inline constexpr int kExitClusterSaidNo = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitCannotReach = 3;

inline constexpr char kDefaultEndpoint[] = "unix:/run/hyperkernel/admin.sock";

// Longest wait for work on the daemon's side.
inline constexpr uint64_t kWorkTimeoutMs = 60000;

// The global options.
struct Options {
  std::string endpoint = kDefaultEndpoint;
  std::string output = "table";
  uint64_t timeout_ms = 10000;
  bool timeout_given = false;                    // by the operator: then it is meant for everything
  std::string tls_ca, tls_certificate, tls_key;  // paths; all or none
  std::vector<std::string> guest_command;        // of vm exec: the words after --

  bool json() const { return output == "json"; }
  bool text() const { return output == "textproto"; }
};

// A connection to one daemon.
class Client {
 public:
  explicit Client(const Options& options) : options_(options) {}

  // Runs one call and gives the exit code. On failure prints one line to standard error: what failed, where, what to
  // do. `what` names the command: "node list".
  using Body = std::function<grpc::Status(v1::Admin::Stub*, grpc::ClientContext*)>;
  int Call(const std::string& what, const Body& body);
  // The same for work on the daemon's side, a kernel to be unpacked or a machine to be made, which a slow host may need
  // longer for than for an answer: connecting has the usual deadline, the work kWorkTimeoutMs unless the operator said.
  int Work(const std::string& what, const Body& body);
  // The same for a call that lasts as long as the operator wants: no deadline once it is connected; connecting has the
  // usual one.
  int Stream(const std::string& what, const Body& body);

 private:
  // `timeout_ms`: of the call; nothing: none. One that differs from the usual is preceded by a call with that.
  int Run(const std::string& what, std::optional<uint64_t> timeout_ms, const Body& body);

  const Options& options_;
};

}  // namespace hk::cli
