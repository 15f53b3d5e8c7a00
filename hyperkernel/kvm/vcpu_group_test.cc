#include "hyperkernel/kvm/vcpu_group.h"

#include <atomic>
#include <chrono>
#include <iostream>
#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/probe_testing.h"
#include "hyperkernel/kvm/controller_guest.h"
#include "hyperkernel/kvm/guest_harness.h"

namespace hk {
namespace {

using std::chrono::milliseconds;

const milliseconds kProgramLimit = HangGuard();
constexpr int kRenewals = 50;

// Needs a KVM that runs at least plain integer code.
class VcpuGroupTest : public KvmTest {};

// Programs of tests/guest that need no fake: our own controllers in the loop.
struct Program {
  const char* name;
  uint32_t vcpus;
  bool x2apic = true;
};

class ControllerProgramTest : public VcpuGroupTest, public testing::WithParamInterface<Program> {};

TEST_P(ControllerProgramTest, Passes) {
  ControllerGuest guest(GetParam().name, GetParam().vcpus, GetParam().x2apic);
  guest.Start();
  EXPECT_EQ(guest.devices.WaitForEnd(kProgramLimit), FakeDevices::End::kPassed)
      << "step " << guest.devices.step() << " " << guest.devices.reason();
}

INSTANTIATE_TEST_SUITE_P(All, ControllerProgramTest,
                         testing::Values(Program{"apic", 1}, Program{"io_apic", 1}, Program{"xapic", 1, false},
                                         Program{"timer", 1}, Program{"ipi", 2}, Program{"msr", 1},
                                         Program{"paging", 1}, Program{"port_io", 1}, Program{"pv_eoi", 1},
                                         Program{"fault_interrupt", 1}),
                         [](const auto& test) { return std::string(test.param.name); });

TEST_F(VcpuGroupTest, AnOperatorsNmiWakesAHaltedVcpu) {
  ControllerGuest guest("nmi");
  guest.Start();
  ASSERT_TRUE(
      Eventually([&] { return guest.vcpus.counters(VcpuId(0)).exits[static_cast<size_t>(VcpuExit::kHalt)] != 0; }));
  EXPECT_TRUE(guest.controller.InjectNmi(VcpuId(0)));
  EXPECT_EQ(guest.devices.WaitForEnd(kProgramLimit), FakeDevices::End::kPassed)
      << "step " << guest.devices.step() << " " << guest.devices.reason();
}

// Renews again and again while the guest runs; it ticks between any two, and finds nothing wrong.
void RenewMany(ControllerGuest* guest) {
  guest->Start();
  for (int i = 0; i < kRenewals; ++i) {
    SCOPED_TRACE(i);
    // Some of the renewals right behind one another, the others in different phases of the program.
    const uint64_t more = i % 5 == 0 ? 0 : static_cast<uint64_t>(i % 7);
    ASSERT_TRUE(guest->devices.WaitForTicks(guest->devices.ticks() + more, kProgramLimit))
        << "step " << guest->devices.step() << " " << guest->devices.reason();
    const absl::Status renewed = guest->Renew();
    ASSERT_TRUE(renewed.ok()) << renewed;
  }
  EXPECT_TRUE(guest->devices.WaitForTicks(guest->devices.ticks() + 20, kProgramLimit))
      << "step " << guest->devices.step() << " " << guest->devices.reason();
  EXPECT_EQ(guest->devices.WaitForEnd(milliseconds(0)), FakeDevices::End::kNone)
      << "step " << guest->devices.step() << " " << guest->devices.reason();
}

// A guest of two vCPUs, each in a group and a VM of its own, as on two nodes; one controller, so it is about the
// groups.
class SplitGuest final : public VcpuWaker {
 public:
  explicit SplitGuest(const std::string& program) : ram(program) {
    devices.interrupts = &controller;
    for (const uint32_t which : {0u, 1u}) {
      auto vm = Vm::Create(2);
      HK_CHECK(vm.ok() && (*vm)->AddMemory({.start = Gpa(0), .bytes = kGuestBytes, .host = ram.data()}).ok());
      const auto model = CpuModel::Create((*vm)->facts().cpuid, ReadHostCpu(), {});
      HK_CHECK(model.ok());
      HK_CHECK(Group(which)
                   .Create(*std::move(vm), {{.id = VcpuId(which), .cpuid = model->Cpuid(which, 2)}},
                           [this](VcpuId id) {
                             return VcpuEnvironment{.devices = &devices, .interrupts = &controller.vcpu(id)};
                           })
                   .ok());
    }
  }
  ~SplitGuest() override {
    for (VcpuGroup* const group : {&first, &second}) EXPECT_TRUE(group->Stop(Guard()).ok());
    for (VcpuGroup* const group : {&first, &second}) group->Clear();
  }
  void Wake(VcpuId vcpu) override {
    first.Wake(vcpu);
    second.Wake(vcpu);
  }
  VcpuGroup& Group(uint32_t which) { return which == 0 ? first : second; }

