#include "hyperkernel/node/vm_spec.h"

#include <google/protobuf/text_format.h>

#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/boot/address_map.h"
#include "hyperkernel/node/placed_memory.h"
#include "hyperkernel/node/space_rules.h"

namespace hk {
namespace {

v1::VmSpec Parse(const std::string& text) {
  v1::VmSpec spec;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &spec)) << text;
  return spec;
}

TEST(VmSpec, DefaultsAreFilledIn) {
  const auto spec =
      CompleteVmSpec(Parse("name: 'a' memory_mib: 64 kernel: '/k' disks { path: '/d' } nets { tap: 't' }"), "n");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->vcpus(), 1u);
  EXPECT_EQ(spec->cpu().profile(), "host");
  EXPECT_EQ(spec->disks(0).queues(), 1u);
  EXPECT_EQ(spec->nets(0).queues(), 1u);
  EXPECT_EQ(spec->placement_size(), 1);
  EXPECT_EQ(spec->placement(0).node(), "n");
  EXPECT_EQ(spec->placement(0).vcpus(), 1u);
  EXPECT_EQ(spec->io_node(), "n");
  EXPECT_EQ(spec->topology(), v1::TOPOLOGY_UNIFORM);
  EXPECT_EQ(spec->policy(), "balance");
  const auto again = CompleteVmSpec(*spec, "n");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->SerializeAsString(), spec->SerializeAsString()) << "what is complete stays as it is";
}

