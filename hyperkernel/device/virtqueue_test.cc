#include "hyperkernel/device/virtqueue.h"

#include <thread>

#include "gtest/gtest.h"
#include "hyperkernel/device/testing_virtqueue.h"

namespace hk {
namespace {

constexpr uint16_t kSize = 8;
constexpr uint64_t kBuffers = 0x8000;
constexpr uint64_t kTable = 0x6000;
constexpr uint16_t kNext = 1, kWrite = 2, kIndirect = 4;

class VirtqueueTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(queue_.Enable(driver_.layout()).ok());
    ASSERT_TRUE(queue_.Open().ok());
  }
  void TearDown() override {
    chain_.Release();
    queue_.Close();
    for (uint64_t page = 0; page < 0x40; ++page) {
      const DmaPins::Count count = pins_->Of(Gfn(page));
      EXPECT_EQ(count.shared + count.exclusive, 0u) << "page " << page << " is still pinned";
    }
  }
  void ExpectBroken(const std::string& part) {
    const auto popped = queue_.Pop(&chain_);
    ASSERT_FALSE(popped.ok());
    EXPECT_NE(popped.status().ToString().find(part), std::string::npos) << popped.status();
    EXPECT_FALSE(chain_.dma.open());
  }

  FakeGuestMemory memory_{{{Gpa(0), 0x40000}, {Gpa(0x40000), 0x10000}}};
  std::unique_ptr<DmaPins> pins_ = *DmaPins::Create(memory_);
  std::unique_ptr<DmaSpace> space_ = *DmaSpace::Create(&memory_, pins_.get());
  TestDriver driver_{&memory_, 0x1000, kSize};
  Virtqueue queue_{space_.get()};
  DescriptorChain chain_{kSize + 4};
};

TEST_F(VirtqueueTest, RoundTripAndWrap) {
  for (int i = 0; i < 70000; ++i) {  // the 16-bit indices wrap
    driver_.SetText(kBuffers, "ping");
    const uint16_t head = driver_.Add({{kBuffers, 4, false}, {kBuffers + 0x1000, 8, true}});
    ASSERT_TRUE(*queue_.Pop(&chain_));
    ASSERT_EQ(chain_.readable_bytes, 4u);
    ASSERT_EQ(chain_.writable_bytes, 8u);
    std::string text(9, '.');
    ASSERT_EQ(CopyFrom(chain_, 0, std::as_writable_bytes(std::span(text))), 4u);
    ASSERT_EQ(text.substr(0, 4), "ping");
    text = "pong-longer";
    ASSERT_EQ(CopyTo(chain_, 0, std::as_bytes(std::span(text))), 8u);
    chain_.Release();
    queue_.AddUsed(chain_.head, 8);
    ASSERT_FALSE(driver_.Take().has_value()) << "before Publish";
    ASSERT_TRUE(queue_.Publish());
    ASSERT_EQ(driver_.Take(), std::pair(head, 8u));
    ASSERT_EQ(driver_.Text(kBuffers + 0x1000, 8), "pong-lon");
    ASSERT_FALSE(*queue_.Pop(&chain_));
  }
}

TEST_F(VirtqueueTest, CopiesAcrossPieces) {
  driver_.SetText(kBuffers, "abcdef");
  driver_.Add({{kBuffers, 2, false},
               {kBuffers + 2, 0, false},
               {kBuffers + 2, 4, false},
               {kBuffers + 0x100, 1, true},
               {kBuffers + 0x200, 3, true}});
  ASSERT_TRUE(*queue_.Pop(&chain_));
  std::string text(3, '.');
  EXPECT_EQ(CopyFrom(chain_, 1, std::as_writable_bytes(std::span(text))), 3u);
  EXPECT_EQ(text, "bcd");
  EXPECT_EQ(CopyFrom(chain_, 6, std::as_writable_bytes(std::span(text))), 0u);
  EXPECT_EQ(CopyTo(chain_, 0, std::as_bytes(std::span(text))), 3u);
  EXPECT_EQ(driver_.Text(kBuffers + 0x200, 2), "cd");
  EXPECT_EQ(CopyTo(chain_, 3, std::as_bytes(std::span(text))), 1u);
}

TEST_F(VirtqueueTest, PiecesSplitWhereRamDoes) {
  driver_.Add({{0x3fff0, 0x20, true}});
  ASSERT_TRUE(*queue_.Pop(&chain_));
  EXPECT_EQ(chain_.writable().size(), 2u);
}

TEST_F(VirtqueueTest, IndirectTableAtAnyAddress) {
  for (uint64_t table : {kTable, kTable + 1}) {
    auto* raw = reinterpret_cast<uint8_t*>(memory_.Find(Gpa(table), 32));
    const uint64_t words[4] = {kBuffers, 4 | uint64_t{kNext} << 32 | uint64_t{1} << 48, kBuffers + 64,
                               16 | uint64_t{kWrite} << 32};
    std::memcpy(raw, words, sizeof(words));
    driver_.SetDescriptor(driver_.base(), 3, table, 32, kIndirect, 0);
    driver_.Show(3);
    ASSERT_TRUE(*queue_.Pop(&chain_));
    EXPECT_EQ(chain_.head, 3);
    EXPECT_EQ(chain_.readable_bytes, 4u);
    EXPECT_EQ(chain_.writable_bytes, 16u);
    chain_.Release();
  }
}

