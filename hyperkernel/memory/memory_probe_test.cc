#include "hyperkernel/memory/memory_probe.h"

#include <linux/userfaultfd.h>

#include <algorithm>
#include <chrono>

#include "gtest/gtest.h"
#include "hyperkernel/base/probe_testing.h"
#include "hyperkernel/memory/userfaultfd_probe.h"
#include "hyperkernel/memory/userfaultfd_trial.h"

namespace hk {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;

TEST(MemoryProbeTest, AnswersAreWellFormed) {
  const ProbeItems items = ProbeMemory();
  PrintProbe(items);
  ExpectWellFormed(items);
}

TEST(MemoryProbeTest, LeavesNothingBehind) {
  ExpectLeavesNothingBehind([] { ProbeMemory(); });
}

TEST(UserfaultfdProbeTest, AnswersAreWellFormedAndInTime) {
  const auto start = steady_clock::now();
  const ProbeItems items = ProbeUserfaultfd();
  EXPECT_LT(steady_clock::now() - start, seconds(3));
  PrintProbe(items);
  ExpectWellFormed(items);
  EXPECT_EQ(std::ranges::count(items, "userfaultfd with kernel-mode faults", &ProbeItem::name), 1);
}

TEST(UserfaultfdProbeTest, LeavesNothingBehind) {
  ExpectLeavesNothingBehind([] { ProbeUserfaultfd(); });
}

// Where the kernel says it has what the design needs, the trials must pass: a failure here is a bug of theirs or of
// ours.
TEST(UserfaultfdTrialTest, AgreesWithTheFeatures) {
  auto opened = OpenKernelModeUserfaultfd();
  if (!opened.ok()) GTEST_SKIP() << "no userfaultfd for kernel-mode faults: " << opened.status();
  auto features = UserfaultfdHandshake(opened->fd.get(), 0);
  ASSERT_TRUE(features.ok()) << features.status();
  if ((*features & UFFD_FEATURE_SIGBUS) == 0 || (*features & UFFD_FEATURE_WP_HUGETLBFS_SHMEM) == 0) {
    GTEST_SKIP() << "features are only " << std::hex << *features;
  }
  const UserfaultfdTrial trial = TryFaults();
  EXPECT_TRUE(trial.registers.ok()) << trial.registers;
  EXPECT_TRUE(trial.missing.ok()) << trial.missing;
  EXPECT_TRUE(trial.write_protect.ok()) << trial.write_protect;
  EXPECT_TRUE(trial.rearm.ok()) << trial.rearm;
  const absl::Status sigbus = TrySigbusMapping();
  EXPECT_TRUE(sigbus.ok()) << sigbus;
}

TEST(UserfaultfdTrialTest, UnknownFeatureIsRefused) {
  auto opened = OpenKernelModeUserfaultfd();
  if (!opened.ok()) GTEST_SKIP() << "no userfaultfd for kernel-mode faults: " << opened.status();
  EXPECT_FALSE(UserfaultfdHandshake(opened->fd.get(), uint64_t{1} << 63).ok());
}

}  // namespace
}  // namespace hk
