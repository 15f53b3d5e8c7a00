#include "hyperkernel/kvm/cpu_model.h"

#include <cpuid.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <set>
#include <tuple>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "hyperkernel/base/check.h"
#include "hyperkernel/kvm/cpu_features.h"

namespace hk {
namespace {

using Entry = kvm_cpuid_entry2;
using Entries = std::vector<Entry>;

// QEMU's TCG, whose nested SVM does not intercept XSETBV: a guest's XCR0 would become its host's.
constexpr std::string_view kTcgSignature = "TCGTCGTCGTCG";
constexpr std::string_view kUnsafeUnderTcg[] = {"xsave", "la57"};

// Never shown: what KVM would have to provide from an in-kernel APIC, a PMU, or nested state that cannot move; MONITOR
// and MWAIT would stop a CPU without an exit; AMX would need permissions and 8 KiB more of state per vCPU.
constexpr std::string_view kNever[] = {
    "monitor",  "mwaitx", "tsc_deadline_timer", "vmx",   "svm", "pdcm",  "perfctr_core", "perfctr_nb", "perfctr_llc",
    "intel_pt", "sgx",    "amx_tile",           "shstk", "ibt", "enqcmd"};
// Leaves that go whole: MONITOR, PMU, SGX, PT, AMX, architectural LBR, SVM, IBS, SEV, AMD PMU; hypervisor leaves.
constexpr uint32_t kDroppedLeaves[] = {5,    0xa,        0x12,       0x14,       0x1c,       0x1d,
                                       0x1e, 0x8000000a, 0x8000001b, 0x8000001f, 0x80000020, 0x80000022};
constexpr uint32_t kHypervisorFirst = 0x40000000, kHypervisorLast = 0x4fffffff;
// Linux, arch/x86/include/uapi/asm/kvm_para.h: NOP_IO_DELAY, CLOCKSOURCE2, CLOCKSOURCE_STABLE_BIT; PV_EOI.
constexpr uint32_t kKvmFeatures = 1u << 1 | 1u << 3 | 1u << 24;
constexpr uint32_t kKvmPvEoi = 1u << 6;
constexpr char kKvmSignature[13] = "KVMKVMKVM\0\0\0";

// XCR0 components (SDM vol. 1, 13.1) and the feature that each belongs to. Components that are not here are hidden.
constexpr uint32_t kX87AndSse = 3;
struct XsaveComponents {
  uint32_t mask;
  std::string_view feature;
};
constexpr XsaveComponents kComponents[] = {
    {1u << 2, "avx"}, {3u << 3, "mpx"}, {7u << 5, "avx512f"}, {1u << 9, "pku"}, {3u << 17, "amx_tile"}};

Entry* Find(Entries& entries, uint32_t function, uint32_t index) {
  auto found = std::find_if(entries.begin(), entries.end(),
                            [=](const Entry& e) { return e.function == function && e.index == index; });
  return found == entries.end() ? nullptr : &*found;
}

const Entry* Find(std::span<const Entry> entries, uint32_t function, uint32_t index) {
  auto found = std::find_if(entries.begin(), entries.end(),
                            [=](const Entry& e) { return e.function == function && e.index == index; });
  return found == entries.end() ? nullptr : &*found;
}

Entry& FindOrAdd(Entries& entries, uint32_t function, uint32_t index = 0, uint32_t flags = 0) {
  if (Entry* entry = Find(entries, function, index)) return *entry;
  Entry entry = {};
  entry.function = function;
  entry.index = index;
  entry.flags = flags;
  return entries.emplace_back(entry);
}

uint32_t& Register(Entry& entry, CpuidRegister where) {
  switch (where) {
    case CpuidRegister::kEax:
      return entry.eax;
    case CpuidRegister::kEbx:
      return entry.ebx;
    case CpuidRegister::kEcx:
      return entry.ecx;
    case CpuidRegister::kEdx:
      return entry.edx;
  }
  HK_CHECK(false);
}

const CpuFeature* FeatureNamed(std::string_view name) {
  for (const CpuFeature& feature : kCpuFeatures) {
    if (feature.name == name) return &feature;
  }
  return nullptr;
}

// The names and all that need them, directly or not.
std::set<std::string_view> WithDependents(std::set<std::string_view> names) {
  for (bool grown = true; grown;) {
    grown = false;
    for (const CpuFeature& feature : kCpuFeatures) {
      if (!feature.needs.empty() && names.contains(feature.needs)) grown |= names.insert(feature.name).second;
    }
  }
  return names;
}

// Clears everything in the registers that the table speaks of, except what the profile names. What the architecture
// fixed long ago (leaf 1 EDX, 0x80000001 EDX) stays.
void KeepCommonOnly(Entries* entries) {
  for (Entry& entry : *entries) {
    for (CpuidRegister where : {CpuidRegister::kEax, CpuidRegister::kEbx, CpuidRegister::kEcx, CpuidRegister::kEdx}) {
      uint32_t known = 0, keep = 0;
      for (const CpuFeature& feature : kCpuFeatures) {
        if (feature.function != entry.function || feature.index != entry.index || feature.where != where) continue;
        known |= 1u << feature.bit;
        if (feature.common) keep |= 1u << feature.bit;
      }
      if (known == 0) continue;
      const bool fixed = entry.function == 0x80000001 && where == CpuidRegister::kEdx;
      Register(entry, where) &= fixed ? ~known | keep : keep;
    }
    if (entry.function == 7 && entry.index > 0) entry.eax = entry.ebx = entry.ecx = entry.edx = 0;
    if (entry.function == 7 && entry.index == 0) entry.eax = 0;
    if (entry.function == 0x80000008) entry.ebx = 0;
  }
}

void Hide(Entries* entries, const std::set<std::string_view>& hidden) {
  for (std::string_view name : hidden) {
    const CpuFeature* feature = FeatureNamed(name);
    HK_CHECK(feature != nullptr);
    if (Entry* entry = Find(*entries, feature->function, feature->index)) {
      Register(*entry, feature->where) &= ~(1u << feature->bit);
    }
  }
  if (hidden.contains("xsave")) {
    std::erase_if(*entries, [](const Entry& e) { return e.function == 0xd; });
    if (Entry* leaf = Find(*entries, 1, 0)) leaf->ecx &= ~(1u << 27);  // OSXSAVE
  }
  uint32_t known = kX87AndSse;
  for (const XsaveComponents& component : kComponents) {
    if (!hidden.contains(component.feature)) known |= component.mask;
  }
  const uint32_t masked = ~known;
  if (Entry* leaf = Find(*entries, 0xd, 0)) leaf->eax &= ~masked;
  std::erase_if(*entries, [masked](const Entry& e) {
    return e.function == 0xd && e.index >= 2 && (e.index >= 32 || (masked >> e.index & 1) != 0);
  });
}

bool Has(Entries& entries, const CpuFeature& feature) {
  Entry* entry = Find(entries, feature.function, feature.index);
  return entry != nullptr && (Register(*entry, feature.where) >> feature.bit & 1) != 0;
}

// In the order of CpuidRegister.
std::array<uint32_t, 4> Registers(const Entry& entry) {
  return {entry.eax, entry.ebx, entry.ecx, entry.edx};
}

// What an APIC in user space and a guest over several nodes need, whatever the profile.
void ApplyOurs(bool x2apic, bool pv_eoi, Entries* entries) {
  Entry& features = FindOrAdd(*entries, 1);
  features.ecx |= 1u << 31;  // hypervisor
  if (x2apic) features.ecx |= 1u << 21;
  features.edx |= 1u << 9;  // APIC
  Entry& power = FindOrAdd(*entries, 6);
  power.eax = 1u << 2;  // ARAT: the APIC timer runs in every sleep state
  power.ebx = power.ecx = power.edx = 0;
  if (Entry* leaf = Find(*entries, 0xd, 1)) leaf->ecx = leaf->edx = 0;  // no supervisor states
  FindOrAdd(*entries, 0x80000007).edx |= 1u << 8;                       // invariant TSC
  FindOrAdd(*entries, 0x80000008);
  Entry& basic = FindOrAdd(*entries, 0);
  basic.eax = std::max(basic.eax, 0xbu);  // topology
  Entry& extended = FindOrAdd(*entries, 0x80000000);
  extended.eax = std::max(extended.eax, 0x80000008u);

  Entry& signature = FindOrAdd(*entries, kHypervisorFirst);
  signature.eax = kHypervisorFirst + 1;
  std::memcpy(&signature.ebx, kKvmSignature, 4);
  std::memcpy(&signature.ecx, kKvmSignature + 4, 4);
  std::memcpy(&signature.edx, kKvmSignature + 8, 4);
  FindOrAdd(*entries, kHypervisorFirst + 1).eax = kKvmFeatures | (pv_eoi ? kKvmPvEoi : 0);
}

bool IsTopologyLeaf(uint32_t function) {
  return function == 0xb || function == 0x1f;
}

// Extended topology (SDM vol. 2, CPUID 0BH): one thread per core.
void AddTopology(Entries* entries, uint32_t function, uint32_t apic_id, uint32_t package, uint32_t id_bits) {
  constexpr uint32_t kSmt = 1u << 8, kCore = 2u << 8;
  const uint32_t types[] = {kSmt, kCore, 0};
  for (uint32_t level = 0; level < 3; ++level) {
    Entry& entry = FindOrAdd(*entries, function, level, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
    entry.eax = level == 1 ? id_bits : 0;
    entry.ebx = level == 0 ? 1 : level == 1 ? package : 0;
    entry.ecx = types[level] | level;
    entry.edx = apic_id;
  }
}

void SetSharing(Entry* cache, uint32_t package) {
  const uint32_t level = cache->eax >> 5 & 7;
  if ((cache->eax & 0x1f) == 0) return;  // no more caches
  const uint32_t shared_by = level >= 3 ? std::bit_ceil(package) : 1;
  cache->eax = (cache->eax & ~(0xfffu << 14)) | (shared_by - 1) << 14;
}

// Leaves whose bits may be intersected.
bool IsFeatureLeaf(const Entry& e) {
  return e.function == 1 || e.function == 6 || e.function == 7 || (e.function == 0xd && e.index <= 1) ||
         e.function == 0x80000001 || e.function == 0x80000007 || e.function == 0x80000021;
}

}  // namespace

HostCpu ReadHostCpu() {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  HostCpu host;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx >> 31 & 1) == 0) return host;
  __cpuid(kHypervisorFirst, eax, ebx, ecx, edx);
  char signature[12];
  std::memcpy(signature, &ebx, 4);
  std::memcpy(signature + 4, &ecx, 4);
  std::memcpy(signature + 8, &edx, 4);
  host.hypervisor.assign(signature, sizeof(signature));
  host.hypervisor.resize(std::strlen(host.hypervisor.c_str()));
  return host;
}

