#include "hyperkernel/node/restart.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <climits>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

constexpr std::chrono::seconds kCheckLimit(10);
constexpr size_t kMostSaid = 2000;

std::vector<char*> Pointers(std::vector<std::string>* texts) {
  std::vector<char*> pointers;
  for (std::string& text : *texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// What it says, until it ends or the limit.
std::string ReadAll(int fd, std::chrono::steady_clock::time_point limit) {
  std::string text;
  char buffer[512];
  while (true) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(limit - std::chrono::steady_clock::now()).count();
    pollfd poll{.fd = fd, .events = POLLIN, .revents = 0};
    if (left <= 0 || ::poll(&poll, 1, static_cast<int>(left)) == 0) return text;
    const ssize_t n = ::read(fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return text;
    if (text.size() < kMostSaid) text.append(buffer, static_cast<size_t>(n));
  }
}

}  // namespace

Restart::Restart(char** argv) {
  char path[PATH_MAX];
  const ssize_t n = ::readlink("/proc/self/exe", path, sizeof path);
  program_ = n > 0 ? std::string(path, static_cast<size_t>(n)) : argv[0];
  for (; *argv != nullptr; ++argv) arguments_.emplace_back(*argv);
}

absl::Status Restart::Check(const std::string& config_path) const {
  std::vector<std::string> texts = {program_, "--check-config", "--config", config_path};
  std::vector<char*> arguments = Pointers(&texts);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe2");
  const OwnedFd out(ends[0]);
  OwnedFd in(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in.get(), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, in.get(), STDERR_FILENO);
  pid_t child = 0;
  const int error = ::posix_spawn(&child, program_.c_str(), &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  in = OwnedFd();
  if (error != 0) return ErrnoStatus(error, program_);
  const auto limit = std::chrono::steady_clock::now() + kCheckLimit;
  std::string said = ReadAll(out.get(), limit);
  if (std::chrono::steady_clock::now() >= limit) ::kill(child, SIGKILL);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  while (!said.empty() && said.back() == '\n') said.pop_back();
  return absl::FailedPreconditionError(
      fmt::format("a new daemon would not start: {}", said.empty() ? program_ + " says nothing" : said));
}

absl::Status Restart::Become() const {
  std::vector<std::string> texts = arguments_;
  std::vector<char*> arguments = Pointers(&texts);
  // Whatever a library has opened without saying so.
  ::syscall(SYS_close_range, STDERR_FILENO + 1, ~0u, CLOSE_RANGE_CLOEXEC);
  ::execv(program_.c_str(), arguments.data());
  return ErrnoStatus(errno, program_);
}

}  // namespace hk
