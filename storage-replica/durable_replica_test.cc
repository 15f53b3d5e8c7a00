#include "storage-replica/durable_replica.h"

#include <rocksdb/db.h>

#include <chrono>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage-replica/lossy_env_testing.h"
#include "storage-replica/replica_testing.h"

namespace hk {
namespace {

constexpr uint64_t kPages = 2048;
constexpr uint64_t kBlocks = 1 << 20;
constexpr DiskId kDisk{1};
constexpr std::chrono::seconds kHangGuard{30};

// Time that stands until it is told.
class StillClock final : public Clock {
 public:
  Monotonic Now() const override { return now_; }
  WallTime Wall() const override { return {}; }
  void Advance(std::chrono::milliseconds by) { now_ += by; }

 private:
  Monotonic now_{std::chrono::hours(1)};
};

class DurableReplicaTest : public ::testing::Test {
 protected:
  DurableReplicaTest() { MakeTable(1); }
  void MakeTable(uint64_t generation) {
    table_ = *ReplicaTable::Create(file_.Fd(), TestIdentity(kPages), generation);
    table_->AttachDisk(kDisk, TestImage(kBlocks), false);
  }
  absl::StatusOr<std::unique_ptr<DurableStore>> OpenStore(const TableIdentity& identity = TestIdentity(kPages)) {
    return DurableStore::Open({.directory = directory_, .identity = identity, .env = &env_});
  }
  void Start(DurableReplica::Writer writer = DurableReplica::Writer::kByHand) {
    auto store = OpenStore();
    ASSERT_TRUE(store.ok()) << store.status();
    durable_ = std::make_unique<DurableReplica>(*std::move(store), table_.get(), clock_, writer);
    durable_->NoteDisk(kDisk, TestImage(kBlocks));
    if (writer == DurableReplica::Writer::kByHand) durable_->Work();
  }
  void Crash() {
    env_.Kill();
    durable_.reset();
    env_.Revive(random_);
  }
  // A daemon's life, as far as it comes. What it did to block 10.
  struct Lived {
    bool written = false;  // begun
    bool flushed = false;
  };
  Lived LiveUntilDeath() {
    Lived lived;
    auto store = OpenStore();
    if (!store.ok()) return lived;
    durable_ =
        std::make_unique<DurableReplica>(*std::move(store), table_.get(), clock_, DurableReplica::Writer::kByHand);
    durable_->NoteDisk(kDisk, TestImage(kBlocks));
    Do(DiskIoKind::kRead, 10, 20);
    FlushDisk();
    durable_->Work();
    const IoSegment segment{.gpa = GpaOf(Gfn(22)), .bytes = kPageSize};
    const DiskIo io = Io(DiskIoKind::kWrite, 10, &segment);
    bool may = durable_->BeginWrite(io, [](const absl::Status&) {});
    if (!may) {
      durable_->Work();
      if (env_.dead()) return lived;
      may = durable_->BeginWrite(io, {});
    }
    EXPECT_TRUE(may);
    lived.written = true;
    const IoTicket ticket = table_->Begin(io, 0);
    durable_->Work();
    durable_->EndWrite(io, table_->End(ticket, io, true, std::vector<uint64_t>{8}, 0));
    durable_->Work();
    FlushDisk();
    lived.flushed = true;
    for (int i = 0; i < 3; ++i) {
      clock_.Advance(std::chrono::seconds(10));
      durable_->Work();
    }
    return lived;
  }
  static DiskIo Io(DiskIoKind kind, uint64_t block, const IoSegment* segment) {
    return {.kind = kind, .disk = kDisk, .offset = block * kBlockSize, .segments = {segment, 1}};
  }
  // A request of a page, marked as it should be.
  void Do(DiskIoKind kind, uint64_t block, uint64_t gfn) {
    const IoSegment segment{.gpa = GpaOf(Gfn(gfn)), .bytes = kPageSize};
    const DiskIo io = Io(kind, block, &segment);
    if (kind == DiskIoKind::kWrite && !durable_->BeginWrite(io, [](const absl::Status&) {})) {
      durable_->Work();
      ASSERT_TRUE(durable_->BeginWrite(io, {}));
    }
    const IoTicket ticket = table_->Begin(io, 0);
    const uint32_t flush = table_->End(ticket, io, true, std::vector<uint64_t>{7}, 0);
    if (kind == DiskIoKind::kWrite) durable_->EndWrite(io, flush);
  }
  void FlushDisk() { table_->FlushEnds(kDisk, table_->FlushBegins(kDisk), true); }
  // The mark of a region far away makes all durable that was written before.
  void SyncByMark() { Do(DiskIoKind::kWrite, kRegionBlocks * 7, 30); }
  std::vector<DiskRegion> MarkedNow() {
    const auto store = *OpenStore();
    return store->Intents().value();
  }
  // Blocks that the database says are in these frames.
  std::map<uint64_t, uint64_t> Loaded(const TableIdentity& identity = TestIdentity(kPages)) {
    std::map<uint64_t, uint64_t> loaded;
    auto store = OpenStore(identity);
    EXPECT_TRUE(store.ok()) << store.status();
    if (!store.ok()) return loaded;
    const absl::Status status = (*store)->Load(
        [](DiskId) { return TestImage(kBlocks); },
        [&](const FrameRef& frame, const ReplicaEntry& entry) { loaded[entry.ssa.block] = frame.frame; });
    EXPECT_TRUE(status.ok()) << status;
    return loaded;
  }

