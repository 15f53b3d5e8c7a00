// What the metrics tell of one node's part of a space.
#pragma once

#include <cstdint>
#include <string>

#include "hyperkernel/memory/space_engine.h"

namespace hk {

// Plain value.
struct SpaceSample {
  std::string space;
  bool running = true;
  SpaceStatistics statistics;
  uint64_t frame_bytes = 0;
};

}  // namespace hk
