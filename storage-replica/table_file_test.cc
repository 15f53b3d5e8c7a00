// What a table file may hold when it is opened: anything.
#include "storage-replica/table_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage-replica/replica_table.h"
#include "storage-replica/replica_testing.h"

namespace hk {
namespace {

constexpr uint64_t kPages = 1024;
constexpr uint64_t kBlocks = 1 << 16;
constexpr DiskId kDisk{0};

// A table with entries of blocks 100 to 115 in pages 0 to 15, left behind.
class TableFileTest : public ::testing::Test {
 protected:
  TableFileTest() {
    auto table = *ReplicaTable::Create(file_.Fd(), TestIdentity(kPages), 5);
    table->AttachDisk(kDisk, TestImage(kBlocks), false);
    const IoSegment segment{.gpa = Gpa(0), .bytes = 16 * kPageSize};
    const DiskIo io{.kind = DiskIoKind::kRead, .disk = kDisk, .offset = 100 * kBlockSize, .segments = {&segment, 1}};
    table->End(table->Begin(io, 0), io, true, std::vector<uint64_t>(16, 1), 0);
  }
  void Poke(uint64_t offset, const void* bytes, size_t count) {
    ASSERT_EQ(::pwrite(file_.get(), bytes, count, static_cast<off_t>(offset)), static_cast<ssize_t>(count));
  }
  template <typename Value>
  void Poke(uint64_t offset, Value value) {
    Poke(offset, &value, sizeof(value));
  }
  absl::Status Opened(const TableIdentity& identity = TestIdentity(kPages)) {
    return ReplicaTable::Open(file_.Fd(), identity).status();
  }
  // Blocks that are still served.
  uint64_t Served() {
    auto table = ReplicaTable::Open(file_.Fd(), TestIdentity(kPages));
    if (!table.ok()) return 0;
    (*table)->AttachDisk(kDisk, TestImage(kBlocks), false);
    std::vector<ReplicaRun> runs;
    (*table)->Lookup(kDisk, {0, 1000}, &runs);
    uint64_t served = 0;
    for (const ReplicaRun& run : runs) served += run.hit ? run.blocks : 0;
    return served;
  }
  static constexpr uint64_t Slot(uint64_t slot) { return kTableHeaderBytes + slot * sizeof(TableSlot); }

  MemoryFile file_;
};

TEST_F(TableFileTest, WhatWasLeftIsThere) {
  EXPECT_EQ(Served(), 16u);
}

TEST_F(TableFileTest, AForeignOrDamagedHeaderIsRefusedInOneLine) {
  struct Case {
    std::string says;
    absl::StatusCode code;
    std::function<void()> damage;
  };
  const std::vector<Case> cases = {
      {"not a replica table", absl::StatusCode::kDataLoss, [&] { Poke<uint8_t>(0, 1); }},
      {"of format version 2, this program has 1", absl::StatusCode::kFailedPrecondition, [&] { Poke<uint32_t>(8, 2); }},
      {"header's checksum", absl::StatusCode::kDataLoss, [&] { Poke<uint64_t>(16, 8); }},
      {"generations are damaged", absl::StatusCode::kDataLoss,
       [&] { Poke<uint64_t>(offsetof(TableHeader, generation_limit), 77); }},
      {"no present bank", absl::StatusCode::kDataLoss,
       [&] { Poke<uint32_t>(offsetof(TableHeader, current_bank), kTableBanks); }},
      {"no present bank", absl::StatusCode::kDataLoss, [&] { Poke<uint64_t>(offsetof(TableHeader, bank), 6); }},
      {"bytes long", absl::StatusCode::kFailedPrecondition, [&] { ASSERT_EQ(::ftruncate(file_.get(), 5000), 0); }},
      {"shorter than its header", absl::StatusCode::kDataLoss, [&] { ASSERT_EQ(::ftruncate(file_.get(), 100), 0); }},
  };
  std::vector<char> good(Slot(kTableBanks * kPages));
  ASSERT_EQ(::pread(file_.get(), good.data(), good.size(), 0), static_cast<ssize_t>(good.size()));
  for (const Case& each : cases) {
    SCOPED_TRACE(each.says);
    ASSERT_EQ(::ftruncate(file_.get(), static_cast<off_t>(good.size())), 0);
    Poke(0, good.data(), good.size());
    ASSERT_EQ(Opened(), absl::OkStatus());
    each.damage();
    const absl::Status status = Opened();
    EXPECT_EQ(status.code(), each.code);
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr(each.says));
  }
}

TEST_F(TableFileTest, AnothersFileIsRefused) {
  const auto refused = [&](const std::function<void(TableIdentity&)>& change, const std::string& says) {
    TableIdentity identity = TestIdentity(kPages);
    change(identity);
    const absl::Status status = Opened(identity);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << says;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr(says));
  };
  refused([](TableIdentity& each) { each.guest = GuestId(8); }, "of guest 7, not 8");
  refused([](TableIdentity& each) { each.node = NodeId(1); }, "of node 0, not 1");
  refused([](TableIdentity& each) { each.pages = 1023; }, "of a guest of 1024 pages, not 1023");
  refused([](TableIdentity& each) { each.pages = 5000; }, "bytes long");
  refused([](TableIdentity& each) { each.boot.bytes[3] = 9; }, "another boot");
  refused([](TableIdentity& each) { each.frame_store.bytes[3] = 9; }, "another frame store");
}