std::vector<std::string_view> CpuFeatureNames() {
  std::vector<std::string_view> names;
  for (const CpuFeature& feature : kCpuFeatures) names.push_back(feature.name);
  return names;
}

absl::StatusOr<CpuModel> CpuModel::Create(std::span<const Entry> supported, const HostCpu& host,
                                          const CpuModelSpec& spec) {
  if (spec.profile != "host" && spec.profile != "common") {
    return absl::InvalidArgumentError(
        fmt::format("CPU profile \"{}\" is unknown, expected host or common", spec.profile));
  }
  std::set<std::string_view> hidden(std::begin(kNever), std::end(kNever));
  for (const std::string& name : spec.disable) {
    const CpuFeature* feature = FeatureNamed(name);
    if (feature == nullptr) {
      return absl::InvalidArgumentError(
          fmt::format("CPU feature \"{}\" is unknown, expected one of {}", name, fmt::join(CpuFeatureNames(), " ")));
    }
    hidden.insert(feature->name);
  }
  if (host.hypervisor == kTcgSignature) hidden.insert(std::begin(kUnsafeUnderTcg), std::end(kUnsafeUnderTcg));

  Entries entries(supported.begin(), supported.end());
  std::erase_if(entries, [](const Entry& e) {
    return (e.function >= kHypervisorFirst && e.function <= kHypervisorLast) || IsTopologyLeaf(e.function) ||
           std::find(std::begin(kDroppedLeaves), std::end(kDroppedLeaves), e.function) != std::end(kDroppedLeaves);
  });
  if (spec.profile == "common") KeepCommonOnly(&entries);
  // What the host lacks (or the profile hides) takes its dependents with it too.
  for (const CpuFeature& feature : kCpuFeatures) {
    if (!Has(entries, feature)) hidden.insert(feature.name);
  }
  Hide(&entries, WithDependents(std::move(hidden)));
  // KVM without an APIC of its own need not offer x2APIC; ours has it.
  const bool no_x2apic = std::find(spec.disable.begin(), spec.disable.end(), "x2apic") != spec.disable.end();
  ApplyOurs(!no_x2apic, spec.pv_eoi, &entries);
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.function, a.index) < std::tie(b.function, b.index);
  });
  // Two topology leaves of three levels come per vCPU.
  if (entries.size() + 6 > kMostCpuidEntries) {
    return absl::InternalError(fmt::format("{} CPUID entries, {} are possible", entries.size(), kMostCpuidEntries - 6));
  }
  return CpuModel(std::move(entries));
}

