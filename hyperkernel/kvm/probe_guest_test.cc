#include "hyperkernel/kvm/probe_guest.h"

#include <fcntl.h>

#include <chrono>
#include <cstring>
#include <iostream>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/hang_guard.h"
#include "hyperkernel/base/probe_testing.h"
#include "hyperkernel/kvm/stock_kernel_programs.h"

namespace hk {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Every test here needs a KVM that runs at least plain integer code; software KVM does.
class ProbeGuestTest : public testing::Test {
 protected:
  void SetUp() override {
    kvm_ = OwnedFd(open("/dev/kvm", O_RDWR | O_CLOEXEC));
    if (!kvm_.valid()) GTEST_SKIP() << "no usable /dev/kvm: " << std::strerror(errno);
  }
  ProbeGuestRun Run(std::span<const uint8_t> program, milliseconds time = HangGuard(), uint32_t ticks = 1) {
    auto start = steady_clock::now();
    auto run = RunProbeGuest(kvm_.get(), program, {.time = time, .ticks = ticks});
    took_ = steady_clock::now() - start;
    EXPECT_TRUE(run.ok()) << run.status();
    return run.ok() ? *run : ProbeGuestRun();
  }

  OwnedFd kvm_;
  steady_clock::duration took_{};
};

TEST_F(ProbeGuestTest, LongModeWithPagingPasses) {
  ProbeGuestRun run = Run(kLongModeProgram);
  EXPECT_EQ(run.end, ProbeGuestEnd::kPassed) << run.how;
  EXPECT_EQ(run.how, "");
}

TEST_F(ProbeGuestTest, WrongResultIsReported) {
  const std::vector<uint8_t> program = {0xb0, 0x02, 0xe6, 0x10, 0xf4};  // mov al, kWrongResult; out; hlt
  EXPECT_EQ(Run(program).end, ProbeGuestEnd::kWrongResult);
}

TEST_F(ProbeGuestTest, InvalidOpcodeIsAnExceptionOrAnEmulationFailure) {
  const std::vector<uint8_t> program = {0x0f, 0x0b};  // ud2
  ProbeGuestRun run = Run(program);
  EXPECT_THAT(run.end, testing::AnyOf(ProbeGuestEnd::kException, ProbeGuestEnd::kInternalError)) << run.how;
  if (run.end == ProbeGuestEnd::kException) {
    EXPECT_THAT(run.how, testing::HasSubstr("exception 6 "));
  }
}

TEST_F(ProbeGuestTest, TripleFaultIsAShutdown) {
  const std::vector<uint8_t> program = {0x6a, 0x00, 0x6a, 0x00,                    // push 0; push 0
                                        0x0f, 0x01, 0x1c, 0x24,                    // lidt [rsp]
                                        0x8b, 0x04, 0x25, 0x00, 0x00, 0x00, 0x30,  // mov eax, [0x30000000], not mapped
                                        0xf4};
  ProbeGuestRun run = Run(program);
  EXPECT_EQ(run.end, ProbeGuestEnd::kShutdown) << run.how;
}

TEST_F(ProbeGuestTest, PageFaultIsAnException) {
  const std::vector<uint8_t> program = {0x8b, 0x04, 0x25, 0x00, 0x00, 0x00, 0x30, 0xf4};  // mov eax, [0x30000000]
  ProbeGuestRun run = Run(program);
  EXPECT_EQ(run.end, ProbeGuestEnd::kException) << run.how;
  EXPECT_THAT(run.how, testing::HasSubstr("exception 14 "));
}

TEST_F(ProbeGuestTest, EndlessLoopWithoutExitsEndsAtTheDeadline) {
  const std::vector<uint8_t> program = {0xeb, 0xfe};  // 1: jmp 1b
  ProbeGuestRun run = Run(program, milliseconds(100));
  EXPECT_EQ(run.end, ProbeGuestEnd::kDeadline) << run.how;
  EXPECT_GE(took_, milliseconds(100));
  EXPECT_LT(took_, HangGuard());
}

TEST_F(ProbeGuestTest, EndlessExitsEndAtTheDeadline) {
  const std::vector<uint8_t> program = {0xb0, 0x03, 0xe6, 0x10, 0xeb, 0xfa};  // 1: mov al, kTick; out; jmp 1b
  ProbeGuestRun run = Run(program, milliseconds(1000), UINT32_MAX);
  EXPECT_EQ(run.end, ProbeGuestEnd::kDeadline) << run.how;
  EXPECT_GT(run.ticks, 0u);
  EXPECT_LT(took_, HangGuard());
}

TEST_F(ProbeGuestTest, HaltAndUnknownPortsAreUnexpected) {
  const std::vector<uint8_t> halt = {0xf4};
  EXPECT_EQ(Run(halt).end, ProbeGuestEnd::kUnexpectedExit);
  const std::vector<uint8_t> input = {0xe4, 0x10};  // in al, kProbeGuestPort
  EXPECT_EQ(Run(input).end, ProbeGuestEnd::kUnexpectedExit);
  const std::vector<uint8_t> unknown_word = {0xb0, 0x77, 0xe6, 0x10};
  EXPECT_EQ(Run(unknown_word).end, ProbeGuestEnd::kUnexpectedExit);
}

TEST_F(ProbeGuestTest, TicksEndTheRunAndAreTimed) {
  ProbeGuestRun run = Run(kSpeedProgram, milliseconds(1000), 3);
  ASSERT_THAT(run.end, testing::AnyOf(ProbeGuestEnd::kTicks, ProbeGuestEnd::kDeadline)) << run.how;
  if (run.end == ProbeGuestEnd::kTicks) {
    EXPECT_EQ(run.ticks, 3u);
  }
  if (run.ticks > 0) {
    std::cout << "fastest tick: " << run.fastest_tick.count() / 1000 << " us, "
              << kSpeedInstructionsPerTick * 1e3 / static_cast<double>(run.fastest_tick.count())
              << " M instructions/s\n";
  }
}

TEST_F(ProbeGuestTest, NotAKvmDeviceIsAnError) {
  OwnedFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  auto run = RunProbeGuest(null.get(), kLongModeProgram, {});
  ASSERT_FALSE(run.ok());
  EXPECT_THAT(std::string(run.status().message()), testing::HasSubstr("KVM_CREATE_VM"));
}

TEST_F(ProbeGuestTest, LeavesNothingBehind) {
  const std::vector<uint8_t> endless = {0xeb, 0xfe};
  ExpectLeavesNothingBehind([&] { Run(endless, milliseconds(20)); });
}

}  // namespace
}  // namespace hk
