#include "hyperkernel/cli/vm_log.h"

#include <fmt/format.h>

#include <cstdio>

#include "hyperkernel/cli/guest_output.h"
#include "hyperkernel/cli/output.h"

namespace hk::cli {

int RunLog(const Options& options, const std::string& name, const LogOptions& log) {
  v1::ReadLogRequest request;
  request.set_name(name);
  request.set_channel(log.channel);
  request.set_follow(log.follow);
  if (log.tail_lines.has_value()) request.set_tail_lines(*log.tail_lines);
  const Client::Body body = [&](v1::Admin::Stub* stub, grpc::ClientContext* context) {
    const auto reader = stub->ReadLog(context, request);
    v1::ReadLogResponse response;
    GuestOutput output(stdout);
    while (reader->Read(&response)) {
      if (response.lost_bytes() != 0) {
        fmt::print(stderr, "hkctl: vm log {}: {} of output before this are no longer kept\n", Printable(name),
                   HumanBytes(response.lost_bytes()));
      }
      if (!output.Write(response.output())) {
        context->TryCancel();
        return grpc::Status::OK;  // main tells that standard output cannot be written
      }
    }
    return reader->Finish();
  };
  const std::string what = fmt::format("vm log {}", name);
  return log.follow ? Client(options).Stream(what, body) : Client(options).Call(what, body);
}

}  // namespace hk::cli
