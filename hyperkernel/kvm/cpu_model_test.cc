#include "hyperkernel/kvm/cpu_model.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk {
namespace {

using Entries = std::vector<kvm_cpuid_entry2>;

kvm_cpuid_entry2 Entry(uint32_t function, uint32_t index, uint32_t eax, uint32_t ebx, uint32_t ecx, uint32_t edx) {
  kvm_cpuid_entry2 entry = {};
  entry.function = function;
  entry.index = index;
  entry.eax = eax;
  entry.ebx = ebx;
  entry.ecx = ecx;
  entry.edx = edx;
  return entry;
}

// A KVM that offers every bit of every leaf.
Entries Everything(bool amd) {
  Entries entries = {
      amd ? Entry(0, 0, 0x10, 0x68747541, 0x444d4163, 0x69746e65)
          : Entry(0, 0, 0x1f, 0x756e6547, 0x6c65746e, 0x49656e69),
      Entry(1, 0, 0xa0671, 0xffffffff, 0xffffffff, 0xffffffff),
      Entry(5, 0, 64, 64, 3, 0),
      Entry(6, 0, 0xff, 3, 9, 0),
      Entry(7, 0, 2, UINT32_MAX, UINT32_MAX, UINT32_MAX),
      Entry(7, 1, UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX),
      Entry(0xa, 0, 0x8300805, 0, 0, 0x8604),
      Entry(0xb, 0, 1, 2, 0x100, 7),
      Entry(0xb, 1, 4, 16, 0x201, 7),
      Entry(0xd, 0, 0x60ee7, 0xa88, 0x2b00, 0),
      Entry(0xd, 1, 0x1f, 0xa88, 0x1900, 0),
      Entry(0x14, 0, 1, 1, 1, 1),
      Entry(0x40000000, 0, 0x40000001, 1, 2, 3),
      Entry(0x40000001, 0, UINT32_MAX, 0, 0, 1),
      Entry(0x80000000, 0, 0x80000021, 0, 0, 0),
      Entry(0x80000001, 0, 0, 0, UINT32_MAX, UINT32_MAX),
      Entry(0x80000008, 0, 0x3030, UINT32_MAX, 0x700f, 0),
      Entry(0x8000000a, 0, 1, 8, 0, 0x1ff),
      Entry(0x8000001f, 0, 0x1000f, 0, 0, 0),
  };
  for (uint32_t i : {2u, 5u, 6u, 7u, 9u, 17u, 18u}) entries.push_back(Entry(0xd, i, 64, 0, 0, 0));
  if (amd) {
    entries.push_back(Entry(0x8000001d, 0, 0x3c121, 0, 0, 0));
    entries.push_back(Entry(0x8000001d, 3, 0x3c163, 0, 0, 0));
    entries.push_back(Entry(0x8000001e, 0, 9, 0x109, 1, 0));
  } else {
    entries.push_back(Entry(4, 0, 0x1c004121, 0, 0, 0));
    entries.push_back(Entry(4, 3, 0x1c03c163, 0, 0, 0));
    entries.push_back(Entry(0x1f, 0, 1, 2, 0x100, 7));
  }
  return entries;
}

Entries Make(bool amd, CpuModelSpec spec, uint32_t vcpu, uint32_t count, HostCpu host = {}, uint32_t package = 0) {
  auto model = CpuModel::Create(Everything(amd), host, spec);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? model->Cpuid(vcpu, count, package == 0 ? count : package) : Entries();
}

const kvm_cpuid_entry2* Find(const Entries& entries, uint32_t function, uint32_t index = 0) {
  for (const auto& entry : entries) {
    if (entry.function == function && entry.index == index) return &entry;
  }
  return nullptr;
}

const kvm_cpuid_entry2& Get(const Entries& entries, uint32_t function, uint32_t index = 0) {
  static const kvm_cpuid_entry2 none = {};
  const kvm_cpuid_entry2* entry = Find(entries, function, index);
  EXPECT_NE(entry, nullptr) << std::hex << function << "." << index;
  return entry == nullptr ? none : *entry;
}

bool Bit(uint32_t value, int bit) {
  return (value >> bit & 1) != 0;
}

TEST(CpuModelTest, WhatAnApicInUserSpaceNeeds) {
  for (bool amd : {false, true}) {
    SCOPED_TRACE(amd);
    const Entries entries = Make(amd, {}, 3, 4);
    const auto& one = Get(entries, 1);
    EXPECT_TRUE(Bit(one.ecx, 31));   // hypervisor
    EXPECT_TRUE(Bit(one.ecx, 21));   // x2APIC
    EXPECT_FALSE(Bit(one.ecx, 24));  // TSC deadline
    EXPECT_FALSE(Bit(one.ecx, 3));   // MONITOR
    EXPECT_FALSE(Bit(one.ecx, 5));   // VMX
    EXPECT_FALSE(Bit(one.ecx, 15));  // PDCM
    EXPECT_TRUE(Bit(one.edx, 9));
    EXPECT_EQ(Get(entries, 6).eax, 4u);  // ARAT
    EXPECT_EQ(Get(entries, 6).ecx, 0u);
    EXPECT_EQ(Find(entries, 5), nullptr);
    EXPECT_EQ(Find(entries, 0xa), nullptr);
    EXPECT_EQ(Find(entries, 0x14), nullptr);
    EXPECT_EQ(Find(entries, 0x8000000a), nullptr);
    EXPECT_EQ(Find(entries, 0x8000001f), nullptr);
    EXPECT_TRUE(Bit(Get(entries, 0x80000007).edx, 8));  // invariant TSC
    const auto& amd_features = Get(entries, 0x80000001);
    EXPECT_FALSE(Bit(amd_features.ecx, 2));   // SVM
    EXPECT_FALSE(Bit(amd_features.ecx, 23));  // PMU
    EXPECT_FALSE(Bit(amd_features.ecx, 29));  // MWAITX
  }
}

TEST(CpuModelTest, KvmSignatureAndFeatures) {
  const Entries entries = Make(false, {}, 0, 1);
  const auto& signature = Get(entries, 0x40000000);
  char text[13] = {};
  std::memcpy(text, &signature.ebx, 4);
  std::memcpy(text + 4, &signature.ecx, 4);
  std::memcpy(text + 8, &signature.edx, 4);
  EXPECT_STREQ(text, "KVMKVMKVM");
  EXPECT_EQ(signature.eax, 0x40000001u);
  EXPECT_EQ(Get(entries, 0x40000001).eax, 0x0100004au);
  EXPECT_EQ(Get(entries, 0x40000001).edx, 0u);
}

TEST(CpuModelTest, TopologyOfFourIntelCores) {
  const Entries entries = Make(false, {}, 3, 4);
  EXPECT_EQ(Get(entries, 1).ebx >> 24, 3u);
  EXPECT_EQ(Get(entries, 1).ebx >> 16 & 0xff, 4u);
  EXPECT_TRUE(Bit(Get(entries, 1).edx, 28));
  for (uint32_t leaf : {0xbu, 0x1fu}) {
    EXPECT_EQ(Get(entries, leaf, 0).eax, 0u);
    EXPECT_EQ(Get(entries, leaf, 0).ebx, 1u);
    EXPECT_EQ(Get(entries, leaf, 0).ecx, 0x100u);
    EXPECT_EQ(Get(entries, leaf, 1).eax, 2u);
    EXPECT_EQ(Get(entries, leaf, 1).ebx, 4u);
    EXPECT_EQ(Get(entries, leaf, 1).ecx, 0x201u);
    EXPECT_EQ(Get(entries, leaf, 2).ecx, 2u);
    for (uint32_t level : {0u, 1u, 2u}) EXPECT_EQ(Get(entries, leaf, level).edx, 3u);
    EXPECT_EQ(Get(entries, leaf, 0).flags, uint32_t{KVM_CPUID_FLAG_SIGNIFCANT_INDEX});
  }
  EXPECT_EQ(Get(entries, 4, 0).eax >> 26, 3u);
  EXPECT_EQ(Get(entries, 4, 0).eax >> 14 & 0xfff, 0u);  // L1: own
  EXPECT_EQ(Get(entries, 4, 3).eax >> 14 & 0xfff, 3u);  // L3: shared
}

TEST(CpuModelTest, TopologyOfThreeAmdCores) {
  const Entries entries = Make(true, {}, 2, 3);
  EXPECT_EQ(Get(entries, 0x80000008).ecx, 0x2002u);
  EXPECT_EQ(Get(entries, 0x8000001e).eax, 2u);
  EXPECT_EQ(Get(entries, 0x8000001e).ebx, 2u);
  EXPECT_EQ(Get(entries, 0x8000001e).ecx, 0u);
  EXPECT_TRUE(Bit(Get(entries, 0x80000001).ecx, 1));
  EXPECT_EQ(Get(entries, 0x8000001d, 3).eax >> 14 & 0xfff, 3u);
  EXPECT_EQ(Find(entries, 0x1f), nullptr);
  EXPECT_EQ(Get(entries, 0xb, 1).eax, 2u);
  EXPECT_EQ(Get(entries, 1).ebx >> 16 & 0xff, 4u);
}

TEST(CpuModelTest, PackagesOfTwoShareNothing) {
  for (const bool amd : {false, true}) {
    const Entries entries = Make(amd, {}, 5, 8, {}, 2);
    EXPECT_EQ(Get(entries, 1).ebx >> 16, 0x0502u);
    EXPECT_EQ(Get(entries, 0xb, 1).eax, 1u) << "package 2";
    EXPECT_EQ(Get(entries, 0xb, 1).ebx, 2u);
    EXPECT_EQ(Get(entries, 0xb, 1).edx, 5u);
    EXPECT_EQ(Get(entries, amd ? 0x8000001d : 4, 3).eax >> 14 & 0xfff, 1u);
    if (amd) {
      EXPECT_EQ(Get(entries, 0x8000001e).ecx, 2u);
      EXPECT_EQ(Get(entries, 0x80000008).ecx, 0x1001u);
    }
  }
  const Entries alone = Make(true, {}, 3, 4, {}, 1);
  EXPECT_EQ(Get(alone, 0xb, 1).eax, 0u);
  EXPECT_EQ(Get(alone, 0x8000001e).ecx, 3u);
  EXPECT_FALSE(Bit(Get(alone, 1).edx, 28));
}

TEST(CpuModelTest, NoPackageIsOnTwoNodes) {
  const auto package = [](std::vector<int> nodes) { return VcpusOfPackage<int>(nodes); };
  EXPECT_EQ(package({7}), 1u);
  EXPECT_EQ(package({1, 1, 1}), 3u) << "one node: one package";
  EXPECT_EQ(package({0, 1}), 1u);
  EXPECT_EQ(package({0, 0, 1, 1}), 2u);
  EXPECT_EQ(package({0, 0, 1, 1, 1}), 2u);
  EXPECT_EQ(package({0, 0, 0, 1}), 1u);
  EXPECT_EQ(package({0, 0, 0, 0, 1, 1, 2, 2}), 2u);
  EXPECT_EQ(package({0, 0, 0, 0, 1, 1, 1, 1}), 4u);
}

TEST(CpuModelTest, OneVcpuAndTheMost) {
  const Entries one = Make(true, {}, 0, 1);
  EXPECT_FALSE(Bit(Get(one, 1).edx, 28));
  EXPECT_FALSE(Bit(Get(one, 0x80000001).ecx, 1));
  EXPECT_EQ(Get(one, 0x80000008).ecx, 0u);
  EXPECT_EQ(Get(one, 0xb, 1).eax, 0u);
  const Entries most = Make(true, {}, 254, 255);
  EXPECT_EQ(Get(most, 1).ebx >> 16, 0xfeffu);
  EXPECT_EQ(Get(most, 0x80000008).ecx, 0x80feu);
  EXPECT_EQ(Get(most, 0xb, 1).eax, 8u);
}

TEST(CpuModelTest, NoEntryTwiceAndTheModelsDifferOnlyInIdentity) {
  for (bool amd : {false, true}) {
    const Entries entries = Make(amd, {}, 0, 2);
    std::set<std::pair<uint32_t, uint32_t>> seen;
    for (const auto& entry : entries) EXPECT_TRUE(seen.insert({entry.function, entry.index}).second);
    EXPECT_LE(entries.size(), kMostCpuidEntries);
  }
}

TEST(CpuModelTest, DisableTakesDependentsWithIt) {
  const Entries no_avx = Make(false, {.disable = {"avx"}}, 0, 1);
  EXPECT_TRUE(Bit(Get(no_avx, 1).ecx, 26));
  EXPECT_FALSE(Bit(Get(no_avx, 1).ecx, 28));
  EXPECT_FALSE(Bit(Get(no_avx, 1).ecx, 12));    // FMA
  EXPECT_FALSE(Bit(Get(no_avx, 7).ebx, 5));     // AVX2
  EXPECT_FALSE(Bit(Get(no_avx, 7).ebx, 16));    // AVX512F
  EXPECT_FALSE(Bit(Get(no_avx, 7, 1).eax, 5));  // AVX512_BF16
  EXPECT_TRUE(Bit(Get(no_avx, 7).ecx, 3));      // PKU
  EXPECT_EQ(Get(no_avx, 0xd).eax, 0x203u);      // x87, SSE, PKRU
  EXPECT_EQ(Find(no_avx, 0xd, 2), nullptr);
  EXPECT_NE(Find(no_avx, 0xd, 9), nullptr);

  const Entries no_xsave = Make(false, {.disable = {"xsave"}}, 0, 1);
  EXPECT_FALSE(Bit(Get(no_xsave, 1).ecx, 26));
  EXPECT_FALSE(Bit(Get(no_xsave, 1).ecx, 27));
  EXPECT_FALSE(Bit(Get(no_xsave, 7).ecx, 3));
  EXPECT_EQ(Find(no_xsave, 0xd), nullptr);
}

TEST(CpuModelTest, X2apicIsOursToOfferAndToHide) {
  Entries supported = Everything(false);
  for (auto& entry : supported) {
    if (entry.function == 1) entry.ecx &= ~(1u << 21);
  }
  auto model = CpuModel::Create(supported, {}, {});
  ASSERT_TRUE(model.ok());
  EXPECT_TRUE(Bit(Get(model->entries(), 1).ecx, 21));
  EXPECT_FALSE(Bit(Get(Make(false, {.disable = {"x2apic"}}, 0, 1), 1).ecx, 21));
}

TEST(CpuModelTest, AmxIsNeverShown) {
  const Entries entries = Make(false, {}, 0, 1);
  EXPECT_FALSE(Bit(Get(entries, 7).edx, 24));
  EXPECT_EQ(Get(entries, 0xd).eax, 0x2e7u);
  EXPECT_EQ(Find(entries, 0xd, 18), nullptr);
  EXPECT_FALSE(Bit(Get(entries, 0xd, 1).eax, 4));
}

TEST(CpuModelTest, UnderTcgThereIsNoXsave) {
  const Entries entries = Make(true, {}, 0, 1, {.hypervisor = "TCGTCGTCGTCG"});
  EXPECT_FALSE(Bit(Get(entries, 1).ecx, 26));
  EXPECT_FALSE(Bit(Get(entries, 1).ecx, 28));
  EXPECT_FALSE(Bit(Get(entries, 7).ecx, 3));
  EXPECT_EQ(Find(entries, 0xd), nullptr);
  EXPECT_TRUE(Bit(Get(Make(true, {}, 0, 1, {.hypervisor = "KVMKVMKVM"}), 1).ecx, 26));
}

TEST(CpuModelTest, CommonIsASmallSubsetOfHost) {
  for (bool amd : {false, true}) {
    const Entries host = Make(amd, {}, 0, 2);
    const Entries common = Make(amd, {.profile = "common"}, 0, 2);
    EXPECT_TRUE(Bit(Get(common, 1).ecx, 20));   // SSE4.2
    EXPECT_TRUE(Bit(Get(common, 1).ecx, 13));   // CX16
    EXPECT_TRUE(Bit(Get(common, 1).ecx, 21));   // x2APIC
    EXPECT_FALSE(Bit(Get(common, 1).ecx, 28));  // AVX
    EXPECT_EQ(Get(common, 1).edx, Get(host, 1).edx);
    EXPECT_TRUE(Bit(Get(common, 0x80000001).edx, 29));  // long mode
    EXPECT_TRUE(Bit(Get(common, 0x80000001).edx, 20));  // NX
    EXPECT_EQ(Get(common, 7, 1).eax, 0u);
    for (const auto& entry : common) {
      const auto& of_host = Get(host, entry.function, entry.index);
      if (entry.function != 1 && entry.function != 7 && entry.function != 0x80000001) continue;
      EXPECT_EQ(entry.ecx & ~of_host.ecx, 0u);
      EXPECT_EQ(entry.edx & ~of_host.edx, 0u);
    }
  }
}

TEST(CpuModelTest, BadSpecsAreRefused) {
  const Entries supported = Everything(false);
  auto profile = CpuModel::Create(supported, {}, {.profile = "fast"});
  EXPECT_EQ(profile.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(profile.status().message()), testing::HasSubstr("expected host or common"));
  auto feature = CpuModel::Create(supported, {}, {.disable = {"avx3"}});
  EXPECT_EQ(feature.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(feature.status().message()), testing::HasSubstr("\"avx3\""));
  Entries many = supported;
  while (many.size() < kMostCpuidEntries + 20)
    many.push_back(Entry(0x18, static_cast<uint32_t>(many.size()), 0, 0, 0, 0));
  EXPECT_EQ(CpuModel::Create(many, {}, {}).status().code(), absl::StatusCode::kInternal);
}

TEST(CpuModelTest, EveryFeatureNameIsKnownAndUnique) {
  std::set<std::string_view> names;
  for (std::string_view name : CpuFeatureNames()) {
    EXPECT_TRUE(names.insert(name).second) << name;
    EXPECT_TRUE(CpuModel::Create(Everything(true), {}, {.disable = {std::string(name)}}).ok()) << name;
  }
}

TEST(CpuModelTest, IntersectionIsInBothAndSymmetricInFeatures) {
  Entries a = Everything(true), b = Everything(true);
  for (auto& entry : b) {
    if (entry.function == 1) entry.ecx = 0x0000f0f0;
    if (entry.function == 7 && entry.index == 0) entry.ebx = 0x00ff00ff;
    if (entry.function == 0x80000008) entry.eax = 0x2830;
  }
  std::erase_if(b, [](const auto& e) { return e.function == 0xd && e.index == 9; });
  auto both = IntersectCpuid(a, b);
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_EQ(Get(*both, 1).ecx, 0x0000f0f0u);
  EXPECT_EQ(Get(*both, 7).ebx, 0x00ff00ffu);
  EXPECT_EQ(Get(*both, 0x80000008).eax, 0x2830u);
  EXPECT_EQ(Find(*both, 0xd, 9), nullptr);
  EXPECT_EQ(Get(*both, 1).eax, 0xa0671u);
  EXPECT_EQ(IntersectCpuid(a, Everything(false)).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(CpuModelTest, WhatIsLackedIsNamed) {
  const Entries all = Everything(true);
  Entries part = all;
  for (auto& entry : part) {
    if (entry.function == 1) entry.ecx &= ~(1u << 25 | 1u << 28);
    if (entry.function == 0x80000008) entry.eax = 0x2830;
  }
  std::erase_if(part, [](const auto& e) { return e.function == 0xd && e.index == 9; });
  EXPECT_EQ(LackedOf(all, part),
            (std::vector<std::string>{"aes", "avx", "CPUID leaf 0x80000008.0", "CPUID leaf 0xd.9"}));
  EXPECT_EQ(LackedOf(all, all), std::vector<std::string>());
  const auto has = [](const Entries& model, std::string_view name) {
    return std::ranges::count(FeaturesOf(model), name) == 1;
  };
  EXPECT_TRUE(has(all, "aes") && has(all, "avx2") && has(part, "avx2"));
  EXPECT_FALSE(has(part, "aes"));
}

TEST(CpuModelTest, SignaturesAreThoseOfTheManuals) {
  const auto signature = [](uint32_t eax) {
    Entries model(2);
    model[0].ebx = 0x756e6547, model[0].edx = 0x49656e69, model[0].ecx = 0x6c65746e;
    model[1].function = 1;
    model[1].eax = eax;
    return SignatureOf(model);
  };
  EXPECT_EQ(signature(0x806f8), "GenuineIntel 6-143-8");
  EXPECT_EQ(signature(0xa20f10), "GenuineIntel 25-33-0");
  EXPECT_EQ(SignatureOf({}), " 0-0-0");
}

}  // namespace
}  // namespace hk
