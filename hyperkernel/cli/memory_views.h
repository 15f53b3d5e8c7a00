// `space map`, `space top`, `vm map`, `vm top`: who has which memory, and how busy it is. A machine's memory is looked
// at as a space is. Not thread-safe.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>

#include "hyperkernel/cli/client.h"

namespace hk::cli {

// Where the memory of one kind of things is asked for.
struct MemorySource {
  std::string kind;     // "space", "vm": the command it belongs to
  std::string example;  // a name
  std::function<grpc::Status(v1::Admin::Stub*, grpc::ClientContext*, const v1::SpaceMapRequest&, v1::SpaceMapResponse*)>
      map;
  std::function<grpc::Status(v1::Admin::Stub*, grpc::ClientContext*, const v1::SpaceTopRequest&, v1::SpaceTopResponse*)>
      top;
};

// Adds `map` and `top` to the command `parent`. `options` outlives the parsing; what a command ends with goes to
// `exit_code`.
void AddMemoryViews(CLI::App* parent, const MemorySource& source, const Options* options, int* exit_code);

}  // namespace hk::cli