bool CpuModel::has_x2apic() const {
  return std::any_of(entries_.begin(), entries_.end(),
                     [](const Entry& entry) { return entry.function == 1 && (entry.ecx & 1u << 21) != 0; });
}

std::vector<Entry> CpuModel::Cpuid(uint32_t vcpu, uint32_t count, uint32_t package) const {
  HK_CHECK(vcpu < count && count <= kMostGuestVcpus);
  HK_CHECK(package == count || std::has_single_bit(package));
  const uint32_t apic_id = vcpu;
  const auto id_bits = static_cast<uint32_t>(std::bit_width(package - 1));
  Entries entries = entries_;
  for (Entry& entry : entries) {
    switch (entry.function) {
      case 1:
        entry.ebx = (entry.ebx & 0xffff) | std::min(std::bit_ceil(package), 255u) << 16 | apic_id << 24;
        entry.edx = package > 1 ? entry.edx | 1u << 28 : entry.edx & ~(1u << 28);  // HTT: more than one
        break;
      case 4:
        SetSharing(&entry, package);
        if ((entry.eax & 0x1f) != 0) {
          entry.eax = (entry.eax & 0x03ffffff) | std::min(std::bit_ceil(package) - 1, 63u) << 26;
        }
        break;
      case 0x80000001:
        entry.ecx = package > 1 ? entry.ecx | 1u << 1 : entry.ecx & ~(1u << 1);  // CmpLegacy
        break;
      case 0x80000008:
        entry.ecx = (package - 1) | id_bits << 12;
        break;
      case 0x8000001d:
        SetSharing(&entry, package);
        break;
      case 0x8000001e:
        entry.eax = apic_id;
        entry.ebx = apic_id & 0xff;  // core id, one thread per core
        // The one node of its package, with a number of its own: Linux takes CPUs of one number to share a cache.
        entry.ecx = apic_id / package & 0xff;
        entry.edx = 0;
        break;
      default:
        break;
    }
  }
  AddTopology(&entries, 0xb, apic_id, package, id_bits);
  if (const Entry* basic = Find(entries_, 0, 0); basic != nullptr && basic->eax >= 0x1f) {
    AddTopology(&entries, 0x1f, apic_id, package, id_bits);
  }
  return entries;
}

