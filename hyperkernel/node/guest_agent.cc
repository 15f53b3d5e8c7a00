#include "hyperkernel/node/guest_agent.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/escaping.h"
#include "fmt/format.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/agent_answer.h"

namespace hk {
namespace {

using Json = nlohmann::json;
using Phase = GuestAgentExec::Phase;

// Makes the other side drop what it has of a message; no UTF-8 text has this byte (qemu-ga-ref, guest-sync-delimited).
constexpr char kFlush = '\xff';
// Of an agent's own words an operator needs the beginning.
constexpr size_t kMaxReasonBytes = 512;
constexpr int kMaxExitCode = 255;
constexpr int kMaxSignal = 64;  // SIGRTMAX

// The beginning of a text, cut between characters.
std::string Beginning(const std::string& text) {
  if (text.size() <= kMaxReasonBytes) return text;
  size_t end = kMaxReasonBytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) end--;
  return text.substr(0, end) + "...";
}

// To a tenth.
std::string Seconds(Monotonic::duration duration) {
  return fmt::format(
      "{} s",
      static_cast<double>(std::chrono::round<std::chrono::duration<int64_t, std::deci>>(duration).count()) / 10);
}

absl::StatusOr<std::string> ExecRequest(const GuestCommand& command) {
  size_t bytes = 0;
  if (command.words.empty() || command.words.front().empty()) return absl::InvalidArgumentError("command: is empty");
  for (const std::string& word : command.words) {
    bytes += word.size();
    if (word.find('\0') != std::string::npos) return absl::InvalidArgumentError("command: has a zero byte");
  }
  if (bytes > GuestAgentExec::kMaxWordBytes) {
    return absl::InvalidArgumentError(
        fmt::format("command: {} bytes; at most {} are possible", bytes, GuestAgentExec::kMaxWordBytes));
  }
  if (command.input.size() > GuestAgentExec::kMaxInputBytes) {
    return absl::InvalidArgumentError(fmt::format("standard input: {} bytes; at most {} are possible",
                                                  command.input.size(), GuestAgentExec::kMaxInputBytes));
  }
  Json arguments = {{"path", command.words.front()}, {"capture-output", true}};
  if (command.words.size() > 1) {
    arguments["arg"] = std::vector<std::string>(command.words.begin() + 1, command.words.end());
  }
  if (!command.input.empty()) arguments["input-data"] = absl::Base64Escape(command.input);
  try {
    return Json({{"execute", "guest-exec"}, {"arguments", std::move(arguments)}}).dump() + "\n";
  } catch (const Json::type_error&) {  // the library's way to say that a string is not UTF-8
    return absl::InvalidArgumentError("command: a word is not UTF-8, which is all that the guest agent takes");
  }
}

}  // namespace

absl::StatusOr<GuestAgentExec> GuestAgentExec::Create(const GuestCommand& command, int64_t sync_id, Monotonic now,
                                                      Monotonic deadline) {
  absl::StatusOr<std::string> request = ExecRequest(command);
  if (!request.ok()) return request.status();
  return GuestAgentExec(*std::move(request), sync_id, now, deadline);
}

GuestAgentExec::GuestAgentExec(std::string request, int64_t sync_id, Monotonic now, Monotonic deadline)
    : request_(std::move(request)),
      sync_id_(sync_id),
      began_(now),
      deadline_(deadline),
      sync_deadline_(std::min(now + kSyncDeadline, deadline)) {
  SendSync(now);
}

std::string GuestAgentExec::TakeOutput() {
  return std::exchange(to_send_, {});
}

void GuestAgentExec::SetTime(Monotonic wanted) {
  next_time_ = std::min(wanted, deadline_);
}

void GuestAgentExec::Fail(absl::Status failure) {
  phase_ = Phase::kFailed;
  failure_ = std::move(failure);
  std::string().swap(line_);
}

void GuestAgentExec::FailNonsense(std::string_view what) {
  Fail(absl::InternalError(fmt::format("the guest agent's answer makes no sense: {}", what)));
}

// Each has a number of its own, and only the newest is accepted: then nothing sent before it can still come. The
// intervals grow, so that an agent that takes long is not overtaken by the next one for ever.
void GuestAgentExec::SendSync(Monotonic now) {
  sync_id_++;
  to_send_ += kFlush;
  to_send_ += Json({{"execute", "guest-sync-delimited"}, {"arguments", {{"id", sync_id_}}}}).dump() + "\n";
  SetTime(std::min(now + sync_retry_, sync_deadline_));
  sync_retry_ *= 2;
}

void GuestAgentExec::SendStatusRequest(Monotonic now) {
  to_send_ += Json({{"execute", "guest-exec-status"}, {"arguments", {{"pid", pid_}}}}).dump() + "\n";
  asked_ = true;
  answer_deadline_ = now + kAnswerDeadline;
  SetTime(answer_deadline_);
}