TEST(VmSpec, EachBadFieldGetsItsOneLine) {
  const std::string long_line(2048, 'x'), good = "name: 'a' memory_mib: 64 kernel: '/k' ";
  std::string many_nodes = "placement { node: 'n' } ";
  for (int i = 0; i < kMaxNodes; i++) many_nodes += "placement { node: 'm" + std::to_string(i) + "' } ";
  const struct {
    std::string text, begins;
  } cases[] = {
      {"memory_mib: 64 kernel: '/k'", "name:"},
      {"name: 'A' memory_mib: 64 kernel: '/k'", "name:"},
      {"name: 'a' kernel: '/k'", "memory_mib:"},
      {"name: 'a' memory_mib: 31 kernel: '/k'", "memory_mib:"},
      {"name: 'a' memory_mib: 4294967297 kernel: '/k'", "memory_mib:"},
      {"name: 'a' memory_mib: 64 vcpus: 256 kernel: '/k'", "vcpus:"},
      {"name: 'a' memory_mib: 64", "kernel:"},
      {"name: 'a' memory_mib: 64 kernel: 'k'", "kernel:"},
      {"name: 'a' memory_mib: 64 kernel: '/k' initrd: 'i'", "initrd:"},
      {"name: 'a' memory_mib: 64 kernel: '/k' cmdline: '" + long_line + "'", "cmdline:"},
      {"name: 'a' memory_mib: 64 kernel: '/k' cpu { profile: 'fast' }", "cpu.profile:"},
      {"name: 'a' memory_mib: 64 kernel: '/k' disks { path: 'x' }", "disks[0].path:"},
      {"name: 'a' memory_mib: 64 kernel: '/k' disks { path: '/x' } disks { path: '/x' }", "disks[1].path:"},
      {"name: 'a' memory_mib: 64 kernel: '/k' disks { path: '/x' serial: '123456789012345678901' }",
       "disks[0].serial:"},
      {good + "disks { path: '/x' queues: 17 }", "disks[0].queues:"},
      {good + "disks { path: '/x' cache: 7 }", "disks[0].cache:"},
      {good + "nets { }", "nets[0]:"},
      {good + "nets { tap: 't' bridge: 'b' }", "nets[0]:"},
      {good + "nets { tap: 'sixteen-letters-' }", "nets[0].tap:"},
      {good + "nets { tap: 't%d' }", "nets[0].tap:"},
      {good + "nets { tap: 't' } nets { tap: 't' }", "nets[1].tap:"},
      {good + "nets { bridge: 'a/b' }", "nets[0].bridge:"},
      {good + "nets { tap: 't' queues: 17 }", "nets[0].queues:"},
      {good + "nets { tap: 't' mac: '02:00:00:00:00' }", "nets[0].mac:"},
      {good + "nets { tap: 't' mac: '02-00-00-00-00-01' }", "nets[0].mac:"},
      {good + "nets { tap: 't' mac: '02:00:00:00:00:g1' }", "nets[0].mac:"},
      {good + "nets { tap: 't' mac: '00:00:00:00:00:00' }", "nets[0].mac:"},
      {good + "nets { tap: 't' mac: '03:00:00:00:00:01' }", "nets[0].mac: '03:00:00:00:00:01' is a multicast"},
      {good + "nets { tap: 't' mac: '02:00:00:00:00:0A' } nets { tap: 'u' mac: '02:00:00:00:00:0a' }", "nets[1].mac:"},
      {good + "placement { }", "placement[0].node:"},
      {good + "placement { node: 'n' } placement { node: 'n' }", "placement[1].node:"},
      {good + "vcpus: 2 placement { node: 'n' vcpus: 1 } placement { node: 'n' vcpus: 1 }", "placement[1].node:"},
      {good + "placement { node: 'n' vcpus: 2 }", "placement: 2 vcpus"},
      {good + "placement { node: 'm' }", "io_node: 'm' is not the node that is asked"},
      {good + "vcpus: 2 placement { node: 'n' } placement { node: 'm' vcpus: 2 }",
       "placement[0].vcpus: 0; node 'n' has the devices"},
      {good + "vcpus: 2 placement { node: 'm' vcpus: 2 } placement { node: 'n' } io_node: 'n'",
       "placement[1].vcpus: 0; node 'n' has the devices"},
      {good + "vcpus: 2 placement { node: 'n' vcpus: 1 } placement { node: 'm' vcpus: 2 }", "placement: 3 vcpus"},
      {good + "vcpus: 2 placement { node: 'n' vcpus: 1 } placement { node: 'm' }", "placement: 1 vcpus"},
      {good + "placement { node: 'n' } placement { node: 'm' } io_node: 'm'", "io_node: 'm' is not the node that is"},
      {good + "placement { node: 'n' } placement { node: 'm' } io_node: 'o'", "io_node: 'o' is not a node of"},
      {good + "placement { node: 'n' memory_mib: 63 }", "placement[0].memory_mib: 63; the only node"},
      {good + "placement { node: 'n' memory_mib: 65 } placement { node: 'm' }", "placement[0].memory_mib: 65 is more"},
      {good + "placement { node: 'n' memory_mib: 33 } placement { node: 'm' memory_mib: 34 }",
       "placement: 67 MiB on 2 nodes together do not hold 64 MiB and a sixteenth more, which pages need to change "
       "places: give 1 more"},
      {good + "placement { node: 'n' memory_mib: 65 } placement { node: 'm' memory_mib: 3 }",
       "placement[0].memory_mib: 65 is more than the machine's 64"},
      {good + "placement { node: 'n' memory_mib: 64 } placement { node: 'm' memory_mib: 18446744073709551615 }",
       "placement[1].memory_mib: 18446744073709551615 is more"},
      {good + "placement { node: 'n' } placement { node: 'm' memory_mib: 3 }",
       "placement[1].memory_mib: 3 are too few for a vCPU and devices: give at least 4"},
      {good + "placement { node: 'n' swap_mib: 8 }", "placement[0].swap_mib: 8; a machine on one node has no swap"},
      {good + "placement { node: 'n' swap_mib: 8 } placement { node: 'm' swap_mib: 8 }",
       "placement[0].swap_mib: without a memory_mib here"},
      {good + "placement { node: 'n' memory_mib: 64 swap_mib: 8 } placement { node: 'm' memory_mib: 64 swap_mib: 8 }",
       "placement[0].swap_mib: without a memory_mib here"},
      {good + "placement { node: 'n' memory_mib: 40 swap_mib: 8 } placement { node: 'm' memory_mib: 40 swap_mib: 9 }",
       "placement[1].swap_mib: 9; the first node has 8, and this release wants the same of all"},
      {good + "placement { node: 'n' memory_mib: 40 } placement { node: 'm' memory_mib: 40 swap_mib: 9 }",
       "placement[1].swap_mib: 9; the first node has 0"},
      {good + "placement { node: 'n' memory_mib: 40 swap_mib: 65 } placement { node: 'm' memory_mib: 40 swap_mib: 65 }",
       "placement[0].swap_mib: 65 is more than the machine's 64"},
      {good + "placement { node: 'n' memory_mib: 8 swap_mib: 18446744073709551608 } "
              "placement { node: 'm' memory_mib: 8 swap_mib: 18446744073709551608 }",
       "placement[0].swap_mib: 18446744073709551608 is more"},
      {good + "placement { node: 'n' memory_mib: 8 swap_mib: 25 } placement { node: 'm' memory_mib: 8 swap_mib: 25 }",
       "placement: 66 MiB on 2 nodes together, swap included, do not hold 64 MiB and a sixteenth more, which pages "
       "need to change places: give 2 more"},
      {good + "placement { node: 'n' memory_mib: 3 swap_mib: 64 } placement { node: 'm' memory_mib: 3 swap_mib: 64 }",
       "placement[0].memory_mib: 3 are too few for a vCPU and devices: give at least 4"},
      {good + "vcpus: 129 placement { node: 'n' memory_mib: 4 swap_mib: 64 } "
              "placement { node: 'm' memory_mib: 4 swap_mib: 64 }",
       "placement[0].memory_mib: 4 are too few for 129 vCPUs and devices: give at least 5"},
      {good + many_nodes, "placement: 65 nodes"},
      {good + "io_node: 'm'", "io_node:"},
      {good + "topology: 5", "topology:"},
      {good + "policy: 'guess'", "policy:"},
  };
  for (const auto& bad : cases) {
    const std::string message = MessageOf(CompleteVmSpec(Parse(bad.text), "n").status());
    EXPECT_THAT(message, testing::StartsWith(bad.begins)) << bad.text;
    EXPECT_THAT(message, testing::Not(testing::HasSubstr("\n")));
  }
}

