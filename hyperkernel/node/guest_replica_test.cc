#include "hyperkernel/node/guest_replica.h"

#include <functional>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/node/disk_replica.h"
#include "hyperkernel/node/node_info.h"
#include "hyperkernel/node/replica_testing.h"

namespace hk {
namespace {

using testing::HasSubstr;

constexpr char kSpoilt = '!';  // what SpoilImage puts everywhere

class GuestReplicaTest : public ReplicaGuestTest {
 protected:
  std::string Spoilt(uint64_t blocks = 1) { return std::string(blocks * kBlockSize, kSpoilt); }
  // A read of a block, begun by hand: its memory is pinned as a device has it.
  struct ByHand {
    ByHand(ReplicaGuestTest*, DmaSpace* space, BlockIoKind kind, uint64_t block, uint64_t gpa) : chain(2) {
      HK_CHECK(
          space->Map(&chain, gpa, kPageSize, kind == BlockIoKind::kRead ? DmaAccess::kWrite : DmaAccess::kRead).ok());
      io.kind = kind;
      io.extent = {.offset = block * kBlockSize, .bytes = kBlockSize};
      io.segments.push_back({.gpa = Gpa(gpa), .bytes = chain.pieces().front().bytes});
    }
    DmaChain chain;
    BlockIo io;
  };
};

TEST_F(GuestReplicaTest, AfterAResetReadsComeFromMemory) {
  constexpr uint64_t kMany = 64;
  EXPECT_EQ(Read(10, kMany), BlocksText(10, kMany));
  EXPECT_EQ(hits(), 0u);
  EXPECT_EQ(misses(), kMany);
  EXPECT_EQ(replica_->Describe().entries(), kMany);
  Reset();
  EXPECT_EQ(replica_->Describe().warm_entries(), kMany);
  SpoilImage();
  EXPECT_EQ(Read(10, kMany), BlocksText(10, kMany));
  const v1::Replica shown = replica_->Describe();
  EXPECT_EQ(shown.vm(), "g");
  EXPECT_EQ(shown.hits(), kMany);
  EXPECT_EQ(shown.bytes_saved(), kMany * kBlockSize);
  EXPECT_EQ(shown.resets(), 1u);
  EXPECT_EQ(shown.disks(), 1u);
}

TEST_F(GuestReplicaTest, ABlockThatIsInAPageIsNotReadAgain) {
  EXPECT_EQ(Read(10, 4), BlocksText(10, 4));
  SpoilImage();
  EXPECT_EQ(Read(10, 4, kData + 0x10000), BlocksText(10, 4));
  EXPECT_EQ(hits(), 4u);
  // A part of a block too, though what it is read into is no whole page.
  EXPECT_EQ(Do(VIRTIO_BLK_T_IN, 11 * 8 + 3, {{kData + 0x20100, 512, true}}), VIRTIO_BLK_S_OK);
  EXPECT_EQ(machine_->drivers[0]->Text(kData + 0x20100, 512), BlockText(11).substr(0, 512));
  EXPECT_EQ(Read(14), Spoilt()) << "the image is what it is";
}

// Of three pages one is written to: by the guest, or by a device of it.
TEST_F(GuestReplicaTest, APageThatWasWrittenToIsNotServed) {
  EXPECT_EQ(Read(10, 3), BlocksText(10, 3));
  Store(kData + kPageSize + 7, "x");
  SpoilImage();
  EXPECT_EQ(Read(10, 3, kData + 0x10000), BlockText(10) + Spoilt() + BlockText(12));
  DmaChain device(1);
  ASSERT_TRUE(machine_->space->Map(&device, kData, 4, DmaAccess::kWrite).ok());
  device.Release();
  EXPECT_TRUE(memory_->Write(Gpa(kData + 2 * kPageSize), std::as_bytes(std::span("y"))).ok());
  Store(kData + 0x10000, "z");
  Store(kData + 0x12000, "z");
  EXPECT_EQ(Read(10, 3, kData + 0x20000), Spoilt() + Spoilt() + Spoilt());
}

TEST_F(GuestReplicaTest, AStoreAfterTheRunBeforeDidNotHappen) {
  EXPECT_EQ(Read(10, 3), BlocksText(10, 3));
  Store(kData + kPageSize, "guest");
  Reset();
  EXPECT_EQ(replica_->Describe().warm_entries(), 2u);
  Store(kData, "the next run's memory is another");
  SpoilImage();
  EXPECT_EQ(Read(10, 3, kData + 0x10000), BlockText(10) + Spoilt() + BlockText(12));
}

TEST_F(GuestReplicaTest, WhatIsWrittenIsKnownUntilThePageOrTheBlockChanges) {
  Write(20, BlockText(1, 3) + BlockText(2, 3) + BlockText(3, 3));
  EXPECT_EQ(ImageText(20), BlockText(1, 3));
  Store(kData + kPageSize, "later");
  Reset();
  SpoilImage();
  EXPECT_EQ(Read(20, 3, kData + 0x10000), BlockText(1, 3) + Spoilt() + BlockText(3, 3));
  // The other way: the block changes, and the page that it was in does not.
  Write(20, BlockText(9, 3), kData + 0x40000);
  Store(kData + 0x40000, "x");
  SpoilImage();
  EXPECT_EQ(Read(20, 1, kData + 0x50000), Spoilt());
}

TEST_F(GuestReplicaTest, WhatIsErasedOrWrittenInPartIsForgotten) {
  EXPECT_EQ(Read(10, 8), BlocksText(10, 8));
  const virtio_blk_discard_write_zeroes erase{11 * 8, 8, 0};
  Store(kHeader + 0x800, std::string(reinterpret_cast<const char*>(&erase), sizeof erase));
  EXPECT_EQ(Do(VIRTIO_BLK_T_WRITE_ZEROES, 0, {{kHeader + 0x800, 16, false}}), VIRTIO_BLK_S_OK);
  EXPECT_EQ(Read(11, 1, kData + 0x20000), std::string(kBlockSize, 0));
  Store(kData + 0x30000, std::string(512, 'p'));
  EXPECT_EQ(Do(VIRTIO_BLK_T_OUT, 13 * 8 + 1, {{kData + 0x30000, 512, false}}), VIRTIO_BLK_S_OK);
  std::string part = BlockText(13);
  part.replace(512, 512, std::string(512, 'p'));
  EXPECT_EQ(Read(13, 1, kData + 0x21000), part);
  SpoilImage();
  EXPECT_EQ(Read(10, 1, kData + 0x40000), BlockText(10));
  EXPECT_EQ(Read(13, 1, kData + 0x41000), part) << "as it was read last";
}

TEST_F(GuestReplicaTest, AFlushThatFailedTakesAllOfTheDisk) {
  EXPECT_EQ(Read(10, 4), BlocksText(10, 4));
  const uint32_t first = account_->FlushBegins();
  account_->FlushEnds(first, true);
  EXPECT_EQ(replica_->Describe().entries(), 4u);
  const uint32_t second = account_->FlushBegins();
  account_->FlushEnds(second, false);
  EXPECT_EQ(replica_->Describe().entries(), 0u);
}

TEST_F(GuestReplicaTest, AStoreDuringARequestIsSeen) {
  for (const BlockIoKind kind : {BlockIoKind::kRead, BlockIoKind::kWrite}) {
    ByHand request(this, machine_->space.get(), kind, 10, kData);
    account_->Begin(&request.io, request.chain);
    Store(kData, "x");
    account_->End(&request.io, true);
    EXPECT_EQ(replica_->Describe().entries(), 0u);
    ByHand quiet(this, machine_->space.get(), kind, 11, kData + kPageSize);
    account_->Begin(&quiet.io, quiet.chain);
    account_->End(&quiet.io, false);
    EXPECT_EQ(replica_->Describe().entries(), 0u) << "it failed";
  }
  ByHand request(this, machine_->space.get(), BlockIoKind::kWrite, 10, kData);
  account_->Begin(&request.io, request.chain);
  account_->End(&request.io, true);
  EXPECT_EQ(replica_->Describe().entries(), 1u);
}

// Who has the page pinned for writing since before the request was told of then: and writes now.
TEST_F(GuestReplicaTest, APageThatADeviceMayBeWritingToIsNotBelieved) {
  DmaChain device(1);
  ASSERT_TRUE(machine_->space->Map(&device, kData, 64, DmaAccess::kWrite).ok());
  {
    ByHand request(this, machine_->space.get(), BlockIoKind::kRead, 10, kData);
    account_->Begin(&request.io, request.chain);
    account_->End(&request.io, true);
  }
  EXPECT_EQ(replica_->Describe().entries(), 0u);
  device.Release();
  // The same for good: nobody tells of such stores.
  ASSERT_TRUE(memory_->Pin(Gpa(kData + kPageSize), 4, PageAccess::kWrite, nullptr).ok());
  ByHand request(this, machine_->space.get(), BlockIoKind::kRead, 10, kData + kPageSize);
  account_->Begin(&request.io, request.chain);
  account_->End(&request.io, true);
  EXPECT_EQ(replica_->Describe().entries(), 0u);
}

// A disk's account whose copies are followed by something.
class Interrupted final : public DiskReplica {
 public:
  using DiskReplica::DiskReplica;
  std::function<void()> then;