TEST_F(VirtqueueTest, DirtyBeforeUsed) {
  driver_.Add({{kBuffers, 8, true}});
  ASSERT_TRUE(*queue_.Pop(&chain_));
  EXPECT_EQ(pins_->Of(GfnOf(Gpa(kBuffers))).exclusive, 1u);
  chain_.Release();
  bool dirty = false;
  space_->HarvestDirty([&](Gfn gfn) { dirty |= gfn == GfnOf(Gpa(kBuffers)); });
  EXPECT_TRUE(dirty);
}

TEST_F(VirtqueueTest, UndoneRequestComesAgain) {
  const uint16_t head = driver_.Add({{kBuffers, 8, true}});
  ASSERT_TRUE(*queue_.Pop(&chain_));
  chain_.Release();
  queue_.UndoPop(1);
  ASSERT_TRUE(*queue_.Pop(&chain_));
  EXPECT_EQ(chain_.head, head);
}

TEST_F(VirtqueueTest, DoorbellIsForMoreThanWasLeft) {
  driver_.Add({{kBuffers, 8, true}});
  ASSERT_TRUE(*queue_.Pop(&chain_));
  chain_.Release();
  queue_.UndoPop(1);
  EXPECT_FALSE(*queue_.EnableDoorbell()) << "the one that is there is known";
  driver_.Add({{kBuffers, 8, true}});
  EXPECT_TRUE(*queue_.EnableDoorbell());
}

TEST_F(VirtqueueTest, FlagsSuppressInterruptsAndDoorbells) {
  driver_.Store<uint16_t>(driver_.base() + 0x1000, 1);  // VRING_AVAIL_F_NO_INTERRUPT
  driver_.Add({{kBuffers, 8, true}});
  ASSERT_TRUE(*queue_.Pop(&chain_));
  chain_.Release();
  queue_.AddUsed(chain_.head, 0);
  EXPECT_FALSE(queue_.Publish());
  EXPECT_FALSE(queue_.Publish()) << "nothing new";
  queue_.DisableDoorbell();
  EXPECT_EQ(driver_.Load<uint16_t>(driver_.base() + 0x2000), 1);
  EXPECT_FALSE(*queue_.EnableDoorbell());
  EXPECT_EQ(driver_.Load<uint16_t>(driver_.base() + 0x2000), 0);
  driver_.Add({{kBuffers, 8, true}});
  EXPECT_TRUE(*queue_.EnableDoorbell()) << "look again";
}

TEST_F(VirtqueueTest, EventIndexSaysWhenToInterrupt) {
  queue_.Close();
  Virtqueue::Layout layout = driver_.layout();
  layout.event_index = true;
  ASSERT_TRUE(queue_.Enable(layout).ok());
  ASSERT_TRUE(queue_.Open().ok());
  driver_.Store<uint16_t>(driver_.base() + 0x1000 + 4 + 2 * kSize, 1);  // used_event: after the second
  for (bool wanted : {false, true, false}) {
    driver_.Add({{kBuffers, 8, true}});
    ASSERT_TRUE(*queue_.Pop(&chain_));
    chain_.Release();
    queue_.AddUsed(chain_.head, 0);
    EXPECT_EQ(queue_.Publish(), wanted);
    ASSERT_TRUE(driver_.Take().has_value());
  }
  EXPECT_FALSE(*queue_.EnableDoorbell());
  EXPECT_EQ(driver_.Load<uint16_t>(driver_.base() + 0x2000 + 4 + 8 * kSize), 3) << "avail_event";
}

TEST_F(VirtqueueTest, RefusesBadLayouts) {
  Virtqueue queue(space_.get());
  for (uint16_t size : {0, 3, 2048}) {
    Virtqueue::Layout layout = driver_.layout();
    layout.size = size;
    EXPECT_FALSE(queue.Enable(layout).ok()) << size;
  }
  for (auto member : {&Virtqueue::Layout::descriptors, &Virtqueue::Layout::available, &Virtqueue::Layout::used}) {
    Virtqueue::Layout layout = driver_.layout();
    layout.*member += 1;
    EXPECT_FALSE(queue.Enable(layout).ok());
    layout.*member = 0xfffffffffffffff0;
    ASSERT_TRUE(queue.Enable(layout).ok());
    EXPECT_FALSE(queue.Open().ok());
    layout.*member = 0x3ffb0;  // over the border of two RAM ranges: not one piece
    ASSERT_TRUE(queue.Enable(layout).ok());
    EXPECT_EQ(queue.Open().ok(), member != &Virtqueue::Layout::descriptors) << "the others end before it";
    queue.Close();
  }
}

TEST_F(VirtqueueTest, AvailableIndexTooFarAhead) {
  driver_.SetAvailableIndex(kSize + 1);
  ExpectBroken("available index");
}

