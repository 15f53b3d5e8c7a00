// The picture of a space (`space map --png`): a pixel per extent, its colour the node that has most of it, its
// brightness how busy it is. Pure; thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "proto/admin.pb.h"

namespace hk::cli {

// Red, green, blue, and 255; all zero where there is no extent.
using Pixel = std::array<uint8_t, 4>;

// A picture. The pixels go from left to right, then down; those after the last extent are transparent. A space with
// more than kMaxSide * kMaxSide extents has as many in each pixel as it takes: of these the hottest one's heat, and the
// node that has most of them together.
struct HeatMap {
  static constexpr uint32_t kMaxSide = 2048;

  // What one node has of the picture.
  struct Node {
    std::string name;
    Pixel colour;         // where it is hottest
    std::string says;     // "blue"; empty for colours without a name
    uint64_t pixels = 0;  // of this colour
  };

  uint32_t width = 0, height = 0;
  uint64_t extents = 0, extents_per_pixel = 1;
  float hottest = 0;
  std::vector<Node> nodes;
  std::vector<Pixel> pixels;  // width * height
};

// Extents that are not within the space are not taken.
HeatMap MakeHeatMap(const v1::SpaceMapResponse& map);
// What the colours of the picture in the file `path` mean, and who did not answer.
std::string HeatMapLegend(const HeatMap& picture, const v1::SpaceMapResponse& map, const std::string& path);

}  // namespace hk::cli
