// The page tables and descriptors that a kernel's first instructions run on, and the register state that goes with
// them.
#pragma once

#include "absl/status/status.h"
#include "hyperkernel/boot/boot_state.h"
#include "hyperkernel/boot/guest_writer.h"

namespace hk {

// Writes the GDT and page tables for 64-bit entry: the lowest 4 GiB, mapped to themselves with 2 MiB pages. Errors: the
// writer's.
absl::Status WriteLong64Tables(GuestWriter& writer);

// Registers for these tables. rip, rsi are the caller's to set.
BootState Long64State();

// Registers for a PVH entry, which needs no tables. rip, rbx are the caller's to set.
BootState Pvh32State();

}  // namespace hk
