// What the time of a machine's vCPUs went to between two looks (`vm top`). Pure; thread-safe.
#pragma once

#include <string>

#include "proto/admin.pb.h"

namespace hk::cli {

// Adds to `after` the shares of each vCPU that both tell of, by number. One whose node has told nothing newer keeps the
// shares that `before` has; one that began anew in between has none.
void AddVcpuShares(const v1::SpaceTopResponse& before, v1::SpaceTopResponse* after);
// One row per vCPU, at most 80 columns wide; empty if there is none.
std::string VcpuSharesText(const v1::SpaceTopResponse& top);

}  // namespace hk::cli
