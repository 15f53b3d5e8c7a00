#include "rdma/verbs_probe.h"

#include <algorithm>
#include <iostream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/probe_testing.h"
#include "rdma/verbs_device.h"

namespace hk {
namespace {

TEST(VerbsProbeTest, AnswersAreWellFormed) {
  const ProbeItems items = ProbeVerbs();
  PrintProbe(items);
  ExpectWellFormed(items);
}

TEST(VerbsProbeTest, SummaryAgreesWithTheList) {
  auto devices = ListVerbsDevices();
  ASSERT_TRUE(devices.ok()) << devices.status();
  const ProbeItems items = ProbeVerbs();
  ASSERT_FALSE(items.empty());
  EXPECT_EQ(items[0].name, "active verbs device");
  EXPECT_EQ(items[0].yes, std::ranges::any_of(*devices, &VerbsDevice::active));
  for (const VerbsDevice& device : *devices) {
    std::cout << device.name << " active=" << device.active << " netdev=" << device.netdev << "\n";
    EXPECT_EQ(std::ranges::count(items, device.name + ": opens", &ProbeItem::name), 1);
  }
  if (devices->empty()) GTEST_SKIP() << "no verbs device here: the answers per device are not looked at";
  // The port as /sys shows it and as the verbs library does.
  for (const VerbsDevice& device : *devices) {
    auto port = std::ranges::find(items, device.name + ": port", &ProbeItem::name);
    if (port != items.end()) {
      EXPECT_EQ(port->yes, device.active) << port->detail;
    }
  }
}

TEST(VerbsProbeTest, KeepsStandardErrorClean) {
  testing::internal::CaptureStderr();
  ProbeVerbs();
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST(VerbsProbeTest, LeavesNothingBehind) {
  ExpectLeavesNothingBehind([] { ProbeVerbs(); });
}

}  // namespace
}  // namespace hk
