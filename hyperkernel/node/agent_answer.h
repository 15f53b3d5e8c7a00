// One answer of a guest agent (QEMU's guest agent protocol: a JSON object per line), read into what running a command
// needs. The line comes from the guest and is hostile: nothing is built from it but the members named here, so that no
// answer costs more memory than its own length. Pure; thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace hk {

// What an answer says; what it does not say is not set. Plain value.
struct AgentAnswer {
  std::optional<int64_t> number;  // {"return": NUMBER}, as guest-sync-delimited answers

  // {"return": {...}}, as guest-exec and guest-exec-status answer
  std::optional<int64_t> pid;
  std::optional<bool> exited;
  std::optional<int64_t> exit_code;
  std::optional<int64_t> signal;
  std::string output;        // base64
  std::string error_output;  // base64
  bool output_truncated = false;
  bool error_output_truncated = false;

  // {"error": {...}}
  bool is_error = false;
  std::string error_class;
  std::string error_text;
};

// Reads one line. Members it does not know are skipped; a member of the wrong type counts as not there. Errors:
// kInvalidArgument if it is not one JSON object, or nested or long beyond what an agent sends.
absl::StatusOr<AgentAnswer> ParseAgentAnswer(std::string_view line);

}  // namespace hk
