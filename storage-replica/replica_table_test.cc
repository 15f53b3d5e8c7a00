#include "storage-replica/replica_table.h"

#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage-replica/replica_testing.h"

namespace hk {
namespace {

constexpr uint64_t kPages = 4096;
constexpr uint64_t kBlocks = 1 << 20;
constexpr DiskId kDisk{1};
constexpr NodeId kSelf{0}, kOther{3};
constexpr uint64_t kSum = 4711;

// A request of whole pages, from `gfn` on, to the blocks from `block` on.
struct Request {
  Request(DiskIoKind kind, uint64_t block, uint64_t gfn, uint64_t pages = 1, DiskId disk = kDisk)
      : segment{.gpa = GpaOf(Gfn(gfn)), .bytes = pages * kPageSize},
        sums(pages, kSum),
        io{.kind = kind, .disk = disk, .offset = block * kBlockSize, .bytes = pages * kBlockSize} {
    if (kind != DiskIoKind::kErase) io.segments = {&segment, 1};
  }
  Request(const Request&) = delete;
  void Begin(ReplicaTable& table) { ticket = table.Begin(io, 0); }
  void End(ReplicaTable& table, bool ok = true) { table.End(ticket, io, ok, sums, 0); }

  IoSegment segment;
  std::vector<uint64_t> sums;
  DiskIo io;
  IoTicket ticket;
};

class ReplicaTableTest : public ::testing::Test {
 protected:
  ReplicaTableTest() { Make(); }
  void Make() {
    absl::StatusOr<std::unique_ptr<ReplicaTable>> made = ReplicaTable::Create(file_.Fd(), TestIdentity(kPages), 1);
    HK_CHECK(made.ok());
    table_ = *std::move(made);
    table_->AttachDisk(kDisk, TestImage(kBlocks), false);
  }
  // As after kill -9.
  void Reopen(bool attach = true) {
    absl::StatusOr<std::unique_ptr<ReplicaTable>> opened = ReplicaTable::Open(file_.Fd(), TestIdentity(kPages));
    ASSERT_TRUE(opened.ok()) << opened.status();
    table_ = *std::move(opened);
    if (attach) {
      EXPECT_TRUE(table_->AttachDisk(kDisk, TestImage(kBlocks), false));
    }
  }
  void Do(DiskIoKind kind, uint64_t block, uint64_t gfn, uint64_t pages = 1) {
    Request request(kind, block, gfn, pages);
    request.Begin(*table_);
    request.End(*table_);
  }
  std::vector<ReplicaRun> Runs(uint64_t block, uint64_t count = 1, DiskId disk = kDisk) {
    std::vector<ReplicaRun> runs;
    table_->Lookup(disk, {block, count}, &runs);
    return runs;
  }
  bool Hit(uint64_t block) { return Runs(block).at(0).hit; }
  uint64_t FrameOf(uint64_t block) { return Runs(block).at(0).frame.frame; }

