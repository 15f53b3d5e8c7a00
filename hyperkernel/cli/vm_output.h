// What operators read of machines. Pure functions; thread-safe.
#pragma once

#include <google/protobuf/message.h>

#include <chrono>
#include <string>
#include <vector>

#include "proto/vm.pb.h"

namespace hk::cli {

// "running", "stopped", ...: as shown and as `vm wait --for` takes it.
std::string StateName(v1::VmState state);
// `vm list`.
std::string VmTable(const std::vector<v1::Vm>& vms, std::chrono::system_clock::time_point now);
// `vm show`.
std::string VmText(const v1::Vm& vm, std::chrono::system_clock::time_point now);
// The nodes of a machine, a line for each: which vCPUs, devices, memory. The spec is complete.
std::string PlacementText(const v1::VmSpec& spec);
// A message in protobuf text form, as files have it.
std::string ToTextProto(const google::protobuf::Message& message);

}  // namespace hk::cli
