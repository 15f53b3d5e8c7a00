#include "hyperkernel/cli/vm_trace.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "hyperkernel/cli/output.h"
#include "proto/trace_file.h"

namespace hk::cli {
namespace {

constexpr int kExitFailed = 1;  // a file here; what the daemon refuses has the same code

// The signals that end a recording, blocked from construction on: all later threads have them blocked too.
class EndSignals {
 public:
  EndSignals() {
    sigset_t set;
    sigemptyset(&set);
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&set, number);
    ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
    fd_ = ::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  }
  ~EndSignals() { ::close(fd_); }
  EndSignals(const EndSignals&) = delete;
  EndSignals& operator=(const EndSignals&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

// Cancels a call when a signal comes.
class CancelOnSignal {
 public:
  CancelOnSignal(const EndSignals& signals, grpc::ClientContext* context)
      : over_(::eventfd(0, EFD_CLOEXEC)), thread_([this, fd = signals.fd(), context] {
          pollfd waiting[] = {{.fd = fd, .events = POLLIN, .revents = 0},
                              {.fd = over_, .events = POLLIN, .revents = 0}};
          while (::poll(waiting, 2, -1) < 0 && errno == EINTR) {
          }
          if (waiting[0].revents == 0) return;
          came_ = true;
          context->TryCancel();
        }) {}
  ~CancelOnSignal() {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(over_, &one, sizeof one);
    thread_.join();
    ::close(over_);
  }
  CancelOnSignal(const CancelOnSignal&) = delete;
  CancelOnSignal& operator=(const CancelOnSignal&) = delete;
  bool came() const { return came_; }

 private:
  const int over_;
  std::atomic<bool> came_{false};
  std::thread thread_;
};

// The file, made with its first record.
class TraceFile {
 public:
  explicit TraceFile(std::string path) : path_(std::move(path)) {}
  ~TraceFile() {
    if (fd_ >= 0) ::close(fd_);
  }
  TraceFile(const TraceFile&) = delete;
  TraceFile& operator=(const TraceFile&) = delete;
  // False: error() says why.
  bool Write(const v1::TraceRecord& record) {
    if (fd_ < 0) fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    const std::string bytes = TraceBytes(record);
    size_t at = 0;
    while (fd_ >= 0 && at < bytes.size()) {
      const ssize_t written = ::write(fd_, bytes.data() + at, bytes.size() - at);
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) break;
      at += static_cast<size_t>(written);
    }
    if (at == bytes.size()) return true;
    error_ = std::strerror(errno);
    return false;
  }
  // False: what was written may be lost.
  bool Close() {
    const int fd = std::exchange(fd_, -1);
    if (fd < 0 || ::close(fd) == 0) return true;
    error_ = std::strerror(errno);
    return false;
  }
  const std::string& error() const { return error_; }

 private:
  const std::string path_;
  int fd_ = -1;
  std::string error_;
};

// What a trace has. Plain value.
struct Counts {
  uint64_t stalls = 0, dropped = 0, moves = 0;
  uint64_t last_ns = 0;
  void Add(const v1::TraceRecord& record) {
    stalls += static_cast<uint64_t>(record.stalls().stalls_size());
    dropped += record.dropped().stalls();
    moves += record.has_move() ? 1 : 0;
    last_ns = std::max(last_ns, record.tick().time_ns());
  }
};

}  // namespace

int RunTrace(const Options& options, const std::string& name, const std::string& file, uint64_t for_ms) {
  const EndSignals signals;
  v1::TraceVmRequest request;
  request.set_name(name);
  request.set_for_ms(for_ms);
  TraceFile out(file);
  Counts counts;
  const int code = Client(options).Stream(fmt::format("vm trace {}", name),
                                          [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
                                            const CancelOnSignal watch(signals, context);
                                            const auto reader = stub->TraceVm(context, request);
                                            v1::TraceRecord record;
                                            bool written = true;
                                            while (written && reader->Read(&record)) {
                                              written = out.Write(record);
                                              counts.Add(record);
                                            }
                                            if (!written) context->TryCancel();
                                            const grpc::Status status = reader->Finish();
                                            return !written || watch.came() ? grpc::Status::OK : status;
                                          });
  if (!out.Close() || !out.error().empty()) {
    fmt::print(stderr, "hkctl: vm trace {}: cannot write {}: {}\n", Printable(name), Printable(file), out.error());
    return kExitFailed;
  }
  if (code != kExitOk) return code;
  if (options.json()) {
    fmt::print("{{\"stalls\":{},\"not_recorded\":{},\"moves\":{}}}\n", counts.stalls, counts.dropped, counts.moves);
  } else {
    fmt::print("{} stalls and {} moves within {} are in {}{}\n", counts.stalls, counts.moves,
               HumanDuration(std::chrono::milliseconds(counts.last_ns / 1'000'000)), Printable(file),
               counts.dropped == 0 ? "" : fmt::format("; {} stalls were not recorded", counts.dropped));
  }
  return kExitOk;
}

}  // namespace hk::cli