TEST_F(TableFileTest, OneProcessAtATimeHasTheFile) {
  const std::string path = "/proc/self/fd/" + std::to_string(file_.get());
  const auto another = [&] { return OwnedFd(::open(path.c_str(), O_RDWR | O_CLOEXEC)); };
  const absl::Status opened = ReplicaTable::Open(another(), TestIdentity(kPages)).status();
  EXPECT_EQ(opened.code(), absl::StatusCode::kFailedPrecondition) << opened;
  EXPECT_THAT(std::string(opened.message()), ::testing::HasSubstr("another process uses it"));
  EXPECT_FALSE(ReplicaTable::Create(another(), TestIdentity(kPages), 1).ok());
  EXPECT_EQ(Served(), 16u);
}

TEST_F(TableFileTest, AFileThatMayNotBeWrittenIsRefused) {
  const std::string path = "/proc/self/fd/" + std::to_string(file_.get());
  const OwnedFd only_read(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_EQ(::flock(file_.get(), LOCK_UN), 0);
  EXPECT_FALSE(ReplicaTable::Open(OwnedFd(::dup(only_read.get())), TestIdentity(kPages)).ok());
  EXPECT_FALSE(ReplicaTable::Create(OwnedFd(::dup(only_read.get())), TestIdentity(kPages), 1).ok());
}

TEST_F(TableFileTest, ADamagedEntryIsDroppedAlone) {
  std::vector<char> good(Slot(kTableBanks * kPages));
  ASSERT_EQ(::pread(file_.get(), good.data(), good.size(), 0), static_cast<ssize_t>(good.size()));
  for (size_t byte = 0; byte < sizeof(TableSlot); ++byte) {
    Poke(0, good.data(), good.size());
    Poke<uint8_t>(Slot(3) + byte, static_cast<uint8_t>(good[Slot(3) + byte]) ^ 0x41);
    // The upper bytes of the sequence only count; `next` means nothing.
    EXPECT_EQ(Served(), byte >= 1 && byte < 8 ? 16u : 15u) << byte;
  }
}

TEST_F(TableFileTest, AHalfWrittenEntryIsDropped) {
  // Every state of memory between two stores, as a process that dies leaves it.
  TableSlot torn{};
  ReplicaEntry before{.state = EntryState::kValid, .ssa = {kDisk, 500}, .generation = 3, .checksum = 5, .flush = 1};
  ReplicaEntry after{.state = EntryState::kValid, .ssa = {kDisk, 501}, .generation = 4, .checksum = 6, .flush = 2};
  TableSlot from{}, to{};
  StoreEntry(from, 20, before);
  StoreEntry(to, 20, after);
  const size_t ends[] = {8, 16, 24, 32, 36, 40};
  for (const size_t end : ends) {
    std::memcpy(static_cast<void*>(&torn), static_cast<const void*>(&from), sizeof(torn));
    std::memcpy(reinterpret_cast<char*>(&torn) + 8, reinterpret_cast<const char*>(&to) + 8, end - 8);
    torn.sequence = from.sequence | 1;
    Poke(Slot(20), &torn, sizeof(torn));
    EXPECT_EQ(Served(), 16u) << end;
  }
}

TEST_F(TableFileTest, ASequenceThatBeginsAnewIsOneToo) {
  Poke<uint32_t>(Slot(3), 0);
  auto table = *ReplicaTable::Open(file_.Fd(), TestIdentity(kPages));
  EXPECT_EQ(table->Statistics().valid, 16u);
  EXPECT_TRUE(table->Remove(Gfn(3)));
}

TEST_F(TableFileTest, AnyBytesAreRefusedOrServeNothingElse) {
  std::vector<uint8_t> good(Slot(kTableBanks * kPages));
  ASSERT_EQ(::pread(file_.get(), good.data(), good.size(), 0), static_cast<ssize_t>(good.size()));
  for (uint32_t seed = 1; seed <= 300; ++seed) {
    std::mt19937 random(seed);
    std::vector<uint8_t> bad = good;
    for (int i = 0; i < 40; ++i) bad[random() % (i % 2 == 0 ? 2600 : bad.size())] = static_cast<uint8_t>(random());
    if (seed % 3 == 0) std::generate(bad.begin() + Slot(0), bad.end(), [&] { return static_cast<uint8_t>(random()); });
    // Half of them get past the header.
    if (seed % 2 == 0) std::copy_n(good.begin(), kTableHeaderBytes, bad.begin());
    Poke(0, bad.data(), bad.size());
    EXPECT_LE(Served(), 16u) << "seed " << seed;
  }
}

// Room for so many bytes.
class SmallRoom final : public TableRoom {
 public:
  explicit SmallRoom(uint64_t bytes) : left_(bytes), all_(bytes) {}
  bool Take(uint64_t bytes) override {
    if (bytes > left_) return false;
    left_ -= bytes;
    return true;
  }
  void Give(uint64_t bytes) override { left_ += bytes; }
  uint64_t taken() const { return all_ - left_; }

 private:
  uint64_t left_, all_;
};

TEST(TableRoomTest, WhatIsInUseIsCountedAndNoMore) {
  constexpr uint64_t kChunk = kChunkSlots * sizeof(TableSlot);
  const MemoryFile file;
  const TableIdentity identity = TestIdentity(4 * kChunkSlots);
  const auto room = std::make_shared<SmallRoom>(kTableHeaderBytes + 2 * kChunk);
  {
    const auto table = *TableFile::Create(file.Fd(), identity, 1, kGenerationStep, room);
    EXPECT_EQ(room->taken(), kTableHeaderBytes);
    EXPECT_NE(table->FindOrMake(0), nullptr);
    EXPECT_NE(table->FindOrMake(1), nullptr);
    EXPECT_NE(table->FindOrMake(kChunkSlots), nullptr);
    EXPECT_EQ(table->FindOrMake(2 * kChunkSlots), nullptr) << "no room";
    EXPECT_EQ(room->taken(), table->BytesInUse());
    ASSERT_TRUE(table->ClearBank(0).ok());
    EXPECT_EQ(room->taken(), kTableHeaderBytes);
    for (const uint32_t slot : {2 * kChunkSlots, uint32_t{0}}) {
      ASSERT_NE(table->FindOrMake(slot), nullptr) << "there is room again";
      StoreState(*table->SlotAt(slot), EntryState::kBusy, 1);
    }
  }
  EXPECT_EQ(room->taken(), 0u);
  {
    const auto table = TableFile::Open(file.Fd(), identity, room);
    ASSERT_TRUE(table.ok()) << table.status();
    EXPECT_EQ(room->taken(), kTableHeaderBytes + 2 * kChunk);
  }
  for (const uint64_t less : {kTableHeaderBytes - 1, kTableHeaderBytes + 2 * kChunk - 1}) {
    const auto small = std::make_shared<SmallRoom>(less);
    EXPECT_TRUE(absl::IsResourceExhausted(TableFile::Open(file.Fd(), identity, small).status()));
    EXPECT_EQ(small->taken(), 0u);
  }
  EXPECT_TRUE(absl::IsResourceExhausted(
      TableFile::Create(MemoryFile().Fd(), identity, 1, kGenerationStep, std::make_shared<SmallRoom>(1)).status()));
}

}  // namespace
}  // namespace hk
