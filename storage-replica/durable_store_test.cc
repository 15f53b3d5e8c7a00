#include "storage-replica/durable_store.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage-replica/replica_testing.h"

namespace hk {
namespace {

using testing::HasSubstr;

class DurableStoreTest : public testing::Test {
 protected:
  DurableStoreTest() {
    char pattern[] = "/tmp/hk_durable_store.XXXXXX";
    parent_ = ::mkdtemp(pattern);
    directory_ = parent_ + "/replica";
  }
  ~DurableStoreTest() override { std::filesystem::remove_all(parent_); }
  absl::StatusOr<std::unique_ptr<DurableStore>> Open(uint64_t above = 0) {
    return DurableStore::Open({.directory = directory_, .identity = TestIdentity(64), .above = above});
  }

  std::string parent_, directory_;
};

TEST_F(DurableStoreTest, RemovesWhatItMadeAndNothingElse) {
  EXPECT_TRUE(DurableStore::Remove(directory_).ok()) << "there is none";
  ASSERT_TRUE(Open().ok());
  EXPECT_TRUE(DurableStore::Remove(directory_).ok());
  EXPECT_FALSE(std::filesystem::exists(directory_));
  std::filesystem::create_directory(directory_);
  EXPECT_TRUE(DurableStore::Remove(directory_).ok()) << "one that was begun, or removed, and no more";
  EXPECT_FALSE(std::filesystem::exists(directory_));
  std::filesystem::create_directory(directory_);
  std::ofstream(directory_ + "/CURRENT") << "x";
  const absl::Status foreign = DurableStore::Remove(directory_);
  EXPECT_THAT(std::string(foreign.message()), HasSubstr("not a replica's"));
  EXPECT_TRUE(std::filesystem::exists(directory_ + "/CURRENT"));
}

TEST_F(DurableStoreTest, OneThatIsOpenIsNotRemovedButNotBelievedAgain) {
  const auto store = Open();
  ASSERT_TRUE(store.ok());
  EXPECT_FALSE(DurableStore::Remove(directory_).ok());
  EXPECT_TRUE(std::filesystem::exists(directory_ + "/CURRENT"));
  EXPECT_FALSE(std::filesystem::exists(directory_ + "/REPLICA"));
}

TEST_F(DurableStoreTest, GenerationsAreAboveThoseOfATableThatIsThere) {
  const uint64_t first = (*Open())->first_generation();
  EXPECT_GT((*Open())->first_generation(), first);
  const uint64_t above = (uint64_t{1} << 60) + 5;
  const uint64_t raised = (*Open(above))->first_generation();
  EXPECT_GT(raised, above);
  EXPECT_EQ(raised % kGenerationStep, 0u);
  EXPECT_GT((*Open())->first_generation(), raised);
  EXPECT_TRUE(absl::IsFailedPrecondition(Open(kMaxGeneration).status()));
}

}  // namespace
}  // namespace hk
