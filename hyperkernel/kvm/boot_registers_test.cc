#include "hyperkernel/kvm/boot_registers.h"

#include "gtest/gtest.h"

namespace hk {
namespace {

TEST(BootRegistersTest, LongModeEntryIsLinuxs) {
  kvm_sregs sregs = {};
  kvm_regs regs = {};
  sregs.apic_base = 0xfee00d00;
  sregs.interrupt_bitmap[1] = 1;
  SetBootState({.rip = 0x1000200,
                .rsp = 0x6ff0,
                .rsi = 0x7000,
                .cr0 = 0x80000011,
                .cr3 = 0x9000,
                .cr4 = 0x20,
                .efer = 0x500,
                .gdt_base = Gpa(0x500),
                .gdt_limit = 31},
               &sregs, &regs);
  EXPECT_EQ(sregs.cs.selector, 0x10);
  EXPECT_EQ(sregs.cs.l, 1);
  EXPECT_EQ(sregs.cs.db, 0);
  EXPECT_EQ(sregs.ds.selector, 0x18);
  EXPECT_EQ(sregs.ss.limit, 0xffffffffu);
  EXPECT_EQ(sregs.efer, 0x500u);
  EXPECT_EQ(sregs.gdt.base, 0x500u);
  EXPECT_EQ(sregs.apic_base, 0xfee00d00u);
  EXPECT_EQ(sregs.interrupt_bitmap[1], 0u);
  EXPECT_EQ(regs.rip, 0x1000200u);
  EXPECT_EQ(regs.rsi, 0x7000u);
  EXPECT_EQ(regs.rflags, 2u);
}

TEST(BootRegistersTest, ProtectedModeEntryIsPvhs) {
  kvm_sregs sregs = {};
  kvm_regs regs = {};
  SetBootState({.mode = InitialCpuState::Mode::kProtected32, .rip = 0x1000000, .rbx = 0x6000, .cr0 = 0x11}, &sregs,
               &regs);
  EXPECT_EQ(sregs.cs.l, 0);
  EXPECT_EQ(sregs.cs.db, 1);
  EXPECT_EQ(sregs.tr.type, 0xb);
  EXPECT_EQ(sregs.tr.s, 0);
  EXPECT_EQ(regs.rbx, 0x6000u);
}

TEST(BootRegistersTest, SipiStartsInRealMode) {
  kvm_sregs sregs = {};
  kvm_regs regs = {};
  kvm_debugregs debug = {};
  kvm_vcpu_events events = {};
  sregs.cr0 = 0x80050033;
  sregs.efer = 0xd01;
  regs.rax = 5;
  events.nmi.pending = 1;
  SetInitState(0x000a0671, &sregs, &regs, &debug, &events);
  EXPECT_EQ(sregs.cr0 & 0x80000001, 0u);
  EXPECT_EQ(sregs.efer, 0u);
  EXPECT_EQ(sregs.cs.base, 0xffff0000u);
  EXPECT_EQ(regs.rip, 0xfff0u);
  EXPECT_EQ(regs.rax, 0u);
  EXPECT_EQ(regs.rdx, 0x000a0671u);
  EXPECT_EQ(debug.dr7, 0x400u);
  EXPECT_EQ(events.nmi.pending, 0);
  SetSipiState(0x99, &sregs, &regs);
  EXPECT_EQ(sregs.cs.selector, 0x9900);
  EXPECT_EQ(sregs.cs.base, 0x99000u);
  EXPECT_EQ(regs.rip, 0u);
}

}  // namespace
}  // namespace hk