TEST(VmSpec, OthersGiveMemory) {
  const std::string machine = "name: 'a' memory_mib: 64 vcpus: 3 kernel: '/k' ";
  auto spec = CompleteVmSpec(
      Parse(machine + "placement { node: 'n' memory_mib: 34 } placement { node: 'm' memory_mib: 34 }"), "n");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->placement(0).vcpus(), 3u);
  EXPECT_EQ(spec->placement(1).vcpus(), 0u);
  EXPECT_EQ(spec->io_node(), "n");
  // Each can hold all of it; and the I/O node need not be the first.
  spec = CompleteVmSpec(Parse(machine + "placement { node: 'm' } placement { node: 'n' } io_node: 'n'"), "n");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->placement(1).vcpus(), 3u);
  const auto again = CompleteVmSpec(*spec, "n");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->SerializeAsString(), spec->SerializeAsString()) << "what is complete stays as it is";
}

TEST(VmSpec, NodesGiveWhatTheyHave) {
  for (const char* placement : {"placement { node: 'n' memory_mib: 60 } placement { node: 'm' memory_mib: 8 }",
                                "placement { node: 'n' memory_mib: 4 } placement { node: 'm' }",
                                "placement { node: 'n' } placement { node: 'm' memory_mib: 4 }"}) {
    const auto spec = CompleteVmSpec(Parse(std::string("name: 'a' memory_mib: 64 kernel: '/k' ") + placement), "n");
    EXPECT_TRUE(spec.ok()) << spec.status();
  }
}

