#include "hyperkernel/node/grpc_log.h"

#include <grpc/support/log.h>

#include <atomic>

namespace hk {

namespace {

std::atomic<log::Level> errors_level{log::Level::kWarning};

}  // namespace

void RouteGrpcLog(log::Level errors) {
  errors_level = errors;
  gpr_set_log_function([](gpr_log_func_args* args) {
    log::Write(args->severity == GPR_LOG_SEVERITY_ERROR ? errors_level.load() : log::Level::kDebug, "grpc",
               args->message);
  });
}

}  // namespace hk
