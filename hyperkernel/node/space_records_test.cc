#include "hyperkernel/node/space_records.h"

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class SpaceRecordsTest : public testing::Test {
 protected:
  SpaceRecordsTest() {
    std::string pattern = testing::TempDir() + "hk-records.XXXXXX";
    directory_ = ::mkdtemp(pattern.data());
    Open();
  }
  ~SpaceRecordsTest() override { std::filesystem::remove_all(directory_); }
  // The daemon that had it open was killed.
  void Open() {
    store_.reset();
    auto opened = StateStore::Open(directory_ + "/state");
    if (!opened.ok()) std::abort();
    store_ = *std::move(opened);
    records_ = std::make_unique<SpaceRecords>(store_.get());
  }
  static SpaceIdentity Of(const std::string& name, uint64_t id) {
    SpaceIdentity space;
    space.name = name;
    space.id = id;
    space.members = {{"a", NodeId(0)}, {"b", NodeId(1)}};
    return space;
  }

  std::string directory_;
  std::unique_ptr<StateStore> store_;
  std::unique_ptr<SpaceRecords> records_;
};

TEST_F(SpaceRecordsTest, WhatEndedWithADaemonIsToldOnce) {
  ASSERT_TRUE(records_->Put(Of("pool", 0xabc), 1).ok());
  ASSERT_TRUE(records_->Put(Of("gone", 7), 1).ok());
  ASSERT_TRUE(records_->Put(Of("pool", 0xabc), 5).ok());
  ASSERT_TRUE(records_->Forget(7).ok());
  ASSERT_TRUE(records_->Forget(8).ok()) << "never known";
  Open();
  const auto left = records_->TakeLeftovers();
  ASSERT_TRUE(left.ok()) << left.status();
  ASSERT_EQ(left->size(), 1u);
  EXPECT_EQ(left->front().name(), "pool");
  EXPECT_EQ(left->front().id(), 0xabcu);
  EXPECT_EQ(left->front().epoch(), 5u);
  EXPECT_THAT(left->front().nodes(), ElementsAre("a", "b"));
  const auto again = records_->TakeLeftovers();
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_THAT(*again, IsEmpty());
}

TEST_F(SpaceRecordsTest, ADamagedRecordIsLeftOutAndGoes) {
  ASSERT_TRUE(records_->Put(Of("pool", 1), 1).ok());
  v1::SpaceRecord wrong;
  wrong.set_name(std::string("\xff\xfe", 2));  // no UTF-8: it is written, and cannot be read
  static_cast<void>(store_->Put("space/0000000000000002", wrong));
  const auto left = records_->TakeLeftovers();
  ASSERT_TRUE(left.ok()) << left.status();
  ASSERT_EQ(left->size(), 1u);
  EXPECT_EQ(left->front().name(), "pool");
  EXPECT_THAT(*records_->TakeLeftovers(), IsEmpty());
}

}  // namespace
}  // namespace hk
