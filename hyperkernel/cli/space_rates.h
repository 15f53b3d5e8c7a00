// What happened between two looks at a space's counters (`space top`). Pure; thread-safe.
#pragma once

#include "proto/admin.pb.h"

namespace hk::cli {

// Adds to `after` what happened since `before`: rates and times of each node that has counters in both, pages that
// changed hands, and the interval.
void AddRates(const v1::SpaceTopResponse& before, v1::SpaceTopResponse* after);
// All nodes together; `counters` apart, which has no sum.
v1::SpaceRates SumOfRates(const v1::SpaceTopResponse& top);

}  // namespace hk::cli