  MemoryFile file_;
  std::unique_ptr<ReplicaTable> table_;
};

TEST_F(ReplicaTableTest, AReadAndAWriteMakeEntriesWhenTheyEnd) {
  for (const DiskIoKind kind : {DiskIoKind::kRead, DiskIoKind::kWrite}) {
    Request request(kind, 10, 20, 3);
    request.Begin(*table_);
    EXPECT_FALSE(Hit(10));
    EXPECT_TRUE(table_->IsTracked(Gfn(20)));
    request.End(*table_);
    const std::vector<ReplicaRun> runs = Runs(9, 5);
    ASSERT_EQ(runs.size(), 3u);
    EXPECT_FALSE(runs[0].hit);
    EXPECT_TRUE(runs[1].hit);
    EXPECT_EQ(runs[1].blocks, 3u);
    EXPECT_EQ(runs[1].frame, (FrameRef{1, 20}));
    EXPECT_TRUE(table_->Confirm(runs[1], {}));
    EXPECT_FALSE(runs[2].hit);
  }
  EXPECT_EQ(table_->Statistics().valid, 3u);
  EXPECT_EQ(table_->Statistics().impossible, 0u);
}

TEST_F(ReplicaTableTest, AStoreRemovesAndAStoreDuringARequestToo) {
  Do(DiskIoKind::kRead, 10, 20, 2);
  const std::vector<ReplicaRun> runs = Runs(10, 2);
  EXPECT_TRUE(table_->Remove(Gfn(20)));
  EXPECT_FALSE(table_->Remove(Gfn(20)));
  EXPECT_FALSE(table_->Confirm(runs[0], {}));
  EXPECT_FALSE(Hit(10));
  EXPECT_TRUE(Hit(11));

  Request write(DiskIoKind::kWrite, 30, 40);
  write.Begin(*table_);
  table_->Remove(Gfn(40));
  write.End(*table_);
  EXPECT_FALSE(Hit(30));
}

TEST_F(ReplicaTableTest, AnEntryThatWentAndCameIsNotTheSame) {
  Do(DiskIoKind::kRead, 10, 20);
  const std::vector<ReplicaRun> runs = Runs(10);
  Do(DiskIoKind::kWrite, 10, 20);
  EXPECT_TRUE(Hit(10));
  EXPECT_FALSE(table_->Confirm(runs[0], {}));
}

TEST_F(ReplicaTableTest, AWriteOrEraseRemovesAllEntriesOfItsBlocks) {
  Do(DiskIoKind::kRead, 10, 20);
  Do(DiskIoKind::kRead, 10, 21);
  Request write(DiskIoKind::kWrite, 10, 22);
  write.Begin(*table_);
  EXPECT_FALSE(Hit(10));
  write.End(*table_);
  EXPECT_EQ(FrameOf(10), 22u);
  EXPECT_EQ(table_->Statistics().valid, 1u);
  Do(DiskIoKind::kErase, 9, 0, 3);
  EXPECT_FALSE(Hit(10));
}

TEST_F(ReplicaTableTest, RequestsThatOverlapInTimeTellNothing) {
  Request first(DiskIoKind::kWrite, 10, 20), second(DiskIoKind::kWrite, 10, 21);
  first.Begin(*table_);
  second.Begin(*table_);
  first.End(*table_);
  second.End(*table_);
  EXPECT_FALSE(Hit(10));

  Request erase(DiskIoKind::kErase, 0, 0, 100), read(DiskIoKind::kRead, 50, 60);
  erase.Begin(*table_);
  read.Begin(*table_);
  erase.End(*table_);
  read.End(*table_);
  EXPECT_FALSE(Hit(50));

  Request reader(DiskIoKind::kRead, 70, 80), other(DiskIoKind::kRead, 70, 81);
  reader.Begin(*table_);
  other.Begin(*table_);
  reader.End(*table_);
  other.End(*table_);
  EXPECT_TRUE(Hit(70));
}

TEST_F(ReplicaTableTest, RequestsThatShareAPageTellNothing) {
  Request first(DiskIoKind::kRead, 10, 20), second(DiskIoKind::kRead, 11, 20), third(DiskIoKind::kWrite, 12, 20);
  first.Begin(*table_);
  second.Begin(*table_);
  first.End(*table_);
  third.Begin(*table_);
  second.End(*table_);
  third.End(*table_);
  EXPECT_FALSE(Hit(10) || Hit(11) || Hit(12));
  EXPECT_EQ(table_->Statistics().impossible, 0u);
  Do(DiskIoKind::kWrite, 12, 20);
  EXPECT_TRUE(Hit(12));
}

TEST_F(ReplicaTableTest, FailedAndPartialRequestsRemove) {
  Do(DiskIoKind::kRead, 10, 20, 4);
  Request failed(DiskIoKind::kWrite, 10, 30);
  failed.Begin(*table_);
  failed.End(*table_, false);
  EXPECT_FALSE(Hit(10));
  // 512 bytes of block 11, from a page that stays what it was.
  const IoSegment part{.gpa = Gpa(50 * kPageSize), .bytes = 512};
  const DiskIo write{
      .kind = DiskIoKind::kWrite, .disk = kDisk, .offset = 11 * kBlockSize + 512, .segments = {&part, 1}};
  table_->End(table_->Begin(write, 0), write, true, {}, 0);
  EXPECT_FALSE(Hit(11));
  EXPECT_TRUE(Hit(12));
  // A read into part of a tracked page: the page is something else then.
  const IoSegment into{.gpa = Gpa(22 * kPageSize + 512), .bytes = 512};
  const DiskIo read{.kind = DiskIoKind::kRead, .disk = kDisk, .offset = 99 * kBlockSize, .segments = {&into, 1}};
  table_->End(table_->Begin(read, 0), read, true, {}, 0);
  EXPECT_FALSE(Hit(12));
  EXPECT_TRUE(Hit(13));
  // A page that lies across two blocks.
  const IoSegment across{.gpa = Gpa(60 * kPageSize), .bytes = kPageSize};
  const DiskIo unaligned{
      .kind = DiskIoKind::kRead, .disk = kDisk, .offset = 200 * kBlockSize + 512, .segments = {&across, 1}};
  table_->End(table_->Begin(unaligned, 0), unaligned, true, {}, 0);
  EXPECT_FALSE(Hit(200) || Hit(201));
}

TEST_F(ReplicaTableTest, HostileRequestsAreNoTrouble) {
  const std::vector<IoSegment> segments = {{Gpa(~uint64_t{0} - 100), ~uint64_t{0}},
                                           {Gpa(kPages * kPageSize - 512), 3 * kPageSize},
                                           {Gpa(0), 0},
                                           {Gpa(5 * kPageSize), kPageSize},
                                           {Gpa(5 * kPageSize), kPageSize}};
  for (const uint64_t offset : {uint64_t{0}, ~uint64_t{0} - 5, (kMaxBlocks - 1) * kBlockSize, uint64_t{1} << 62}) {
    for (const DiskIoKind kind : {DiskIoKind::kRead, DiskIoKind::kWrite, DiskIoKind::kErase}) {
      const DiskIo io{
          .kind = kind, .disk = kDisk, .offset = offset, .bytes = 1 << 20, .segments = std::span(segments).subspan(1)};
      table_->End(table_->Begin(io, 0), io, true, {}, 0);
    }
  }
  EXPECT_EQ(table_->Statistics().impossible, 0u);
}

TEST_F(ReplicaTableTest, AllOfAnEndlessDiskIsErasedAtOnce) {
  Do(DiskIoKind::kRead, 100, 1);
  Do(DiskIoKind::kRead, 101, 2);
  const DiskIo erase{.kind = DiskIoKind::kErase, .disk = kDisk, .offset = 101 * kBlockSize, .bytes = ~uint64_t{0}};
  table_->End(table_->Begin(erase, 0), erase, true, {}, 0);
  EXPECT_TRUE(Hit(100));
  EXPECT_FALSE(Hit(101));
}

TEST_F(ReplicaTableTest, EntriesOfAnotherNodesRequestsOutliveTheProcess) {
  const ReplicaEntry entry{
      .state = EntryState::kValid, .ssa = {kDisk, 100}, .generation = uint64_t{1} << 44, .checksum = 7, .flush = 1};
  table_->Comes(Gfn(1), entry, false);
  Reopen();
  EXPECT_TRUE(Hit(100));
  ReplicaEntry impossible = entry;
  impossible.generation = kMaxGeneration;
  table_->Comes(Gfn(1), impossible, false);
  EXPECT_FALSE(Hit(100)) << "the page has other bytes now";
}

TEST_F(ReplicaTableTest, AResetThatWasCutShortIsDoneAgain) {
  Do(DiskIoKind::kRead, 100, 1);
  ASSERT_TRUE(table_->AddWarm(9).ok());  // as it stands before the bank becomes the present one
  Reopen();
  EXPECT_EQ(table_->Reset(9).value(), 0u);
  EXPECT_EQ(table_->file_generation(), 9u);
  EXPECT_TRUE(Hit(100));
}

TEST_F(ReplicaTableTest, DisksAreApart) {
  const DiskId other{2};
  EXPECT_FALSE(table_->AttachDisk(other, TestImage(kBlocks), true));
  Do(DiskIoKind::kRead, 10, 20);
  Request read(DiskIoKind::kRead, 10, 21, 1, other);
  read.Begin(*table_);
  read.End(*table_);
  EXPECT_EQ(Runs(10)[0].frame.frame, 20u);
  EXPECT_EQ(Runs(10, 1, other)[0].frame.frame, 21u);
  EXPECT_EQ(table_->ServedAt(21)->entry.flush, 0u);
  EXPECT_EQ(table_->ServedAt(20)->entry.flush, 1u);
  table_->DropDisk(other);
  EXPECT_FALSE(Runs(10, 1, other)[0].hit);
  EXPECT_TRUE(Hit(10));
}

TEST_F(ReplicaTableTest, FlushesAreCounted) {
  Do(DiskIoKind::kWrite, 10, 20);
  const uint32_t flush = table_->FlushBegins(kDisk);
  Do(DiskIoKind::kWrite, 11, 21);
  table_->FlushEnds(kDisk, flush, true);
  EXPECT_EQ(table_->DurableFlush(kDisk), table_->ServedAt(20)->entry.flush);
  EXPECT_LT(table_->DurableFlush(kDisk), table_->ServedAt(21)->entry.flush);
  table_->FlushEnds(kDisk, table_->FlushBegins(kDisk), false);
  EXPECT_FALSE(Hit(10) || Hit(11));
}

TEST_F(ReplicaTableTest, AnEntryGoesWithItsPageAndCountsOnBothNodes) {
  MemoryFile remote_file;
  auto remote = *ReplicaTable::Create(remote_file.Fd(), TestIdentity(kPages, kOther), 1);
  Do(DiskIoKind::kRead, 10, 20);
  const std::optional<ReplicaEntry> entry = table_->Leaves(Gfn(20), kOther, true);
  ASSERT_TRUE(entry.has_value());
  remote->Comes(Gfn(20), entry, false);
  const ReplicaRun run = Runs(10)[0];
  EXPECT_TRUE(run.hit && run.node == kOther);
  EXPECT_TRUE(remote->Confirm(run, {}));
  EXPECT_TRUE(table_->Confirm(run, {}));
  // Back, and away again.
  table_->Comes(Gfn(20), remote->Leaves(Gfn(20), kSelf, false), true);
  EXPECT_EQ(Runs(10)[0].node, kSelf);
  EXPECT_FALSE(remote->Confirm(run, {}));
  remote->Comes(Gfn(20), table_->Leaves(Gfn(20), kOther, true), false);
  // The block changes while the page is there: the entry that comes back is of the block's past.
  Do(DiskIoKind::kErase, 10, 0);
  table_->Comes(Gfn(20), remote->Leaves(Gfn(20), kSelf, false), true);
  EXPECT_FALSE(Hit(10));
}

TEST_F(ReplicaTableTest, AWriteThereIsSeenByWhoAsksThere) {
  MemoryFile remote_file;
  auto remote = *ReplicaTable::Create(remote_file.Fd(), TestIdentity(kPages, kOther), 1);
  Do(DiskIoKind::kRead, 10, 20);
  remote->Comes(Gfn(20), table_->Leaves(Gfn(20), kOther, true), false);
  EXPECT_TRUE(remote->Remove(Gfn(20)));
  EXPECT_FALSE(remote->Confirm(Runs(10)[0], {}));
  // And when it comes back without an entry, none is left.
  table_->Comes(Gfn(20), std::nullopt, true);
  EXPECT_FALSE(Hit(10));
}

TEST_F(ReplicaTableTest, AResetMakesTheFrameFileWarm) {
  Do(DiskIoKind::kRead, 10, 20, 2);
  EXPECT_EQ(*table_->Reset(2), 0u);
  EXPECT_FALSE(table_->IsTracked(Gfn(20)));
  const ReplicaRun run = Runs(10, 2)[0];
  EXPECT_TRUE(run.hit && run.blocks == 2);
  EXPECT_EQ(run.frame, (FrameRef{1, 20}));
  Do(DiskIoKind::kRead, 50, 20);
  EXPECT_FALSE(table_->Remove(Gfn(21)));
  EXPECT_TRUE(table_->Confirm(run, {}));
  std::set<uint64_t> served;
  table_->ForEachServed(1, [&](uint64_t frame) { served.insert(frame); });
  EXPECT_THAT(served, ::testing::ElementsAre(20, 21));
  table_->RemoveFrames(run.frame, 1);
  EXPECT_FALSE(Hit(10));
  EXPECT_TRUE(Hit(11));
  EXPECT_EQ(*table_->Reset(3), 0u);
  EXPECT_EQ(*table_->Reset(4), 0u);
  EXPECT_TRUE(Hit(11) && Hit(50));
  EXPECT_EQ(*table_->Reset(5), 1u);
  EXPECT_FALSE(Hit(11));
  EXPECT_EQ(FrameOf(50), 20u);
}

TEST_F(ReplicaTableTest, AnotherProcessFindsTheEntriesAndChecksThem) {
  Do(DiskIoKind::kRead, 10, 20, 2);
  Do(DiskIoKind::kRead, 30, 40);
  table_->Remove(Gfn(40));
  Request pending(DiskIoKind::kWrite, 50, 60);
  pending.Begin(*table_);
  const uint64_t generation = pending.ticket.generation;
  Reopen();
  EXPECT_FALSE(Hit(30) || Hit(50));
  const ReplicaRun run = Runs(10, 2)[0];
  EXPECT_TRUE(run.hit && run.blocks == 2 && run.check);
  EXPECT_FALSE(table_->Confirm(run, {}));
  EXPECT_FALSE(table_->Confirm(run, std::vector<uint64_t>{kSum, kSum + 1}));
  EXPECT_TRUE(Hit(10));
  EXPECT_FALSE(Runs(10)[0].check);
  EXPECT_FALSE(Hit(11));
  EXPECT_EQ(table_->Statistics().recovered, 2u);
  Request next(DiskIoKind::kRead, 70, 80);
  next.Begin(*table_);
  EXPECT_GT(next.ticket.generation, generation);
}

TEST_F(ReplicaTableTest, EntriesWithoutChecksumDoNotOutliveTheProcess) {
  Request read(DiskIoKind::kRead, 10, 20);
  read.sums.clear();
  read.Begin(*table_);
  read.End(*table_);
  EXPECT_TRUE(Hit(10));
  Reopen();
  EXPECT_FALSE(Hit(10));
}

TEST_F(ReplicaTableTest, AnImageThatWasChangedOutsideIsNotBelieved) {
  constexpr uint64_t kSecond = 1'000'000'000;
  for (const auto& [what, image] : std::vector<std::pair<std::string, DiskImageIdentity>>{
           {"another", {.image = 98, .bytes = kBlocks * kBlockSize, .changed_ns = 0}},
           {"resized", {.image = 99, .bytes = kBlocks * kBlockSize * 2, .changed_ns = 0}},
           {"changed", {.image = 99, .bytes = kBlocks * kBlockSize, .changed_ns = 10 * kSecond}}}) {
    SCOPED_TRACE(what);
    Make();
    Request write(DiskIoKind::kWrite, 10, 20);
    write.ticket = table_->Begin(write.io, 9 * kSecond);
    table_->End(write.ticket, write.io, true, write.sums, 9 * kSecond);
    Reopen(false);
    EXPECT_FALSE(Hit(10)) << "not attached yet";
    EXPECT_FALSE(table_->AttachDisk(kDisk, image, false));
    EXPECT_FALSE(Hit(10));
  }
}

TEST_F(ReplicaTableTest, ThreadsMeetAndEveryHitIsOfItsBlock) {
  constexpr int kThreads = 4, kRounds = 20000;
  std::vector<std::thread> threads;
  std::atomic<uint64_t> hits{0};
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      uint64_t random = static_cast<uint64_t>(thread) * 77 + 1;
      std::vector<ReplicaRun> runs;
      for (int round = 0; round < kRounds; ++round) {
        random = random * 6364136223846793005 + 1442695040888963407;
        const uint64_t block = random >> 40 & 63, gfn = random >> 50 & 63;
        switch (random >> 60 & 3) {
          case 0:
            table_->Remove(Gfn(gfn));
            break;
          case 1:
            table_->Lookup(kDisk, {block, 4}, &runs);
            for (const ReplicaRun& run : runs) hits += run.hit && table_->Confirm(run, {});
            break;
          default: {
            Request request(static_cast<DiskIoKind>(random >> 57 & 1), block, gfn, 2);
            request.Begin(*table_);
            request.End(*table_);
          }
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(hits, 0u);
  const ReplicaStatistics statistics = table_->Statistics();
  EXPECT_EQ(statistics.impossible, 0u);
  EXPECT_EQ(statistics.pending, 0u);
  uint64_t served = 0;
  table_->ForEachServed(1, [&](uint64_t) { ++served; });
  EXPECT_EQ(served, statistics.valid);
}

TEST_F(ReplicaTableTest, AFullFileSystemLeavesPagesUntracked) {
  EXPECT_LE(sizeof(TableSlot) + sizeof(uint32_t), 48u);
  // Memory is given by 2 MiB of guest; nothing else of the file is memory.
  const uint64_t before = table_->Statistics().bytes;
  Do(DiskIoKind::kRead, 10, 20);
  EXPECT_EQ(table_->Statistics().bytes - before, kChunkSlots * sizeof(TableSlot));
}

TEST(ReplicaTableFiles, ThePresentBankMayBeOfAnotherFile) {
  const MemoryFile file;
  auto table = *ReplicaTable::Create(file.Fd(), TestIdentity(kPages), 3);
  EXPECT_EQ(table->Reset(5).value(), 0u);
  EXPECT_THAT(table->FileGenerations(), testing::ElementsAre(3, 5));
  table->RenamePresent(9);
  EXPECT_EQ(table->file_generation(), 9u);
  const uint64_t begin = 7 * kGenerationStep;
  table->BeginGenerationsAt(begin);
  table->BeginGenerationsAt(kGenerationStep);
  EXPECT_GT(table->generation_limit(), begin);
  table.reset();
  auto opened = ReplicaTable::Open(file.Fd(), TestIdentity(kPages));
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_THAT((*opened)->FileGenerations(), testing::ElementsAre(3, 9));
  const DiskIo io{.kind = DiskIoKind::kRead, .disk = DiskId(0), .offset = 0, .segments = {}};
  EXPECT_GT((*opened)->Begin(io, 0).generation, begin);
}

}  // namespace
}  // namespace hk
