// What a vCPU that has just waited for a page does with it: its instruction pointer, and under which of the guest's own
// addresses it knows the page.
#pragma once

#include <optional>

#include "hyperkernel/base/guest_access.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/kvm/kvm_api.h"
#include "hyperkernel/kvm/vm.h"

namespace hk {

// REQUIRES: the vCPU's thread, between two instructions. Walks the guest's page tables for each general register, and
// may wait for their pages as the guest itself does. Nothing: KVM does not tell its registers.
std::optional<GuestAccess> ReadGuestAccess(const VcpuFd& fd, VcpuId vcpu, Gfn page);

// Whether the address is one that the guest could use (SDM vol. 1, 3.3.7.1): its upper bits are all equal.
// `bits`: 48, or 57 with five levels of page tables.
bool IsCanonical(uint64_t address, unsigned bits);

}  // namespace hk
