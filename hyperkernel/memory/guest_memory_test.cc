#include "hyperkernel/memory/guest_memory.h"
#include "hyperkernel/memory/full_store_testing.h"

#include <sys/mount.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/mutex.h"

namespace hk {
namespace {

constexpr uint64_t kMib = 1 << 20;
constexpr Gpa kLow{0}, kHigh{uint64_t{4} << 30};

// Remembers what it was told, and what a page's first byte was then.
class Recorder final : public StoreListener {
 public:
  void BeforeStore(Gfn page) override {
    MutexLock lock(&mutex_);
    told_.push_back(page.value());
    if (watched_ != nullptr) seen_ = *watched_;
    times_.fetch_add(1);
  }
  void Watch(const std::byte* at) {
    MutexLock lock(&mutex_);
    watched_ = at;
  }
  std::byte seen() {
    MutexLock lock(&mutex_);
    return seen_;
  }
  uint64_t times() const { return times_.load(); }
  std::vector<uint64_t> Take() {
    MutexLock lock(&mutex_);
    return std::exchange(told_, {});
  }

 private:
  Mutex mutex_;
  std::vector<uint64_t> told_;
  const std::byte* watched_ = nullptr;
  std::byte seen_{};
  std::atomic<uint64_t> times_{0};
};

class GuestMemoryTest : public testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/dev/shm/hk_guest_memory_test.XXXXXX";
    ASSERT_NE(::mkdtemp(pattern), nullptr);
    directory_ = pattern;
    frames_.emplace(*FrameStore::Open(directory_, 64 * kMib));
  }
  void TearDown() override {
    frames_.reset();
    while (::umount2(directory_.c_str(), MNT_DETACH) == 0) {
    }
    std::filesystem::remove_all(directory_);
  }
  absl::StatusOr<std::unique_ptr<GuestMemory>> Make(uint64_t low, uint64_t high) {
    std::vector<RamRange> ranges{{kLow, low}};
    if (high != 0) ranges.push_back({kHigh, high});
    return GuestMemory::Create(*frames_, "g", 1, ranges, [this](const absl::Status& reason) { failure_ = reason; });
  }
  static std::span<const std::byte> Bytes(const std::string& text) { return std::as_bytes(std::span(text)); }
  static std::string Text(const GuestMemory& memory, Gpa at, size_t size) {
    std::string text(size, '?');
    EXPECT_TRUE(memory.Read(at, std::as_writable_bytes(std::span(text))).ok());
    return text;
  }

  std::string directory_;
  std::optional<FrameStore> frames_;
  absl::Status failure_;
};

TEST_F(GuestMemoryTest, HolesReadAsZerosAndTakeNoFrame) {
  auto memory = Make(8 * kMib, 8 * kMib);
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(Text(**memory, Gpa(5), 10000), std::string(10000, '\0'));
  EXPECT_EQ((*memory)->frame_bytes(), 0u);
  ASSERT_EQ((*memory)->slots().size(), 2u);
  EXPECT_EQ((*memory)->slots()[1].start, kHigh);
}

TEST_F(GuestMemoryTest, WritesAreSeenThroughEveryViewAndRangesKeepApart) {
  auto memory = Make(8 * kMib, 8 * kMib);
  ASSERT_TRUE(memory.ok()) << memory.status();
  ASSERT_TRUE((*memory)->Write(Gpa(kPageSize - 2), Bytes("abcd")).ok());
  ASSERT_TRUE((*memory)->Write(kHigh, Bytes("high")).ok());
  EXPECT_EQ(Text(**memory, Gpa(kPageSize - 2), 4), "abcd");
  EXPECT_EQ(Text(**memory, kHigh, 4), "high");
  EXPECT_EQ((*memory)->frame_bytes(), 3 * kPageSize);
  EXPECT_EQ(std::memcmp((*memory)->slots()[0].guest_view + kPageSize - 2, "abcd", 4), 0);
}

