// Exits without a guest: a run page made by hand. What guests can cause is tested with guests (vcpu_test.cc).
#include "hyperkernel/kvm/vcpu_exits.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/kvm/guest_harness.h"

namespace hk {
namespace {

using testing::HasSubstr;
using Next = VcpuExits::Next;

class VcpuExitsTest : public testing::Test {
 protected:
  VcpuExitsTest() {
    auto page = Mapping::Create(8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, "run page");
    HK_CHECK(page.ok());
    vcpu_ = VcpuFd(OwnedFd(), *std::move(page));
  }
  kvm_run& run() { return *vcpu_.run(); }
  Next Handle(uint32_t reason) {
    run().exit_reason = reason;
    return exits_.Handle(vcpu_);
  }

  FakeDevices devices_;
  FakeApic apic_{0};
  PvEoi eoi_{nullptr};
  VcpuFd vcpu_;
  VcpuExits exits_{VcpuId(2), &devices_, &apic_, nullptr, &eoi_};
};

TEST_F(VcpuExitsTest, EveryEndHasAReason) {
  EXPECT_EQ(Handle(KVM_EXIT_SHUTDOWN), Next::kFail);
  EXPECT_EQ(exits_.failure(), "vCPU 2: triple fault");
  run().fail_entry.hardware_entry_failure_reason = 0x80000021;
  EXPECT_EQ(Handle(KVM_EXIT_FAIL_ENTRY), Next::kFail);
  EXPECT_THAT(exits_.failure(), HasSubstr("refused to enter the guest, reason 0x80000021"));
  run().internal.suberror = KVM_INTERNAL_ERROR_EMULATION;
  run().internal.ndata = UINT32_MAX;  // the array has 16
  EXPECT_EQ(Handle(KVM_EXIT_INTERNAL_ERROR), Next::kFail);
  EXPECT_THAT(exits_.failure(), HasSubstr("KVM internal error 1, instruction emulation failed: 0x"));
  run().system_event.type = 3;
  EXPECT_EQ(Handle(KVM_EXIT_SYSTEM_EVENT), Next::kFail);
  EXPECT_THAT(exits_.failure(), HasSubstr("KVM system event 3"));
  EXPECT_EQ(Handle(KVM_EXIT_DEBUG), Next::kFail);
  EXPECT_EQ(Handle(4711), Next::kFail);
  EXPECT_THAT(exits_.failure(), HasSubstr("KVM exit 4711"));
  EXPECT_EQ(exits_.Snapshot().exits[static_cast<size_t>(VcpuExit::kFailure)], 5u);
  EXPECT_EQ(exits_.Snapshot().exits[static_cast<size_t>(VcpuExit::kOther)], 1u);
}

TEST_F(VcpuExitsTest, RunErrorsNameTheErrorAndTheAddress) {
  EXPECT_EQ(exits_.HandleRunError(vcpu_, ENOMEM), Next::kFail);
  EXPECT_THAT(exits_.failure(), HasSubstr("ENOMEM"));
  run().exit_reason = 39;  // KVM_EXIT_MEMORY_FAULT: flags, gpa, size
  const uint64_t fault[3] = {0, 0x123000, 4096};
  std::memcpy(&run().hw, fault, sizeof(fault));
  EXPECT_EQ(exits_.HandleRunError(vcpu_, EFAULT), Next::kFail);
  EXPECT_THAT(exits_.failure(), HasSubstr("guest-physical address 0x123000"));
}

TEST_F(VcpuExitsTest, PortDataOutsideTheRunPageIsRefused) {
  auto& io = run().io;
  io.direction = KVM_EXIT_IO_IN;
  io.port = 0x20;
  io.size = 4;
  io.count = 1;
  io.data_offset = 8192 - 3;
  EXPECT_EQ(Handle(KVM_EXIT_IO), Next::kFail);
  io.data_offset = UINT64_MAX - 1;
  EXPECT_EQ(Handle(KVM_EXIT_IO), Next::kFail);
  io.data_offset = 4096;
  io.count = 1025;
  EXPECT_EQ(Handle(KVM_EXIT_IO), Next::kFail);
  io.count = 1024;
  EXPECT_EQ(Handle(KVM_EXIT_IO), Next::kRun);
  io.size = 0;
  EXPECT_EQ(Handle(KVM_EXIT_IO), Next::kFail);
}

TEST_F(VcpuExitsTest, EightByteAndOddApicAccessesReadZero) {
  auto& mmio = run().mmio;
  mmio.phys_addr = 0xfee00020;
  mmio.len = 8;
  std::memset(mmio.data, 0xcc, sizeof(mmio.data));
  EXPECT_EQ(Handle(KVM_EXIT_MMIO), Next::kRun);
  uint64_t value = 1;
  std::memcpy(&value, mmio.data, sizeof(value));
  EXPECT_EQ(value, 0u);
  mmio.len = 4;
  EXPECT_EQ(Handle(KVM_EXIT_MMIO), Next::kRun);
  std::memcpy(&value, mmio.data, sizeof(value));
  EXPECT_EQ(value, 0x600du);
}

TEST_F(VcpuExitsTest, UnknownMsrsFaultWithoutAClock) {
  run().msr.index = kMsrKvmSystemTime;
  EXPECT_EQ(Handle(KVM_EXIT_X86_WRMSR), Next::kRun);
  EXPECT_EQ(run().msr.error, 1);
  EXPECT_EQ(Handle(KVM_EXIT_X86_RDMSR), Next::kRun);
  EXPECT_EQ(run().msr.error, 1);
  EXPECT_EQ(exits_.Snapshot().unknown_msrs, 2u);
  run().msr.index = 0x802;
  EXPECT_EQ(Handle(KVM_EXIT_X86_RDMSR), Next::kRun);
  EXPECT_EQ(run().msr.error, 0);
}

TEST_F(VcpuExitsTest, EveryExitHasAName) {
  for (size_t i = 0; i < kVcpuExits; ++i) EXPECT_FALSE(NameOf(static_cast<VcpuExit>(i)).empty());
}

}  // namespace
}  // namespace hk
