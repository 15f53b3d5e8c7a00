// A guest's disk over its resets, driven through its queue: what was read or written before is read from memory, and
// what is read is always what a plain model of the disk says.
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/node/replica_testing.h"

namespace hk {
namespace {

// HK_SEED repeats one.
uint64_t Seed() {
  const char* const text = std::getenv("HK_SEED");
  return text == nullptr ? std::random_device{}() : std::strtoull(text, nullptr, 10);
}

class ReplicaReset : public ReplicaGuestTest {};

TEST_F(ReplicaReset, ADataSetIsReadOnceHoweverOftenTheGuestIsReset) {
  constexpr uint64_t kSet = 512, kAtOnce = 32;  // blocks
  const auto read_all = [this] {
    for (uint64_t block = 0; block < kSet; block += kAtOnce) {
      ASSERT_EQ(Read(block, kAtOnce, kData + block * kPageSize), BlocksText(block, kAtOnce)) << block;
    }
  };
  read_all();
  EXPECT_EQ(misses(), kSet);
  for (uint64_t reset = 1; reset <= 5; ++reset) {
    Reset();
    if (reset == 5) SpoilImage();  // a reset after this would see that the image was changed
    read_all();
    EXPECT_EQ(hits(), reset * kSet);
    EXPECT_EQ(misses(), kSet) << "the image was touched";
  }
}

TEST_F(ReplicaReset, ManyRequestsInFlightAndAResetInTheirMidst) {
  constexpr uint64_t kSet = 64;
  for (int round = 0; round < 20; ++round) {
    const virtio_blk_outhdr header{VIRTIO_BLK_T_IN, 0, static_cast<uint64_t>(round % 4) * 8};
    machine_->drivers[0]->SetText(kHeader, std::string(reinterpret_cast<const char*>(&header), sizeof header));
    for (uint64_t i = 0; i < 20; ++i) {
      machine_->drivers[0]->Add({{kHeader, 16, false},
                                 {kData + i * 0x40000, static_cast<uint32_t>(kSet * kBlockSize), true},
                                 {kStatus + i, 1, true}});
    }
    machine_->Notify(0);
    machine_->Run();
    Reset();
    ASSERT_EQ(Read(3, 8), BlocksText(3, 8)) << round;
  }
}

// Reads, writes, erasures, flushes, stores of the guest, resets, and room that somebody else needs, in any order.
TEST_F(ReplicaReset, WhatIsReadIsWhatTheDiskHas) {
  const uint64_t seed = Seed();
  SCOPED_TRACE("HK_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  const auto pick = [&random](uint64_t below) { return random() % below; };
  constexpr uint64_t kUsed = 96;  // blocks, and pages
  std::string model;
  for (uint64_t block = 0; block < kBlocks; ++block) model += BlockText(block);
  const auto page = [](uint64_t n) { return kData + n * kPageSize; };
  const auto at = [](uint64_t block) { return block * kBlockSize; };
  char next = 1;
  for (int step = 0; step < 3000; ++step) {
    const uint64_t count = 1 + pick(8), block = pick(kUsed), first = pick(kUsed);
    switch (pick(16)) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4:
      case 5:
        ASSERT_TRUE(Read(block, count, page(first)) == model.substr(at(block), count * kBlockSize)) << step;
        break;
      case 6: {  // whatever the pages hold
        const auto bytes = static_cast<uint32_t>(count * kBlockSize);
        const std::string text = machine_->drivers[0]->Text(page(first), bytes);
        ASSERT_EQ(Do(VIRTIO_BLK_T_OUT, block * 8, {{page(first), bytes, false}}), VIRTIO_BLK_S_OK);
        model.replace(at(block), text.size(), text);
        break;
      }
      case 7: {  // pages in pieces, not at their begin
        const uint64_t sector = block * 8 + pick(8);
        const uint64_t from = page(first) + 512 * pick(8);
        const std::string text = machine_->drivers[0]->Text(from, 3 * 512);
        ASSERT_EQ(Do(VIRTIO_BLK_T_OUT, sector, {{from, 512, false}, {from + 512, 1024, false}}), VIRTIO_BLK_S_OK);
        model.replace(sector * 512, text.size(), text);
        break;
      }
      case 8: {
        const uint64_t sector = block * 8 + pick(8), to = page(first) + 512 * pick(8);
        ASSERT_EQ(Do(VIRTIO_BLK_T_IN, sector, {{to, 512 * 9, true}}), VIRTIO_BLK_S_OK);
        ASSERT_TRUE(machine_->drivers[0]->Text(to, 512 * 9) == model.substr(sector * 512, 512 * 9)) << step;
        break;
      }
      case 9: {
        const virtio_blk_discard_write_zeroes erase{block * 8 + pick(8), static_cast<uint32_t>(1 + pick(32)), 0};
        Store(kHeader + 0x800, std::string(reinterpret_cast<const char*>(&erase), sizeof erase));
        ASSERT_EQ(Do(VIRTIO_BLK_T_WRITE_ZEROES, 0, {{kHeader + 0x800, 16, false}}), VIRTIO_BLK_S_OK);
        model.replace(erase.sector * 512, erase.num_sectors * 512, erase.num_sectors * 512, 0);
        break;
      }
      case 10:
        ASSERT_EQ(Do(VIRTIO_BLK_T_FLUSH, 0, {}), VIRTIO_BLK_S_OK);
        break;
      case 11:
      case 12:
      case 13:
        Store(page(first) + pick(kPageSize - 8), std::string(1 + pick(8), ++next));
        break;
      case 14:
        static_cast<void>(frames_->Reserve(frames_->budget_bytes() - kRam - pick(kUsed) * kPageSize));
        break;
      default:
        if (pick(10) == 0) Reset();
    }
  }
  EXPECT_GT(hits(), 100u) << "the test is of nothing";
}

// The guest stores to pages while they are read into, written from and read from.
TEST_F(ReplicaReset, StoresBesideRequestsAreNeverServedAsBlocks) {
  constexpr uint64_t kSet = 16;
  std::atomic<bool> stop{false};
  std::byte* const page = machine_->FindForGuest(Gpa(kData), kSet * kPageSize);
  std::thread vcpu([&] {
    std::mt19937_64 random(Seed());
    while (!stop.load()) {
      std::atomic_ref<std::byte>(page[random() % (kSet * kPageSize)]).store(std::byte{'~'});
      std::this_thread::yield();
    }
  });
  std::string wrong;
  for (int round = 0; round < 300 && wrong.empty(); ++round) {
    const uint64_t block = static_cast<uint64_t>(round) % 8;
    // What the guest has there then is its own affair.
    if (Do(VIRTIO_BLK_T_IN, block * 8, {{kData, kSet * kBlockSize, true}}) != VIRTIO_BLK_S_OK) wrong = "status";
    // Into pages that nobody stores to: from the first ones, if they are believed, or from the image.
    if (Read(block, kSet, kData + 0x80000) != BlocksText(block, kSet)) wrong = "round " + std::to_string(round);
    Store(kData + 0x80000, std::string(kSet * kPageSize, '-'));
  }
  stop.store(true);
  vcpu.join();
  EXPECT_EQ(wrong, "");
  Reset();
  for (uint64_t block = 0; block < 24; ++block) EXPECT_EQ(Read(block, 1), BlockText(block));
}

}  // namespace
}  // namespace hk
