#include "hyperkernel/cli/console.h"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
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
// How long the last keys may take to the guest; a daemon gives up on a guest that does not read after 2 s.
constexpr int kLeaveMs = 3000;

// The terminal in raw mode (Ctrl-C is a key like any other), as it was when destroyed.
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

// The signals that end a console, and the terminal's change of size, as a descriptor. Blocked from construction on.
class Signals {
 public:
  Signals() {
    sigset_t set;
    sigemptyset(&set);
    for (int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH}) sigaddset(&set, number);
    ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
    fd_ = ::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    ::signal(SIGPIPE, SIG_IGN);  // a write that fails is seen, with the terminal still raw
  }
  ~Signals() { ::close(fd_); }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;
  int fd() const { return fd_; }
  // The next signal; 0 if there is none.
  int Next() {
    signalfd_siginfo info;
    return ::read(fd_, &info, sizeof info) == sizeof info ? static_cast<int>(info.ssi_signo) : 0;
  }

 private:
  int fd_;
};

using Stream = grpc::ClientReaderWriter<v1::ConsoleRequest, v1::ConsoleResponse>;

// Puts the terminal's size into a message; false if there is none.
bool AddSize(v1::ConsoleRequest* request) {
  winsize size{};
  if (::ioctl(STDIN_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0 || size.ws_row == 0) return false;
  request->mutable_size()->set_columns(size.ws_col);
  request->mutable_size()->set_rows(size.ws_row);
  return true;
}

// Passes keys and sizes on until the detach key, a signal, or `ended`. True if the operator detached or a signal came.
bool PassInput(Stream* stream, int ended, Signals* signals, bool terminal) {
  pollfd waiting[3] = {{.fd = ended, .events = POLLIN, .revents = 0},
                       {.fd = signals->fd(), .events = POLLIN, .revents = 0},
                       {.fd = STDIN_FILENO, .events = POLLIN, .revents = 0}};
  char keys[kInputBytes];
  while (true) {
    if (::poll(waiting, 3, -1) < 0) {
      if (errno == EINTR) continue;
      return true;
    }
    if (waiting[0].revents != 0) return false;
    if (waiting[1].revents != 0) {
      bool resized = false;
      for (int number = signals->Next(); number != 0; number = signals->Next()) {
        if (number != SIGWINCH) return true;
        resized = true;
      }
      v1::ConsoleRequest request;
      if (resized && terminal && AddSize(&request)) stream->Write(request);
    }
    if (waiting[2].revents == 0) continue;
    const ssize_t n = ::read(STDIN_FILENO, keys, sizeof keys);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n <= 0) {
      if (terminal) return true;  // it is gone
      waiting[2].fd = -1;         // the input's end; the output goes on
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

// Shows what the guest writes, as it is: it is the operator's terminal that the guest has for its own now.
void ShowOutput(Stream* stream, int ended) {
  v1::ConsoleResponse response;
  while (stream->Read(&response)) {
    const std::string& bytes = response.output();
    if (std::fwrite(bytes.data(), 1, bytes.size(), stdout) != bytes.size() || std::fflush(stdout) != 0) break;
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(ended, &one, sizeof one);
}

// Ends the call: by closing our half, which the daemon answers when it has typed all keys; by force if it does not.
void Leave(Stream* stream, grpc::ClientContext* context, int ended) {
  pollfd waiting = {.fd = ended, .events = POLLIN, .revents = 0};
  if (!stream->WritesDone() || ::poll(&waiting, 1, kLeaveMs) != 1) context->TryCancel();
}

// One connected console; true if it was we who left.
bool Attach(Stream* stream, grpc::ClientContext* context, const std::string& name, Signals* signals) {
  const int ended = ::eventfd(0, EFD_CLOEXEC);
  const RawTerminal terminal(STDIN_FILENO);
  if (terminal.active()) fmt::print(stderr, "connected to {}; Ctrl-] detaches\r\n", Printable(name));
  std::thread output([&] { ShowOutput(stream, ended); });
  const bool left = PassInput(stream, ended, signals, terminal.active());
  const bool unwritable = std::ferror(stdout) != 0;
  if (left || unwritable) Leave(stream, context, ended);
  output.join();
  ::close(ended);
  if (terminal.active())
    fmt::print(stderr, "\r\n{} {}\r\n", left ? "detached from" : "console closed:", Printable(name));
  return left || unwritable;
}

}  // namespace

int RunConsole(const Options& options, const std::string& name, v1::ConsoleChannel channel) {
  Signals signals;
  return Client(options).Stream(
      fmt::format("vm console {}", name), [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
        const std::unique_ptr<Stream> stream = stub->Console(context);
        v1::ConsoleRequest first;
        first.set_name(name);
        first.set_channel(channel);
        AddSize(&first);
        stream->Write(first);
        // The first answer says that there is such a console; only then the terminal is touched.
        v1::ConsoleResponse connected;
        if (!stream->Read(&connected)) return stream->Finish();
        const bool left = Attach(stream.get(), context, name, &signals);
        const grpc::Status status = stream->Finish();
        // The daemon ends a console whose machine has ended by cancelling it: it has no other way to stop listening to
        // us.
        return left || status.error_code() == grpc::StatusCode::CANCELLED ? grpc::Status::OK : status;
      });
}

}  // namespace hk::cli
