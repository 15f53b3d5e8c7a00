// The vmlinux inside a bzImage: an ELF file, and behind it the list of places that change when the kernel runs at
// another virtual address (arch/x86/tools/relocs.c). Reading it here saves the guest its own decompressor and lets it
// keep its address space layout randomisation (KASLR). Input is hostile.
//
// What stands in the list are virtual addresses as linked, cut to 32 bits, in lists that each begin with a zero:
//     0, places of 64 bits, [0, places of 32 bits from which the move is subtracted,] 0, places of 32 bits
// The middle list is gone from newer kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/boot/kernel_image.h"

namespace hk {

// A vmlinux's plan. Plain value; offsets are into the bytes it was read from.
struct Vmlinux {
  // As KernelImage::segments.
  std::vector<KernelSegment> segments;
  // 64-bit entry with rsi = boot_params, page tables that map it to itself (arch/x86/kernel/head_64.S).
  Gpa entry;
  // Offsets of the places to change; empty if the kernel cannot be moved.
  std::vector<uint32_t> add64, subtract32, add32;

  bool movable() const { return !add64.empty() || !add32.empty(); }
};

// Errors: kUnimplemented, saying what is not understood; such a kernel is for its own decompressor.
absl::StatusOr<Vmlinux> ReadVmlinux(std::span<const std::byte> bytes);

// Moves the kernel in virtual space by `delta` bytes. REQUIRES: `vmlinux` was read from these bytes; once only.
void Relocate(const Vmlinux& vmlinux, uint64_t delta, std::span<std::byte> bytes);

}  // namespace hk