void GuestAgentExec::OnTime(Monotonic now) {
  if (finished() || now < next_time_) return;
  if (phase_ == Phase::kSync) {
    if (now < sync_deadline_) return SendSync(now);
    return Fail(absl::FailedPreconditionError(
        fmt::format("the guest agent did not answer within {}; is the guest up, and qemu-guest-agent installed and "
                    "running in it (systemctl status qemu-guest-agent)?",
                    Seconds(sync_deadline_ - began_))));
  }
  if (now >= deadline_) {
    return Fail(absl::AbortedError(
        phase_ == Phase::kRunning
            ? fmt::format("the command still runs after {} (--timeout), and goes on: process {} of the guest",
                          Seconds(deadline_ - began_), pid_)
            : fmt::format("no answer to guest-exec within {} (--timeout); the command may run or not",
                          Seconds(deadline_ - began_))));
  }
  if ((phase_ == Phase::kStarting || asked_) && now >= answer_deadline_) {
    return Fail(absl::FailedPreconditionError(fmt::format(
        "the guest agent has stopped answering ({} without a word); is the guest paused or overloaded, or was "
        "qemu-guest-agent restarted? The command may still run",
        Seconds(kAnswerDeadline))));
  }
  if (phase_ == Phase::kRunning && !asked_) return SendStatusRequest(now);
  SetTime(answer_deadline_);
}

void GuestAgentExec::Append(std::string_view piece) {
  if (overlong_) return;
  const size_t limit = phase_ == Phase::kRunning ? kMaxAnswerBytes : kMaxShortAnswerBytes;
  if (piece.size() > limit - std::min(line_.size(), limit) && !HK_MUTANT(agent_line_unbounded)) {
    overlong_ = true;
    std::string().swap(line_);
    return;
  }
  line_ += piece;
}

void GuestAgentExec::OnBytes(std::string_view bytes, Monotonic now) {
  constexpr std::string_view kEnds("\n\xff", 2);
  while (!bytes.empty() && !finished()) {
    const size_t end = bytes.find_first_of(kEnds);
    Append(bytes.substr(0, end));
    if (end == std::string_view::npos) return;
    if (bytes[end] == '\n') OnLine(now);
    bytes.remove_prefix(end + 1);
    line_.clear();
    overlong_ = false;
  }
}

void GuestAgentExec::OnLine(Monotonic now) {
  const std::string line = std::exchange(line_, {});
  if (!overlong_ && line.find_first_not_of(" \t\r") == std::string::npos) return;
  if (phase_ == Phase::kSync) {
    if (overlong_) return;
    const absl::StatusOr<AgentAnswer> answer = ParseAgentAnswer(line);
    // Anything else is the answer to somebody before us, or the agent's complaint about what it had of a message.
    if (!answer.ok() || !answer->number.has_value()) return;
    if (*answer->number != sync_id_ && !HK_MUTANT(agent_any_sync_accepted)) return;
    phase_ = Phase::kStarting;
    to_send_ = std::exchange(request_, {});
    answer_deadline_ = now + kAnswerDeadline;
    return SetTime(answer_deadline_);
  }
  if (overlong_) return FailNonsense("it is longer than an agent's answer can be");
  if (phase_ == Phase::kStarting) return OnStarted(line, now);
  if (asked_) OnStatus(line, now);  // else nothing was asked
}

void GuestAgentExec::OnStarted(std::string_view line, Monotonic now) {
  const absl::StatusOr<AgentAnswer> answer = ParseAgentAnswer(line);
  if (!answer.ok()) return FailNonsense(MessageOf(answer.status()));
  if (answer->is_error && answer->error_class == "CommandNotFound") {
    return Fail(absl::FailedPreconditionError(
        fmt::format("the guest agent does not run commands: {}; see its configuration in the guest",
                    Beginning(answer->error_text))));
  }
  if (answer->is_error) {
    result_.end = GuestCommandResult::End::kNotStarted;
    result_.reason = Beginning(answer->error_text);
    phase_ = Phase::kDone;
    return;
  }
  if (!answer->pid.has_value()) return FailNonsense("no process in the answer to guest-exec");
  pid_ = *answer->pid;
  phase_ = Phase::kRunning;
  SetTime(now + poll_);
}

void GuestAgentExec::OnStatus(std::string_view line, Monotonic now) {
  absl::StatusOr<AgentAnswer> answer = ParseAgentAnswer(line);
  if (!answer.ok()) return FailNonsense(MessageOf(answer.status()));
  asked_ = false;
  if (answer->is_error) {
    return Fail(absl::FailedPreconditionError(
        fmt::format("the guest agent lost the command (was it restarted?): {}", Beginning(answer->error_text))));
  }
  if (!answer->exited.has_value()) return FailNonsense("no 'exited' in the answer to guest-exec-status");
  if (!*answer->exited) {
    SetTime(now + poll_);
    poll_ = std::min(poll_ * 2, std::chrono::milliseconds(kSlowestPoll));
    return;
  }
  const bool signalled = answer->signal.has_value();
  const int64_t number = signalled ? *answer->signal : answer->exit_code.value_or(-1);
  if (number < (signalled ? 1 : 0) || number > (signalled ? kMaxSignal : kMaxExitCode)) {
    return FailNonsense("neither an exit status nor a signal");
  }
  result_.end = signalled ? GuestCommandResult::End::kSignalled : GuestCommandResult::End::kExited;
  result_.number = static_cast<int>(number);
  if (!absl::Base64Unescape(answer->output, &result_.output) ||
      !absl::Base64Unescape(answer->error_output, &result_.error_output)) {
    return FailNonsense("the output is not base64");
  }
  result_.output_truncated = answer->output_truncated;
  result_.error_output_truncated = answer->error_output_truncated;
  phase_ = Phase::kDone;
}

}  // namespace hk
