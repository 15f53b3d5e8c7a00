// What a guest does with a page of its memory, as a hint for people: which of its code touches it, and under which of
// its own addresses.
#pragma once

#include <cstdint>
#include <optional>

#include "hyperkernel/base/types.h"

namespace hk {

// One access, seen when a vCPU waited for the page. Addresses are guest-virtual: those of the kernel or of the program
// that ran. Plain value.
struct GuestAccess {
  Gfn page;
  VcpuId vcpu;
  uint64_t code = 0;  // of the instruction
  bool user = false;  // CPL 3
  // Of the page; nothing: none of the general registers pointed into it.
  std::optional<uint64_t> address;

  friend bool operator==(const GuestAccess&, const GuestAccess&) = default;
};

}  // namespace hk
