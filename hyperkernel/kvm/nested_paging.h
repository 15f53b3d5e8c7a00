// How this host's KVM translates a guest's addresses: with nested paging (Intel EPT, AMD NPT), or by shadow page
// tables, which follow the guest's page tables by trapping this host's writes to them. Those of another node it does
// not see, so a guest over several nodes would be wrong there. node/README.md, "Machines over several nodes: life
// cycle", 9.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace hk {

// Where Linux tells of its modules.
inline constexpr char kModulesDirectory[] = "/sys/module";

// What the modules' parameters say. Plain value.
struct NestedPaging {
  enum class State {
    kOn,
    kOff,
    kUnknown,  // no module tells: KVM is something else than the kernel's own, and nothing speaks against it
  };
  State state = State::kUnknown;
  std::string module;        // kvm_intel or kvm_amd; empty: none that tells
  std::string parameter;     // what it calls it: ept, npt
  bool walks_write = false;  // kvm_intel eptad: a processor's look at a guest's page table counts as a write to it
};

// `modules` is kModulesDirectory but in tests. Never fails: what cannot be read is not known.
NestedPaging ReadNestedPaging(const std::string& modules);

// What to type so that it is on. Empty: no module is known.
std::string HowToNestPages(const NestedPaging& paging);

// A guest over several nodes may have vCPUs here. Errors: kFailedPrecondition, with what to type.
absl::Status CheckNestedPaging(const NestedPaging& paging);

}  // namespace hk
