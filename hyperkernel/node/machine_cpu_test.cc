#include "hyperkernel/node/machine_cpu.h"

#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

using testing::HasSubstr;

kvm_cpuid_entry2 Leaf(uint32_t function, uint32_t index, uint32_t eax, uint32_t ebx, uint32_t ecx, uint32_t edx) {
  kvm_cpuid_entry2 leaf = {};
  leaf.function = function;
  leaf.index = index;
  leaf.eax = eax;
  leaf.ebx = ebx;
  leaf.ecx = ecx;
  leaf.edx = edx;
  return leaf;
}

// Vendor, features, and extended features `leaf7`.
std::vector<kvm_cpuid_entry2> Host(uint32_t leaf7, uint32_t vendor = 0x756e6547) {
  return {Leaf(0, 0, 0xd, vendor, 0x6c65746e, 0x49656e69), Leaf(1, 0, 0x806f8, 0, 0x200000, 0x178bfbff),
          Leaf(7, 0, 0, leaf7, 0, 0)};
}

TEST(MachineCpu, OfSeveralHostsTheTscIsNotPromised) {
  kvm_cpuid_entry2 features = {}, power = {};
  features.function = 0x40000001;
  features.eax = 1 << 3 | 1 << 24;
  power.function = 0x80000007;
  power.edx = 0x1ff;
  std::vector<kvm_cpuid_entry2> model = {features, power};
  HideInvariantTsc(&model);
  EXPECT_EQ(model[0].eax, 1u << 3);
  EXPECT_EQ(model[1].edx, 0xffu);
}

TEST(AgreeOnCpu, AHostThatHasMoreRunsTheModel) {
  const auto model = AgreeOnCpu(Host(0x0f), Host(0x1f), "host", "b");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->at(2).ebx, 0x0fu);
}

TEST(AgreeOnCpu, AHostThatLacksAFeatureIsRefusedWithWhatToDo) {
  const auto model = AgreeOnCpu(Host(0x1f), Host(0x0f), "host", "b");
  EXPECT_TRUE(absl::IsFailedPrecondition(model.status()));
  EXPECT_THAT(MessageOf(model.status()), HasSubstr("node 'b' lacks features of this node's CPU (hle)"));
  EXPECT_THAT(MessageOf(model.status()), HasSubstr("common"));
}

TEST(AgreeOnCpu, CommonIsWhatBothHave) {
  const auto model = AgreeOnCpu(Host(0x16), Host(0x0f), "common", "b");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->at(2).ebx, 0x06u);
  // Of three hosts too.
  const auto third = AgreeOnCpu(*model, Host(0x02), "common", "c");
  ASSERT_TRUE(third.ok()) << third.status();
  EXPECT_EQ(third->at(2).ebx, 0x02u);
}

TEST(CheckRecordedCpu, WhoHasItOrMoreGivesIt) {
  EXPECT_TRUE(CheckRecordedCpu(Host(0x1f), Host(0x1f), "b").ok());
  EXPECT_TRUE(CheckRecordedCpu(Host(0x0f), Host(0x1f), "b").ok());
}

TEST(CheckRecordedCpu, WhoLacksSomethingIsRefusedByName) {
  const absl::Status lacks = CheckRecordedCpu(Host(1 << 4 | 1 << 5 | 1 << 9), Host(1 << 9), "b");
  EXPECT_TRUE(absl::IsFailedPrecondition(lacks));
  EXPECT_THAT(MessageOf(lacks), HasSubstr("node 'b' cannot give the CPU that the machine has had"));
  EXPECT_THAT(MessageOf(lacks), HasSubstr("(GenuineIntel 6-143-8: hkctl vm show): it lacks hle, avx2;"));
  EXPECT_THAT(MessageOf(CheckRecordedCpu(Host(1), Host(1, 0x68747541), "b")), HasSubstr("vendor"));
  std::vector<kvm_cpuid_entry2> more = Host(1);
  more.push_back(Leaf(0xd, 2, 0x100, 0x240, 0, 0));
  EXPECT_THAT(MessageOf(CheckRecordedCpu(more, Host(1), "b")), HasSubstr("it lacks CPUID leaf 0xd.2;"));
}

TEST(DescribeCpu, SaysWhoseAndWhat) {
  CpuidEntries entries;
  EXPECT_EQ(DescribeCpu(entries).signature(), "");
  SetCpuid(Host(1 << 5), &entries);
  const v1::CpuModel cpu = DescribeCpu(entries);
  EXPECT_EQ(cpu.signature(), "GenuineIntel 6-143-8");
  EXPECT_THAT(std::vector<std::string>(cpu.features().begin(), cpu.features().end()),
              testing::ElementsAre("x2apic", "avx2"));
}

TEST(AgreeOnCpu, VendorsDoNotMix) {
  for (const std::string profile : {"host", "common"}) {
    const absl::Status status = AgreeOnCpu(Host(1), Host(1, 0x68747541), profile, "b").status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << profile;
    EXPECT_THAT(MessageOf(status), HasSubstr("node 'b': "));
    EXPECT_THAT(MessageOf(status), HasSubstr("vendor"));
  }
}

