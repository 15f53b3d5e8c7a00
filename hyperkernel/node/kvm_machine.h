// A machine made of KVM, guest memory, interrupt controllers and devices: the parts wired together, and nothing else.
#pragma once

#include "hyperkernel/base/clock.h"
#include "hyperkernel/boot/kernel_cache.h"
#include "hyperkernel/memory/frame_store.h"
#include "hyperkernel/node/machine.h"

namespace hk {

// Checks kernel, initrd, command line, CPU model, memory and KVM for a specification; makes nothing. Errors: one line.
absl::Status CheckKvmMachine(const v1::VmSpec& spec, const FrameStore& frames, const KernelCache& kernels);

// Makes a machine and lets it run. `frames`, `kernels`, `clock` and `events` outlive it. Errors: one line, what could
// not be made.
absl::StatusOr<std::unique_ptr<Machine>> MakeKvmMachine(const v1::VmSpec& spec, uint64_t generation,
                                                        const FrameStore& frames, const KernelCache& kernels,
                                                        const Clock& clock, MachineEvents* events);

}  // namespace hk
