#include "hyperkernel/device/dma_space.h"

#include <atomic>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/device/testing_memory.h"

namespace hk {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Two ranges that touch (a piece ends at the border) and one apart.
class DmaSpaceTest : public testing::Test {
 protected:
  void SetUp() override {
    pins_ = *DmaPins::Create(memory_);
    space_ = *DmaSpace::Create(&memory_, pins_.get());
  }
  std::vector<uint64_t> Dirty() {
    std::vector<uint64_t> pages;
    space_->HarvestDirty([&](Gfn gfn) { pages.push_back(gfn.value()); });
    return pages;
  }
  static Monotonic In(int ms) { return std::chrono::steady_clock::now() + std::chrono::milliseconds(ms); }

  FakeGuestMemory memory_{{{Gpa(0), 0x4000}, {Gpa(0x4000), 0x46000}, {Gpa(0x100000), 0x2000}}};
  std::unique_ptr<DmaPins> pins_;
  std::unique_ptr<DmaSpace> space_;
};

TEST_F(DmaSpaceTest, MapsPinsAndLogs) {
  DmaChain chain(8);
  ASSERT_TRUE(space_->Map(&chain, 0x1ffe, 4, DmaAccess::kRead).ok());
  ASSERT_TRUE(space_->Map(&chain, 0x3ff0, 0x20, DmaAccess::kWrite).ok());
  ASSERT_EQ(chain.pieces().size(), 3u) << "split where the RAM range ends";
  EXPECT_EQ(chain.pieces()[0].bytes.data(), memory_.Find(Gpa(0x1ffe), 4));
  EXPECT_EQ(chain.pieces()[1].bytes.size(), 0x10u);
  EXPECT_EQ(chain.pieces()[2].gpa, Gpa(0x4000));
  EXPECT_EQ(pins_->Of(Gfn(1)).shared, 1u);
  EXPECT_EQ(pins_->Of(Gfn(2)).shared, 1u);
  EXPECT_EQ(pins_->Of(Gfn(3)).exclusive, 1u);
  EXPECT_EQ(pins_->Of(Gfn(4)).exclusive, 1u);
  EXPECT_THAT(Dirty(), IsEmpty()) << "before the release";
  chain.Release();
  EXPECT_EQ(pins_->Of(Gfn(1)).shared + pins_->Of(Gfn(3)).exclusive, 0u);
  EXPECT_THAT(Dirty(), ElementsAre(3, 4)) << "only what was written";
  EXPECT_THAT(Dirty(), IsEmpty());
}

TEST_F(DmaSpaceTest, PinsOfOnePageAddUp) {
  DmaChain a(2), b(2);
  ASSERT_TRUE(space_->Map(&a, 0, 8, DmaAccess::kWrite).ok());
  ASSERT_TRUE(space_->Map(&b, 8, 8, DmaAccess::kWrite).ok());
  ASSERT_TRUE(space_->Map(&b, 16, 8, DmaAccess::kRead).ok());
  EXPECT_EQ(pins_->Of(Gfn(0)).exclusive, 2u);
  EXPECT_EQ(pins_->Of(Gfn(0)).shared, 1u);
}

TEST_F(DmaSpaceTest, RefusesWhatIsNotRamAndLeavesNothing) {
  DmaChain chain(2);
  for (auto [iova, bytes] : std::vector<std::pair<uint64_t, uint64_t>>{
           {0x80000, 1}, {0x49fff, 2}, {~0ull, 1}, {~0ull, 2}, {0x100000, ~0ull}, {0xfffff, 0x10}}) {
    EXPECT_EQ(space_->Map(&chain, iova, bytes, DmaAccess::kWrite).code(), absl::StatusCode::kOutOfRange) << iova;
    EXPECT_FALSE(chain.open());
  }
  EXPECT_EQ(pins_->Of(Gfn(0x49)).exclusive, 0u);
  EXPECT_EQ(pins_->Of(Gfn(0x100)).exclusive, 0u);
  ASSERT_TRUE(space_->Map(&chain, 0, 1, DmaAccess::kRead).ok());
  EXPECT_EQ(space_->Map(&chain, 0x3ff0, 0x20, DmaAccess::kRead).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(chain.pieces().size(), 1u) << "as it was";
  EXPECT_EQ(pins_->Of(Gfn(3)).shared, 0u);
  memory_.exhausted = true;
  EXPECT_EQ(space_->Map(&chain, 0, 1, DmaAccess::kRead).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(pins_->Of(Gfn(0)).shared, 1u);
}

TEST_F(DmaSpaceTest, WindowsTranslateAndForbid) {
  auto space = *DmaSpace::Create(
      &memory_, pins_.get(), {{.iova = 0x10000000, .gpa = Gpa(0x1000), .bytes = 0x1000, .device_may_write = false}});
  DmaChain chain(2);
  ASSERT_TRUE(space->Map(&chain, 0x10000010, 4, DmaAccess::kRead).ok());
  EXPECT_EQ(chain.pieces()[0].gpa, Gpa(0x1010));
  EXPECT_EQ(space->Map(&chain, 0x10000010, 4, DmaAccess::kWrite).code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(space->Map(&chain, 0x1010, 4, DmaAccess::kRead).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(space->Map(&chain, 0x10000ff0, 0x20, DmaAccess::kRead).code(), absl::StatusCode::kOutOfRange);
  chain.Release();
}

TEST_F(DmaSpaceTest, BlockWaitsForOpenChainsAndRefusesNewOnes) {
  DmaChain open(2), late(2);
  ASSERT_TRUE(space_->Map(&open, 0, 8, DmaAccess::kWrite).ok());
  EXPECT_EQ(space_->Block(In(20)).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(space_->Map(&late, 0, 8, DmaAccess::kRead).code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(space_->Map(&open, 8, 8, DmaAccess::kRead).ok()) << "an open chain can be finished";
  std::thread releaser([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    open.Release();
  });
  EXPECT_TRUE(space_->Block(In(10000)).ok());
  releaser.join();
  space_->Unblock();
  EXPECT_TRUE(space_->Map(&late, 0, 8, DmaAccess::kRead).ok());
}

TEST_F(DmaSpaceTest, NoDirtyBitIsLostBetweenThreads) {
  constexpr int kRounds = 3000;
  std::atomic<int> seen = 0;
  std::atomic<bool> done = false;
  std::thread writer([&] {
    DmaChain chain(1);
    for (int i = 0; i < kRounds; ++i) {
      ASSERT_TRUE(space_->Map(&chain, 0x100000, 8, DmaAccess::kWrite).ok());
      chain.Release();
      while (seen <= i) std::this_thread::yield();
    }
    done = true;
  });
  while (!done) {
    for (uint64_t page : Dirty()) {
      EXPECT_EQ(page, 0x100u);
      ++seen;
    }
  }
  writer.join();
  EXPECT_EQ(seen, kRounds);
}

TEST_F(DmaSpaceTest, WhoElseMayWriteIsSeen) {
  DmaChain reading(2), writing(2), other(2);
  ASSERT_TRUE(space_->Map(&reading, 0x1000, 0x2000, DmaAccess::kRead).ok());
  ASSERT_TRUE(space_->Map(&writing, 0x8000, 0x2000, DmaAccess::kWrite).ok());
  const auto seen = [](const DmaChain& chain) {
    std::vector<uint64_t> pages;
    chain.ForEachWrittenByOthers([&pages](Gfn page) { pages.push_back(page.value()); });
    return pages;
  };
  EXPECT_THAT(seen(reading), IsEmpty());
  EXPECT_THAT(seen(writing), IsEmpty()) << "its own does not count";
  ASSERT_TRUE(space_->Map(&other, 0x2ff8, 8, DmaAccess::kWrite).ok());
  ASSERT_TRUE(space_->Map(&other, 0x9000, 8, DmaAccess::kWrite).ok());
  EXPECT_THAT(seen(reading), ElementsAre(2));
  EXPECT_THAT(seen(writing), ElementsAre(9));
  other.Release();
  EXPECT_THAT(seen(reading), IsEmpty());
  EXPECT_THAT(seen(writing), IsEmpty());
}

}  // namespace
}  // namespace hk
