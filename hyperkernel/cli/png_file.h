// Pictures as files.
#pragma once

#include <string>

#include "hyperkernel/cli/heat_map.h"

namespace hk::cli {

// Longest side of a file's picture: 64 MiB in memory.
inline constexpr uint32_t kMaxPngSide = 4096;

// Writes the picture as a PNG, each pixel as a square of `zoom`. The file appears whole, in place of one of that name,
// or not at all. Returns what went wrong, for operators; empty if nothing did. REQUIRES: width and height times `zoom`
// are within kMaxPngSide.
std::string WritePng(const HeatMap& picture, uint32_t zoom, const std::string& path);

}  // namespace hk::cli