absl::StatusOr<std::vector<Entry>> IntersectCpuid(std::span<const Entry> a, std::span<const Entry> b) {
  const Entry* vendor_a = Find(a, 0, 0);
  const Entry* vendor_b = Find(b, 0, 0);
  if (vendor_a == nullptr || vendor_b == nullptr || vendor_a->ebx != vendor_b->ebx || vendor_a->ecx != vendor_b->ecx ||
      vendor_a->edx != vendor_b->edx) {
    return absl::FailedPreconditionError("the hosts' CPUs are of different vendors");
  }
  Entries both;
  for (Entry entry : a) {
    const Entry* other = Find(b, entry.function, entry.index);
    const Entry none = {};
    if (other == nullptr) other = &none;
    if (entry.function == 0xd && entry.index >= 2 && other == &none) continue;
    if (IsFeatureLeaf(entry)) {
      // Leaf 1 EAX and EBX are signature and identity, leaf 7.0 EAX the last subleaf, leaf 0xd EBX and ECX sizes.
      if (entry.function != 1 && entry.function != 0x80000001 && entry.function != 7) entry.eax &= other->eax;
      if (entry.function == 7) entry.eax = entry.index == 0 ? std::min(entry.eax, other->eax) : entry.eax & other->eax;
      if (entry.function == 7) entry.ebx &= other->ebx;
      if (entry.function != 0xd || entry.index == 1) entry.ecx &= other->ecx;
      entry.edx &= other->edx;
    } else if (entry.function == 0x80000008) {
      entry.eax = std::min(entry.eax & 0xff, other->eax & 0xff) | std::min(entry.eax & 0xff00, other->eax & 0xff00);
      entry.ebx &= other->ebx;
    }
    both.push_back(entry);
  }
  return both;
}

