// The part of the Admin service that talks with what is inside a machine: consoles, logs, commands. These calls last as
// long as their clients want.

#include <algorithm>
#include <limits>
#include <thread>
#include <utility>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/caller.h"
#include "hyperkernel/node/serve.h"
#include "hyperkernel/node/services.h"

namespace hk {
namespace {

using std::chrono::steady_clock;

// Bytes of output in one message.
constexpr size_t kPieceBytes = 16 << 10;
// How long a stream waits for output before it looks whether its client is still there.
constexpr std::chrono::milliseconds kOutputWait(500);
// A client that opens a console says at once of which machine.
constexpr std::chrono::seconds kFirstMessageDeadline(10);
// What is typed faster than the guest reads is offered again this often; after so long without progress it is dropped,
// as a terminal's line drops it: nobody reads.
constexpr std::chrono::milliseconds kInputRetry(10);
constexpr std::chrono::seconds kInputPatience(2);
constexpr uint32_t kDefaultExecMs = 10000;
constexpr uint32_t kMaxExecMs = 24 * 3600 * 1000;

using ConsoleStream = grpc::ServerReaderWriter<v1::ConsoleResponse, v1::ConsoleRequest>;

absl::StatusOr<Channel> ChannelOf(v1::ConsoleChannel channel) {
  if (channel == v1::CONSOLE_CHANNEL_SERIAL) return Channel::kSerial;
  if (channel == v1::CONSOLE_CHANNEL_VIRTIO) return Channel::kVirtioConsole;
  return absl::InvalidArgumentError("channel: not one this daemon knows");
}

// Cancels a call unless it is told in time that the client has said what it wants.
class FirstMessageWatch {
 public:
  explicit FirstMessageWatch(grpc::ServerContext* context)
      : thread_([this, context] {
          MutexLock lock(&mutex_);
          const auto deadline = steady_clock::now() + kFirstMessageDeadline;
          while (!come_ && changed_.WaitUntil(&mutex_, deadline)) {
          }
          if (!come_) context->TryCancel();
        }) {}
  ~FirstMessageWatch() {
    {
      MutexLock lock(&mutex_);
      come_ = true;
    }
    changed_.SignalAll();
    thread_.join();
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool come_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses the others
};

// Passes on what the guest writes, from `from` on, until it ends or the client goes away. `send` is false when the
// latter is seen.
void Follow(const ConsoleLog& log, uint64_t from, const grpc::ServerContext& context,
            const std::function<bool(ConsoleLog::Piece* piece)>& send) {
  while (!context.IsCancelled()) {
    ConsoleLog::Piece piece = log.Read(from, kPieceBytes, steady_clock::now() + kOutputWait);
    from = piece.next;
    const bool ended = piece.ended;
    if (!piece.bytes.empty() && !send(&piece)) return;
    if (ended) return;
  }
}

// Types on a machine's console, at the guest's own speed.
void Type(GuestManager* guests, const std::string& name, Channel channel, std::string_view keys,
          const grpc::ServerContext& context) {
  auto deadline = steady_clock::now() + kInputPatience;
  while (!keys.empty() && !context.IsCancelled()) {
    const absl::StatusOr<size_t> taken = guests->ConsoleInput(name, channel, keys);
    if (!taken.ok()) return;  // it does not run; the output tells
    keys.remove_prefix(*taken);
    if (*taken > 0) deadline = steady_clock::now() + kInputPatience;
    if (keys.empty() || steady_clock::now() >= deadline) return;
    std::this_thread::sleep_for(kInputRetry);
  }
}

void HandleConsoleRequest(GuestManager* guests, const std::string& name, Channel channel,
                          const v1::ConsoleRequest& request, const grpc::ServerContext& context) {
  if (request.has_size() && channel == Channel::kVirtioConsole) {
    constexpr uint32_t kMost = std::numeric_limits<uint16_t>::max();
    guests->ResizeConsole(name, static_cast<uint16_t>(std::min(request.size().columns(), kMost)),
                          static_cast<uint16_t>(std::min(request.size().rows(), kMost)));
  }
  Type(guests, name, channel, request.input(), context);
}

v1::ExecResult ToProto(const GuestCommandResult& result) {
  v1::ExecResult out;
  switch (result.end) {
    case GuestCommandResult::End::kExited:
      out.set_exit_code(static_cast<uint32_t>(result.number));
      break;
    case GuestCommandResult::End::kSignalled:
      out.set_signal(static_cast<uint32_t>(result.number));
      break;
    case GuestCommandResult::End::kNotStarted:
      out.set_not_started(result.reason);
      break;
  }
  out.set_output_truncated(result.output_truncated);
  out.set_error_output_truncated(result.error_output_truncated);
  return out;
}

void SendResult(const GuestCommandResult& result, grpc::ServerWriter<v1::ExecResponse>* writer) {
  for (size_t at = 0; at < result.output.size(); at += kPieceBytes) {
    v1::ExecResponse piece;
    piece.set_output(result.output.substr(at, kPieceBytes));
    if (!writer->Write(piece)) return;
  }
  for (size_t at = 0; at < result.error_output.size(); at += kPieceBytes) {
    v1::ExecResponse piece;
    piece.set_error_output(result.error_output.substr(at, kPieceBytes));
    if (!writer->Write(piece)) return;
  }
  v1::ExecResponse last;
  *last.mutable_result() = ToProto(result);
  writer->Write(last);
}

// A command's words may be secrets, its program's name is not.
void LogExec(const v1::ExecRequest& request, const grpc::ServerContext& context,
             const absl::StatusOr<GuestCommandResult>& result) {
  log::Info("guest", "exec",
            {{"guest", request.name()},
             {"program", request.command().empty() ? "" : request.command(0)},
             {"by", CallerOf(context).name},
             {"result", result.ok() ? "done" : MessageOf(result.status())}});
}

}  // namespace

grpc::Status AdminService::ServeLong(const char* method, const grpc::ServerContext& context,
                                     const std::function<grpc::Status()>& body, Role role) {
  return Serve(metrics_, method, context, role, [&] {
    if (long_calls_.fetch_add(1) >= kMaxLongCalls) {
      long_calls_.fetch_sub(1);
      return grpc::Status(
          grpc::StatusCode::RESOURCE_EXHAUSTED,
          fmt::format("{} consoles, logs, traces and commands are open on this node, which is the most; "
                      "close one and try again",
                      kMaxLongCalls));
    }
    const grpc::Status status = body();
    long_calls_.fetch_sub(1);
    return status;
  });
}

grpc::Status AdminService::Console(grpc::ServerContext* context, ConsoleStream* stream) {
  return ServeLong("Console", *context, [&] {
    v1::ConsoleRequest first;
    {
      const FirstMessageWatch watch(context);
      if (!stream->Read(&first))
        return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "a console needs a machine's name");
    }
    const std::string name = first.name();
    const absl::StatusOr<Channel> channel = ChannelOf(first.channel());
    if (!channel.ok()) return ToGrpc(channel.status());
    const auto channels = guests_->Channels(name);
    if (!channels.ok()) return ToGrpc(channels.status());
    if (!stream->Write(v1::ConsoleResponse())) return grpc::Status::OK;
    // Ends when the client closes its half, goes away, or the call is cancelled below. A client that closes its half
    // leaves, and learns by the call's end that all it typed was typed.
    std::thread input([&] {
      HandleConsoleRequest(guests_, name, *channel, first, *context);
      v1::ConsoleRequest request;
      while (stream->Read(&request)) HandleConsoleRequest(guests_, name, *channel, request, *context);
      context->TryCancel();
    });
    const ConsoleLog& log = (*channels)->console(*channel);
    Follow(log, log.oldest(), *context, [&](ConsoleLog::Piece* piece) {
      v1::ConsoleResponse response;
      response.set_output(std::move(piece->bytes));
      response.set_lost_bytes(piece->lost);
      return stream->Write(response);
    });
    context->TryCancel();
    input.join();
    return grpc::Status::OK;
  });
}

grpc::Status AdminService::ReadLog(grpc::ServerContext* context, const v1::ReadLogRequest* request,
                                   grpc::ServerWriter<v1::ReadLogResponse>* writer) {
  return ServeLong("ReadLog", *context, [&] {
    const absl::StatusOr<Channel> channel = ChannelOf(request->channel());
    if (!channel.ok()) return ToGrpc(channel.status());
    const auto channels = guests_->Channels(request->name());
    if (!channels.ok()) return ToGrpc(channels.status());
    const ConsoleLog& log = (*channels)->console(*channel);
    uint64_t next = request->has_tail_lines() ? log.LastLines(request->tail_lines()) : 0;
    const auto send = [&](ConsoleLog::Piece* piece) {
      v1::ReadLogResponse response;
      response.set_output(std::move(piece->bytes));
      response.set_lost_bytes(piece->lost);
      return writer->Write(response);
    };
    if (request->follow()) {
      Follow(log, next, *context, send);
      return grpc::Status::OK;
    }
    // Up to the end as it is now: a guest that writes without pause must not keep the reader.
    const uint64_t end = log.written();
    while (next < end && !context->IsCancelled()) {
      ConsoleLog::Piece piece = log.Read(next, std::min<uint64_t>(kPieceBytes, end - next), steady_clock::now());
      next = piece.next;
      if (piece.bytes.empty() || !send(&piece)) break;
    }
    return grpc::Status::OK;
  });
}

grpc::Status AdminService::Exec(grpc::ServerContext* context, const v1::ExecRequest* request,
                                grpc::ServerWriter<v1::ExecResponse>* writer) {
  return ServeLong("Exec", *context, [&] {
    const uint32_t timeout_ms = request->timeout_ms() == 0 ? kDefaultExecMs : request->timeout_ms();
    if (timeout_ms > kMaxExecMs) {
      return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                          fmt::format("timeout_ms: {} is more than {}", timeout_ms, kMaxExecMs));
    }
    const GuestCommand command{.words = {request->command().begin(), request->command().end()},
                               .input = request->input()};
    const absl::StatusOr<GuestCommandResult> result = guests_->Exec(
        request->name(), command, std::chrono::milliseconds(timeout_ms), [context] { return context->IsCancelled(); });
    LogExec(*request, *context, result);
    if (!result.ok()) return ToGrpc(result.status());
    SendResult(*result, writer);
    return grpc::Status::OK;
  });
}

}  // namespace hk