// For operators: pages by extent of the guest's addresses, each counted once.
TEST_F(GuestMemoryTest, TellsWhatIsFilledAndHowOften) {
  auto memory = Make(8 * kMib, 8 * kMib);
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_TRUE((*memory)->Uses(0, 100).empty());
  ASSERT_TRUE((*memory)->Write(Gpa(2 * kMib - 4), Bytes("over two extents")).ok());
  ASSERT_TRUE((*memory)->Write(Gpa(2 * kMib - 4), Bytes("over two extents")).ok());
  ASSERT_TRUE((*memory)->Write(kHigh, Bytes("high")).ok());
  const_cast<volatile std::byte&>((*memory)->slots()[1].guest_view[4 * kMib]) = std::byte{1};
  const std::byte seen = const_cast<volatile std::byte&>((*memory)->slots()[1].guest_view[6 * kMib]);
  EXPECT_EQ(seen, std::byte{0});
  std::vector<ExtentUse> uses = (*memory)->Uses(0, 100);
  ASSERT_EQ(uses.size(), 5u);
  const uint64_t high = kHigh.value() / (2 * kMib);
  const uint64_t extents[] = {0, 1, high, high + 2, high + 3}, pages[] = {1, 1, 1, 16, 16};
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(uses[i].extent, extents[i]);
    EXPECT_EQ(uses[i].exclusive, pages[i]) << i;
    EXPECT_NEAR(uses[i].heat, static_cast<double>(pages[i]), 0.5) << i;
  }
  EXPECT_EQ((*memory)->Uses(2, 100).size(), 3u);
  EXPECT_EQ((*memory)->Uses(0, 2).size(), 2u);
  // Who waited may be on before it is counted.
  const Monotonic limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  const auto waited = [&memory] {
    const SpaceStatistics now = (*memory)->Statistics();
    return now.read_faults + now.write_faults;
  };
  while (waited() < 2 && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
  const SpaceStatistics statistics = (*memory)->Statistics();
  EXPECT_EQ(statistics.read_faults, 1u);
  EXPECT_EQ(statistics.write_faults, 1u);
  EXPECT_EQ(statistics.pages_exclusive * kPageSize, (*memory)->frame_bytes());
}

TEST_F(GuestMemoryTest, WhatIsNotRamIsRefusedWhole) {
  auto memory = Make(8 * kMib, 8 * kMib);
  ASSERT_TRUE(memory.ok()) << memory.status();
  std::string text(16, 'x');
  PinnedPages pins;
  for (const Gpa at : {Gpa(8 * kMib - 8), Gpa(8 * kMib), Gpa(kHigh.value() - 8), Gpa(kHigh.value() + 8 * kMib - 8),
                       Gpa(~uint64_t{0} - 3)}) {
    EXPECT_EQ((*memory)->Write(at, Bytes(text)).code(), absl::StatusCode::kOutOfRange);
    EXPECT_EQ((*memory)->Read(at, std::as_writable_bytes(std::span(text))).code(), absl::StatusCode::kOutOfRange);
    EXPECT_EQ((*memory)->Pin(at, 16, PageAccess::kWrite, &pins).status().code(), absl::StatusCode::kOutOfRange);
  }
  EXPECT_EQ((*memory)->Pin(Gpa(0), ~uint64_t{0}, PageAccess::kWrite, &pins).status().code(),
            absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*memory)->frame_bytes(), 0u);
}

TEST_F(GuestMemoryTest, AGuestThatTouchesMemoryGetsIt) {
  auto memory = Make(16 * kMib, 0);
  ASSERT_TRUE(memory.ok()) << memory.status();
  auto* view = reinterpret_cast<volatile uint64_t*>((*memory)->slots()[0].guest_view);
  constexpr uint64_t kWordsPerPage = kPageSize / sizeof(uint64_t);
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::vector<std::thread> vcpus;
  for (uint64_t vcpu = 0; vcpu < 3; vcpu++) {
    vcpus.emplace_back([&, vcpu] {
      std::mt19937_64 random(seed + vcpu);
      for (int i = 0; i < 2000; i++) {
        const uint64_t page = random() % 4096;
        view[page * kWordsPerPage + vcpu] = page;
      }
    });
  }
  for (std::thread& vcpu : vcpus) vcpu.join();
  EXPECT_GT((*memory)->frame_bytes(), 0u);
  for (uint64_t page = 0; page < 4096; page++) {
    uint64_t words[4];
    ASSERT_TRUE((*memory)->Read(Gpa(page * kPageSize), std::as_writable_bytes(std::span(words))).ok());
    for (int vcpu = 0; vcpu < 3; vcpu++) EXPECT_TRUE(words[vcpu] == page || words[vcpu] == 0);
    EXPECT_EQ(words[3], 0u);
  }
  EXPECT_TRUE(failure_.ok()) << failure_;
}

