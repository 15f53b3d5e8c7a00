#include "hyperkernel/node/vm_spec.h"

#include <google/protobuf/text_format.h>

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

v1::VmSpec Parse(const std::string& text) {
  v1::VmSpec spec;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &spec)) << text;
  return spec;
}

TEST(VmSpec, DefaultsAreFilledIn) {
  const auto spec = CompleteVmSpec(Parse("name: 'a' memory_mib: 64 kernel: '/k'"));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->vcpus(), 1u);
  EXPECT_EQ(spec->cpu().profile(), "host");
}

TEST(VmSpec, EachBadFieldGetsItsOneLine) {
  const std::string long_line(2048, 'x');
  const struct {
    std::string text, begins;
  } cases[] = {
      {"memory_mib: 64 kernel: '/k'", "name:"},
      {"name: 'A' memory_mib: 64 kernel: '/k'", "name:"},
      {"name: 'a' kernel: '/k'", "memory_mib:"},
      {"name: 'a' memory_mib: 31 kernel: '/k'", "memory_mib:"},
      {"name: 'a' memory_mib: 4294967297 kernel: '/k'", "memory_mib:"},
      {"name: 'a' memory_mib: 64 vcpus: 256 kernel: '/k'", "vcpus:"},
      {"name: 'a' memory_mib: 64", "kernel:"},
      {"name: 'a' memory_mib: 64 kernel: 'k'", "kernel:"},
      {"name: 'a' memory_mib: 64 kernel: '/k' initrd: 'i'", "initrd:"},
      {"name: 'a' memory_mib: 64 kernel: '/k' cmdline: '" + long_line + "'", "cmdline:"},
      {"name: 'a' memory_mib: 64 kernel: '/k' cpu { profile: 'fast' }", "cpu.profile:"},
      {"name: 'a' memory_mib: 64 kernel: '/k' disks { path: 'x' }", "disks[0].path:"},
      {"name: 'a' memory_mib: 64 kernel: '/k' disks { path: '/x' } disks { path: '/x' }", "disks[1].path:"},
      {"name: 'a' memory_mib: 64 kernel: '/k' disks { path: '/x' serial: '123456789012345678901' }",
       "disks[0].serial:"},
  };
  for (const auto& bad : cases) {
    const std::string message = MessageOf(CompleteVmSpec(Parse(bad.text)).status());
    EXPECT_THAT(message, testing::StartsWith(bad.begins)) << bad.text;
    EXPECT_THAT(message, testing::Not(testing::HasSubstr("\n")));
  }
}

}  // namespace
}  // namespace hk
