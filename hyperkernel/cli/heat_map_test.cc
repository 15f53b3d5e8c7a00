#include "hyperkernel/cli/heat_map.h"

#include <dirent.h>
#include <png.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/cli/png_file.h"

namespace hk::cli {
namespace {

using testing::HasSubstr;

constexpr uint64_t kExtent = 2 << 20;

v1::SpaceMapResponse MapOf(uint64_t bytes, std::initializer_list<const char*> nodes) {
  v1::SpaceMapResponse map;
  map.mutable_space()->set_name("pool");
  map.mutable_space()->set_memory_bytes(bytes);
  for (const char* node : nodes) map.mutable_space()->add_nodes(node);
  return map;
}

v1::ExtentHolding* Add(v1::SpaceMapResponse* map, uint64_t number, const std::string& node, uint32_t exclusive,
                       uint32_t shared, float heat) {
  if (map->extents_size() == 0 || map->extents(map->extents_size() - 1).extent() != number)
    map->add_extents()->set_extent(number);
  v1::ExtentHolding* holder = map->mutable_extents(map->extents_size() - 1)->add_holders();
  holder->set_node(node);
  holder->set_exclusive(exclusive);
  holder->set_shared(shared);
  holder->set_heat(heat);
  return holder;
}

int Brightness(const Pixel& pixel) {
  return std::max({pixel[0], pixel[1], pixel[2]});
}

TEST(HeatMap, OneExtentIsOnePixel) {
  v1::SpaceMapResponse map = MapOf(4096, {"a"});
  HeatMap picture = MakeHeatMap(map);
  EXPECT_EQ(picture.width, 1u);
  EXPECT_EQ(picture.height, 1u);
  EXPECT_EQ(picture.pixels[0], (Pixel{32, 32, 32, 255}));
  Add(&map, 0, "a", 1, 0, 1000);
  picture = MakeHeatMap(map);
  EXPECT_EQ(picture.pixels[0], picture.nodes[0].colour);
  EXPECT_EQ(picture.nodes[0].pixels, 1u);
}

TEST(HeatMap, ColourIsWhoOwnsMostAndBrightnessTheHeat) {
  v1::SpaceMapResponse map = MapOf(5 * kExtent, {"a", "b", "c"});
  Add(&map, 0, "a", 2, 0, 0);
  Add(&map, 0, "b", 1, 500, 0);
  Add(&map, 2, "b", 0, 3, 50);
  Add(&map, 2, "c", 0, 2, 50);
  Add(&map, 3, "b", 1, 0, 1);
  const HeatMap picture = MakeHeatMap(map);
  EXPECT_EQ(picture.width, 4u);  // 5 pixels: no square of 2
  EXPECT_EQ(picture.height, 2u);
  const auto hue = [&picture](size_t pixel, size_t node) {
    // Scaled to its own brightness a pixel is its node's colour.
    const double scale = 255.0 / Brightness(picture.pixels[pixel]);
    for (size_t i = 0; i < 3; i++)
      EXPECT_NEAR(picture.pixels[pixel][i] * scale, picture.nodes[node].colour[i], 3) << "pixel " << pixel;
  };
  hue(0, 0);
  hue(2, 1);
  hue(3, 1);
  EXPECT_EQ(picture.pixels[1], (Pixel{32, 32, 32, 255}));
  EXPECT_EQ(picture.pixels[5], Pixel{}) << "beyond the end";
  EXPECT_EQ(Brightness(picture.pixels[2]), 255) << "the hottest: all nodes' heat together";
  EXPECT_LT(Brightness(picture.pixels[0]), Brightness(picture.pixels[3]));
  EXPECT_LT(Brightness(picture.pixels[3]), Brightness(picture.pixels[2]));
  EXPECT_GT(Brightness(picture.pixels[0]), 60) << "not like what nobody has";
  EXPECT_EQ(picture.hottest, 100);
  const std::string legend = HeatMapLegend(picture, map, "x.png");
  EXPECT_THAT(legend, HasSubstr("x.png: 4 x 2 pixels, each an extent of 2 MiB"));
  EXPECT_THAT(legend, HasSubstr("a       blue       #2676ff  1\n"));
  EXPECT_THAT(legend, HasSubstr("nobody  dark grey  #202020  2\n"));
}

TEST(HeatMap, NodesDiffer) {
  v1::SpaceMapResponse map = MapOf(kExtent, {});
  for (int i = 0; i < 64; i++) map.mutable_space()->add_nodes("n" + std::to_string(i));
  const HeatMap picture = MakeHeatMap(map);
  for (size_t i = 0; i < 64; i++) {
    for (size_t j = 0; j < i; j++) EXPECT_NE(picture.nodes[i].colour, picture.nodes[j].colour) << i << ", " << j;
  }
}

TEST(HeatMap, TwoMillionExtentsAndTheLargestSpace) {
  v1::SpaceMapResponse map = MapOf((uint64_t{2} << 20) * kExtent, {"a", "b"});
  for (uint64_t extent = 0; extent < uint64_t{2} << 20; extent++)
    Add(&map, extent, extent < 1 << 20 ? "a" : "b", 512, 0, static_cast<float>(extent % 100));
  HeatMap picture = MakeHeatMap(map);
  EXPECT_EQ(picture.width, 2048u);
  EXPECT_EQ(picture.height, 1024u);
  EXPECT_EQ(picture.nodes[0].pixels, 1u << 20);
  EXPECT_EQ(picture.nodes[1].pixels, 1u << 20);
  // 4 PiB: 512 extents a pixel. One hot extent of a, and more pages of b, in the last.
  map = MapOf(uint64_t{1} << 52, {"a", "b"});
  const uint64_t last = (uint64_t{1} << 31) - 1;
  Add(&map, last - 1, "a", 2, 0, 90);
  Add(&map, last, "b", 3, 0, 1);
  picture = MakeHeatMap(map);
  EXPECT_EQ(picture.width, 2048u);
  EXPECT_EQ(picture.height, 2048u);
  EXPECT_EQ(picture.extents_per_pixel, 512u);
  EXPECT_EQ(picture.hottest, 90);
  EXPECT_EQ(picture.pixels.back(), picture.nodes[1].colour);
  EXPECT_THAT(HeatMapLegend(picture, map, "x.png"), HasSubstr("each 512 extents of 2 MiB"));
}

TEST(HeatMap, WhatNoDaemonSaysDoesNoHarm) {
  v1::SpaceMapResponse map = MapOf(2 * kExtent, {"a"});
  Add(&map, 7, "a", 1, 0, 1);
  Add(&map, std::numeric_limits<uint64_t>::max(), "a", 1, 0, 1);
  Add(&map, 0, "stranger", 1, 0, std::nanf(""));
  Add(&map, 1, "a", 1, 0, std::numeric_limits<float>::infinity());
  Add(&map, 1, "a", 4'000'000'000, 4'000'000'000, -5);
  const HeatMap picture = MakeHeatMap(map);
  EXPECT_EQ(picture.pixels[0], (Pixel{32, 32, 32, 255}));
  EXPECT_EQ(picture.pixels[1], picture.nodes[0].colour);
  v1::SpaceMapResponse none = MapOf(kExtent, {});
  Add(&none, 0, "a", 1, 0, 1);
  EXPECT_EQ(MakeHeatMap(none).pixels.size(), 1u);
}

class PngFile : public testing::Test {
 protected:
  PngFile() {
    std::string name = testing::TempDir() + "/pngXXXXXX";
    directory_ = mkdtemp(name.data());
  }
  ~PngFile() override {
    for (const std::string& name : Files()) std::remove((directory_ + "/" + name).c_str());
    rmdir(directory_.c_str());
  }
  std::vector<std::string> Files() const {
    std::vector<std::string> names;
    DIR* const directory = opendir(directory_.c_str());
    while (const dirent* const entry = readdir(directory)) {
      if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
    }
    closedir(directory);
    return names;
  }
  std::string directory_;
};

TEST_F(PngFile, ComesWholeInPlaceOfAnother) {
  v1::SpaceMapResponse map = MapOf(3 * kExtent, {"a", "b"});
  Add(&map, 0, "a", 1, 0, 5);
  Add(&map, 2, "b", 1, 0, 50);
  const HeatMap picture = MakeHeatMap(map);
  const std::string path = directory_ + "/map.png";
  std::ofstream(path) << "what was there";
  ASSERT_EQ(WritePng(picture, 3, path), "");
  EXPECT_EQ(Files(), std::vector<std::string>{"map.png"});
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  ASSERT_TRUE(png_image_begin_read_from_file(&image, path.c_str()));
  EXPECT_EQ(image.width, 6u);
  EXPECT_EQ(image.height, 6u);
  image.format = PNG_FORMAT_RGBA;
  std::vector<Pixel> pixels(36);
  ASSERT_TRUE(png_image_finish_read(&image, nullptr, pixels.data(), 0, nullptr));
  for (size_t y = 0; y < 6; y++) {
    for (size_t x = 0; x < 6; x++) EXPECT_EQ(pixels[y * 6 + x], picture.pixels[y / 3 * 2 + x / 3]) << x << ", " << y;
  }
}

TEST_F(PngFile, WhatIsNoFileIsLeftAlone) {
  const HeatMap picture = MakeHeatMap(MapOf(kExtent, {"a"}));
  EXPECT_EQ(WritePng(picture, 1, "/dev/null"), "is not a file");
  EXPECT_EQ(WritePng(picture, 1, directory_), "is not a file");
  EXPECT_EQ(WritePng(picture, 1, directory_ + "/none/map.png"), "No such file or directory");
  struct stat there {};
  ASSERT_EQ(stat("/dev/null", &there), 0);
  EXPECT_TRUE(S_ISCHR(there.st_mode));
  EXPECT_TRUE(Files().empty());
}

}  // namespace
}  // namespace hk::cli
