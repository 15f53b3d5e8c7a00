// KVM_IOEVENTFD: a guest's write to an address signals an eventfd inside the kernel, and the vCPU goes on. Needs no
// in-kernel interrupt controller (tried in the lab). Thread-safe: no state; registrations are the VM's and go with its
// fd.
#pragma once

#include "absl/status/status.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/kvm/vm.h"

namespace hk {

// A write of any width to `address` signals `event`. Errors: errno of KVM_IOEVENTFD (EEXIST: that is registered
// already; ENOSPC: more than the kernel's limit of about 1000 for a VM).
absl::Status AddIoEvent(const Vm& vm, Gpa address, int event);
// Undoes it. Errors: errno (ENOENT: it is not registered).
absl::Status RemoveIoEvent(const Vm& vm, Gpa address, int event);

}  // namespace hk
