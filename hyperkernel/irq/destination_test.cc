#include "hyperkernel/irq/destination.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace hk {
namespace {

using Mode = ApicAddressing::Mode;
using Model = ApicAddressing::Model;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr auto kBits8 = DestinationWidth::kBits8;
constexpr auto kBits32 = DestinationWidth::kBits32;

std::vector<uint32_t> List(const VcpuSet& set) {
  std::vector<uint32_t> list;
  set.ForEach([&](VcpuId vcpu) { list.push_back(vcpu.value()); });
  return list;
}

std::vector<uint32_t> Resolve(const DestinationTable& table, uint32_t destination, DestinationWidth width, bool logical,
                              Shorthand shorthand = Shorthand::kNone) {
  return List(table.Resolve({.destination = destination, .width = width, .logical = logical, .shorthand = shorthand},
                            VcpuId(1)));
}

DestinationTable Table(uint32_t vcpus, Mode mode) {
  DestinationTable table(vcpus);
  for (uint32_t i = 0; i < vcpus; ++i) {
    table.Update(VcpuId(i), {.mode = mode});
  }
  return table;
}

TEST(Destination, Physical) {
  for (Mode mode : {Mode::kXApic, Mode::kX2Apic}) {
    const DestinationTable table = Table(4, mode);
    EXPECT_THAT(Resolve(table, 2, kBits8, false), ElementsAre(2));
    EXPECT_THAT(Resolve(table, 2, kBits32, false), ElementsAre(2));
    EXPECT_THAT(Resolve(table, 4, kBits8, false), IsEmpty());
    EXPECT_THAT(Resolve(table, 0x102, kBits32, false), IsEmpty());
    EXPECT_THAT(Resolve(table, 0xffff0002, kBits32, false), IsEmpty());
  }
}

TEST(Destination, BroadcastIsAllOnesInTheMessagesWidth) {
  for (Mode mode : {Mode::kXApic, Mode::kX2Apic}) {
    const DestinationTable table = Table(4, mode);
    for (bool logical : {false, true}) {
      EXPECT_THAT(Resolve(table, 0xff, kBits8, logical), ElementsAre(0, 1, 2, 3));
      EXPECT_THAT(Resolve(table, 0xffffffff, kBits32, logical), ElementsAre(0, 1, 2, 3));
    }
    EXPECT_THAT(Resolve(table, 0xff, kBits32, false), IsEmpty()) << "id 255, which is nobody";
  }
}

TEST(Destination, Shorthands) {
  const DestinationTable table = Table(4, Mode::kX2Apic);
  EXPECT_THAT(Resolve(table, 3, kBits32, false, Shorthand::kSelf), ElementsAre(1));
  EXPECT_THAT(Resolve(table, 3, kBits32, false, Shorthand::kAll), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Resolve(table, 3, kBits32, false, Shorthand::kAllButSelf), ElementsAre(0, 2, 3));
}

TEST(Destination, X2ApicClusters) {
  const DestinationTable table = Table(255, Mode::kX2Apic);
  EXPECT_THAT(Resolve(table, 0x00000001, kBits32, true), ElementsAre(0));
  EXPECT_THAT(Resolve(table, 0x00008005, kBits32, true), ElementsAre(0, 2, 15));
  EXPECT_THAT(Resolve(table, 0x00020081, kBits32, true), ElementsAre(32, 39));
  EXPECT_THAT(Resolve(table, 0x000fc000, kBits32, true), ElementsAre(254)) << "255 is nobody";
  EXPECT_THAT(Resolve(table, 0x00100001, kBits32, true), IsEmpty());
  EXPECT_THAT(Resolve(table, 0xffff0001, kBits32, true), IsEmpty());
  EXPECT_THAT(Resolve(table, 0x00020000, kBits32, true), IsEmpty());
  EXPECT_THAT(Resolve(table, 0x03, kBits8, true), ElementsAre(0, 1)) << "a device, to the first cluster";
}

TEST(Destination, XApicFlat) {
  DestinationTable table(10);
  for (uint32_t i = 0; i < 10; ++i) {
    table.Update(VcpuId(i), {.mode = Mode::kXApic, .logical_id = static_cast<uint8_t>(i < 8 ? 1 << i : 0)});
  }
  EXPECT_THAT(Resolve(table, 0x01, kBits8, true), ElementsAre(0));
  EXPECT_THAT(Resolve(table, 0xa5, kBits8, true), ElementsAre(0, 2, 5, 7));
  EXPECT_THAT(Resolve(table, 0x00, kBits8, true), IsEmpty());
  EXPECT_THAT(Resolve(table, 0x101, kBits32, true), IsEmpty());
  table.Update(VcpuId(9), {.mode = Mode::kXApic, .logical_id = 0x81});
  EXPECT_THAT(Resolve(table, 0x01, kBits8, true), ElementsAre(0, 9)) << "two may share a bit";
  table.Update(VcpuId(9), {.mode = Mode::kXApic, .logical_id = 0x02});
  EXPECT_THAT(Resolve(table, 0x01, kBits8, true), ElementsAre(0));
  EXPECT_THAT(Resolve(table, 0x02, kBits8, true), ElementsAre(1, 9));
}

TEST(Destination, XApicCluster) {
  DestinationTable table(8);
  for (uint32_t i = 0; i < 8; ++i) {
    const auto logical_id = static_cast<uint8_t>((i / 4 + 1) << 4 | 1 << i % 4);
    table.Update(VcpuId(i), {.mode = Mode::kXApic, .model = Model::kCluster, .logical_id = logical_id});
  }
  EXPECT_THAT(Resolve(table, 0x11, kBits8, true), ElementsAre(0));
  EXPECT_THAT(Resolve(table, 0x1f, kBits8, true), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Resolve(table, 0x2a, kBits8, true), ElementsAre(5, 7));
  EXPECT_THAT(Resolve(table, 0x0f, kBits8, true), IsEmpty());
  EXPECT_THAT(Resolve(table, 0x30, kBits8, true), IsEmpty());
  table.Update(VcpuId(7), {.mode = Mode::kXApic, .model = Model::kNone, .logical_id = 0x28});
  EXPECT_THAT(Resolve(table, 0x28, kBits8, true), IsEmpty()) << "a reserved model matches nothing";
}

TEST(Destination, MixedModesWhileAGuestSwitches) {
  DestinationTable table(3);
  table.Update(VcpuId(0), {.mode = Mode::kX2Apic});
  table.Update(VcpuId(1), {.mode = Mode::kXApic, .logical_id = 0x01});
  EXPECT_THAT(Resolve(table, 0x01, kBits8, true), ElementsAre(0, 1));
  EXPECT_THAT(Resolve(table, 0xffffffff, kBits32, false), ElementsAre(0, 1)) << "vCPU 2 is disabled";
  EXPECT_THAT(Resolve(table, 2, kBits32, false), IsEmpty());
  table.Update(VcpuId(1), {.mode = Mode::kX2Apic});
  EXPECT_THAT(Resolve(table, 0x01, kBits8, true), ElementsAre(0));
  EXPECT_THAT(Resolve(table, 0x02, kBits32, true), ElementsAre(1));
  table.Update(VcpuId(1), {.mode = Mode::kDisabled});
  EXPECT_THAT(Resolve(table, 0xff, kBits8, false), ElementsAre(0));
}

TEST(OnlyDestination, PhysicalAndSelfNeedNoTable) {
  EXPECT_EQ(OnlyDestination({.destination = 7}, VcpuId(1)), VcpuId(7));
  EXPECT_EQ(OnlyDestination({.destination = 7, .shorthand = Shorthand::kSelf}, VcpuId(1)), VcpuId(1));
  EXPECT_EQ(OnlyDestination({.destination = 0xff}, VcpuId(1)), std::nullopt);
  EXPECT_EQ(OnlyDestination({.destination = 0xffffffff, .width = kBits32}, VcpuId(1)), std::nullopt);
  EXPECT_EQ(OnlyDestination({.destination = 7, .logical = true}, VcpuId(1)), std::nullopt);
  EXPECT_EQ(OnlyDestination({.destination = 7, .shorthand = Shorthand::kAll}, VcpuId(1)), std::nullopt);
}

TEST(LowestPriority, TheLowestWinsAndEqualsTakeTurns) {
  LowestPriorityArbiter arbiter;
  VcpuSet all;
  for (uint32_t i : {0, 3, 70, 254}) {
    all.Add(VcpuId(i));
  }
  const auto equal = [](VcpuId) { return std::optional<uint8_t>(0x20); };
  std::vector<uint32_t> turns;
  for (int i = 0; i < 6; ++i) {
    turns.push_back(arbiter.Pick(all, equal)->value());
  }
  EXPECT_THAT(turns, ElementsAre(0, 3, 70, 254, 0, 3));
  const auto third_is_idle = [](VcpuId vcpu) { return std::optional<uint8_t>(vcpu == VcpuId(3) ? 0x10 : 0x20); };
  EXPECT_EQ(arbiter.Pick(all, third_is_idle), VcpuId(3));
  EXPECT_EQ(arbiter.Pick(all, third_is_idle), VcpuId(3));
  const auto only_last = [](VcpuId vcpu) { return vcpu == VcpuId(254) ? std::optional<uint8_t>(0xff) : std::nullopt; };
  EXPECT_EQ(arbiter.Pick(all, only_last), VcpuId(254));
  EXPECT_EQ(arbiter.Pick(all, [](VcpuId) { return std::optional<uint8_t>(); }), std::nullopt);
  EXPECT_EQ(arbiter.Pick(VcpuSet(), equal), std::nullopt);
}

}  // namespace
}  // namespace hk
