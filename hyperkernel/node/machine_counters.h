// vCPUs' counters as operators see them.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "hyperkernel/kvm/vcpu_exits.h"

namespace hk {

inline constexpr char kInjectedKind[] = "injected";

// Exits by kind, without those that did not occur; and "injected", the interrupts given.
inline std::map<std::string, uint64_t> ExitsByKind(const VcpuCounters& counters) {
  std::map<std::string, uint64_t> kinds;
  for (size_t i = 0; i < kVcpuExits; i++) {
    if (counters.exits[i] != 0) kinds[std::string(NameOf(static_cast<VcpuExit>(i)))] = counters.exits[i];
  }
  if (counters.interrupts != 0) kinds[kInjectedKind] = counters.interrupts;
  return kinds;
}

}  // namespace hk
