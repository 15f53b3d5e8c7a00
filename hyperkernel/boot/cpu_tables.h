// The page tables and descriptors that a kernel's first instructions run on, the register state that goes with them,
// and the code at the reset vector.
#pragma once

#include "absl/status/status.h"
#include "hyperkernel/boot/boot_state.h"
#include "hyperkernel/boot/guest_writer.h"

namespace hk {

// Writes the GDT and page tables for 64-bit entry: the lowest 4 GiB, mapped to themselves with 2 MiB pages. Errors: the
// writer's.
absl::Status WriteLong64Tables(GuestWriter& writer);

// Writes the code at kResetVector: it resets the machine by its reset register. Linux takes an ACPI machine with
// reduced hardware for one that EFI resets (arch/x86/platform/efi/quirks.c, efi_reboot_required), and without EFI goes
// on to the last way it knows, a jump in real mode to where firmware starts. Errors: the writer's.
absl::Status WriteResetVector(GuestWriter& writer);

// Registers for these tables. rip, rsi are the caller's to set.
BootState Long64State();

// Registers for a PVH entry, which needs no tables. rip, rbx are the caller's to set.
BootState Pvh32State();

}  // namespace hk
