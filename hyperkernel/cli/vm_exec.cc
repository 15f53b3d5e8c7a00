#include "hyperkernel/cli/vm_exec.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "hyperkernel/cli/guest_output.h"
#include "hyperkernel/cli/output.h"

namespace hk::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// As much as the daemon takes (ExecRequest.input).
constexpr size_t kMaxInputBytes = 512 << 10;
// Beyond the command's own time: for the daemon's words about it, and for the output to cross the network.
constexpr std::chrono::seconds kGrace(60);

int Fail(const std::string& name, const std::string& why) {
  fmt::print(stderr, "hkctl: vm exec {}: {}\n", Printable(name), why);
  return kExitExecFailed;
}

// Standard input to its end. Empty text and true if it is a terminal or closed; false after a line to standard error.
bool ReadInput(const std::string& name, milliseconds timeout, std::string* input) {
  if (::isatty(STDIN_FILENO)) return true;
  const auto deadline = steady_clock::now() + timeout;
  char bytes[16 << 10];
  while (true) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - steady_clock::now()).count();
    pollfd waiting{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
    const int ready = ::poll(&waiting, 1, static_cast<int>(std::max<int64_t>(left, 0)));
    if (ready < 0 && errno == EINTR) continue;
    if (ready == 0) {
      Fail(name, fmt::format("standard input did not end within {}; the command gets all of it: give it < /dev/null",
                             HumanDuration(timeout)));
      return false;
    }
    const ssize_t n = ::read(STDIN_FILENO, bytes, sizeof bytes);
    if (n == 0 || (n < 0 && errno == EBADF)) return true;
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n < 0) {
      Fail(name, fmt::format("standard input: {}", std::strerror(errno)));
      return false;
    }
    input->append(bytes, static_cast<size_t>(n));
    if (input->size() > kMaxInputBytes) {
      Fail(name, fmt::format("standard input is longer than {}; put it into the guest another way",
                             HumanBytes(kMaxInputBytes)));
      return false;
    }
  }
}

// What the command's end means for ours.
int ExitCodeOf(const std::string& name, const v1::ExecResult& result) {
  for (const auto& [truncated, stream] :
       {std::pair(result.output_truncated(), "output"), std::pair(result.error_output_truncated(), "error output")}) {
    if (truncated) {
      fmt::print(stderr, "hkctl: vm exec {}: the {} is cut: the guest agent keeps 16 MiB\n", Printable(name), stream);
    }
  }
  switch (result.end_case()) {
    case v1::ExecResult::kExitCode:
      return static_cast<int>(result.exit_code() & 0xff);
    case v1::ExecResult::kSignal:
      return kExitSignalBase + static_cast<int>(result.signal() & 0x7f);
    case v1::ExecResult::kNotStarted:
      Fail(name, Printable(result.not_started()));
      return kExitNotStarted;
    default:
      return Fail(name, "the daemon's answer has no result");
  }
}

}  // namespace

int RunExec(const Options& options, const std::string& name, const std::vector<std::string>& command) {
  const milliseconds timeout(options.timeout_ms);
  v1::ExecRequest request;
  request.set_name(name);
  for (const std::string& word : command) request.add_command(word);
  request.set_timeout_ms(static_cast<uint32_t>(options.timeout_ms));
  if (!ReadInput(name, timeout, request.mutable_input())) return kExitExecFailed;
  v1::ExecResponse last;
  const int code =
      Client(options).Stream(fmt::format("vm exec {}", name), [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
        context->set_deadline(std::chrono::system_clock::now() + timeout + kGrace);
        const auto reader = stub->Exec(context, request);
        GuestOutput output(stdout), error_output(stderr);
        while (reader->Read(&last)) {
          // A stream that nobody reads any more does not change how the command ended.
          output.Write(last.output());
          error_output.Write(last.error_output());
        }
        return reader->Finish();
      });
  return code == kExitOk ? ExitCodeOf(name, last.result()) : kExitExecFailed;
}

}  // namespace hk::cli
