// A command run inside a guest through its agent (qemu-guest-agent): the conversation alone, as a pure state machine.
// Bytes and the time come in, bytes go out; no thread, no clock, no device.
//
//   kSync      guest-sync-delimited with a number of ours, again at growing intervals: agents may come late, and the
//              channel may still carry answers to somebody before us. All is skipped up to the number we sent last.
//   kStarting  guest-exec; its answer has the process.
//   kRunning   guest-exec-status, asked for at growing intervals; the answer that says it exited has the output.
//   kDone      result() tells.
//   kFailed    failure() tells.
//
// Invariants:
//  1. Whatever the guest sends ends in kDone, in kFailed, or at the deadline; memory is bounded by kMaxAnswerBytes.
//  2. Nothing is taken for an answer that was sent before the last synchronisation.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"

namespace hk {

// A command for a guest. Plain value.
struct GuestCommand {
  std::vector<std::string> words;  // program and arguments
  std::string input;               // its standard input; empty: none
};

// How a command ended and what it wrote. Plain value.
struct GuestCommandResult {
  enum class End { kExited, kSignalled, kNotStarted };
  End end = End::kExited;
  int number = 0;      // exit status 0 to 255, or signal 1 to 64
  std::string reason;  // of kNotStarted: the agent's words
  std::string output;
  std::string error_output;
  bool output_truncated = false;  // the agent keeps 16 MiB of each
  bool error_output_truncated = false;
};

// One command. Not thread-safe.
class GuestAgentExec {
 public:
  // The agent parses 64 MiB at most and a gRPC request of ours is 1 MiB at most: this, in base64, is in both.
  static constexpr size_t kMaxInputBytes = 512 << 10;
  static constexpr size_t kMaxWordBytes = 128 << 10;  // all together; Linux takes no argument longer than this
  // Two streams of 16 MiB in base64, and the rest of the answer.
  static constexpr size_t kMaxAnswerBytes = 44 << 20;
  static constexpr size_t kMaxShortAnswerBytes = 64 << 10;  // answers other than guest-exec-status's
  static constexpr std::chrono::milliseconds kFirstSyncRetry{500};
  // An agent answers within milliseconds, in a guest that is busy within seconds.
  static constexpr std::chrono::seconds kSyncDeadline{10};
  static constexpr std::chrono::seconds kAnswerDeadline{30};
  static constexpr std::chrono::milliseconds kFirstPoll{10};
  static constexpr std::chrono::milliseconds kSlowestPoll{500};

  enum class Phase { kSync, kStarting, kRunning, kDone, kFailed };

  // Begins at `now`; ends at `deadline` at the latest. `sync_id` is random and positive; its successors are used up
  // too. Errors: kInvalidArgument for words that cannot be sent (none, not UTF-8, a zero byte, too long) or too much
  // input.
  static absl::StatusOr<GuestAgentExec> Create(const GuestCommand& command, int64_t sync_id, Monotonic now,
                                               Monotonic deadline);

  // Bytes from the agent, in any pieces.
  void OnBytes(std::string_view bytes, Monotonic now);
  // To be called at next_time() or earlier.
  void OnTime(Monotonic now);
  Monotonic next_time() const { return next_time_; }
  // Bytes to the agent; told once.
  std::string TakeOutput();

  Phase phase() const { return phase_; }
  bool finished() const { return phase_ == Phase::kDone || phase_ == Phase::kFailed; }
  // REQUIRES: kFailed. kFailedPrecondition: no agent answers, or it may not run commands; kAborted: the deadline
  // passed; kInternal: its answers make no sense. One line each, with what to do.
  const absl::Status& failure() const { return failure_; }
  // REQUIRES: kDone.
  GuestCommandResult& result() { return result_; }

 private:
  GuestAgentExec(std::string request, int64_t sync_id, Monotonic now, Monotonic deadline);
  void Fail(absl::Status failure);
  void FailNonsense(std::string_view what);
  void SendSync(Monotonic now);
  void SendStatusRequest(Monotonic now);
  void Append(std::string_view piece);
  void OnLine(Monotonic now);
  void OnStarted(std::string_view line, Monotonic now);
  void OnStatus(std::string_view line, Monotonic now);
  void SetTime(Monotonic wanted);

  std::string request_;  // guest-exec, a line
  int64_t sync_id_;
  const Monotonic began_;
  const Monotonic deadline_;
  Phase phase_ = Phase::kSync;
  std::chrono::milliseconds sync_retry_ = kFirstSyncRetry;
  Monotonic sync_deadline_;
  Monotonic answer_deadline_;  // in kStarting, and in kRunning while `asked_`
  Monotonic next_time_;
  bool asked_ = false;  // guest-exec-status has no answer yet
  std::chrono::milliseconds poll_ = kFirstPoll;
  int64_t pid_ = 0;
  std::string line_;       // what has come of a line
  bool overlong_ = false;  // the line is longer than its limit: the rest is dropped
  std::string to_send_;
  absl::Status failure_;
  GuestCommandResult result_;
};

}  // namespace hk
