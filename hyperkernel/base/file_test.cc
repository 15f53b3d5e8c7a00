#include "hyperkernel/base/file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "gtest/gtest.h"

namespace hk {
namespace {

class File : public testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/hk_file_test.XXXXXX";
    ASSERT_NE(::mkdtemp(pattern), nullptr);
    directory_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  std::string directory_;
};

TEST_F(File, ReplaceIsWholeAndLeavesNothingBehind) {
  const std::string path = directory_ + "/f";
  ASSERT_TRUE(ReplaceFile(path, "one", 0600).ok());
  ASSERT_TRUE(ReplaceFile(path, "second", 0640).ok());
  EXPECT_EQ(*ReadSmallFile(path, 100), "second");
  struct stat info;
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0640u);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory_), std::filesystem::directory_iterator()), 1);
}

TEST_F(File, FailedReplaceKeepsTheOldFile) {
  const std::string path = directory_ + "/d";
  ASSERT_TRUE(MakeDirectories(path + "/x", 0700).ok());
  EXPECT_FALSE(ReplaceFile(path, "content", 0600).ok());  // a directory is in the way
  EXPECT_TRUE(std::filesystem::is_directory(path));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory_), std::filesystem::directory_iterator()), 1);
}

TEST_F(File, ReadRefusesWhatIsTooLongOrNoFile) {
  const std::string path = directory_ + "/f";
  ASSERT_TRUE(ReplaceFile(path, std::string(10, 'x'), 0600).ok());
  EXPECT_TRUE(ReadSmallFile(path, 10).ok());
  EXPECT_EQ(ReadSmallFile(path, 9).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadSmallFile(directory_, 9).status().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_EQ(::mkfifo((directory_ + "/fifo").c_str(), 0600), 0);
  EXPECT_EQ(ReadSmallFile(directory_ + "/fifo", 9).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadSmallFile(directory_ + "/none", 9).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(File, BytesOfFilesAreThoseTakenOfTheDisk) {
  EXPECT_EQ(BytesOfFiles(directory_).value_or(1), 0u);
  ASSERT_TRUE(ReplaceFile(directory_ + "/f", std::string(100'000, 'x'), 0600).ok());
  std::filesystem::create_symlink("f", directory_ + "/link");
  std::filesystem::create_directory(directory_ + "/below");
  const uint64_t one = BytesOfFiles(directory_).value_or(0);
  EXPECT_GE(one, 100'000u);
  EXPECT_LT(one, 200'000u) << "what a link names is not there twice";
  std::filesystem::resize_file(directory_ + "/f", 1 << 30);
  EXPECT_LT(BytesOfFiles(directory_).value_or(~0u), 200'000u) << "holes take nothing";
  EXPECT_EQ(BytesOfFiles(directory_ + "/none").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(File, MakeDirectoriesIsIdempotentAndRefusesAFile) {
  EXPECT_TRUE(MakeDirectories(directory_ + "/a/b/c", 0700).ok());
  EXPECT_TRUE(MakeDirectories(directory_ + "/a/b/c", 0700).ok());
  ASSERT_TRUE(ReplaceFile(directory_ + "/f", "", 0600).ok());
  EXPECT_FALSE(MakeDirectories(directory_ + "/f", 0700).ok());
  EXPECT_FALSE(MakeDirectories(directory_ + "/f/g", 0700).ok());
}

}  // namespace
}  // namespace hk