TEST_F(VirtqueueTest, HeadOutOfTheTable) {
  driver_.Show(kSize);
  ExpectBroken("descriptor 8");
}

TEST_F(VirtqueueTest, NextOutOfTheTable) {
  driver_.SetDescriptor(driver_.base(), 0, kBuffers, 4, kNext, kSize);
  driver_.Show(0);
  ExpectBroken("next descriptor");
}

TEST_F(VirtqueueTest, Loop) {
  driver_.SetDescriptor(driver_.base(), 0, kBuffers, 4, kNext, 1);
  driver_.SetDescriptor(driver_.base(), 1, kBuffers, 4, kNext, 0);
  driver_.Show(0);
  ExpectBroken("loops");
}

TEST_F(VirtqueueTest, ReadableAfterWritable) {
  driver_.SetDescriptor(driver_.base(), 0, kBuffers, 4, kNext | kWrite, 1);
  driver_.SetDescriptor(driver_.base(), 1, kBuffers, 4, 0, 0);
  driver_.Show(0);
  ExpectBroken("readable descriptor after");
}

TEST_F(VirtqueueTest, MemoryThatIsNotThere) {
  driver_.SetDescriptor(driver_.base(), 0, 0x7fffffff, 4, 0, 0);
  driver_.Show(0);
  ExpectBroken("not mapped");
}

TEST_F(VirtqueueTest, LengthThatRunsOut) {
  driver_.SetDescriptor(driver_.base(), 0, kBuffers, 4, kNext, 1);
  driver_.SetDescriptor(driver_.base(), 1, kBuffers, 0xffffffff, kWrite, 0);
  driver_.Show(0);
  ExpectBroken("not mapped");
}

TEST_F(VirtqueueTest, BadIndirectTables) {
  struct Case {
    uint32_t bytes;
    uint16_t flags;
    const char* message;
  };
  for (const Case& c : {Case{0, kIndirect, "indirect table"}, Case{17, kIndirect, "indirect table"},
                        Case{16 * 5000, kIndirect, "indirect table"}, Case{32, kIndirect | kNext, "with a next"}}) {
    driver_.SetDescriptor(driver_.base(), 0, kTable, c.bytes, c.flags, 0);
    driver_.SetAvailable(0, 0);
    driver_.SetAvailableIndex(1);
    ExpectBroken(c.message);
  }
  driver_.SetDescriptor(driver_.base(), 0, kTable, 32, kIndirect, 0);
  driver_.SetDescriptor(kTable, 0, kTable, 32, kIndirect, 0);
  ExpectBroken("in an indirect table");
  driver_.SetDescriptor(kTable, 0, kBuffers, 4, kNext, 2);
  ExpectBroken("next descriptor");
  driver_.SetDescriptor(kTable, 0, kBuffers, 4, kNext, 0);
  ExpectBroken("loops");
}

TEST_F(VirtqueueTest, IndirectNeedsItsFeature) {
  queue_.Close();
  Virtqueue::Layout layout = driver_.layout();
  layout.indirect = false;
  ASSERT_TRUE(queue_.Enable(layout).ok());
  ASSERT_TRUE(queue_.Open().ok());
  driver_.SetDescriptor(driver_.base(), 0, kTable, 32, kIndirect, 0);
  driver_.Show(0);
  ExpectBroken("without the feature");
}

TEST_F(VirtqueueTest, BlockedMemoryTakesNothing) {
  driver_.Add({{kBuffers, 8, true}});
  EXPECT_FALSE(space_->Block(std::chrono::steady_clock::now()).ok()) << "the session is open";
  EXPECT_EQ(queue_.Pop(&chain_).status().code(), absl::StatusCode::kUnavailable);
  space_->Unblock();
  EXPECT_TRUE(*queue_.Pop(&chain_));
}

TEST_F(VirtqueueTest, DriverAndDeviceInParallel) {
  constexpr int kRequests = 20000;
  std::thread device([&] {
    for (int done = 0; done < kRequests;) {
      const auto popped = queue_.Pop(&chain_);
      ASSERT_TRUE(popped.ok()) << popped.status();
      if (!*popped) {
        std::this_thread::yield();  // there may be one processor for both
        continue;
      }
      uint32_t value = 0;
      ASSERT_EQ(CopyFrom(chain_, 0, std::as_writable_bytes(std::span(&value, 1))), 4u);
      value = ~value;
      CopyTo(chain_, 0, std::as_bytes(std::span(&value, 1)));
      chain_.Release();
      queue_.AddUsed(chain_.head, 4);
      queue_.Publish();
      ++done;
    }
  });
  for (uint32_t i = 0; i < kRequests; ++i) {
    driver_.SetText(kBuffers, std::string(reinterpret_cast<const char*>(&i), 4));
    driver_.Add({{kBuffers, 4, false}, {kBuffers + 64, 4, true}});
    while (!driver_.Take()) std::this_thread::yield();
    const uint32_t expected = ~i;
    ASSERT_EQ(driver_.Text(kBuffers + 64, 4), std::string(reinterpret_cast<const char*>(&expected), 4));
  }
  device.join();
}

}  // namespace
}  // namespace hk