// The fill around a fault meets pages that the daemon has written, in any pattern.
TEST_F(GuestMemoryTest, AFaultFillsAroundWhatIsThere) {
  auto memory = Make(8 * kMib, 0);
  ASSERT_TRUE(memory.ok()) << memory.status();
  constexpr uint64_t kPages = 8 * kMib / kPageSize;
  auto written = [](uint64_t page) { return page % 7 == 0 || page % 16 == 15 || page / 16 % 5 == 1; };
  for (uint64_t page = 0; page < kPages; ++page) {
    if (!written(page)) continue;
    ASSERT_TRUE((*memory)->Write(Gpa(page * kPageSize), Bytes("here")).ok());
  }
  const std::byte* view = (*memory)->slots()[0].guest_view;
  for (uint64_t page = 0; page < kPages; page += 3) {
    EXPECT_EQ(std::memcmp(view + page * kPageSize, written(page) ? "here" : std::string(4, '\0').c_str(), 4), 0)
        << page;
  }
  for (uint64_t page = 0; page < kPages; ++page) {
    ASSERT_EQ(Text(**memory, Gpa(page * kPageSize), 4), written(page) ? "here" : std::string(4, '\0')) << page;
  }
  EXPECT_EQ((*memory)->frame_bytes(), 8 * kMib);
  EXPECT_TRUE(failure_.ok()) << failure_;
}

TEST_F(GuestMemoryTest, TheBudgetIsSharedAndGivenBack) {
  auto first = Make(40 * kMib, 0);
  ASSERT_TRUE(first.ok()) << first.status();
  auto second = GuestMemory::Create(*frames_, "h", 1, {{kLow, 40 * kMib}}, nullptr);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(second.status().message()), testing::HasSubstr("40 MiB are taken"));
  EXPECT_EQ(GuestMemory::Create(*frames_, "g", 1, {{kLow, kMib}}, nullptr).status().code(),
            absl::StatusCode::kAlreadyExists);
  first->reset();
  EXPECT_TRUE(GuestMemory::Create(*frames_, "h", 1, {{kLow, 40 * kMib}}, nullptr).ok());
  EXPECT_TRUE(std::filesystem::is_empty(directory_)) << "the frames' file is still there";
}

TEST_F(GuestMemoryTest, AFullFrameStoreIsToldOnceAndNeverZeroes) {
  auto memory = Make(48 * kMib, 0);
  ASSERT_TRUE(memory.ok()) << memory.status();
  // Something else takes up the file system: fill it.
  if (!FillStore(directory_)) {
    GTEST_SKIP() << "the frame store is not a file system of its own here (no CAP_SYS_ADMIN); the lab covers it";
  }
  PinnedPages pins;
  EXPECT_EQ((*memory)->Pin(Gpa(0), 40 * kMib, PageAccess::kWrite, &pins).status().code(),
            absl::StatusCode::kResourceExhausted);
  // The kernel touches the page for us, as KVM does: EFAULT instead of a SIGBUS.
  int pipe_ends[2];
  ASSERT_EQ(::pipe(pipe_ends), 0);
  size_t refused = 0;
  for (uint64_t page = 0; page < 48 * kMib / kPageSize; page += 16) {
    if (::write(pipe_ends[1], (*memory)->slots()[0].guest_view + page * kPageSize, 1) == 1) {
      char byte;
      ASSERT_EQ(::read(pipe_ends[0], &byte, 1), 1);
      EXPECT_EQ(byte, 0);
    } else {
      EXPECT_EQ(errno, EFAULT);
      refused++;
    }
  }
  EXPECT_GT(refused, 0u);
  EXPECT_EQ(failure_.code(), absl::StatusCode::kResourceExhausted);
  ::close(pipe_ends[0]);
  ::close(pipe_ends[1]);
}

TEST_F(GuestMemoryTest, StoresToProtectedPagesAreToldBeforeTheyAreMade) {
  auto memory = Make(8 * kMib, 8 * kMib);
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_FALSE((*memory)->ProtectForReplica(Gfn(0), 1).ok()) << "nobody listens";
  const auto recorder = std::make_shared<Recorder>();
  ASSERT_TRUE((*memory)->SetStoreListener(recorder));
  PinnedPages pins;
  const Gfn high = GfnOf(kHigh);
  const auto pinned = (*memory)->Pin(kHigh, 8 * kPageSize, PageAccess::kRead, &pins);
  ASSERT_TRUE(pinned.ok()) << pinned.status();
  std::byte* const view = (*memory)->slots()[1].guest_view;
  view[0] = std::byte{1};  // mapped before; the others are not
  EXPECT_TRUE(recorder->Take().empty());
  ASSERT_TRUE((*memory)->ProtectForReplica(high, 4).ok());
  recorder->Watch(*pinned);
  for (uint64_t page = 0; page < 8; ++page) {
    EXPECT_EQ(view[page * kPageSize + 5], std::byte{0}) << "reading is free";
  }
  EXPECT_TRUE(recorder->Take().empty());
  view[0] = std::byte{2};
  EXPECT_EQ(recorder->seen(), std::byte{1});
  recorder->Watch(nullptr);
  view[1] = std::byte{2};
  view[3 * kPageSize] = std::byte{3};
  view[5 * kPageSize] = std::byte{3};
  EXPECT_THAT(recorder->Take(), testing::ElementsAre(high.value(), high.value() + 3)) << "once, and the protected only";
  ASSERT_TRUE((*memory)->ProtectForReplica(high, 1).ok());
  view[0] = std::byte{4};
  EXPECT_THAT(recorder->Take(), testing::ElementsAre(high.value())) << "again, after a protection";
  EXPECT_EQ((*memory)->ProtectForReplica(Gfn(8 * kMib / kPageSize), 1).code(), absl::StatusCode::kOutOfRange);
}