  Board devices;
  GuestRam ram;
  VcpuGroup first{2}, second{2};
  InterruptController controller{{.vcpus = 2, .x2apic = true}, &RealClock(), this};
};

TEST_F(VcpuGroupTest, APartOfTheVcpus) {
  SplitGuest guest("ipi_steady");
  // One that is not here: nobody is woken, nothing is counted.
  guest.first.Wake(VcpuId(1));
  EXPECT_EQ(guest.first.counters(VcpuId(1)).exits, VcpuCounters().exits);
  ASSERT_TRUE(guest.second.Resume().ok());
  ASSERT_TRUE(guest.first.Start(GuestRam::Entry(), Guard()).ok());
  for (int i = 0; i < 10; i++) {
    SCOPED_TRACE(i);
    ASSERT_TRUE(guest.devices.WaitForTicks(guest.devices.ticks() + 3, kProgramLimit))
        << "step " << guest.devices.step() << " " << guest.devices.reason();
    // Each is held alone, and renewed while the other runs.
    VcpuGroup& group = guest.Group(static_cast<uint32_t>(i % 2));
    ASSERT_TRUE(group.Pause(Guard()).ok());
    ASSERT_TRUE(group.Resume().ok());
    ASSERT_TRUE(group.Renew([](Vm*) { return absl::OkStatus(); }, Guard()).ok());
  }
  EXPECT_TRUE(guest.devices.WaitForTicks(guest.devices.ticks() + 3, kProgramLimit))
      << "step " << guest.devices.step() << " " << guest.devices.reason();
  EXPECT_EQ(guest.devices.WaitForEnd(milliseconds(0)), FakeDevices::End::kNone) << guest.devices.reason();
  EXPECT_NE(guest.first.exits(), 0u);
  EXPECT_NE(guest.second.exits(), 0u);
}

TEST_F(VcpuGroupTest, RenewedBetweenTimersAndHalts) {
  ControllerGuest guest("timer_steady");
  RenewMany(&guest);
}

TEST_F(VcpuGroupTest, RenewedWhileIpisFly) {
  ControllerGuest guest("ipi_steady", 2);
  RenewMany(&guest);
}

// The registers of an unfinished exit.
TEST_F(VcpuGroupTest, RenewedBetweenExits) {
  ControllerGuest guest("count");
  RenewMany(&guest);
}

TEST_F(VcpuGroupTest, PausedStaysPausedAndWaitingForSipiStaysSo) {
  ControllerGuest guest("ipi_steady", 2);
  // Before the start: the second vCPU waits for a SIPI, which comes without INIT.
  ASSERT_TRUE(guest.Renew().ok());
  guest.Start();
  ASSERT_TRUE(guest.devices.WaitForTicks(3, kProgramLimit)) << "step " << guest.devices.step();
  ASSERT_TRUE(guest.vcpus.Pause(Guard()).ok());
  const uint64_t ticks = guest.devices.ticks();
  const uint64_t exits = guest.vcpus.exits();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(guest.Renew().ok());
  EXPECT_EQ(guest.devices.ticks(), ticks);
  EXPECT_EQ(guest.vcpus.exits(), exits);
  ASSERT_TRUE(guest.vcpus.Resume().ok());
  EXPECT_TRUE(guest.devices.WaitForTicks(ticks + 3, kProgramLimit)) << "step " << guest.devices.step();
  EXPECT_GT(guest.vcpus.exits(), exits);
}

TEST_F(VcpuGroupTest, ARenewalThatFailsChangesNothing) {
  ControllerGuest guest("ipi_steady", 2);
  guest.Start();
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(guest.devices.WaitForTicks(guest.devices.ticks() + 2, kProgramLimit))
        << "step " << guest.devices.step();
    const absl::Status refused = guest.vcpus.Renew([](Vm*) { return absl::InternalError("no interrupts"); }, Guard());
    EXPECT_EQ(refused.message(), "no interrupts");
  }
  ASSERT_TRUE(guest.Renew().ok());
  EXPECT_TRUE(guest.devices.WaitForTicks(guest.devices.ticks() + 3, kProgramLimit)) << "step " << guest.devices.step();
}

// A device that does not answer holds its vCPU: neither a renewal nor a pause comes in time, and the guest goes on.
TEST_F(VcpuGroupTest, WhatMissesItsDeadlineChangesNothing) {
  ControllerGuest guest("spin_ports");
  std::atomic<bool> hold = true, held = false;
  guest.devices.on_tick = [&] {
    while (hold) {
      held = true;
      std::this_thread::sleep_for(milliseconds(1));
    }
  };
  guest.Start();
  ASSERT_TRUE(Eventually([&] { return held.load(); }));
  EXPECT_EQ(guest.vcpus.Renew([](Vm*) { return absl::OkStatus(); }, After(milliseconds(30))).code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(guest.vcpus.Pause(After(milliseconds(30))).code(), absl::StatusCode::kDeadlineExceeded);
  hold = false;
  EXPECT_TRUE(guest.devices.WaitForTicks(guest.devices.ticks() + 5, kProgramLimit));
  EXPECT_TRUE(guest.Renew().ok());
  EXPECT_TRUE(guest.devices.WaitForTicks(guest.devices.ticks() + 5, kProgramLimit));
}

TEST_F(VcpuGroupTest, AGuestThatHasFailedIsNotRenewed) {
  ControllerGuest guest("triple_fault");
  guest.Start();
  ASSERT_EQ(guest.devices.WaitForEnd(kProgramLimit), FakeDevices::End::kGuestFailure);
  const absl::Status refused = guest.Renew();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), testing::HasSubstr("triple fault"));
}

