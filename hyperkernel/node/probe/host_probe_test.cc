#include "hyperkernel/node/probe/host_probe.h"

#include <chrono>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/probe_testing.h"
#include "hyperkernel/node/probe/host_parts.h"

namespace hk {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;

// Group names in order of appearance, each run of equal ones once.
std::vector<std::string> Groups(const ProbeItems& items) {
  std::vector<std::string> groups;
  for (const ProbeItem& item : items) {
    if (groups.empty() || groups.back() != item.group) groups.push_back(item.group);
  }
  return groups;
}

TEST(HostProbeTest, AnswersAreWellFormedAndInOrder) {
  const auto start = steady_clock::now();
  const ProbeItems items = ProbeHost();
  EXPECT_LT(steady_clock::now() - start, seconds(10));
  PrintProbe(items);
  ExpectWellFormed(items);
  EXPECT_THAT(Groups(items),
              testing::ElementsAre("host", "kvm", "userfaultfd", "memory", "io_uring", "verbs", "network", "clock"));
}

TEST(HostProbeTest, PartsLeaveNothingBehind) {
  ExpectLeavesNothingBehind([] {
    ProbeHostFacts();
    ProbeIoUring();
    ProbeNetwork();
    ProbeClock();
  });
}

TEST(HostProbeTest, LeavesNothingBehind) {
  ExpectLeavesNothingBehind([] { ProbeHost(); });
}

TEST(HostProbeTest, LeavesNoInterface) {
  auto interfaces = [] {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator("/sys/class/net")) {
      names.push_back(entry.path().filename().string());
    }
    return names;
  };
  const std::vector<std::string> before = interfaces();
  ProbeNetwork();
  EXPECT_THAT(interfaces(), testing::UnorderedElementsAreArray(before));
}

// The daemon may be asked by two operators at once.
TEST(HostProbeTest, CallsAtTheSameTimeGiveTheSameQuestions) {
  ProbeItems first, second;
  std::thread other([&] { first = ProbeHost(); });
  second = ProbeHost();
  other.join();
  ASSERT_EQ(first.size(), second.size());
  for (size_t i = 0; i < first.size(); ++i) EXPECT_EQ(first[i].name, second[i].name);
}

}  // namespace
}  // namespace hk
