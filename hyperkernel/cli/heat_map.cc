#include "hyperkernel/cli/heat_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "hyperkernel/cli/output.h"

namespace hk::cli {
namespace {

constexpr uint64_t kExtentBytes = 2 << 20;
constexpr Pixel kUntouched{32, 32, 32, 255};
// Extents that somebody has, and nobody has asked for lately: below, colours cannot be told apart.
constexpr float kColdest = 0.35F;
// A map where nothing happens is dark, whatever its greatest heat is.
constexpr float kLeastHottest = 10;
constexpr float kMostHeat = 1e9F;  // beyond any; a peer's word

// A colour without brightness. Brightness is heat, so that nodes differ by hue alone, which so many names are for.
struct Hue {
  const char* says;
  float degrees;
};
constexpr Hue kHues[] = {{"blue", 218},  {"orange", 28}, {"green", 130}, {"magenta", 305},
                         {"yellow", 57}, {"cyan", 180},  {"red", 0},     {"violet", 265}};
constexpr float kGoldenAngle = 137.508F;

float HueOf(size_t node) {
  return node < std::size(kHues) ? kHues[node].degrees : std::fmod(static_cast<float>(node) * kGoldenAngle, 360.0F);
}

// From hue, saturation and value; `value` from 0 to 1.
Pixel ColourOf(size_t node, float value) {
  const float saturation = node < std::size(kHues) ? 0.85F : 0.5F;
  const float hue = HueOf(node) / 60;
  const auto channel = [&](float offset) {
    const float k = std::fmod(offset + hue, 6.0F);
    const float part = std::max(0.0F, std::min({k, 4 - k, 1.0F}));
    return static_cast<uint8_t>(std::lround(255 * (value - value * saturation * part)));
  };
  return {channel(5), channel(3), channel(1), 255};
}

// What is known of the extents of one pixel.
struct PixelSum {
  float heat = 0;
  std::vector<uint64_t> weights;  // by node

  explicit PixelSum(size_t nodes) : weights(nodes, 0) {}
  // A node that answers for pages has them, before any that has copies.
  void Add(const v1::SpaceExtent& extent, const std::vector<HeatMap::Node>& nodes) {
    float sum = 0;
    for (const v1::ExtentHolding& holder : extent.holders()) {
      if (holder.heat() > 0) sum += std::min(holder.heat(), kMostHeat);
      const auto node =
          std::find_if(nodes.begin(), nodes.end(), [&holder](const auto& n) { return n.name == holder.node(); });
      if (node == nodes.end()) continue;
      weights[static_cast<size_t>(node - nodes.begin())] +=
          (uint64_t{holder.exclusive()} + holder.owned()) * (uint64_t{1} << 24) + holder.shared();
    }
    heat = std::max(heat, sum);
  }
};

// How the pixels are laid out.
void Lay(uint64_t bytes, HeatMap* picture) {
  constexpr uint64_t kMost = uint64_t{HeatMap::kMaxSide} * HeatMap::kMaxSide;
  picture->extents = std::max<uint64_t>(1, bytes / kExtentBytes + (bytes % kExtentBytes != 0 ? 1 : 0));
  picture->extents_per_pixel = (picture->extents + kMost - 1) / kMost;
  const uint64_t count = (picture->extents + picture->extents_per_pixel - 1) / picture->extents_per_pixel;
  picture->width = 1;
  while (uint64_t{picture->width} * picture->width < count) picture->width *= 2;
  picture->height = static_cast<uint32_t>((count + picture->width - 1) / picture->width);
  picture->pixels.assign(size_t{picture->width} * picture->height, Pixel{});
  std::fill_n(picture->pixels.begin(), count, kUntouched);
}

std::string Rgb(const Pixel& pixel) {
  return fmt::format("#{:02x}{:02x}{:02x}", pixel[0], pixel[1], pixel[2]);
}

}  // namespace

HeatMap MakeHeatMap(const v1::SpaceMapResponse& map) {
  HeatMap picture;
  Lay(map.space().memory_bytes(), &picture);
  for (const std::string& name : map.space().nodes()) {
    const size_t index = picture.nodes.size();
    picture.nodes.push_back(
        {name, ColourOf(index, 1), index < std::size(kHues) ? kHues[index].says : std::string(), 0});
  }
  // Two rounds: brightness goes by the hottest pixel. In between a pixel has its node and its heat.
  struct Touched {
    uint64_t at;
    size_t node;
    float heat;
  };
  std::vector<Touched> touched;
  for (int i = 0; i < map.extents_size();) {
    const uint64_t at = map.extents(i).extent() / picture.extents_per_pixel;
    PixelSum sum(picture.nodes.size());
    for (; i < map.extents_size() && map.extents(i).extent() / picture.extents_per_pixel == at; i++)
      sum.Add(map.extents(i), picture.nodes);
    const auto most = std::max_element(sum.weights.begin(), sum.weights.end());
    if (at * picture.extents_per_pixel >= picture.extents || most == sum.weights.end() || *most == 0) continue;
    touched.push_back({at, static_cast<size_t>(most - sum.weights.begin()), sum.heat});
    picture.hottest = std::max(picture.hottest, sum.heat);
  }
  const float scale = std::log1p(std::max(picture.hottest, kLeastHottest));
  for (const Touched& one : touched) {
    picture.pixels[one.at] = ColourOf(one.node, kColdest + (1 - kColdest) * std::log1p(one.heat) / scale);
    picture.nodes[one.node].pixels++;
  }
  return picture;
}

std::string HeatMapLegend(const HeatMap& picture, const v1::SpaceMapResponse& map, const std::string& path) {
  const uint64_t each = picture.extents_per_pixel;
  std::string out = fmt::format(
      "{}: {} x {} pixels, each {} of 2 MiB; from left to right, then down: pixel (x, y) begins at {} * ({} * y + "
      "x)\n\n",
      Printable(path), picture.width, picture.height, each == 1 ? "an extent" : fmt::format("{} extents", each),
      HumanBytes(each * kExtentBytes), picture.width);
  Table table({"NODE", "COLOUR", "RGB", "PIXELS"});
  for (const HeatMap::Node& node : picture.nodes) {
    table.AddRow(
        {Printable(node.name), node.says.empty() ? "-" : node.says, Rgb(node.colour), fmt::to_string(node.pixels)});
  }
  uint64_t taken = 0;
  for (const HeatMap::Node& node : picture.nodes) taken += node.pixels;
  const uint64_t count = (picture.extents + each - 1) / each;
  table.AddRow({"nobody", "dark grey", Rgb(kUntouched), fmt::to_string(count - taken)});
  out += table.ToString();
  out += fmt::format(
      "\nA pixel is of the node that owns most of its pages. The brighter, the busier: rights granted and taken,\n"
      "with a half-life of 10 s; the hottest has {:.0f}.\n",
      picture.hottest);
  for (const v1::SpacePart& part : map.missing())
    out += fmt::format("{}: {}; what it has is missing\n", Printable(part.node()), PlainReason(part.reason()));
  return out;
}

}  // namespace hk::cli