TEST_F(GuestMemoryTest, TheDaemonsOwnStoresAreTold) {
  auto memory = Make(8 * kMib, 0);
  ASSERT_TRUE(memory.ok()) << memory.status();
  const auto recorder = std::make_shared<Recorder>();
  ASSERT_TRUE((*memory)->SetStoreListener(recorder));
  ASSERT_TRUE((*memory)->Write(Gpa(2 * kPageSize - 2), Bytes("over")).ok());
  EXPECT_THAT(recorder->Take(), testing::ElementsAre(1, 2));
  ASSERT_TRUE((*memory)->Write(Gpa(4 * kPageSize), Bytes(std::string(2 * kPageSize, 'x'))).ok());
  EXPECT_THAT(recorder->Take(), testing::ElementsAre(4, 5));
  PinnedPages pins;
  ASSERT_TRUE((*memory)->Pin(Gpa(0), kPageSize, PageAccess::kRead, &pins).ok());
  EXPECT_EQ(Text(**memory, Gpa(0), 8), std::string(8, 0));
  EXPECT_TRUE(recorder->Take().empty());
  ASSERT_TRUE((*memory)->Pin(Gpa(7 * kPageSize + 9), kPageSize, PageAccess::kWrite, &pins).ok());
  EXPECT_THAT(recorder->Take(), testing::ElementsAre(7, 8));
  ASSERT_TRUE((*memory)->ProtectForReplica(Gfn(6), 4).ok());
  EXPECT_TRUE(recorder->Take().empty());
  // For good: nobody tells of its stores, so it is told again whenever somebody would believe the page.
  ASSERT_TRUE((*memory)->Pin(Gpa(8 * kPageSize), 4, PageAccess::kWrite, nullptr).ok());
  EXPECT_THAT(recorder->Take(), testing::ElementsAre(8));
  ASSERT_TRUE((*memory)->ProtectForReplica(Gfn(6), 4).ok());
  EXPECT_THAT(recorder->Take(), testing::ElementsAre(8));
}

// What was not told since the protection has not changed since, however a store and the protection meet.
TEST_F(GuestMemoryTest, NoStoreIsUntoldBesideAProtection) {
  auto memory = Make(8 * kMib, 0);
  ASSERT_TRUE(memory.ok()) << memory.status();
  const auto recorder = std::make_shared<Recorder>();
  ASSERT_TRUE((*memory)->SetStoreListener(recorder));
  PinnedPages pins;
  const auto pinned = (*memory)->Pin(Gpa(0), kPageSize, PageAccess::kRead, &pins);
  ASSERT_TRUE(pinned.ok());
  const std::atomic_ref<uint64_t> seen(*reinterpret_cast<uint64_t*>(*pinned));
  std::atomic<bool> stop{false};
  std::thread guest([&] {
    const std::atomic_ref<uint64_t> word(*reinterpret_cast<uint64_t*>((*memory)->slots()[0].guest_view));
    while (!stop.load()) word.fetch_add(1);
  });
  bool untold = false;
  for (int round = 0; round < 300 && !untold; ++round) {
    const uint64_t told = recorder->times();
    EXPECT_TRUE((*memory)->ProtectForReplica(Gfn(0), 1).ok());
    const uint64_t first = seen.load();
    // Told last: what it is told of now may be a store that has been made.
    for (int i = 0; i < 100 && !untold && recorder->times() == told; ++i) {
      std::this_thread::yield();
      untold = seen.load() != first && recorder->times() == told;
    }
  }
  EXPECT_FALSE(untold);
  stop.store(true);
  guest.join();
}

}  // namespace
}  // namespace hk
