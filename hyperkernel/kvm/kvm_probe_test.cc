#include "hyperkernel/kvm/kvm_probe.h"

#include <fcntl.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <iostream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/base/probe_testing.h"

namespace hk {
namespace {

using std::chrono::steady_clock;

TEST(KvmProbeTest, AnswersAreWellFormedAndInTime) {
  const auto start = steady_clock::now();
  const ProbeItems items = ProbeKvm();
  EXPECT_LT(steady_clock::now() - start, kKvmProbeLimit);
  PrintProbe(items);
  ExpectWellFormed(items);
  EXPECT_EQ(std::ranges::count(items, "runs a stock kernel", &ProbeItem::name), 1);
  EXPECT_TRUE(std::ranges::all_of(items, [](const ProbeItem& item) { return item.group == "kvm"; }));
}

TEST(KvmProbeTest, VerdictAgreesWithTheFigure) {
  OwnedFd kvm(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!kvm.valid()) GTEST_SKIP() << "no usable /dev/kvm: " << std::strerror(errno);
  const StockKernelVerdict verdict = RunsStockKernel(kvm.get());
  std::cout << verdict.instructions_per_second / 1e6 << " million instructions/s\n";
  EXPECT_NE(verdict.why, "");
  if (verdict.runs) {
    EXPECT_GE(verdict.instructions_per_second, kStockKernelInstructionsPerSecond);
  }
}

TEST(KvmProbeTest, WithoutKvmTheVerdictIsNoAndSaysWhy) {
  OwnedFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  const StockKernelVerdict verdict = RunsStockKernel(null.get());
  EXPECT_FALSE(verdict.runs);
  EXPECT_THAT(verdict.why, testing::HasSubstr("KVM_CREATE_VM"));
  EXPECT_EQ(verdict.instructions_per_second, 0);
}

TEST(KvmProbeTest, LeavesNothingBehind) {
  ExpectLeavesNothingBehind([] { ProbeKvm(); });
}

}  // namespace
}  // namespace hk