// Whoever wakes a vCPU may go on while it is renewed or gone.
TEST_F(VcpuGroupTest, WakingNeverMeetsAVcpuThatIsGone) {
  ControllerGuest guest("ipi_steady", 2);
  guest.Start();
  std::atomic<bool> stop = false;
  std::thread waker([&] {
    for (uint32_t i = 0; !stop; ++i) guest.vcpus.Wake(VcpuId(i % 2));
  });
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(guest.Renew().ok());
  EXPECT_TRUE(guest.vcpus.Stop(Guard()).ok());
  guest.vcpus.Clear();
  EXPECT_GT(guest.vcpus.exits(), 0u);
  stop = true;
  waker.join();
}

TEST_F(VcpuGroupTest, LeavesNothingBehind) {
  ExpectLeavesNothingBehind([] {
    ControllerGuest guest("timer_steady");
    guest.Start();
    const size_t before = CurrentProcessState().descriptors;
    for (int i = 0; i < 5; ++i) EXPECT_TRUE(guest.Renew().ok());
    EXPECT_EQ(CurrentProcessState().descriptors, before);
    EXPECT_TRUE(guest.devices.WaitForTicks(guest.devices.ticks() + 3, kProgramLimit))
        << "step " << guest.devices.step() << " " << guest.devices.reason();
  });
}

}  // namespace
}  // namespace hk
