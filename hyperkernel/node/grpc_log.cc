#include "hyperkernel/node/grpc_log.h"

#include <grpc/support/log.h>

#include "hyperkernel/base/log.h"

namespace hk {

void RouteGrpcLog() {
  gpr_set_log_function([](gpr_log_func_args* args) {
    log::Write(args->severity == GPR_LOG_SEVERITY_ERROR ? log::Level::kWarning : log::Level::kDebug, "grpc", args->message);
  });
}

}  // namespace hk
