#include "hyperkernel/node/machine_backends.h"

#include <google/protobuf/text_format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

class MachineBackendsTest : public testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/hk_machine_backends_test.XXXXXX";
    ASSERT_NE(::mkdtemp(pattern), nullptr);
    directory_ = pattern;
    std::ofstream(Path("disk")) << std::string(4096, 'd');
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  std::string Path(const std::string& name) const { return directory_ + "/" + name; }
  absl::StatusOr<MachineBackends> Open(const std::string& text) {
    v1::VmSpec spec;
    EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &spec)) << text;
    for (v1::DiskSpec& disk : *spec.mutable_disks()) {
      disk.set_path(Path(disk.path()));
      disk.set_cache(v1::DISK_CACHE_BUFFERED);
    }
    return MachineBackends::Open(spec);
  }
  std::string Refusal(const std::string& text) { return MessageOf(Open(text).status()); }

  std::string directory_;
};

TEST_F(MachineBackendsTest, DisksAreOpenedInOrderAndLetGo) {
  std::ofstream(Path("large")) << std::string(8192, 'l');
  {
    const auto backends = Open("disks { path: 'disk' } disks { path: 'large' readonly: true }");
    ASSERT_TRUE(backends.ok()) << backends.status();
    ASSERT_EQ(backends->disks.size(), 2u);
    EXPECT_EQ(backends->disks[0].bytes, 4096u);
    EXPECT_TRUE(backends->disks[1].read_only);
    EXPECT_THAT(Refusal("disks { path: 'large' readonly: true } disks { path: 'disk' }"),
                testing::StartsWith("disks[1].path: " + Path("disk") + ": in use"));
    EXPECT_TRUE(Open("disks { path: 'large' readonly: true }").ok());
    EXPECT_THAT(Refusal("disks { path: 'large' readonly: true exclusive: true }"), testing::HasSubstr("in use"));
  }
  EXPECT_TRUE(Open("disks { path: 'disk' }").ok());
}

TEST_F(MachineBackendsTest, TwoNamesOfOneImageAreOneImage) {
  std::filesystem::create_symlink(Path("disk"), Path("link"));
  EXPECT_THAT(Refusal("disks { path: 'disk' } disks { path: 'link' }"), testing::StartsWith("disks[1].path: "));
}

TEST_F(MachineBackendsTest, RefusalsNameFieldAndObject) {
  ASSERT_EQ(::mkfifo(Path("fifo").c_str(), 0600), 0);
  std::ofstream(Path("odd")) << std::string(513, 'o');
  std::ofstream(Path("empty"));
  const struct {
    std::string text, line;
  } cases[] = {
      {"disks { path: 'none' }",
       "disks[0].path: " + Path("none") + ": No such file or directory (ENOENT); it is to be on the I/O node"},
      {"disks { path: 'fifo' }", "disks[0].path: " + Path("fifo") + ": neither a regular file nor a block device"},
      {"disks { path: 'odd' }",
       "disks[0].path: " + Path("odd") + ": 513 bytes is not a disk of whole 512-byte sectors"},
      {"disks { path: 'empty' }", "disks[0].path: " + Path("empty") + ": 0 bytes"},
      {"nets { tap: 'lo' }", "nets[0].tap: lo: "},
      {"nets { bridge: 'lo' }", "nets[0].bridge: lo: not a bridge"},
      {"nets { bridge: 'hk-no-such-br' }", "nets[0].bridge: hk-no-such-br: no such interface"},
  };
  for (const auto& bad : cases) {
    const std::string message = Refusal(bad.text);
    EXPECT_THAT(message, testing::StartsWith(bad.line));
    EXPECT_THAT(message, testing::Not(testing::HasSubstr("\n")));
  }
}

}  // namespace
}  // namespace hk
