#include "hyperkernel/cli/console.h"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <thread>

#include "hyperkernel/cli/output.h"

namespace hk::cli {
namespace {

// Ctrl-], as telnet and virsh have it: no shell or editor uses it.
constexpr char kDetachKey = 0x1d;
constexpr size_t kInputBytes = 1024;

// The terminal in raw mode, as it was when destroyed.
class RawTerminal {
 public:
  explicit RawTerminal(int fd) : fd_(fd), active_(::isatty(fd) && ::tcgetattr(fd, &old_) == 0) {
    if (!active_) return;
    termios raw = old_;
    ::cfmakeraw(&raw);
    ::tcsetattr(fd_, TCSANOW, &raw);
  }
  ~RawTerminal() {
    if (active_) ::tcsetattr(fd_, TCSADRAIN, &old_);
  }
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;
  bool active() const { return active_; }

 private:
  const int fd_;
  termios old_{};
  const bool active_;
};

using Stream = grpc::ClientReaderWriter<v1::ConsoleRequest, v1::ConsoleResponse>;

// Passes keys on until the detach key, a signal, or `ended`. True if the operator detached or a signal came.
bool PassInput(Stream* stream, int ended, int signals, bool terminal) {
  pollfd waiting[3] = {{.fd = ended, .events = POLLIN, .revents = 0},
                       {.fd = signals, .events = POLLIN, .revents = 0},
                       {.fd = STDIN_FILENO, .events = POLLIN, .revents = 0}};
  char keys[kInputBytes];
  while (true) {
    if (::poll(waiting, 3, -1) < 0 && errno != EINTR) return true;
    if (waiting[0].revents != 0) return false;
    if (waiting[1].revents != 0) return true;
    if (waiting[2].revents == 0) continue;
    const ssize_t n = ::read(STDIN_FILENO, keys, sizeof keys);
    if (n <= 0) {
      waiting[2].fd = -1;  // the input's end; the output goes on
      continue;
    }
    const std::string_view typed(keys, static_cast<size_t>(n));
    const size_t detach = terminal ? typed.find(kDetachKey) : std::string_view::npos;
    v1::ConsoleRequest request;
    request.set_input(std::string(typed.substr(0, detach)));
    if (!request.input().empty() && !stream->Write(request)) waiting[2].fd = -1;
    if (detach != std::string_view::npos) return true;
  }
}

}  // namespace

int RunConsole(const Options& options, const std::string& name) {
  sigset_t set;
  sigemptyset(&set);
  for (int number : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&set, number);
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  const int signals = ::signalfd(-1, &set, SFD_CLOEXEC);
  const int ended = ::eventfd(0, EFD_CLOEXEC);
  bool detached = false;
  const int code = Client(options).Stream(
      fmt::format("vm console {}", name), [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
        const std::unique_ptr<Stream> stream = stub->Console(context);
        v1::ConsoleRequest first;
        first.set_name(name);
        stream->Write(first);
        const RawTerminal terminal(STDIN_FILENO);
        if (terminal.active()) fmt::print(stderr, "connected to {}; Ctrl-] detaches\r\n", Printable(name));
        std::thread output([&] {
          v1::ConsoleResponse response;
          while (stream->Read(&response)) {
            std::fwrite(response.output().data(), 1, response.output().size(), stdout);
            std::fflush(stdout);
          }
          const uint64_t one = 1;
          [[maybe_unused]] const ssize_t written = ::write(ended, &one, sizeof one);
        });
        detached = PassInput(stream.get(), ended, signals, terminal.active());
        if (detached) context->TryCancel();
        output.join();
        const grpc::Status status = stream->Finish();
        if (terminal.active())
          fmt::print(stderr, "\r\n{} {}\r\n", detached ? "detached from" : "console closed:", Printable(name));
        // The daemon ends a console whose machine has ended by cancelling it: it has no other way to stop listening to
        // us.
        return detached || status.error_code() == grpc::StatusCode::CANCELLED ? grpc::Status::OK : status;
      });
  ::close(signals);
  ::close(ended);
  return code;
}

}  // namespace hk::cli
