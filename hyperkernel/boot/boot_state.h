// The state in which a guest's first vCPU starts, described as the x86 manuals do, so that this folder needs no
// hypervisor's types.
#pragma once

#include <cstdint>

#include "hyperkernel/base/types.h"

namespace hk {

// Which entry the kernel is started by.
enum class BootMode {
  kLong64,  // 64-bit mode, the lowest 4 GiB mapped to themselves (boot.rst, "64-bit Boot Protocol")
  kPvh32,   // 32-bit protected mode, no paging (Xen, docs/misc/pvh.pandoc, "x86 boot ABI")
};

// A segment register with its hidden part (Intel SDM vol. 3, 3.4.5). Plain value.
struct BootSegment {
  uint16_t selector = 0;
  uint64_t base = 0;
  uint32_t limit = 0;  // in bytes, as the CPU applies it
  uint8_t type = 0;    // descriptor type, 4 bits
  bool present = true;
  bool code_or_data = true;     // S: not a system segment
  bool long_mode = false;       // L: 64-bit code
  bool default_32 = false;      // D/B
  bool granularity_4k = false;  // G: the limit was given in pages
  friend bool operator==(const BootSegment&, const BootSegment&) = default;
};

// A descriptor table register. Plain value.
struct BootTable {
  Gpa base;
  uint16_t limit = 0;
};

// What to set; every register that is not here is as after INIT (Intel SDM vol. 3, table 9-1), general registers that
// are not here are 0.
struct BootState {
  BootMode mode = BootMode::kLong64;
  uint64_t rip = 0;
  uint64_t rsp = 0;
  uint64_t rsi = 0;     // kLong64: struct boot_params
  uint64_t rbx = 0;     // kPvh32: struct hvm_start_info
  uint64_t rflags = 2;  // interrupts off
  uint64_t cr0 = 0;
  uint64_t cr3 = 0;
  uint64_t cr4 = 0;
  uint64_t efer = 0;
  BootSegment cs;
  BootSegment data;  // ds, es, fs, gs and ss
  BootSegment tr;    // VMX and SVM want one even if it is never used
  BootTable gdt;
  BootTable idt;  // empty: an exception before the kernel has its own is a triple fault
};

}  // namespace hk
