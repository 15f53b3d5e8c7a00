// The CPU model of a machine on several nodes: what each could have, and what all of them do. Pure but for
// DescribeMachineHost; thread-safe.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "google/protobuf/repeated_ptr_field.h"
#include "hyperkernel/kvm/cpu_model.h"
#include "hyperkernel/kvm/kvm_api.h"
#include "proto/machine.pb.h"

namespace hk {

using CpuidEntries = google::protobuf::RepeatedPtrField<v1::CpuidEntry>;

// `pv_eoi`: the machine's memory stays on this node.
CpuModelSpec CpuSpecOf(const v1::CpuSpec& spec, bool pv_eoi);

void SetCpuid(const std::vector<kvm_cpuid_entry2>& entries, CpuidEntries* to);
// Errors: kInvalidArgument, none or too many.
absl::StatusOr<std::vector<kvm_cpuid_entry2>> CpuidOf(const CpuidEntries& entries);

// What vCPUs of a machine on several nodes this host could have. Errors: KVM's, CpuModel::Create's.
absl::StatusOr<v1::DescribeMachineHostResponse> DescribeMachineHost(const v1::CpuSpec& spec);

// The model `ours`, if a host that could have `theirs` can run vCPUs of it; with profile "common" what both have.
// `node`: the other one, for the error: kFailedPrecondition, saying what differs and what to do.
absl::StatusOr<std::vector<kvm_cpuid_entry2>> AgreeOnCpu(const std::vector<kvm_cpuid_entry2>& ours,
                                                         const std::vector<kvm_cpuid_entry2>& theirs,
                                                         const std::string& profile, const std::string& node);

// Takes away the promise that the TSC is one clock for all vCPUs, which hosts whose TSCs drift apart cannot keep: Linux
// then reads its clock with care, and tells its programs not to use the TSC.
void HideInvariantTsc(std::vector<kvm_cpuid_entry2>* model);

// Rates of two hosts' TSCs are one: KVM takes rates as equal up to 250 ppm apart (tsc_tolerance_ppm), and two
// measurements of one rate differ by less. Errors: kFailedPrecondition.
absl::Status CheckTscRate(uint32_t ours_khz, uint32_t theirs_khz, const std::string& node);

}  // namespace hk
