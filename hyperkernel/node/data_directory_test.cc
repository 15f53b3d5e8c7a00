#include "hyperkernel/node/data_directory.h"

#include <unistd.h>

#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/file.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

using testing::HasSubstr;

class DataDirectoryTest : public testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/hk_data_directory_test.XXXXXX";
    ASSERT_NE(::mkdtemp(pattern), nullptr);
    directory_ = std::string(pattern) + "/data";
  }
  void TearDown() override { std::filesystem::remove_all(std::filesystem::path(directory_).parent_path()); }
  std::string directory_;
};

TEST_F(DataDirectoryTest, TheSecondHolderIsRefusedAndToldWhoHoldsIt) {
  {
    auto first = DirectoryLock::Take(directory_, "a", RealClock());
    ASSERT_TRUE(first.ok()) << first.status();
    const auto second = DirectoryLock::Take(directory_, "b", RealClock());
    EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(MessageOf(second.status()),
                HasSubstr("in use by hyperkerneld pid " + std::to_string(::getpid()) + " (node a, since "));
  }
  EXPECT_TRUE(DirectoryLock::Take(directory_, "b", RealClock()).ok());
}

TEST_F(DataDirectoryTest, IdentityIsMadeOnceAndKept) {
  ASSERT_TRUE(MakeDirectories(directory_, 0700).ok());
  const auto made = LoadOrMakeIdentity(directory_, "a", "c", RealClock());
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->node_id().size(), 36u);
  EXPECT_EQ(LoadOrMakeIdentity(directory_, "a", "c", RealClock())->node_id(), made->node_id());
}

TEST_F(DataDirectoryTest, AnotherNodesDirectoryIsRefused) {
  ASSERT_TRUE(MakeDirectories(directory_, 0700).ok());
  ASSERT_TRUE(LoadOrMakeIdentity(directory_, "a", "c", RealClock()).ok());
  EXPECT_THAT(MessageOf(LoadOrMakeIdentity(directory_, "b", "c", RealClock()).status()),
              HasSubstr("belongs to node 'a' of cluster 'c', not to node 'b'"));
  EXPECT_FALSE(LoadOrMakeIdentity(directory_, "a", "d", RealClock()).ok());
}

TEST_F(DataDirectoryTest, ADamagedIdentityIsNotReplaced) {
  ASSERT_TRUE(MakeDirectories(directory_, 0700).ok());
  for (const char* text : {"", "node_id: \"short\"", "node_id: \"", "\x00\xff"}) {
    ASSERT_TRUE(ReplaceFile(directory_ + "/identity.textproto", text, 0644).ok());
    EXPECT_EQ(LoadOrMakeIdentity(directory_, "a", "c", RealClock()).status().code(), absl::StatusCode::kDataLoss)
        << text;
    EXPECT_EQ(*ReadSmallFile(directory_ + "/identity.textproto", 100), text);
  }
}

}  // namespace
}  // namespace hk