TEST(CheckTscRate, RatesOfOneClock) {
  EXPECT_TRUE(CheckTscRate(2'000'000, 2'000'000, "b").ok());
  EXPECT_TRUE(CheckTscRate(2'000'000, 2'000'500, "b").ok());
  EXPECT_TRUE(CheckTscRate(2'000'500, 2'000'000, "b").ok());
  EXPECT_TRUE(CheckTscRate(0, 0, "b").ok()) << "neither host knows: the machine has no clock of ours";
}

TEST(CheckTscRate, OtherRatesAreRefused) {
  constexpr uint32_t kMost = std::numeric_limits<uint32_t>::max();
  for (const auto& [ours, theirs] : std::vector<std::pair<uint32_t, uint32_t>>{{2'000'000, 2'000'501},
                                                                               {2'000'501, 2'000'000},
                                                                               {2'000'000, 2'100'000},
                                                                               {0, 2'000'000},
                                                                               {2'000'000, 0},
                                                                               {kMost, 1},
                                                                               {1, kMost}}) {
    const absl::Status status = CheckTscRate(ours, theirs, "b");
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << ours << " " << theirs;
    EXPECT_THAT(MessageOf(status), HasSubstr("node 'b': its TSC runs at " + std::to_string(theirs) + " kHz"));
  }
}

TEST(MachineCpu, AHostWithoutNestedPagingTakesNoPartInAMachineOverNodes) {
  const std::filesystem::path modules = testing::TempDir() + "machine_cpu_modules";
  std::filesystem::remove_all(modules);
  v1::VmSpec spec;
  spec.set_io_node("a");
  spec.add_placement()->set_node("a");
  EXPECT_TRUE(CheckPagingOf(spec, modules).ok());
  std::filesystem::create_directories(modules / "kvm_amd/parameters");
  std::ofstream(modules / "kvm_amd/parameters/npt") << "0\n";
  EXPECT_TRUE(CheckPagingOf(spec, modules).ok()) << "nobody else writes there";
  spec.add_placement()->set_node("b");
  const absl::Status refused = CheckPagingOf(spec, modules);
  EXPECT_TRUE(absl::IsFailedPrecondition(refused));
  EXPECT_THAT(MessageOf(refused), HasSubstr("placement: node 'a': its KVM runs without nested paging (kvm_amd npt=0)"));
  EXPECT_THAT(MessageOf(refused), HasSubstr("modprobe -r kvm_amd; modprobe kvm_amd npt=1"));
  // Another node says the same when it is asked, and whoever asks says which it is.
  EXPECT_THAT(MessageOf(DescribeMachineHost({}, modules).status()), HasSubstr("modprobe -r kvm_amd"));
  std::ofstream(modules / "kvm_amd/parameters/npt") << "1\n";
  EXPECT_TRUE(CheckPagingOf(spec, modules).ok());
  std::filesystem::remove_all(modules);
}

TEST(CpuidEntries, TravelAsTheyAre) {
  std::vector<kvm_cpuid_entry2> host = Host(5);
  host[2].flags = 1;
  CpuidEntries wire;
  SetCpuid(host, &wire);
  SetCpuid(host, &wire);  // replaces
  const auto again = CpuidOf(wire);
  ASSERT_TRUE(again.ok()) << again.status();
  ASSERT_EQ(again->size(), host.size());
  for (size_t i = 0; i < host.size(); i++) {
    EXPECT_EQ((*again)[i].function, host[i].function);
    EXPECT_EQ((*again)[i].index, host[i].index);
    EXPECT_EQ((*again)[i].flags, host[i].flags);
    EXPECT_EQ((*again)[i].eax, host[i].eax);
    EXPECT_EQ((*again)[i].ebx, host[i].ebx);
    EXPECT_EQ((*again)[i].ecx, host[i].ecx);
    EXPECT_EQ((*again)[i].edx, host[i].edx);
  }
}

TEST(CpuidEntries, NoneOrTooManyAreRefused) {
  CpuidEntries wire;
  EXPECT_TRUE(absl::IsInvalidArgument(CpuidOf(wire).status()));
  // A vCPU's own list has six entries more.
  for (uint32_t i = 0; i < kMostCpuidEntries - 6; i++) wire.Add()->set_function(i);
  EXPECT_TRUE(CpuidOf(wire).ok());
  wire.Add()->set_function(kMostCpuidEntries);
  EXPECT_TRUE(absl::IsInvalidArgument(CpuidOf(wire).status()));
}

TEST(CpuidEntries, AreInOrderEachOnce) {
  for (const auto& [first, second] : {std::pair(7u, 7u), std::pair(7u, 1u)}) {
    CpuidEntries wire;
    wire.Add()->set_function(first);
    wire.Add()->set_function(second);
    EXPECT_TRUE(absl::IsInvalidArgument(CpuidOf(wire).status()));
  }
}

}  // namespace
}  // namespace hk
