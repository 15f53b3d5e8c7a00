// What CPU the guest sees: CPUID from a named profile, less disabled features, plus what a guest without in-kernel APIC
// must and must not have (README.md, "CPU model").
//
// Pure: of KVM's list of what it supports to the guest's list.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/kvm/kvm_api.h"

namespace hk {

// Bounds of lists that KVM fills. CPUID: KVM's own (KVM_MAX_CPUID_ENTRIES).
inline constexpr size_t kMostCpuidEntries = 256;
inline constexpr size_t kMostMsrs = 1024;
inline constexpr size_t kMostXsaveBytes = 64 << 10;
// x2APIC ids and the cores of a package (CPUID 0x80000008 ECX[7:0]) both allow it.
inline constexpr uint32_t kMostGuestVcpus = 255;

// What the operator asks for. Plain value.
struct CpuModelSpec {
  std::string profile = "host";        // "host": all that this host's KVM offers; "common": x86-64-v2 and little more
  std::vector<std::string> disable{};  // features to hide, by the names of /proc/cpuinfo; what needs them goes too
  bool pv_eoi = true;                  // offer KVM's paravirtual EOI: a word of guest memory that stays here
};

// What of the host matters beside KVM's list. Plain value.
struct HostCpu {
  std::string hypervisor;  // signature of the hypervisor that the host runs on (CPUID 0x40000000), "" on bare metal
};
HostCpu ReadHostCpu();

// Names that CpuModelSpec::disable takes, in table order.
std::vector<std::string_view> CpuFeatureNames();

// A guest's CPU model. Immutable.
class CpuModel {
 public:
  // Errors: kInvalidArgument (unknown profile or feature, a feature that cannot be disabled), kInternal (more entries
  // than kMostCpuidEntries).
  static absl::StatusOr<CpuModel> Create(std::span<const kvm_cpuid_entry2> supported, const HostCpu& host,
                                         const CpuModelSpec& spec);

  // A model that Create made, here or on another node, or what IntersectCpuid left of two. REQUIRES: at most
  // kMostCpuidEntries, sorted by (function, index).
  static CpuModel Of(std::vector<kvm_cpuid_entry2> entries) { return CpuModel(std::move(entries)); }

  // CPUID of one vCPU, whose APIC id is its index, of a guest whose packages (sockets), and with them their last level
  // caches, have `package` vCPUs each. REQUIRES: vcpu < count <= kMostGuestVcpus; package is a power of two, or count:
  // all are one.
  std::vector<kvm_cpuid_entry2> Cpuid(uint32_t vcpu, uint32_t count, uint32_t package) const;
  std::vector<kvm_cpuid_entry2> Cpuid(uint32_t vcpu, uint32_t count) const { return Cpuid(vcpu, count, count); }

  // Whether the guest's local APICs have, and start in, x2APIC mode.
  bool has_x2apic() const;

  // The model without any vCPU's identity: what a VM's record holds and other nodes are asked for.
  const std::vector<kvm_cpuid_entry2>& entries() const { return entries_; }

 private:
  explicit CpuModel(std::vector<kvm_cpuid_entry2> entries) : entries_(std::move(entries)) {}
  std::vector<kvm_cpuid_entry2> entries_;  // sorted by (function, index)
};

// How many vCPUs a package has for none to be on two nodes, where `node_of` says which node a vCPU is on: the largest
// power of two, or all. A guest's scheduler moves threads freely between processors that share a cache, and here no
// two nodes do. REQUIRES: not empty.
template <typename Node>
uint32_t VcpusOfPackage(std::span<const Node> node_of) {
  const auto count = static_cast<uint32_t>(node_of.size());
  const auto on_one_node = [&](uint32_t package) {
    for (uint32_t i = 0; i < count; i++) {
      if (node_of[i] != node_of[i / package * package]) return false;
    }
    return true;
  };
  if (on_one_node(count)) return count;
  uint32_t package = std::bit_floor(count);
  while (!on_one_node(package)) package /= 2;
  return package;
}

// What both hosts have: the bitwise intersection of feature leaves, all else as in `a`. For a guest over several nodes.
// Errors: kFailedPrecondition if the vendors differ.
absl::StatusOr<std::vector<kvm_cpuid_entry2>> IntersectCpuid(std::span<const kvm_cpuid_entry2> a,
                                                             std::span<const kvm_cpuid_entry2> b);

// Names of the features that a model has, in table order. Those that every x86-64 processor has are not in the table.
std::vector<std::string_view> FeaturesOf(std::span<const kvm_cpuid_entry2> model);

// What `part`, which IntersectCpuid left of `model`, lacks of it: features by name, all else by its leaf ("CPUID leaf
// 0xd.2"). Empty: nothing.
std::vector<std::string> LackedOf(std::span<const kvm_cpuid_entry2> model, std::span<const kvm_cpuid_entry2> part);

// Whose and which processor a model is: "GenuineIntel 6-143-8" (family, model, stepping). Fit to be printed.
std::string SignatureOf(std::span<const kvm_cpuid_entry2> model);

}  // namespace hk
