// A machine made of KVM, guest memory, interrupt controllers and devices: the parts wired together, and nothing else.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/boot/kernel_cache.h"
#include "hyperkernel/memory/frame_store.h"
#include "hyperkernel/memory/guest_memory.h"
#include "hyperkernel/memory/swap_store.h"
#include "hyperkernel/node/guest_replica.h"
#include "hyperkernel/node/machine.h"
#include "hyperkernel/node/machine_policy.h"
#include "hyperkernel/node/machine_spread.h"

namespace hk {

// Checks kernel, initrd, command line, CPU model, memory, swap and KVM for a specification; makes nothing. Errors: one
// line.
absl::Status CheckKvmMachine(const v1::VmSpec& spec, const FrameStore& frames, const SwapStore& swap,
                             const KernelCache& kernels);

// A space that is a machine's memory. Plain value.
struct MachineSpace {
  uint64_t id = 0;
};

// Where a machine's memory is from.
struct MachineMemory {
  // Makes it; `failed` as GuestMemory::Create has it. Called once.
  std::function<absl::StatusOr<std::unique_ptr<GuestMemory>>(std::vector<RamRange> ranges,
                                                             GuestMemory::FaultFailure failed)>
      make;
  // Called when the machine has ended, or could not be made, and has given its memory back. May be empty.
  std::function<void()> ended;
  // What `make` has made; null: memory of this node alone.
  std::shared_ptr<MachineSpace> space;
  // Who keeps account of what the memory holds of the disks; null: nobody, as of all memory over several nodes.
  std::shared_ptr<GuestReplica> replica = nullptr;
};

// Memory of this node alone. `frames` outlives what it makes. `replica`: of the guest, its run has begun; or null.
MachineMemory LocalMemory(const v1::VmSpec& spec, uint64_t generation, const FrameStore& frames,
                          std::shared_ptr<GuestReplica> replica);

// Of the file that the memory of a saved machine left, instead of a new one. Nobody keeps account of what it holds of
// the disks: to begin that anew takes longer than the machine may stand still.
MachineMemory LeftMemory(const v1::VmSpec& spec, const MachineState& state, const FrameStore& frames);

// Makes a machine of what Machine::Save gave, paused: Unpause has it go on. REQUIRES: `state` is of this machine, this
// run and this boot of the host; `memory` is LeftMemory. Errors: one line; the memory is gone then.
absl::StatusOr<std::unique_ptr<Machine>> RestoreKvmMachine(const v1::VmSpec& spec, const MachineState& state,
                                                           MachineMemory memory, const KernelCache& kernels,
                                                           const Clock& clock, MachineEvents* events);

// Makes a machine and lets it run. `spread`: null if all its vCPUs are here. `policy`: null if its memory is.
// `kernels`, `clock` and `events` outlive it. Errors: one line, what could not be made.
absl::StatusOr<std::unique_ptr<Machine>> MakeKvmMachine(const v1::VmSpec& spec, MachineMemory memory,
                                                        std::unique_ptr<MachineSpread> spread,
                                                        std::shared_ptr<MachinePolicy> policy,
                                                        const KernelCache& kernels, const Clock& clock,
                                                        MachineEvents* events);

}  // namespace hk