std::vector<std::string_view> FeaturesOf(std::span<const Entry> model) {
  std::vector<std::string_view> names;
  for (const CpuFeature& feature : kCpuFeatures) {
    const Entry* leaf = Find(model, feature.function, feature.index);
    if (leaf == nullptr) continue;
    if ((Registers(*leaf)[static_cast<size_t>(feature.where)] >> feature.bit & 1) != 0) names.push_back(feature.name);
  }
  return names;
}

std::vector<std::string> LackedOf(std::span<const Entry> model, std::span<const Entry> part) {
  std::vector<std::string> lacked;
  for (const Entry& entry : model) {
    const Entry none = {};
    const Entry* left = Find(part, entry.function, entry.index);
    if (left == nullptr) left = &none;
    std::array<uint32_t, 4> gone = Registers(entry);
    for (size_t i = 0; i < gone.size(); i++) gone[i] ^= Registers(*left)[i];
    for (const CpuFeature& feature : kCpuFeatures) {
      if (feature.function != entry.function || feature.index != entry.index) continue;
      uint32_t& bits = gone[static_cast<size_t>(feature.where)];
      if ((bits >> feature.bit & 1) == 0) continue;
      bits &= ~(1u << feature.bit);
      lacked.emplace_back(feature.name);
    }
    if (std::ranges::any_of(gone, [](uint32_t bits) { return bits != 0; })) {
      lacked.push_back(fmt::format("CPUID leaf {:#x}.{}", entry.function, entry.index));
    }
  }
  return lacked;
}

std::string SignatureOf(std::span<const Entry> model) {
  std::string vendor;
  if (const Entry* leaf = Find(model, 0, 0); leaf != nullptr) {
    for (const uint32_t part : {leaf->ebx, leaf->edx, leaf->ecx}) {
      for (int shift = 0; shift < 32; shift += 8) {
        const char letter = static_cast<char>(part >> shift);
        vendor += letter > ' ' && letter <= '~' ? letter : '?';
      }
    }
  }
  const Entry* leaf = Find(model, 1, 0);
  const uint32_t eax = leaf == nullptr ? 0 : leaf->eax;
  // CPUID.1 EAX: the extended family counts from family 15 on, the extended model in families 6 and 15 (Intel SDM vol.
  // 2, CPUID; AMD's have no family 6 any more).
  const uint32_t base = eax >> 8 & 0xf, family = base == 0xf ? base + (eax >> 20 & 0xff) : base;
  const uint32_t number = (eax >> 4 & 0xf) | (base == 6 || base == 0xf ? (eax >> 16 & 0xf) << 4 : 0);
  return fmt::format("{} {}-{}-{}", vendor, family, number, eax & 0xf);
}

}  // namespace hk
