#include "hyperkernel/node/auto_placement.h"

#include <string>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/node/vm_spec.h"

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

class PlaceMachineTest : public testing::Test {
 protected:
  void Add(const std::string& name, v1::MemberState state, uint64_t budget_mib, uint64_t reserved_mib, uint32_t cpus) {
    v1::Member& member = members_.emplace_back();
    member.set_name(name);
    member.set_state(state);
    member.mutable_info()->set_frame_budget_bytes(budget_mib << 20);
    member.mutable_info()->set_frames_reserved_bytes(reserved_mib << 20);
    member.mutable_info()->set_cpus(cpus);
    member.mutable_data_link()->set_state(v1::DATA_LINK_STATE_UP);
  }
  static v1::VmSpec Spec(uint64_t memory_mib, uint32_t vcpus) {
    v1::VmSpec spec;
    spec.set_name("g");
    spec.set_kernel("/kernel");
    spec.set_memory_mib(memory_mib);
    spec.set_vcpus(vcpus);
    spec.mutable_automatic_placement();
    return spec;
  }
  std::vector<v1::Member> members_;
};

TEST_F(PlaceMachineTest, OnWhatIsUpAndFree) {
  Add("a", v1::MEMBER_STATE_SELF, 100, 40, 2);
  Add("b", v1::MEMBER_STATE_UP, 100, 90, 2);
  Add("c", v1::MEMBER_STATE_UNREACHABLE, 999, 0, 9);
  Add("d", v1::MEMBER_STATE_UP, 100, 0, 2);
  v1::VmSpec spec = Spec(64, 4);
  ASSERT_TRUE(PlaceMachine(&spec, "a", members_).ok());
  EXPECT_FALSE(spec.has_automatic_placement());
  ASSERT_EQ(spec.placement_size(), 2);
  EXPECT_EQ(spec.placement(0).node(), "a");
  EXPECT_EQ(spec.placement(1).node(), "d");
  EXPECT_EQ(spec.placement(1).memory_mib(), 34u);
  EXPECT_EQ(spec.placement(1).vcpus(), 2u);
  // What is chosen is accepted.
  EXPECT_TRUE(CompleteVmSpec(spec, "a").ok()) << CompleteVmSpec(spec, "a").status();
  // Without a connection for its pages a node is of no use.
  members_[3].mutable_data_link()->set_state(v1::DATA_LINK_STATE_DOWN);
  spec = Spec(64, 4);
  EXPECT_THAT(PlaceMachine(&spec, "a", members_).ToString(), HasSubstr("'a' 60 MiB, 'b' 10 MiB"));
}

TEST_F(PlaceMachineTest, ManyNodesGiveWhatEachMustAtLeast) {
  for (const char name : std::string("abcdefghijkl"))
    Add(std::string(1, name), name == 'a' ? v1::MEMBER_STATE_SELF : v1::MEMBER_STATE_UP, 5, 0, 1);
  v1::VmSpec spec = Spec(32, 12);
  ASSERT_TRUE(PlaceMachine(&spec, "a", members_).ok());
  EXPECT_EQ(spec.placement_size(), 12);
  EXPECT_TRUE(CompleteVmSpec(spec, "a").ok()) << CompleteVmSpec(spec, "a").status();
}

TEST_F(PlaceMachineTest, NobodyIsPlacedTwice) {
  Add("a", v1::MEMBER_STATE_SELF, 100, 0, 2);
  v1::VmSpec spec = Spec(64, 1);
  spec.add_placement()->set_node("a");
  EXPECT_THAT(PlaceMachine(&spec, "a", members_).ToString(), HasSubstr("`placement` says where"));
  // What is wrong otherwise is said by who checks it.
  spec = Spec(1, 1);
  EXPECT_TRUE(PlaceMachine(&spec, "a", members_).ok());
  EXPECT_THAT(CompleteVmSpec(spec, "a").status().ToString(), HasSubstr("memory_mib: 1 is not from"));
}

}  // namespace
}  // namespace hk
