// The CPU model of a machine on several nodes: what each could have, and what all of them do. Pure but for
// DescribeMachineHost and CheckPagingOf; thread-safe.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/kvm/cpu_model.h"
#include "hyperkernel/kvm/kvm_api.h"
#include "hyperkernel/kvm/nested_paging.h"
#include "hyperkernel/node/machine.h"
#include "proto/machine.pb.h"
#include "proto/vm.pb.h"

namespace hk {

// `pv_eoi`: the machine's memory stays on this node.
CpuModelSpec CpuSpecOf(const v1::CpuSpec& spec, bool pv_eoi);

void SetCpuid(const std::vector<kvm_cpuid_entry2>& entries, CpuidEntries* to);
// Errors: kInvalidArgument, none or too many.
absl::StatusOr<std::vector<kvm_cpuid_entry2>> CpuidOf(const CpuidEntries& entries);

// What vCPUs of a machine on several nodes this host could have. `modules`: as ReadNestedPaging. Errors:
// CheckNestedPaging's, KVM's, CpuModel::Create's.
absl::StatusOr<v1::DescribeMachineHostResponse> DescribeMachineHost(const v1::CpuSpec& spec,
                                                                    const std::string& modules = kModulesDirectory);

// This host may have vCPUs of a machine with that placement: any on one node, others as CheckNestedPaging says. Errors:
// that one's, beginning with the node.
absl::Status CheckPagingOf(const v1::VmSpec& spec, const std::string& modules = kModulesDirectory);

// The model `ours`, if a host that could have `theirs` can run vCPUs of it; with profile "common" what both have.
// `node`: the other one, for the error: kFailedPrecondition, saying what differs and what to do.
absl::StatusOr<std::vector<kvm_cpuid_entry2>> AgreeOnCpu(const std::vector<kvm_cpuid_entry2>& ours,
                                                         const std::vector<kvm_cpuid_entry2>& theirs,
                                                         const std::string& profile, const std::string& node);

// `theirs`, of `node`, can run vCPUs of the model that the machine has had before. Errors: kFailedPrecondition, saying
// what the node lacks.
absl::Status CheckRecordedCpu(const std::vector<kvm_cpuid_entry2>& recorded,
                              const std::vector<kvm_cpuid_entry2>& theirs, const std::string& node);

// The model for people. Empty entries: not set.
v1::CpuModel DescribeCpu(const CpuidEntries& model);

// Takes away the promise that the TSC is one clock for all vCPUs, which hosts whose TSCs drift apart cannot keep: Linux
// then reads its clock with care, and tells its programs not to use the TSC.
void HideInvariantTsc(std::vector<kvm_cpuid_entry2>* model);

// Rates of two hosts' TSCs are one: KVM takes rates as equal up to 250 ppm apart (tsc_tolerance_ppm), and two
// measurements of one rate differ by less. Errors: kFailedPrecondition.
absl::Status CheckTscRate(uint32_t ours_khz, uint32_t theirs_khz, const std::string& node);

}  // namespace hk
