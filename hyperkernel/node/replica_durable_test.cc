#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/node/replica_killed_testing.h"

namespace hk {
namespace {

using testing::HasSubstr;

constexpr std::chrono::seconds kHangGuard{30};

class ReplicaDurableTest : public KilledReplicaTest {
 protected:
  void SetUp() override {
    KilledReplicaTest::SetUp();
    site_.databases = image_directory_ + "/replicas";
    owner_ = OwnerOf(DurableRecord());
    database_ = DatabaseOf(site_, owner_);
  }
  static v1::VmRecord DurableRecord(uint64_t generation = 1) {
    v1::VmRecord record = Record(generation);
    record.mutable_spec()->set_no_durable_replica(false);
    return record;
  }
  void Make() {
    auto made = GuestReplica::Create(site_, owner_, generation_);
    ASSERT_TRUE(made.ok()) << made.status();
    replica_ = *std::move(made);
  }
  // A daemon's life. RocksDB's threads end with their process only: the test itself never has any of them, for a
  // process with other threads must not be forked.
  void Process(const std::function<void()>& life) { Live(life, false); }
  // What the database says, read by somebody else; none: it cannot be opened.
  struct Said {
    std::vector<DiskRegion> marked;
    std::vector<uint64_t> blocks;
  };
  std::optional<Said> WhatIsSaid() {
    auto store = DurableStore::Open({.directory = database_,
                                     .identity = {.guest = owner_.guest,
                                                  .node = NodeId(0),
                                                  .pages = owner_.pages,
                                                  .boot = site_.boot,
                                                  .frame_store = site_.frame_store}});
    if (!store.ok()) return std::nullopt;
    Said said{.marked = *(*store)->Intents(), .blocks = {}};
    for (uint64_t block = 0; block < kBlocks; ++block) {
      if (!(*store)->FramesOf(DiskId(0), {.first = block, .count = 1})->empty()) said.blocks.push_back(block);
    }
    return said;
  }
  ReplicaOwner owner_;
  std::string database_;
};

TEST_F(ReplicaDurableTest, IsWrittenBehindTheTableAndGoesWithIt) {
  Process([this] {
    Make();
    BeginRun();
    EXPECT_TRUE(replica_->Describe().durable());
    EXPECT_EQ(replica_->Describe().not_durable_because(), "");
    EXPECT_EQ(Read(10, 4), BlocksText(10, 4));
    EndRun();
    EXPECT_TRUE(replica_->SyncDurable(std::chrono::steady_clock::now() + kHangGuard).ok());
  });
  Process([this] {
    const std::optional<Said> said = WhatIsSaid();
    ASSERT_TRUE(said.has_value());
    EXPECT_THAT(said->blocks, testing::ElementsAre(10, 11, 12, 13));
    EXPECT_TRUE(said->marked.empty()) << "nothing was written";
    Make();
    EXPECT_TRUE(std::filesystem::exists(database_));
    replica_.reset();
    EXPECT_FALSE(std::filesystem::exists(database_));
  });
}

// A daemon that dies right after a write has left the mark of its region; and the next one keeps on.
TEST_F(ReplicaDurableTest, AWriteWaitsForTheMarkOfItsRegion) {
  Process([this] {
    Make();
    BeginRun();
    EXPECT_EQ(Read(10, 4), BlocksText(10, 4));
    Write(100, BlockText(100, 1), kData + 0x40000);
    EXPECT_EQ(ImageText(100), BlockText(100, 1));
  });
  Process([this] {
    const std::optional<Said> said = WhatIsSaid();
    ASSERT_TRUE(said.has_value());
    ASSERT_EQ(said->marked.size(), 1u);
    EXPECT_EQ(said->marked[0], RegionOf({.disk = DiskId(0), .block = 100}));
  });
  Process([this] {
    ASSERT_TRUE(Recover({DurableRecord()}));
    EXPECT_TRUE(replica_->Describe().durable());
    EXPECT_EQ(replica_->Describe().recovered(), 5u);
    ASSERT_TRUE(replica_->BeginRun(++generation_).ok());
    BeginRun();
    SpoilImage();
    EXPECT_EQ(Read(100), BlockText(100, 1));
    Write(101, BlockText(101, 2), kData + 0x50000);
    EXPECT_EQ(ImageText(101), BlockText(101, 2));
  });
}

TEST_F(ReplicaDurableTest, ResetsWithWritesThatWait) {
  Process([this] {
    Make();
    BeginRun();
    for (int round = 0; round < 10; ++round) {
      const auto block = static_cast<uint64_t>(round % 4);
      Store(kData, BlockText(7, 3));
      Ask(VIRTIO_BLK_T_OUT, block * 8, {{kData, kBlockSize, false}});
      Reset();
      EXPECT_EQ(Read(block), ImageText(block));
    }
    EXPECT_TRUE(replica_->Describe().durable());
  });
}

TEST_F(ReplicaDurableTest, WhatCannotBeOpenedIsLeftOutUntilItIsDropped) {
  Process([this] {
    Make();
    BeginRun();
    EXPECT_EQ(Read(10, 4), BlocksText(10, 4));
  });
  std::ofstream(database_ + "/CURRENT") << "MANIFEST-that-is-not-there\n";
  ++generation_;
  Process([this] {
    Make();
    EXPECT_FALSE(replica_->Describe().durable());
    EXPECT_THAT(replica_->Describe().not_durable_because(), HasSubstr(database_));
    BeginRun();
    Write(10, BlockText(10, 1));
    EXPECT_EQ(Read(10, 1, kData + 0x40000), BlockText(10, 1));
    replica_->Drop();
    EXPECT_FALSE(std::filesystem::exists(database_));
    EXPECT_THAT(replica_->Describe().not_durable_because(), HasSubstr("next start makes a new one"));
    EndRun();
    replica_.reset();
    ++generation_;
    Make();
    EXPECT_TRUE(replica_->Describe().durable());
  });
}

TEST_F(ReplicaDurableTest, WhatIsNotAReplicasIsLeftAsItIs) {
  std::filesystem::create_directories(database_);
  std::ofstream(database_ + "/CURRENT") << "somebody's\n";
  Process([this] {
    Make();
    EXPECT_THAT(replica_->Describe().not_durable_because(), HasSubstr("not a replica's"));
    replica_->Drop();
    replica_.reset();
  });
  EXPECT_TRUE(std::filesystem::exists(database_ + "/CURRENT"));
}

TEST_F(ReplicaDurableTest, DatabasesOfMachinesThatAreNotThereAreRemoved) {
  const auto live = [this] {
    Process([this] {
      Make();
      BeginRun();
      EXPECT_EQ(Read(10, 4), BlocksText(10, 4));
    });
  };
  live();
  std::filesystem::create_directory(site_.databases + "/somebody's");
  std::ofstream(site_.databases + "/somebody's/file") << "x";
  Process([this] {
    ASSERT_TRUE(Recover({DurableRecord()}));
    EXPECT_TRUE(std::filesystem::exists(database_));
    replica_.reset();
    replicas_.reset();
    EXPECT_FALSE(std::filesystem::exists(database_));
  });
  live();
  Process([this] {
    v1::VmRecord anew = DurableRecord();
    anew.mutable_created()->set_seconds(77);
    EXPECT_FALSE(Recover({anew}));
  });
  EXPECT_FALSE(std::filesystem::exists(database_));
  EXPECT_TRUE(std::filesystem::exists(site_.databases + "/somebody's/file"));
}

TEST_F(ReplicaDurableTest, NoneWhereTheMachineOrTheNodeHasNone) {
  Process([this] {
    MakeReplica();
    EXPECT_THAT(replica_->Describe().not_durable_because(), HasSubstr("no_durable_replica"));
    replica_.reset();
    site_.databases.clear();
    Make();
    EXPECT_FALSE(replica_->Describe().durable());
    replica_.reset();
    site_.databases = image() + "/below a file";
    Make();
    EXPECT_FALSE(replica_->Describe().durable());
    BeginRun();
    EXPECT_EQ(Read(10, 4), BlocksText(10, 4));
  });
}

}  // namespace
}  // namespace hk
