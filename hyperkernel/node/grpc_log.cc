#include "hyperkernel/node/grpc_log.h"

#include <grpc/support/log.h>

#include <atomic>
#include <chrono>

#include "fmt/format.h"
#include "hyperkernel/base/mutex.h"

namespace hk {
namespace {

// Every refused connection is an error to gRPC. Enough lines to see what happens; not enough for one stranger, or one
// peer with an old certificate, to fill the disk.
constexpr int kErrorsPerWindow = 5;
constexpr std::chrono::seconds kWindow(10);

// Lets a few errors through per window. Thread-safe.
class Throttle {
 public:
  // True if this one may be printed; `*left_out` is how many were not since the last that was.
  bool Admit(int* left_out) {
    const auto now = std::chrono::steady_clock::now();
    MutexLock lock(&mutex_);
    if (now - window_start_ >= kWindow) {
      window_start_ = now;
      admitted_ = 0;
    }
    if (admitted_ == kErrorsPerWindow) {
      left_out_++;
      return false;
    }
    admitted_++;
    *left_out = left_out_;
    left_out_ = 0;
    return true;
  }

 private:
  Mutex mutex_;
  std::chrono::steady_clock::time_point window_start_ ABSL_GUARDED_BY(mutex_);
  int admitted_ ABSL_GUARDED_BY(mutex_) = 0;
  int left_out_ ABSL_GUARDED_BY(mutex_) = 0;
};

std::atomic<log::Level> errors_level{log::Level::kWarning};

void Print(gpr_log_func_args* args) {
  // Never destroyed: gRPC's threads may log while the process exits.
  static Throttle& throttle = *new Throttle;
  if (args->severity != GPR_LOG_SEVERITY_ERROR) return log::Debug("grpc", args->message);
  int left_out = 0;
  if (!throttle.Admit(&left_out)) return;
  log::Write(errors_level.load(), "grpc", args->message, {{"left_out", fmt::to_string(left_out)}});
}

}  // namespace

void RouteGrpcLog(log::Level errors) {
  errors_level = errors;
  gpr_set_log_function(&Print);
}

}  // namespace hk
