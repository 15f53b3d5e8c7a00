// Register states that no instruction leads to: a boot processor's at the kernel's entry, and what INIT and SIPI make.
//
// Pure functions on KVM's structures. What they leave alone (APIC base, XCR0, most MSRs) the event leaves alone too.
#pragma once

#include <cstdint>

#include "hyperkernel/base/types.h"
#include "hyperkernel/kvm/kvm_api.h"

namespace hk {

// How a boot processor starts. Plain value; the node makes it of what the loader says.
struct InitialCpuState {
  // The loader's entry contract.
  enum class Mode : uint8_t {
    kLong64,       // Linux' 64-bit entry: paging on, flat 64-bit code
    kProtected32,  // PVH: flat 32-bit code, paging off
  };
  Mode mode = Mode::kLong64;
  uint64_t rip = 0;
  uint64_t rsp = 0;
  uint64_t rsi = 0;  // kLong64: boot_params
  uint64_t rbx = 0;  // kProtected32: hvm_start_info
  uint64_t cr0 = 0;
  uint64_t cr3 = 0;
  uint64_t cr4 = 0;
  uint64_t efer = 0;
  Gpa gdt_base{};
  uint16_t gdt_limit = 0;
};

// Selectors of the boot GDT (Linux boot protocol, 64-bit entry: __BOOT_CS and __BOOT_DS).
inline constexpr uint16_t kBootCodeSelector = 0x10;
inline constexpr uint16_t kBootDataSelector = 0x18;

// The state at the kernel's entry, interrupts off.
void SetBootState(const InitialCpuState& state, kvm_sregs* sregs, kvm_regs* regs);

// After INIT (Intel SDM vol. 3, table 10-1). `cpu_signature` is CPUID 1 EAX, which INIT leaves in EDX. For
// KVM_SET_DEBUGREGS and KVM_SET_VCPU_EVENTS, what INIT clears is all that is in `debug` and `events`.
void SetInitState(uint32_t cpu_signature, kvm_sregs* sregs, kvm_regs* regs, kvm_debugregs* debug,
                  kvm_vcpu_events* events);

// SIPI with `vector`, on top of the INIT state: real mode at vector << 12 (SDM vol. 3, 9.4.4).
void SetSipiState(uint8_t vector, kvm_sregs* sregs, kvm_regs* regs);

}  // namespace hk
