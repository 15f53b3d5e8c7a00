#include "hyperkernel/node/auto_placement.h"

#include <string>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk {
namespace {

using testing::HasSubstr;

// "a:2+512" for each node: virtual CPUs, MiB.
std::string Placed(const PlacementWish& wish, const std::vector<PlacementCandidate>& candidates) {
  const auto placed = PlaceAutomatically(wish, "b", candidates);
  if (!placed.ok()) return placed.status().ToString();
  std::string text;
  for (const v1::PlacementSpec& one : *placed)
    text += fmt::format("{}{}:{}+{}", text.empty() ? "" : " ", one.node(), one.vcpus(), one.memory_mib());
  return text;
}

TEST(AutoPlacement, OneNodeIfItHasMemoryAndCores) {
  const PlacementWish wish{.memory_mib = 1024, .spread_mib = 1088, .vcpus = 2};
  EXPECT_EQ(Placed(wish, {{"a", 9999, 64}, {"b", 1024, 2}}), "b:2+0");
  EXPECT_EQ(Placed(wish, {{"a", 9999, 64}, {"b", 1023, 2}}), "b:2+544 a:0+544") << "it gives memory";
  EXPECT_EQ(Placed(wish, {{"a", 9999, 64}, {"b", 1024, 1}}), "b:1+544 a:1+544") << "it gives a core";
}

TEST(AutoPlacement, AsFewNodesAsSuffice) {
  const PlacementWish wish{.memory_mib = 1000, .spread_mib = 1063, .vcpus = 4};
  const std::vector<PlacementCandidate> nodes{{"a", 600, 1}, {"b", 600, 1}, {"c", 600, 2}, {"d", 900, 1}};
  EXPECT_EQ(Placed(wish, nodes), "b:1+355 c:2+355 d:1+355") << "two have the memory, but three cores";
  EXPECT_EQ(Placed({.memory_mib = 1000, .spread_mib = 1063, .vcpus = 3}, nodes), "b:1+532 c:2+532");
  // Of as many cores, who has more memory.
  EXPECT_EQ(Placed({.memory_mib = 1000, .spread_mib = 1063, .vcpus = 5}, nodes), "b:1+266 c:2+266 d:1+266 a:1+266");
  EXPECT_EQ(Placed({.memory_mib = 1000, .spread_mib = 1063, .vcpus = 2}, {{"a", 600, 1}, {"b", 600, 1}, {"d", 900, 1}}),
            "b:1+532 d:1+532");
}

TEST(AutoPlacement, WhereCoresAreFewThereAreSeveralOnEach) {
  EXPECT_EQ(Placed({.memory_mib = 100, .spread_mib = 107, .vcpus = 8}, {{"a", 100, 2}, {"b", 100, 1}}), "b:8+0");
  EXPECT_EQ(Placed({.memory_mib = 150, .spread_mib = 160, .vcpus = 8}, {{"a", 100, 2}, {"b", 100, 1}}),
            "b:4+80 a:4+80");
}

TEST(AutoPlacement, WhatDoesNotFitSaysWhatThereIs) {
  const PlacementWish wish{.memory_mib = 1024, .spread_mib = 1088, .vcpus = 2, .max_nodes = 2};
  const std::vector<PlacementCandidate> nodes{{"a", 500, 1}, {"b", 500, 1}, {"c", 500, 1}};
  EXPECT_THAT(Placed(wish, nodes), HasSubstr("1024 MiB do not fit on up to 2 nodes"));
  EXPECT_THAT(Placed(wish, nodes), HasSubstr("'a' 500 MiB, 'b' 500 MiB, 'c' 500 MiB"));
  PlacementWish any = wish;
  any.max_nodes = 0;
  EXPECT_EQ(Placed(any, nodes), "b:1+363 a:1+363 c:0+363");
  // The I/O node takes part: its frames must suffice.
  EXPECT_THAT(Placed(any, {{"a", 5000, 1}, {"b", 5, 1}}), HasSubstr("node 'b' among them"));
  EXPECT_THAT(Placed(any, {{"a", 5000, 1}}), HasSubstr("node 'b' among them"));
  EXPECT_THAT(Placed(any, {}), HasSubstr("no node is up"));
}

}  // namespace
}  // namespace hk