TEST(VmSpec, WhatNoNodeHasAFrameForIsSwapped) {
  const auto completed = [](uint64_t memory_mib, uint32_t vcpus, uint64_t frames_mib, uint64_t swap_mib) {
    v1::VmSpec spec = Parse("name: 'a' kernel: '/k'");
    spec.set_memory_mib(memory_mib);
    spec.set_vcpus(vcpus);
    for (const char* node : {"n", "m"}) {
      v1::PlacementSpec* const place = spec.add_placement();
      place->set_node(node);
      place->set_memory_mib(frames_mib);
      place->set_swap_mib(swap_mib);
    }
    return CompleteVmSpec(spec, "n");
  };
  const auto spec = completed(64, 1, 8, 26);
  ASSERT_TRUE(spec.ok()) << spec.status();
  const auto again = CompleteVmSpec(*spec, "n");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->SerializeAsString(), spec->SerializeAsString()) << "what is complete stays as it is";
  // What is accepted here is accepted by the space, which counts in bytes.
  for (const uint64_t memory_mib : {33, 64, 100, 3585, 5000}) {
    for (const uint32_t vcpus : {1, 128, 129, 255}) {
      uint64_t frames_mib = 4;
      while (!completed(memory_mib, vcpus, frames_mib, memory_mib).ok()) ++frames_mib;
      uint64_t swap_mib = 1;
      while (!completed(memory_mib, vcpus, frames_mib, swap_mib).ok()) ++swap_mib;
      const RamPiece last = RamLayout(memory_mib << 20).back();
      v1::CreateSpaceRequest request;
      request.set_name("a");
      request.set_memory_bytes(last.start.value() + last.bytes);
      for (const char* node : {"n", "m"}) request.add_nodes(node);
      request.set_node_frames_bytes(frames_mib << 20);
      request.set_node_swap_bytes(swap_mib << 20);
      request.set_node_vcpus(vcpus);
      const absl::Status status = CheckCreateSpace(request, "n");
      EXPECT_TRUE(status.ok()) << memory_mib << " MiB, " << vcpus << " vCPUs, " << frames_mib << " MiB of frames, "
                               << swap_mib << " of swap: " << status;
    }
  }
}

TEST(VmSpec, OthersRunVcpus) {
  const auto spec = CompleteVmSpec(
      Parse("name: 'a' memory_mib: 64 vcpus: 4 kernel: '/k' placement { node: 'm' vcpus: 2 } placement { node: 'o' } "
            "placement { node: 'n' vcpus: 1 } placement { node: 'p' vcpus: 1 } io_node: 'n'"),
      "n");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->placement(1).vcpus(), 0u) << "gives memory";
  EXPECT_THAT(VcpuNodes(*spec), testing::ElementsAre("n", "m", "m", "p")) << "the I/O node has vCPU 0";
  const auto again = CompleteVmSpec(*spec, "n");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->SerializeAsString(), spec->SerializeAsString()) << "what is complete stays as it is";
}

TEST(VmSpec, NodesAreThoseOfTheCluster) {
  const auto known = [](const std::string& node) {
    return node == "x" ? absl::NotFoundError("no node 'x' in this cluster") : absl::OkStatus();
  };
  const v1::VmSpec spec = Parse("placement { node: 'n' } placement { node: 'm' }");
  EXPECT_TRUE(CheckPlacedNodes(spec, known).ok());
  const absl::Status status = CheckPlacedNodes(Parse("placement { node: 'n' } placement { node: 'x' }"), known);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(MessageOf(status), "placement[1].node: no node 'x' in this cluster");
}

TEST(VmSpec, GeneratedAddressesAreLocalStableAndDifferent) {
  std::set<MacAddress> seen;
  for (const std::string name : {"a", "b", "a-much-longer-name"}) {
    for (int i = 0; i < kMaxNets; i++) {
      const MacAddress mac = GeneratedMac(name, i);
      EXPECT_EQ(mac[0] & 3, 2) << "one station, locally administered";
      EXPECT_TRUE(seen.insert(mac).second);
    }
  }
  const std::string known =
      CompleteVmSpec(Parse("name: 'web' memory_mib: 64 kernel: '/k' nets { bridge: 'br0' }"), "n")->nets(0).mac();
  EXPECT_EQ(known, "fe:79:61:09:2e:4d") << "machines keep their addresses over releases";
}

TEST(VmSpec, TwoMachinesDoNotShareAnAddress) {
  const auto a = CompleteVmSpec(Parse("name: 'a' memory_mib: 64 kernel: '/k' nets { tap: 't' }"), "n");
  const auto b = CompleteVmSpec(Parse("name: 'b' memory_mib: 64 kernel: '/k' nets { tap: 't' }"), "n");
  EXPECT_TRUE(CheckBeside(*b, *a).ok());
  v1::VmSpec c = *b;
  c.mutable_nets(0)->set_mac(a->nets(0).mac());
  EXPECT_THAT(MessageOf(CheckBeside(c, *a)), testing::StartsWith("nets[0].mac: "));
}

}  // namespace
}  // namespace hk
