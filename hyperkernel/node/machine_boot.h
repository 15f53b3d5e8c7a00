// A machine's kernel and tables, put into its memory. Thread-safe.
#pragma once

#include "absl/status/statusor.h"
#include "hyperkernel/boot/kernel_cache.h"
#include "hyperkernel/boot/linux_loader.h"
#include "hyperkernel/kvm/boot_registers.h"
#include "hyperkernel/memory/guest_memory.h"
#include "proto/vm.pb.h"

namespace hk {

// What a specification boots.
LinuxBootSpec BootSpecOf(const v1::VmSpec& spec, const KernelCache& kernels);

// Writes kernel, initrd, command line and ACPI tables, and returns how vCPU 0 begins. `pm_timer`: the tables declare
// one. REQUIRES: the specification is complete (CompleteVmSpec). Errors: one line; files, or memory that cannot be
// written.
absl::StatusOr<InitialCpuState> LoadMachine(const v1::VmSpec& spec, const KernelCache& kernels, bool pm_timer,
                                            GuestMemory* memory);

}  // namespace hk