  std::string directory_ = "/replica";
  LossyEnv env_;
  StillClock clock_;
  MemoryFile file_;
  std::mt19937_64 random_{1};
  std::unique_ptr<ReplicaTable> table_;
  std::unique_ptr<DurableReplica> durable_;
};

TEST_F(DurableReplicaTest, WhatIsStableComesBack) {
  Start();
  Do(DiskIoKind::kRead, 10, 20);
  FlushDisk();
  Do(DiskIoKind::kRead, 11, 21);
  Do(DiskIoKind::kRead, 12, 22);
  FlushDisk();
  durable_->Work();
  table_->Remove(Gfn(22));
  Do(DiskIoKind::kRead, 13, 23);
  durable_->Work();
  durable_.reset();
  EXPECT_THAT(Loaded(), ::testing::ElementsAre(std::pair(10, 20), std::pair(11, 21)))
      << "12 has been written to, 13 is of a flush that did not come";
}

TEST_F(DurableReplicaTest, AMarkedRegionIsNotBelievedUntilItsWritesAreStable) {
  Start();
  Do(DiskIoKind::kRead, 10, 20);
  Do(DiskIoKind::kRead, kRegionBlocks, 21);
  Do(DiskIoKind::kWrite, 11, 22);
  FlushDisk();
  durable_->Work();
  SyncByMark();
  Crash();
  EXPECT_THAT(Loaded(), ::testing::ElementsAre(std::pair(kRegionBlocks, 21)));
  Start();
  FlushDisk();
  durable_->Work();
  EXPECT_EQ(durable_->statistics().marked, 2u);
  clock_.Advance(std::chrono::seconds(10));
  durable_->Work();
  EXPECT_EQ(durable_->statistics().marked, 0u);
  durable_->Work();
  durable_.reset();
  EXPECT_THAT(Loaded(), ::testing::ElementsAre(std::pair(10, 20), std::pair(11, 22), std::pair(kRegionBlocks, 21),
                                               std::pair(kRegionBlocks * 7, 30)));
}

TEST_F(DurableReplicaTest, AMarkIsSyncedBeforeTheWriteAndStaysWhileItIsInFlight) {
  Start();
  const IoSegment segment{.gpa = Gpa(0), .bytes = kPageSize};
  const DiskIo io = Io(DiskIoKind::kWrite, 10, &segment);
  bool ready = false;
  EXPECT_FALSE(durable_->BeginWrite(io, [&](const absl::Status& status) { ready = status.ok(); }));
  const uint64_t syncs = env_.syncs();
  durable_->Work();
  EXPECT_TRUE(ready);
  EXPECT_GT(env_.syncs(), syncs);
  EXPECT_TRUE(durable_->BeginWrite(io, {}));
  for (int i = 0; i < 3; ++i) {
    FlushDisk();
    clock_.Advance(std::chrono::seconds(10));
    durable_->Work();
  }
  SyncByMark();
  Crash();
  EXPECT_THAT(MarkedNow(), ::testing::Contains(DiskRegion{kDisk, 0}));
}

TEST_F(DurableReplicaTest, AMarkStaysUntilTheDiskIsFlushed) {
  Start();
  Do(DiskIoKind::kWrite, 10, 20);
  for (int i = 0; i < 3; ++i) {
    clock_.Advance(std::chrono::seconds(10));
    durable_->Work();
  }
  SyncByMark();
  Crash();
  EXPECT_THAT(MarkedNow(), ::testing::Contains(DiskRegion{kDisk, 0}));
}

TEST_F(DurableReplicaTest, AMarkIsThereAgainBeforeTheNextWrite) {
  Start();
  Do(DiskIoKind::kWrite, 10, 20);
  FlushDisk();
  clock_.Advance(std::chrono::seconds(10));
  durable_->Work();
  EXPECT_EQ(durable_->statistics().marked, 0u);
  Do(DiskIoKind::kWrite, 10, 20);
  Crash();
  EXPECT_THAT(MarkedNow(), ::testing::Contains(DiskRegion{kDisk, 0}));
}

TEST_F(DurableReplicaTest, ADisksRowSaysWhenItWasChanged) {
  Start();
  Do(DiskIoKind::kRead, kRegionBlocks, 20);
  FlushDisk();
  const DiskIo erase{.kind = DiskIoKind::kErase, .disk = kDisk, .offset = 0, .bytes = kBlockSize};
  EXPECT_FALSE(durable_->BeginWrite(erase, [](const absl::Status&) {}));
  durable_->Work();
  EXPECT_TRUE(durable_->BeginWrite(erase, {}));
  durable_->EndWrite(erase, table_->End(table_->Begin(erase, 123), erase, true, {}, 456));
  durable_->Work();
  durable_.reset();
  const auto rows = [&](uint64_t changed_ns) {
    DiskImageIdentity image = TestImage(kBlocks);
    image.changed_ns = changed_ns;
    size_t count = 0;
    const absl::Status loaded =
        (*OpenStore())->Load([&](DiskId) { return image; }, [&](const FrameRef&, const ReplicaEntry&) { ++count; });
    EXPECT_TRUE(loaded.ok()) << loaded;
    return count;
  };
  EXPECT_EQ(rows(456), 1u);
  EXPECT_EQ(rows(456 + 1'000'000'000), 0u) << "changed by somebody else";
}

TEST_F(DurableReplicaTest, RowsByBlockFollow) {
  Start();
  Do(DiskIoKind::kRead, 10, 20);
  Do(DiskIoKind::kRead, 10, 21);
  Do(DiskIoKind::kRead, 12, 22);
  durable_->Work();
  Do(DiskIoKind::kRead, 13, 22);
  table_->Remove(Gfn(20));
  durable_->Work();
  durable_.reset();
  auto store = *OpenStore();
  const auto frames = [&](uint64_t first, uint64_t count) {
    std::vector<uint64_t> found;
    const std::vector<BlockRow> rows = store->FramesOf(kDisk, {first, count}).value();
    for (const BlockRow& row : rows) found.push_back(row.frame.frame);
    return found;
  };
  EXPECT_THAT(frames(0, 100), ::testing::ElementsAre(21, 22));
  EXPECT_THAT(frames(12, 1), ::testing::IsEmpty());
}

TEST_F(DurableReplicaTest, AQueueThatOverflowsIsMadeGood) {
  Start();
  for (uint64_t i = 0; i <= DurableReplica::kQueueChanges; ++i) durable_->Changed(5, std::nullopt);
  EXPECT_EQ(durable_->statistics().queued, 0u);
  Do(DiskIoKind::kRead, 10, 20);
  FlushDisk();
  durable_->Work();
  EXPECT_EQ(durable_->statistics().anew, 2u);
  durable_.reset();
  EXPECT_EQ(Loaded().size(), 1u);
}

TEST_F(DurableReplicaTest, AnotherBootHasNotTheFramesOfThisNode) {
  Start();
  Do(DiskIoKind::kRead, 10, 20);
  Do(DiskIoKind::kRead, 11, 21);
  table_->Leaves(Gfn(21), NodeId(3), true);
  FlushDisk();
  durable_->Work();
  durable_.reset();
  TableIdentity rebooted = TestIdentity(kPages);
  rebooted.boot.bytes[5] = 1;
  EXPECT_THAT(Loaded(rebooted), ::testing::ElementsAre(std::pair(11, 21)));
}

TEST_F(DurableReplicaTest, GenerationsGrowOverOpenings) {
  const uint64_t first = (*OpenStore())->first_generation();
  EXPECT_EQ(first % kGenerationStep, 0u);
  EXPECT_GT((*OpenStore())->first_generation(), first);
}

TEST_F(DurableReplicaTest, ForeignAndDamagedDatabasesAreRefusedInOneLine) {
  Start();
  durable_->Work();
  durable_.reset();
  const auto refused = [&](const TableIdentity& identity, absl::StatusCode code, const std::string& says) {
    const absl::Status status = OpenStore(identity).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr(says));
    EXPECT_EQ(status.message().find('\n'), std::string::npos);
  };
  TableIdentity other = TestIdentity(kPages);
  other.guest = GuestId(8);
  refused(other, absl::StatusCode::kFailedPrecondition, "of guest 7, not 8");
  refused(TestIdentity(kPages + 1), absl::StatusCode::kFailedPrecondition, "of a guest of 2048 pages, not 2049");
  const auto put = [&](const std::string& key, const std::string& value) {
    rocksdb::Options options;
    options.env = &env_;
    std::vector<rocksdb::ColumnFamilyDescriptor> families;
    for (const std::string& name :
         {std::string("default"), std::string(kByPage), std::string(kByBlock), std::string(kMeta)}) {
      families.emplace_back(name, rocksdb::ColumnFamilyOptions());
    }
    std::vector<rocksdb::ColumnFamilyHandle*> handles;
    rocksdb::DB* db = nullptr;
    ASSERT_TRUE(rocksdb::DB::Open(options, "/replica", families, &handles, &db).ok());
    rocksdb::WriteOptions sync;
    sync.sync = true;
    ASSERT_TRUE(db->Put(sync, handles[3], key, value).ok());
    for (rocksdb::ColumnFamilyHandle* each : handles) db->DestroyColumnFamilyHandle(each);
    delete db;
  };
  put(std::string(kFormatKey), NumberValue(2));
  refused(TestIdentity(kPages), absl::StatusCode::kFailedPrecondition, "of format version 2, this program has 1");
  put(std::string(kFormatKey), "x");
  refused(TestIdentity(kPages), absl::StatusCode::kDataLoss, "its description is damaged");
  put(std::string(kFormatKey), NumberValue(1));
  put(std::string(kGenerationKey), NumberValue(kMaxGeneration));
  refused(TestIdentity(kPages), absl::StatusCode::kFailedPrecondition, "generations have run out");
  put(std::string(kGenerationKey), NumberValue(kGenerationStep));
  put(std::string(kDiskPrefix) + "zz", "");
  EXPECT_EQ((*OpenStore())
                ->Load([](DiskId) { return TestImage(kBlocks); }, [](const FrameRef&, const ReplicaEntry&) {})
                .code(),
            absl::StatusCode::kDataLoss);
  ASSERT_TRUE(rocksdb::WriteStringToFile(&env_, "MANIFEST-999999\n", "/replica/CURRENT", true).ok());
  const absl::Status status = OpenStore().status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("/replica"));
}

TEST_F(DurableReplicaTest, ACrashAtAnyChangeOfAFileLeavesNothingFalse) {
  bool died = true;
  for (int64_t changes = 0; died; ++changes) {
    SCOPED_TRACE(testing::Message() << "after " << changes << " changes");
    directory_ = "/replica-" + std::to_string(changes);
    MakeTable(1);
    env_.KillAfter(changes);
    const Lived lived = LiveUntilDeath();
    died = env_.dead();
    Crash();
    // And once more, while it is opened; and again where what is left is to be thrown away.
    for (const bool abandon : {false, changes % 2 != 0}) {
      env_.KillAfter(static_cast<int64_t>(random_() % 30));
      if (auto store = OpenStore(); store.ok() && abandon) (void)(*store)->Abandon();
      env_.Kill();
      env_.Revive(random_);
      const std::map<uint64_t, uint64_t> loaded = Loaded();
      if (const auto row = loaded.find(10); row != loaded.end()) {
        EXPECT_TRUE(row->second == 20 ? !lived.written : lived.flushed);
      }
      EXPECT_LE(loaded.size(), 1u);
    }
  }
}

// Files of rows that were left by lives before are merged in the background while the disk is full, or the host dies.
TEST_F(DurableReplicaTest, ACompactionThatCannotWriteHarmsNothing) {
  constexpr int kLives = 8;
  constexpr int kTrials = 8;
  for (int trial = 0; trial < kTrials; ++trial) {
    directory_ = "/replica-" + std::to_string(trial);
    MakeTable(1);
    for (int life = 0; life < kLives; ++life) {
      Start();
      for (uint64_t i = 0; i < 20; ++i) Do(DiskIoKind::kRead, random_() % 1000, random_() % kPages);
      FlushDisk();
      durable_->Work();
      if (life >= kLives - 3) env_.KillAfter(static_cast<int64_t>(random_() % 25));
      for (int round = 0; round < 5 && !env_.dead(); ++round) {
        Do(DiskIoKind::kRead, random_() % 1000, random_() % kPages);
        durable_->Work();
      }
      Crash();
    }
    Loaded();
  }
}

TEST_F(DurableReplicaTest, AnErasedDiskIsOneMark) {
  Start();
  Do(DiskIoKind::kRead, 10, 20);
  FlushDisk();
  durable_->Work();
  const DiskIo erase{
      .kind = DiskIoKind::kErase, .disk = kDisk, .offset = kRegionBlocks * kBlockSize, .bytes = ~uint64_t{0}};
  EXPECT_FALSE(durable_->BeginWrite(erase, [](const absl::Status&) {}));
  durable_->Work();
  EXPECT_TRUE(durable_->BeginWrite(erase, {}));
  EXPECT_EQ(durable_->statistics().marked, 1u);
  Crash();
  EXPECT_THAT(Loaded(), ::testing::IsEmpty()) << "the mark says nothing of where";
  EXPECT_THAT(MarkedNow(), ::testing::ElementsAre(DiskRegion{kDisk, kWholeDisk}));
}

TEST_F(DurableReplicaTest, AnothersDatabaseIsLeftAlone) {
  rocksdb::Options options;
  options.env = &env_;
  options.create_if_missing = true;
  rocksdb::DB* db = nullptr;
  ASSERT_TRUE(rocksdb::DB::Open(options, directory_, &db).ok());
  ASSERT_TRUE(db->Put({}, "a", "b").ok());
  delete db;
  const absl::Status status = OpenStore().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("not a replica's"));
  ASSERT_TRUE(rocksdb::DB::Open(options, directory_, &db).ok());
  std::string value;
  EXPECT_TRUE(db->Get({}, "a", &value).ok());
  delete db;
}

TEST_F(DurableReplicaTest, ADirectoryWithoutSpaceIsRefusedAndThenTaken) {
  env_.SetFull(true);
  EXPECT_EQ(OpenStore().status().code(), absl::StatusCode::kResourceExhausted);
  env_.SetFull(false);
  EXPECT_TRUE(OpenStore().ok());
  env_.SetFull(true);
  EXPECT_EQ(OpenStore().status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(DurableReplicaTest, ADatabaseThatCannotBeWrittenIsAbandonedAndWritesGoOn) {
  Start();
  Do(DiskIoKind::kRead, 10, 20);
  FlushDisk();
  durable_->Work();
  env_.SetFull(true);
  Do(DiskIoKind::kWrite, 10, 21);
  EXPECT_FALSE(durable_->statistics().status.ok());
  Do(DiskIoKind::kWrite, kRegionBlocks * 5, 22);
  env_.SetFull(false);
  Crash();
  EXPECT_THAT(Loaded(), ::testing::IsEmpty());
}

TEST_F(DurableReplicaTest, IfItCannotEvenBeAbandonedWritesAreRefused) {
  Start();
  env_.Kill();
  const IoSegment segment{.gpa = Gpa(0), .bytes = kPageSize};
  const DiskIo io = Io(DiskIoKind::kWrite, 10, &segment);
  absl::Status answer;
  for (int i = 0; i < 2; ++i) {
    answer = absl::OkStatus();
    EXPECT_FALSE(durable_->BeginWrite(io, [&](const absl::Status& status) { answer = status; }));
    durable_->Work();
    EXPECT_FALSE(answer.ok());
  }
}

TEST_F(DurableReplicaTest, TheThreadWritesBesideRequests) {
  Start(DurableReplica::Writer::kThread);
  for (uint64_t i = 0; i < 20000; ++i) {
    const IoSegment segment{.gpa = GpaOf(Gfn(i % kPages)), .bytes = kPageSize};
    const DiskIo io = Io(DiskIoKind::kRead, i % 5000, &segment);
    table_->End(table_->Begin(io, 0), io, true, std::vector<uint64_t>{7}, 0);
  }
  FlushDisk();
  EXPECT_TRUE(durable_->Sync(RealClock().Now() + kHangGuard).ok());
  const uint64_t valid = table_->Statistics().valid;
  Crash();
  EXPECT_EQ(Loaded().size(), valid);
}

}  // namespace
}  // namespace hk
