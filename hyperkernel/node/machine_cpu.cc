#include "hyperkernel/node/machine_cpu.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/kvm/vm.h"

namespace hk {
namespace {

// A vCPU's list has up to three entries more of each of two topology leaves (CpuModel::Cpuid).
constexpr int kMostModelEntries = static_cast<int>(kMostCpuidEntries) - 6;
constexpr uint64_t kTscTolerancePpm = 250;
// CPUID 0x80000007 EDX[8], and KVM's promise that its clock's STABLE flag holds (KVM_FEATURE_CLOCKSOURCE_STABLE_BIT).
constexpr uint32_t kPowerLeaf = 0x80000007, kInvariantTsc = 1 << 8, kKvmFeatureLeaf = 0x40000001,
                   kClockStable = 1 << 24;
constexpr uint64_t kMillion = 1'000'000;

}  // namespace

CpuModelSpec CpuSpecOf(const v1::CpuSpec& spec, bool pv_eoi) {
  return {.profile = spec.profile(), .disable = {spec.disable().begin(), spec.disable().end()}, .pv_eoi = pv_eoi};
}

void SetCpuid(const std::vector<kvm_cpuid_entry2>& entries, CpuidEntries* to) {
  to->Clear();
  for (const kvm_cpuid_entry2& entry : entries) {
    v1::CpuidEntry* const out = to->Add();
    out->set_function(entry.function);
    out->set_index(entry.index);
    out->set_flags(entry.flags);
    out->set_eax(entry.eax);
    out->set_ebx(entry.ebx);
    out->set_ecx(entry.ecx);
    out->set_edx(entry.edx);
  }
}

absl::StatusOr<std::vector<kvm_cpuid_entry2>> CpuidOf(const CpuidEntries& entries) {
  if (entries.empty() || entries.size() > kMostModelEntries) {
    return absl::InvalidArgumentError(
        fmt::format("cpuid: {} entries, expected 1 to {}", entries.size(), kMostModelEntries));
  }
  std::vector<kvm_cpuid_entry2> out;
  for (const v1::CpuidEntry& entry : entries) {
    kvm_cpuid_entry2 to = {};
    to.function = entry.function();
    to.index = entry.index();
    to.flags = entry.flags();
    to.eax = entry.eax();
    to.ebx = entry.ebx();
    to.ecx = entry.ecx();
    to.edx = entry.edx();
    if (!out.empty() && std::pair(to.function, to.index) <= std::pair(out.back().function, out.back().index)) {
      return absl::InvalidArgumentError(fmt::format("cpuid: leaf {:#x}.{} is out of order", to.function, to.index));
    }
    out.push_back(to);
  }
  return out;
}

absl::Status CheckPagingOf(const v1::VmSpec& spec, const std::string& modules) {
  if (spec.placement_size() < 2) return absl::OkStatus();
  const absl::Status nested = CheckNestedPaging(ReadNestedPaging(modules));
  if (nested.ok() || HK_MUTANT(shadow_paging_allowed)) return absl::OkStatus();
  return absl::FailedPreconditionError(fmt::format("placement: node '{}': {}", spec.io_node(), MessageOf(nested)));
}

absl::StatusOr<v1::DescribeMachineHostResponse> DescribeMachineHost(const v1::CpuSpec& spec,
                                                                    const std::string& modules) {
  HK_RETURN_IF_ERROR(CheckNestedPaging(ReadNestedPaging(modules)));
  HK_ASSIGN_OR_RETURN(const std::unique_ptr<Vm> vm, Vm::Create(1));
  HK_ASSIGN_OR_RETURN(const CpuModel model,
                      CpuModel::Create(vm->facts().cpuid, ReadHostCpu(), CpuSpecOf(spec, /*pv_eoi=*/false)));
  v1::DescribeMachineHostResponse response;
  SetCpuid(model.entries(), response.mutable_cpuid());
  response.set_tsc_khz(vm->facts().tsc_khz);
  return response;
}

absl::StatusOr<std::vector<kvm_cpuid_entry2>> AgreeOnCpu(const std::vector<kvm_cpuid_entry2>& ours,
                                                         const std::vector<kvm_cpuid_entry2>& theirs,
                                                         const std::string& profile, const std::string& node) {
  absl::StatusOr<std::vector<kvm_cpuid_entry2>> both = IntersectCpuid(ours, theirs);
  if (!both.ok()) {
    return absl::FailedPreconditionError(fmt::format("node '{}': {}", node, MessageOf(both.status())));
  }
  if (profile == "common" || HK_MUTANT(machine_cpu_unchecked)) return both;
  const std::vector<std::string> lacked = LackedOf(ours, *both);
  if (lacked.empty()) return both;
  return absl::FailedPreconditionError(fmt::format(
      "cpu: node '{}' lacks features of this node's CPU ({}); use cpu {{ profile: \"common\" }}, or hide them "
      "by cpu {{ disable }}",
      node, fmt::join(lacked, ", ")));
}

absl::Status CheckRecordedCpu(const std::vector<kvm_cpuid_entry2>& recorded,
                              const std::vector<kvm_cpuid_entry2>& theirs, const std::string& node) {
  const absl::StatusOr<std::vector<kvm_cpuid_entry2>> both = IntersectCpuid(recorded, theirs);
  const std::string why =
      both.ok() ? fmt::format("{}", fmt::join(LackedOf(recorded, *both), ", ")) : std::string(MessageOf(both.status()));
  if (why.empty() || HK_MUTANT(recorded_cpu_unchecked)) return absl::OkStatus();
  return absl::FailedPreconditionError(fmt::format(
      "cpu: node '{}' cannot give the CPU that the machine has had since its first start ({}: hkctl vm show): "
      "it lacks {}; start it over nodes that have that, or delete and create it for a CPU of theirs",
      node, SignatureOf(recorded), why));
}

v1::CpuModel DescribeCpu(const CpuidEntries& model) {
  v1::CpuModel out;
  const absl::StatusOr<std::vector<kvm_cpuid_entry2>> entries = CpuidOf(model);
  if (!entries.ok()) return out;
  out.set_signature(SignatureOf(*entries));
  for (const std::string_view feature : FeaturesOf(*entries)) out.add_features(std::string(feature));
  return out;
}

void HideInvariantTsc(std::vector<kvm_cpuid_entry2>* model) {
  for (kvm_cpuid_entry2& entry : *model) {
    if (entry.function == kPowerLeaf) entry.edx &= ~kInvariantTsc;
    if (entry.function == kKvmFeatureLeaf) entry.eax &= ~kClockStable;
  }
}

absl::Status CheckTscRate(uint32_t ours_khz, uint32_t theirs_khz, const std::string& node) {
  const uint64_t difference = ours_khz > theirs_khz ? ours_khz - theirs_khz : theirs_khz - ours_khz;
  if (difference * kMillion <= uint64_t{ours_khz} * kTscTolerancePpm) return absl::OkStatus();
  return absl::FailedPreconditionError(
      fmt::format("node '{}': its TSC runs at {} kHz, this node's at {}: a machine has one TSC, so its vCPUs can be on "
                  "nodes of one rate only",
                  node, theirs_khz, ours_khz));
}

}  // namespace hk