 private:
  void OnCopied() override {
    if (then) then();
  }
};

TEST_F(GuestReplicaTest, ACopyIsUsedOnlyIfNothingChangedMeanwhile) {
  EXPECT_EQ(Read(10), BlockText(10));
  Interrupted account(replica_, DiskId(0), memory_.get());
  const auto gaps_after = [&](std::function<void()> then) {
    account.then = std::move(then);
    ByHand request(this, machine_->space.get(), BlockIoKind::kRead, 10, kData + 0x10000);
    std::vector<BlockExtent> gaps;
    account.Begin(&request.io, request.chain);
    account.Serve(&request.io, &gaps);
    account.End(&request.io, false);
    return gaps.size();
  };
  EXPECT_EQ(gaps_after([] {}), 0u);
  EXPECT_EQ(gaps_after([&] { Store(kData, "x"); }), 1u) << "the page";
  EXPECT_EQ(Read(10), BlockText(10));
  EXPECT_EQ(gaps_after([&] {
              ByHand write(this, machine_->space.get(), BlockIoKind::kWrite, 10, kData + 0x20000);
              account_->Begin(&write.io, write.chain);
              account_->End(&write.io, true);
            }),
            1u)
      << "the block";
}

TEST_F(GuestReplicaTest, OnlyWhatIsMissingIsReadFromTheImage) {
  EXPECT_EQ(Read(10, 16), BlocksText(10, 16));
  EXPECT_EQ(Read(40, 1, kData + 0x20000), BlocksText(40, 1));
  Reset();
  SpoilImage();
  // Sixteen that are worth it between two gaps; one that is not, and is read with its neighbours.
  EXPECT_EQ(Read(8, 40, kData + 0x40000), Spoilt(2) + BlocksText(10, 16) + Spoilt(22));
  EXPECT_EQ(hits(), 16u);
}

TEST_F(GuestReplicaTest, WarmFramesGoAsTheyAreUsedAndTheyAreWhatIsHeld) {
  EXPECT_EQ(Read(10, 8), BlocksText(10, 8));
  EXPECT_EQ(frames_->spare_bytes(), 0u);
  EXPECT_EQ(frames_->reserved_bytes(), kRam);
  Reset();
  EXPECT_EQ(replica_->Describe().warm_bytes(), 8 * kPageSize) << "pages without an entry went at once";
  EXPECT_EQ(frames_->spare_bytes(), 8 * kPageSize);
  EXPECT_EQ(frames_->reserved_bytes(), kRam);
  EXPECT_EQ(Read(10, 5), BlocksText(10, 5));
  EXPECT_EQ(frames_->spare_bytes(), 3 * kPageSize) << "moved out";
  EXPECT_EQ(replica_->Describe().entries(), 8u);
  // Part of a block is no reason to give the frame up.
  EXPECT_EQ(Do(VIRTIO_BLK_T_IN, 15 * 8, {{kData + 0x20000, 512, true}}), VIRTIO_BLK_S_OK);
  EXPECT_EQ(frames_->spare_bytes(), 3 * kPageSize);
  for (int i = 0; i < 5; ++i) {
    Reset();
    EXPECT_EQ(Read(10, 5), BlocksText(10, 5));
  }
  EXPECT_EQ(frames_->spare_bytes(), 0u) << "what was not read for more resets than there are banks is gone";
  SpoilImage();
  EXPECT_EQ(Read(10, 5, kData + 0x40000), BlocksText(10, 5));
  EXPECT_EQ(Read(15, 1, kData + 0x50000), Spoilt());
}

TEST_F(GuestReplicaTest, WarmFramesGoWhenRoomIsNeededAndAreNotReadAfterwards) {
  EXPECT_EQ(Read(10, 200), BlocksText(10, 200));
  Reset();
  ASSERT_EQ(frames_->spare_bytes(), 200 * kPageSize);
  v1::NodeInfo node;
  RefreshNodeInfo(*frames_, SwapStore(directory_ + "/swap", 0), &node);
  EXPECT_EQ(node.frames_reserved_bytes(), kRam);
  EXPECT_LE(node.frames_used_bytes() + 200 * kPageSize, *frames_->UsedBytes()) << "placements count on the room";
  // Half of what is spare is needed, then all.
  const uint64_t free = frames_->budget_bytes() - kRam - 200 * kPageSize;
  const auto some = frames_->Reserve(free + 100 * kPageSize);
  ASSERT_TRUE(some.ok()) << some.status();
  EXPECT_LE(frames_->spare_bytes(), 100 * kPageSize);
  EXPECT_GE(frames_->spare_bytes(), 99 * kPageSize);
  EXPECT_EQ(Read(10, 200, kData), BlocksText(10, 200));
  EXPECT_GE(hits(), 99u);
  EXPECT_LE(hits(), 100u);
  Reset();
  const auto rest = frames_->Reserve(100 * kPageSize);
  ASSERT_TRUE(rest.ok()) << rest.status();
  EXPECT_EQ(Read(10, 200, kData), BlocksText(10, 200));
}

TEST_F(GuestReplicaTest, DropForgetsAllAndTheRunGoesOn) {
  EXPECT_EQ(Read(10, 4), BlocksText(10, 4));
  Reset();
  EXPECT_EQ(Read(20, 4), BlocksText(20, 4));
  replica_->Drop();
  v1::Replica shown = replica_->Describe();
  EXPECT_EQ(shown.entries() + shown.warm_bytes() + shown.hits() + shown.misses() + shown.resets(), 0u);
  EXPECT_EQ(frames_->spare_bytes(), 0u);
  EXPECT_EQ(Read(10, 4, kData + 0x10000), BlocksText(10, 4));
  shown = replica_->Describe();
  EXPECT_EQ(shown.hits(), 0u);
  EXPECT_EQ(shown.misses(), 4u);
  EXPECT_EQ(shown.entries(), 4u) << "what is read is known again";
}

TEST_F(GuestReplicaTest, AnImageThatWasChangedMeanwhileIsReadAnew) {
  EXPECT_EQ(Read(10, 4), BlocksText(10, 4));
  EndRun();
  SpoilImage();
  // Beyond what may be the time of a change of our own.
  const timespec later[2] = {{.tv_sec = 4'000'000'000, .tv_nsec = 0}, {.tv_sec = 4'000'000'000, .tv_nsec = 0}};
  ASSERT_EQ(::utimensat(AT_FDCWD, image().c_str(), later, 0), 0);
  ASSERT_TRUE(replica_->BeginRun(++generation_).ok());
  BeginRun();
  EXPECT_EQ(Read(10, 4), Spoilt(4));
}

TEST_F(GuestReplicaTest, ARunThatHasNotEndedIsNotBegunAgain) {
  EXPECT_TRUE(absl::IsFailedPrecondition(replica_->BeginRun(2)));
  EndRun();
  EXPECT_TRUE(absl::IsFailedPrecondition(replica_->BeginRun(1))) << "a number of before";
}

TEST_F(GuestReplicaTest, VerificationFindsWhatIsNotOnTheDisk) {
  EXPECT_EQ(Read(10, 40), BlocksText(10, 40));
  Reset();
  EXPECT_EQ(Read(10, 4), BlocksText(10, 4));
  Write(100, BlockText(7, 3), kData + 0x30000);
  std::vector<v1::ReplicaVerification> told;
  const auto verify = [&] {
    told.clear();
    return replica_->Verify(65536, [&told](const v1::ReplicaVerification& found) {
      told.push_back(found);
      return true;
    });
  };
  ASSERT_TRUE(verify().ok());
  EXPECT_EQ(told.back().done(), 41u);
  EXPECT_EQ(told.back().entries(), 41u);
  EXPECT_EQ(told.back().wrong() + told.back().gone(), 0u);
  EXPECT_TRUE(told.back().finished());
  PutImage(12, Spoilt());  // in the present run's memory
  PutImage(30, Spoilt());  // in that of the run before
  ASSERT_TRUE(verify().ok());
  EXPECT_EQ(told.back().wrong(), 2u);
  EXPECT_THAT(told.back().first_wrong(), HasSubstr("disk 0 block "));
  EXPECT_EQ(Read(12, 1, kData + 0x40000), Spoilt()) << "what is wrong is not served";
  EXPECT_EQ(Read(30, 1, kData + 0x41000), Spoilt());
  ASSERT_TRUE(verify().ok());
  EXPECT_EQ(told.back().wrong(), 0u);
  EXPECT_TRUE(absl::IsAborted(replica_->Verify(65536, [](const auto&) { return false; })));
}

TEST(GuestReplicaDisks, OnlyThoseThatNobodyElseWritesTo) {
  const struct {
    bool block_device, read_only, exclusive, tracked;
  } kCases[] = {{false, false, false, true},
                {false, true, false, true},
                {true, false, false, true},
                {true, true, true, true},
                {true, true, false, false}};
  for (const auto& c : kCases) {
    DiskImage image;
    image.block_device = c.block_device;
    image.read_only = c.read_only;
    EXPECT_EQ(IsLockedAgainstWriters(image, c.exclusive), c.tracked) << c.block_device << c.read_only << c.exclusive;
  }
}

// The machine is reset, or its disk becomes unreadable, while it is compared.
TEST_F(GuestReplicaTest, VerificationThatCannotGoOnSaysWhy) {
  EXPECT_EQ(Read(10, 4), BlocksText(10, 4));
  std::filesystem::resize_file(image(), 11 * kBlockSize);
  const absl::Status shorter = replica_->Verify(65536, [](const auto&) { return true; });
  EXPECT_FALSE(shorter.ok());
  EXPECT_THAT(std::string(shorter.message()), HasSubstr("vm 'g': disk 0 block 11 cannot be read"));
}

}  // namespace
}  // namespace hk
