#include "hyperkernel/kvm/boot_registers.h"

#include <cstring>

namespace hk {
namespace {

// Segment types (SDM vol. 3, 3.4.5.1 and 3.5): accessed; busy TSS; LDT.
constexpr uint8_t kReadWrite = 0x3, kExecuteRead = 0xb, kBusyTss = 0xb, kLdt = 0x2;

kvm_segment Flat(uint16_t selector, uint8_t type) {
  kvm_segment segment = {};
  segment.limit = 0xffffffff;
  segment.selector = selector;
  segment.type = type;
  segment.present = 1;
  segment.s = 1;
  segment.g = 1;
  segment.db = 1;
  return segment;
}

kvm_segment Real(uint16_t selector, uint8_t type, bool system) {
  kvm_segment segment = {};
  segment.base = uint64_t{selector} << 4;
  segment.limit = 0xffff;
  segment.selector = selector;
  segment.type = type;
  segment.present = 1;
  segment.s = system ? 0 : 1;
  return segment;
}

}  // namespace

void SetBootState(const InitialCpuState& state, kvm_sregs* sregs, kvm_regs* regs) {
  sregs->cs = Flat(kBootCodeSelector, kExecuteRead);
  if (state.mode == InitialCpuState::Mode::kLong64) {
    sregs->cs.l = 1;
    sregs->cs.db = 0;
  }
  sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = Flat(kBootDataSelector, kReadWrite);
  sregs->ldt = Real(0, kLdt, true);
  sregs->tr = Real(0, kBusyTss, true);
  sregs->gdt = {.base = state.gdt_base.value(), .limit = state.gdt_limit, .padding = {}};
  sregs->idt = {.base = 0, .limit = 0, .padding = {}};
  sregs->cr0 = state.cr0;
  sregs->cr2 = 0;
  sregs->cr3 = state.cr3;
  sregs->cr4 = state.cr4;
  sregs->cr8 = 0;
  sregs->efer = state.efer;
  std::memset(sregs->interrupt_bitmap, 0, sizeof(sregs->interrupt_bitmap));

  *regs = {};
  regs->rip = state.rip;
  regs->rsp = state.rsp;
  regs->rsi = state.rsi;
  regs->rbx = state.rbx;
  regs->rflags = 0x2;
}

void SetInitState(uint32_t cpu_signature, kvm_sregs* sregs, kvm_regs* regs, kvm_debugregs* debug,
                  kvm_vcpu_events* events) {
  sregs->cs = Real(0xf000, kExecuteRead, false);
  sregs->cs.base = 0xffff0000;
  sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = Real(0, kReadWrite, false);
  sregs->ldt = Real(0, kLdt, true);
  sregs->tr = Real(0, kBusyTss, true);
  sregs->gdt = sregs->idt = {.base = 0, .limit = 0xffff, .padding = {}};
  sregs->cr0 = 0x60000010 | (sregs->cr0 & 0x60000000);  // ET; CD and NW keep their values: here they are always set
  sregs->cr2 = sregs->cr3 = sregs->cr4 = sregs->cr8 = 0;
  sregs->efer = 0;
  std::memset(sregs->interrupt_bitmap, 0, sizeof(sregs->interrupt_bitmap));

  *regs = {};
  regs->rip = 0xfff0;
  regs->rdx = cpu_signature;
  regs->rflags = 0x2;

  *debug = {};
  debug->dr6 = 0xffff0ff0;
  debug->dr7 = 0x400;

  *events = {};
  events->flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
}

void SetSipiState(uint8_t vector, kvm_sregs* sregs, kvm_regs* regs) {
  sregs->cs = Real(static_cast<uint16_t>(vector << 8), kExecuteRead, false);
  regs->rip = 0;
}

}  // namespace hk
