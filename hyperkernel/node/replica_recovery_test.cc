#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/node/replica_killed_testing.h"

namespace hk {
namespace {

using testing::HasSubstr;

constexpr uint64_t kSet = 8;  // blocks that the run before has read

class ReplicaRecoveryTest : public KilledReplicaTest {
 protected:
  void LiveAndRead() {
    Live([this] { EXPECT_EQ(Read(10, kSet), BlocksText(10, kSet)); });
  }
  static void Flip(const std::string& path, uint64_t offset) {
    const OwnedFd file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    char byte = 0;
    ASSERT_EQ(::pread(file.get(), &byte, 1, static_cast<off_t>(offset)), 1);
    byte = static_cast<char>(byte ^ 1);
    ASSERT_EQ(::pwrite(file.get(), &byte, 1, static_cast<off_t>(offset)), 1);
  }
  // Why the last machine's table is refused; as GuestReplicas logs it.
  std::string WhyNot() {
    const auto refused = GuestReplica::Recover(site_, Owner(), 1, {{Gpa(0), kRam}}, generation_);
    return refused.ok() ? "" : std::string(refused.status().message());
  }
};

TEST_F(ReplicaRecoveryTest, TheNextDaemonsGuestBootsWarm) {
  Live([this] {
    EXPECT_EQ(Read(10, kSet), BlocksText(10, kSet));
    Write(100, BlockText(100, 1), kData + 0x40000);
    Store(kData + 2 * kPageSize, "a page of the guest's own from now on");
  });
  EXPECT_EQ(Files(), 2u);
  ASSERT_TRUE(Recover());
  constexpr uint64_t kKept = kSet;  // one more was written, one is gone
  v1::Replica shown = replica_->Describe();
  EXPECT_EQ(shown.recovered(), kKept);
  EXPECT_EQ(shown.warm_entries(), kKept);
  EXPECT_EQ(shown.warm_bytes(), kKept * kPageSize) << "all others went at once";
  EXPECT_EQ(frames_->spare_bytes(), kKept * kPageSize);
  EXPECT_EQ(frames_->reserved_bytes(), 0u);
  EXPECT_GT(frames_->beside_bytes(), 0u);
  EXPECT_THAT(std::string(replica_->Verify(0, [](const auto&) { return true; }).message()), HasSubstr("does not run"));
  Boot();
  SpoilImage();
  EXPECT_EQ(Read(10, 2), BlocksText(10, 2));
  EXPECT_EQ(Read(13, kSet - 3), BlocksText(13, kSet - 3));
  EXPECT_EQ(Read(100), BlockText(100, 1));
  EXPECT_EQ(hits(), kKept);
  EXPECT_EQ(misses(), 0u) << "the image was touched";
  EXPECT_EQ(Read(12), std::string(kBlockSize, '!')) << "the guest had written to it";
  shown = replica_->Describe();
  EXPECT_EQ(shown.mismatched(), 0u);
  EXPECT_EQ(shown.warm_bytes(), 0u) << "moved out";
}

TEST_F(ReplicaRecoveryTest, DaemonAfterDaemon) {
  LiveAndRead();
  for (int life = 0; life < 3; ++life) {
    const pid_t child = Fork([this] {
      ASSERT_TRUE(Recover());
      Boot();
      SpoilImage();
      EXPECT_EQ(Read(10, kSet), BlocksText(10, kSet));
      EXPECT_EQ(misses(), 0u);
      std::string bytes;
      for (uint64_t block = 0; block < kBlocks; ++block) bytes += BlockText(block);
      PutImage(0, bytes);
      // As if nobody had: our own last change is then.
      const timespec before[2] = {{.tv_sec = 1, .tv_nsec = 0}, {.tv_sec = 1, .tv_nsec = 0}};
      ASSERT_EQ(::utimensat(AT_FDCWD, image().c_str(), before, 0), 0);
      Write(200, BlockText(200), kData + 0x40000);  // raises it above the inode's time
    });
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0) << life;
    ++generation_;
  }
  ASSERT_TRUE(Recover());
  EXPECT_EQ(Files(), 2u) << "files of the runs before went with what was moved out of them";
}

// What is found, row by row: whether it is kept, and why not.
TEST_F(ReplicaRecoveryTest, WhatCannotBeBelievedIsRemoved) {
  LiveAndRead();
  const std::string frames = FramePath(), table = TablePath();
  const std::string copy = directory_ + "/copy";
  std::filesystem::create_directory(copy);
  std::filesystem::copy_file(frames, copy + "/frames");
  std::filesystem::copy_file(table, copy + "/table");
  const ReplicaSite site = site_;
  OwnedFd user;
  std::optional<FrameReservation> others;
  struct Case {
    const char* what;
    std::function<void(v1::VmRecord*)> change;
    const char* why;  // null: it is kept
  };
  const std::vector<Case> cases = {
      {"nothing", [](auto*) {}, nullptr},
      {"another boot", [this](auto*) { site_.boot.bytes[0] ^= 1; }, "another boot"},
      {"another frame store or data directory", [this](auto*) { site_.frame_store.bytes[0] ^= 1; },
       "another frame store"},
      {"defined anew", [](auto* record) { record->mutable_created()->set_seconds(2); }, ""},
      {"another name", [](auto* record) { record->mutable_spec()->set_name("h"); }, ""},
      {"no_replica", [](auto* record) { record->mutable_spec()->set_no_replica(true); }, ""},
      {"no disks", [](auto* record) { record->mutable_spec()->clear_disks(); }, ""},
      {"over nodes",
       [](auto* record) {
         record->mutable_spec()->add_placement()->set_node("a");
         record->mutable_spec()->add_placement()->set_node("b");
       },
       ""},
      {"other memory", [](auto* record) { record->mutable_spec()->set_memory_mib(32); }, ""},
      {"an old record", [](auto* record) { record->set_generation(0); }, ""},
      {"a damaged header", [&](auto*) { Flip(table, 20); }, "checksum is wrong"},
      {"another version", [&](auto*) { Flip(table, 8); }, "format version"},
      {"no table's bytes", [&](auto*) { std::filesystem::resize_file(table, 100); }, "shorter than its header"},
      {"an empty table", [&](auto*) { std::filesystem::resize_file(table, 0); }, "shorter than its header"},
      {"a table of another length", [&](auto*) { std::filesystem::resize_file(table, 8192); }, "bytes long"},
      {"a damaged bank", [&](auto*) { Flip(table, 96); }, "no present bank"},
      {"in use",
       [&](auto*) {
         user = OwnedFd(::open(table.c_str(), O_RDWR | O_CLOEXEC));
         ASSERT_EQ(::flock(user.get(), LOCK_EX | LOCK_NB), 0);
       },
       "another process uses it"},
      {"no frames", [&](auto*) { std::filesystem::remove(frames); }, "no page"},
      {"frames of another size", [&](auto*) { std::filesystem::resize_file(frames, kRam / 2); }, "no page"},
      {"frames that others name", [&](auto*) { ASSERT_EQ(::link(frames.c_str(), (copy + "/link").c_str()), 0); },
       "no page"},
      {"frames that are a link",
       [&](auto*) {
         std::filesystem::remove(frames);
         std::filesystem::create_symlink(copy + "/frames", frames);
       },
       "no page"},
      {"a table that is a link",
       [&](auto*) {
         std::filesystem::remove(table);
         std::filesystem::create_symlink(copy + "/table", table);
       },
       "symbolic links"},
      {"a pipe for frames",
       [&](auto*) {
         std::filesystem::remove(frames);
         ASSERT_EQ(::mkfifo(frames.c_str(), 0600), 0);
       },
       "no page"},
      {"no room", [&](auto*) { others = *frames_->Reserve(frames_->budget_bytes() - kPageSize); }, "no page"},
      {"no table", [&](auto*) { std::filesystem::remove(table); }, ""},
      {"punched frames",
       [&](auto*) {
         std::filesystem::resize_file(frames, 0);
         std::filesystem::resize_file(frames, kRam);
       },
       "no page"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.what);
    const auto arrange = [&](v1::VmRecord* record) {
      replica_.reset();
      replicas_.reset();
      user = OwnedFd();
      others.reset();
      site_ = site;
      for (const char* name : {"/link"}) std::filesystem::remove(copy + name);
      std::filesystem::remove(frames);
      std::filesystem::remove(table);
      std::filesystem::copy_file(copy + "/frames", frames);
      std::filesystem::copy_file(copy + "/table", table);
      c.change(record);
    };
    v1::VmRecord record = Record(generation_);
    arrange(&record);
    EXPECT_EQ(Recover({record}), c.why == nullptr);
    if (c.why == nullptr) {
      EXPECT_EQ(Files(), 2u);
      Boot();
      EXPECT_EQ(Read(10, kSet), BlocksText(10, kSet));
      EXPECT_EQ(hits(), kSet);
      EndRun();
      --generation_;
      continue;
    }
    EXPECT_EQ(Files(), 0u);
    EXPECT_EQ(frames_->spare_bytes() + frames_->beside_bytes(), 0u);
    if (*c.why == 0) continue;
    arrange(&record);
    EXPECT_THAT(WhyNot(), HasSubstr(c.why));
  }
}

TEST_F(ReplicaRecoveryTest, AFrameThatIsNotWhatItWasIsNotServed) {
  LiveAndRead();
  Flip(FramePath(), kData + 3 * kPageSize + 77);
  ASSERT_TRUE(Recover());
  Boot();
  EXPECT_EQ(Read(10, kSet), BlocksText(10, kSet)) << "block 13 is of the image";
  EXPECT_EQ(replica_->Describe().mismatched(), 1u);
  EXPECT_EQ(Read(13, 1, kData + 0x40000), BlockText(13));
}

TEST_F(ReplicaRecoveryTest, AnImageThatWasChangedMeanwhileIsReadAnew) {
  LiveAndRead();
  SpoilImage();
  const timespec later[2] = {{.tv_sec = 4'000'000'000, .tv_nsec = 0}, {.tv_sec = 4'000'000'000, .tv_nsec = 0}};
  ASSERT_EQ(::utimensat(AT_FDCWD, image().c_str(), later, 0), 0);
  ASSERT_TRUE(Recover());
  Boot();
  EXPECT_EQ(Read(10, kSet), std::string(kSet * kBlockSize, '!'));
  EXPECT_EQ(hits(), 0u);
}

TEST_F(ReplicaRecoveryTest, AnotherImageOfTheSameNameIsReadAnew) {
  LiveAndRead();
  const auto time = std::filesystem::last_write_time(image());
  std::filesystem::rename(image(), image() + ".old");
  PutImage(0, std::string(kBlocks * kBlockSize, '!'));
  std::filesystem::last_write_time(image(), time);
  ASSERT_TRUE(Recover());
  Boot();
  EXPECT_EQ(Read(10, kSet), std::string(kSet * kBlockSize, '!'));
}

// A request that was under way: the device may have moved some of its bytes, or all of them.
TEST_F(ReplicaRecoveryTest, WhatARequestWasBusyWithIsNotServed) {
  Live([this] {
    EXPECT_EQ(Read(10, kSet), BlocksText(10, kSet));
    DmaChain chain(2);
    ASSERT_TRUE(machine_->space->Map(&chain, kData + 0x40000, kPageSize, DmaAccess::kRead).ok());
    BlockIo io{.kind = BlockIoKind::kWrite, .extent = {.offset = 12 * kBlockSize, .bytes = kBlockSize}, .segments = {}};
    io.segments.push_back({.gpa = Gpa(kData + 0x40000), .bytes = chain.pieces().front().bytes});
    account_->Begin(&io, chain);
  });
  PutImage(12, std::string(kBlockSize, 'w'));  // as the kernel may do later, or not at all
  ASSERT_TRUE(Recover());
  EXPECT_EQ(replica_->Describe().recovered(), kSet - 1);
  Boot();
  EXPECT_EQ(Read(12), std::string(kBlockSize, 'w'));
}

TEST_F(ReplicaRecoveryTest, WarmFramesGoForAGuestThatNeedsTheRoom) {
  LiveAndRead();
  ASSERT_TRUE(Recover());
  const auto all = frames_->Reserve(frames_->budget_bytes());
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(replica_->Describe().entries(), 0u);
  EXPECT_EQ(frames_->spare_bytes(), 0u);
}

// An image that is locked, or a kernel that is not there: however often it is tried, what was left is kept.
TEST_F(ReplicaRecoveryTest, StartsThatFailLoseNothing) {
  LiveAndRead();
  ASSERT_TRUE(Recover());
  for (int i = 0; i < 6; ++i) {
    ASSERT_EQ(replicas_->BeginRun(Record(++generation_)), replica_);
    if (i % 2 == 0) continue;
    BeginRun();
    EndRun();
  }
  Boot();
  SpoilImage();
  EXPECT_EQ(Read(10, kSet), BlocksText(10, kSet));
  EXPECT_EQ(misses(), 0u);
}

TEST_F(ReplicaRecoveryTest, WhatIsDroppedIsGone) {
  LiveAndRead();
  ASSERT_TRUE(Recover());
  replica_.reset();
  replicas_->Drop("g");
  EXPECT_EQ(Files(), 0u);
  EXPECT_EQ(frames_->spare_bytes() + frames_->beside_bytes(), 0u);
}

TEST_F(ReplicaRecoveryTest, OfSeveralTablesTheLastCounts) {
  LiveAndRead();
  std::ofstream(frames_->TablePathOf("g", 0)) << "one that was left behind by a run that did not end";
  std::ofstream(frames_->PathOf("g", 7)) << "frames of it";
  std::ofstream(frames_->PathOf("other", 1)) << "a machine that is not defined here";
  // Numbers that are the same, or none.
  for (const char* name :
       {"/g.01", "/g.001.replica", "/g.99999999999999999999999", "/g.99999999999999999999999.replica"}) {
    std::ofstream(directory_ + name) << "x";
  }
  v1::VmRecord unsound = Record();
  unsound.mutable_spec()->set_name("other");
  unsound.mutable_spec()->set_memory_mib(0);
  ASSERT_TRUE(Recover({Record(), unsound}));
  EXPECT_EQ(Files(), 2u);
  EXPECT_TRUE(std::filesystem::exists(FramePath()) && std::filesystem::exists(TablePath()));
}

// Pages are not tracked where the store has no room for their table, and all goes on.
TEST_F(ReplicaRecoveryTest, WithoutRoomForTheTableNothingIsTracked) {
  uint64_t taken = 0;
  while (frames_->TakeBeside(kPageSize)) taken += kPageSize;
  EXPECT_GT(taken, 0u);
  EXPECT_FALSE(GuestReplica::Create(site_, Owner(), 1).ok());
  EXPECT_EQ(Files(), 0u);
  frames_->GiveBeside(kPageSize);  // of the header
  MakeReplica();
  BeginRun();
  EXPECT_EQ(Read(10, kSet), BlocksText(10, kSet));
  EXPECT_EQ(replica_->Describe().entries(), 0u);
  Reset();
  EXPECT_EQ(Read(10, kSet), BlocksText(10, kSet));
  frames_->GiveBeside(taken - kPageSize);
}

// The guest goes on in its memory: no page of it is anybody's to give back.
TEST_F(ReplicaRecoveryTest, WhatAGuestGoesOnInIsLeftAlone) {
  LiveAndRead();
  const uint64_t before = *frames_->UsedBytes();
  replicas_.emplace(site_);
  EXPECT_EQ(replicas_->Recover({Record()}, {"g.1"}).value_or(-1), 1) << "its table";
  EXPECT_EQ(replicas_->Find("g"), nullptr);
  EXPECT_EQ(Files(), 1u);
  EXPECT_TRUE(std::filesystem::exists(FramePath()));
  EXPECT_GT(*frames_->UsedBytes() + (64 << 10), before) << "pages were punched";
}

// A tmpfs that somebody else made, just large enough for the frames: as if there were no daemon's death.
TEST_F(ReplicaRecoveryTest, WhereThereIsNoRoomForAnyTableItHasNoName) {
  const auto full = FrameStore::Open(directory_, frames_->budget_bytes() + frames_->most_beside_bytes());
  ASSERT_TRUE(full.ok()) << full.status();
  ASSERT_EQ(full->most_beside_bytes(), 0u);
  site_.frames = &*full;
  MakeReplica();
  EXPECT_EQ(Files(), 0u);
  BeginRun();
  EXPECT_EQ(Read(10, kSet), BlocksText(10, kSet));
  Reset();
  SpoilImage();
  EXPECT_EQ(Read(10, kSet), BlocksText(10, kSet));
  EndRun();
  replica_.reset();
}

}  // namespace
}  // namespace hk
