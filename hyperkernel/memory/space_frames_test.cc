#include "hyperkernel/memory/space_frames.h"
#include "hyperkernel/memory/full_store_testing.h"

#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <deque>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/mutex.h"

namespace hk {
namespace {

constexpr uint64_t kMib = 1 << 20;
constexpr std::chrono::seconds kHangGuard{30};
constexpr size_t kWords = kPageSize / sizeof(uint64_t);
using Words = std::array<uint64_t, kWords>;

// A fault as the engine sees it.
struct Fault {
  Gfn page;
  bool write;
  friend bool operator==(const Fault&, const Fault&) = default;
};

// Takes faults down, and gives them to the test. Thread-safe.
class Faults {
 public:
  void Add(Fault fault) {
    MutexLock lock(&mutex_);
    faults_.push_back(fault);
    came_.SignalAll();
  }
  std::optional<Fault> Next() {
    MutexLock lock(&mutex_);
    const auto guard = std::chrono::steady_clock::now() + kHangGuard;
    while (faults_.empty()) {
      if (!came_.WaitUntil(&mutex_, guard)) return std::nullopt;
    }
    const Fault first = faults_.front();
    faults_.pop_front();
    return first;
  }
  bool empty() {
    MutexLock lock(&mutex_);
    return faults_.empty();
  }

 private:
  Mutex mutex_;
  CondVar came_;
  std::deque<Fault> faults_;
};

std::span<const std::byte> Bytes(const Words& words) {
  return std::as_bytes(std::span(words));
}
std::span<std::byte> Bytes(Words* words) {
  return std::as_writable_bytes(std::span(*words));
}
Words Filled(uint64_t value) {
  Words words;
  words.fill(value);
  return words;
}

// A word of a view. Outside ThreadSanitizer, which holds locks of its own over an atomic access: over one that waits
// for the test it would wait for ever.
class Word {
 public:
  explicit Word(volatile uint64_t* at) : at_(at) {}
  __attribute__((noinline, no_sanitize("thread"))) uint64_t Load() const { return *at_; }
  __attribute__((noinline, no_sanitize("thread"))) void Store(uint64_t value) const { *at_ = value; }

 private:
  volatile uint64_t* const at_;
};

// What the kernel makes of a touch, as when KVM touches memory for a guest: 0, or errno. `write`: it stores a zero
// byte.
class KernelTouch {
 public:
  KernelTouch() { EXPECT_EQ(::pipe(ends_), 0); }
  ~KernelTouch() {
    ::close(ends_[0]);
    ::close(ends_[1]);
  }
  int Read(const std::byte* at) { return ::write(ends_[1], at, 1) == 1 ? 0 : errno; }
  int Write(std::byte* at) {
    char zero = 0;
    EXPECT_EQ(::write(ends_[1], &zero, 1), 1);
    return ::read(ends_[0], at, 1) == 1 ? 0 : errno;
  }

 private:
  int ends_[2];
};

class SpaceFramesTest : public testing::Test {
 protected:
  void SetUp() override {
    testing::FLAGS_gtest_death_test_style = "threadsafe";
    char pattern[] = "/dev/shm/hk_space_frames_test.XXXXXX";
    ASSERT_NE(::mkdtemp(pattern), nullptr);
    directory_ = pattern;
    Open(64 * kMib);
  }
  void TearDown() override {
    frames_.reset();
    store_.reset();
    Unmount();
    std::filesystem::remove_all(directory_);
  }
  void Unmount() {
    while (::umount2(directory_.c_str(), MNT_DETACH) == 0) {
    }
  }
  void Open(uint64_t budget_bytes) {
    Unmount();
    auto opened = FrameStore::Open(directory_, budget_bytes);
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_.emplace(*std::move(opened));
  }
  // Frames that tell of faults and do nothing about them.
  void Make(uint64_t pages) {
    auto made = SpaceFrames::Create(*store_, "s", 1, pages, pages);
    ASSERT_TRUE(made.ok()) << made.status();
    frames_ = *std::move(made);
    ASSERT_TRUE(frames_->Serve([this](Gfn page, bool write, uint32_t) { faults_.Add({page, write}); }).ok());
  }
  // A program's access to the view.
  Word At(uint64_t page, size_t word = 0) {
    return Word(reinterpret_cast<uint64_t*>(frames_->view() + page * kPageSize) + word);
  }
  Words PageOf(uint64_t page) {
    Words words{};
    EXPECT_TRUE(frames_->Read(Gfn(page), 0, Bytes(&words)).ok());
    return words;
  }

  std::string directory_;
  std::optional<FrameStore> store_;
  Faults faults_;
  std::unique_ptr<SpaceFrames> frames_;
};

TEST_F(SpaceFramesTest, WhatIsNotHereIsNeitherReadNorMade) {
  Make(16);
  Words words{};
  EXPECT_EQ(frames_->Read(Gfn(3), 0, Bytes(&words)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(frames_->Read(Gfn(3), 8, Bytes(&words).first(8)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(frames_->Write(Gfn(3), 0, Bytes(words)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(frames_->Write(Gfn(3), 8, Bytes(words).first(8)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(frames_->SetAccess(Gfn(3), PageAccess::kWrite).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(frames_->Remove(Gfn(3), {}).code(), absl::StatusCode::kFailedPrecondition);
  for (const uint64_t beyond : {uint64_t{16}, ~uint64_t{0}}) {
    EXPECT_EQ(frames_->Install(Gfn(beyond), {}, PageAccess::kRead).code(), absl::StatusCode::kOutOfRange);
    EXPECT_EQ(frames_->Remove(Gfn(beyond), {}).code(), absl::StatusCode::kOutOfRange);
    frames_->Wake(Gfn(beyond));
    frames_->Fail(Gfn(beyond));
  }
  EXPECT_EQ(frames_->frame_bytes(), 0u);
  EXPECT_EQ(*store_->UsedBytes(), 0u);
  EXPECT_TRUE(faults_.empty());
}

TEST_F(SpaceFramesTest, APageIsReadAndWrittenWherePartsAndWholesMeet) {
  Make(4);
  ASSERT_TRUE(frames_->Install(Gfn(2), Bytes(Filled(7)), PageAccess::kRead).ok());
  EXPECT_EQ(At(2, 511).Load(), 7u);
  EXPECT_EQ(PageOf(2), Filled(7));
  const uint64_t nine = 9;
  const auto one_word = std::as_bytes(std::span(&nine, 1));
  EXPECT_EQ(frames_->Write(Gfn(2), 16, one_word).code(), absl::StatusCode::kFailedPrecondition) << "read only";
  ASSERT_TRUE(frames_->SetAccess(Gfn(2), PageAccess::kWrite).ok());
  ASSERT_TRUE(frames_->Write(Gfn(2), 16, one_word).ok());
  ASSERT_TRUE(frames_->Write(Gfn(2), kPageSize, {}).ok());
  Words expected = Filled(7);
  expected[2] = 9;
  EXPECT_EQ(PageOf(2), expected);
  EXPECT_EQ(At(2, 2).Load(), 9u);
  uint64_t word = 0;
  ASSERT_TRUE(frames_->Read(Gfn(2), 16, std::as_writable_bytes(std::span(&word, 1))).ok());
  EXPECT_EQ(word, 9u);
  ASSERT_TRUE(frames_->Write(Gfn(2), 0, Bytes(Filled(3))).ok());
  EXPECT_EQ(At(2, 2).Load(), 3u);
  ASSERT_TRUE(frames_->Install(Gfn(3), {}, PageAccess::kWrite).ok());
  EXPECT_EQ(PageOf(3), Words{});
  EXPECT_EQ(frames_->frame_bytes(), 2 * kPageSize);
  EXPECT_EQ(*store_->UsedBytes(), 2 * kPageSize);
  ASSERT_TRUE(frames_->Remove(Gfn(2), {}).ok());
  ASSERT_TRUE(frames_->Remove(Gfn(3), Bytes(&expected)).ok());
  EXPECT_EQ(expected, Words{});
  EXPECT_EQ(frames_->frame_bytes(), 0u);
  EXPECT_EQ(*store_->UsedBytes(), 0u);
  EXPECT_TRUE(faults_.empty());
}

TEST_F(SpaceFramesTest, WhatIsKnownOfPagesTakesMemoryWhereAnyWas) {
  Make(4 * kPageSize);  // a byte for each page
  EXPECT_EQ(frames_->table_bytes(), 0u);
  ASSERT_TRUE(frames_->Install(Gfn(1), {}, PageAccess::kRead).ok());
  ASSERT_TRUE(frames_->Install(Gfn(kPageSize - 1), {}, PageAccess::kRead).ok());
  EXPECT_EQ(frames_->table_bytes(), kPageSize);
  ASSERT_TRUE(frames_->Install(Gfn(3 * kPageSize), {}, PageAccess::kRead).ok());
  EXPECT_EQ(frames_->table_bytes(), 2 * kPageSize);
}

TEST_F(SpaceFramesTest, ATouchOfAPageThatIsNotHereWaitsForIt) {
  Make(8);
  uint64_t seen = 0;
  std::thread reader([&] { seen = At(5, 100).Load(); });
  EXPECT_EQ(faults_.Next(), (Fault{Gfn(5), false}));
  ASSERT_TRUE(frames_->Install(Gfn(5), Bytes(Filled(11)), PageAccess::kRead).ok());
  frames_->Wake(Gfn(5));
  reader.join();
  EXPECT_EQ(seen, 11u);
  std::thread writer([&] { At(6, 1).Store(12); });
  EXPECT_EQ(faults_.Next(), (Fault{Gfn(6), true}));
  ASSERT_TRUE(frames_->Install(Gfn(6), {}, PageAccess::kWrite).ok());
  frames_->Wake(Gfn(6));
  writer.join();
  EXPECT_EQ(PageOf(6)[1], 12u);
  EXPECT_TRUE(faults_.empty());
}

TEST_F(SpaceFramesTest, AStoreToAReadersPageWaitsForTheRight) {
  Make(8);
  ASSERT_TRUE(frames_->Install(Gfn(1), Bytes(Filled(1)), PageAccess::kRead).ok());
  std::thread writer([&] { At(1, 1).Store(2); });
  EXPECT_EQ(faults_.Next(), (Fault{Gfn(1), true}));
  // Woken without the right it waits again.
  frames_->Wake(Gfn(1));
  EXPECT_EQ(faults_.Next(), (Fault{Gfn(1), true}));
  EXPECT_EQ(PageOf(1), Filled(1));
  ASSERT_TRUE(frames_->SetAccess(Gfn(1), PageAccess::kWrite).ok());
  frames_->Wake(Gfn(1));
  writer.join();
  EXPECT_EQ(PageOf(1)[1], 2u);
  // And the other way: what was writable is not any more.
  ASSERT_TRUE(frames_->SetAccess(Gfn(1), PageAccess::kRead).ok());
  std::thread again([&] { At(1, 1).Store(3); });
  EXPECT_EQ(faults_.Next(), (Fault{Gfn(1), true}));
  EXPECT_EQ(PageOf(1)[1], 2u);
  EXPECT_EQ(At(1, 1).Load(), 2u) << "it is readable all the same";
  // The page goes while the store waits: it is then one to a page that is not here.
  ASSERT_TRUE(frames_->Remove(Gfn(1), {}).ok());
  frames_->Wake(Gfn(1));
  EXPECT_EQ(faults_.Next(), (Fault{Gfn(1), true}));
  ASSERT_TRUE(frames_->Install(Gfn(1), Bytes(Filled(8)), PageAccess::kWrite).ok());
  frames_->Wake(Gfn(1));
  again.join();
  EXPECT_EQ(PageOf(1)[1], 3u);
  EXPECT_EQ(PageOf(1)[2], 8u);
}

TEST_F(SpaceFramesTest, TheKernelsStoresWaitAsWell) {
  Make(2);
  ASSERT_TRUE(frames_->Install(Gfn(0), Bytes(Filled(~uint64_t{0})), PageAccess::kRead).ok());
  KernelTouch touch;
  int result = -1;
  std::thread kernel([&] { result = touch.Write(frames_->view()); });
  EXPECT_EQ(faults_.Next(), (Fault{Gfn(0), true}));
  EXPECT_EQ(PageOf(0)[0], ~uint64_t{0});
  ASSERT_TRUE(frames_->SetAccess(Gfn(0), PageAccess::kWrite).ok());
  frames_->Wake(Gfn(0));
  kernel.join();
  EXPECT_EQ(result, 0);
  EXPECT_EQ(PageOf(0)[0], ~uint64_t{0xff});
}

// Several pages by one call: who waits for any of them is woken, and all are as if they had come one by one.
TEST_F(SpaceFramesTest, PagesThatFollowOneAnotherComeAndGoTogether) {
  Make(8);
  std::vector<Words> bytes;
  for (uint64_t i = 0; i < 4; i++) bytes.push_back(Filled(20 + i));
  uint64_t seen = 0;
  std::thread reader([&] { seen = At(4, 100).Load(); });
  EXPECT_EQ(faults_.Next(), (Fault{Gfn(4), false}));
  ASSERT_TRUE(frames_->InstallPages(Gfn(2), std::as_bytes(std::span(bytes)), true).ok());
  reader.join();
  EXPECT_EQ(seen, 22u);
  for (uint64_t i = 0; i < 4; i++) EXPECT_EQ(PageOf(2 + i), Filled(20 + i));
  EXPECT_EQ(frames_->frame_bytes(), 4 * kPageSize);
  // They are readers' pages.
  std::thread writer([&] { At(3, 0).Store(7); });
  EXPECT_EQ(faults_.Next(), (Fault{Gfn(3), true}));
  ASSERT_TRUE(frames_->SetAccessAndWake(Gfn(3), PageAccess::kWrite).ok());
  writer.join();
  ASSERT_TRUE(frames_->SetAccess(Gfn(4), PageAccess::kWrite).ok());
  EXPECT_EQ(frames_->ProtectPages(Gfn(2), 3).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(frames_->ProtectPages(Gfn(3), 2).ok());
  std::thread again([&] { At(3, 1).Store(8); });
  EXPECT_EQ(faults_.Next(), (Fault{Gfn(3), true}));
  std::vector<Words> back(2);
  ASSERT_TRUE(frames_->ReadPages(Gfn(3), std::as_writable_bytes(std::span(back))).ok());
  EXPECT_EQ(back[0][0], 7u);
  EXPECT_EQ(back[0][1], 21u);
  EXPECT_EQ(back[1], Filled(22));
  ASSERT_TRUE(frames_->SetAccessAndWake(Gfn(3), PageAccess::kWrite).ok());
  again.join();
  // One is there: those before it came, and the caller is told.
  ASSERT_TRUE(frames_->Install(Gfn(7), Bytes(Filled(1)), PageAccess::kRead).ok());
  EXPECT_EQ(frames_->InstallPages(Gfn(6), std::as_bytes(std::span(bytes)).first(2 * kPageSize), false).code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(frames_->InstallPages(Gfn(6), std::as_bytes(std::span(bytes)), false).code(),
            absl::StatusCode::kOutOfRange);
  EXPECT_TRUE(faults_.empty());
}

TEST_F(SpaceFramesTest, APageThatIsHereIsNotFilledAgain) {
  Make(2);
  ASSERT_TRUE(frames_->Install(Gfn(0), Bytes(Filled(1)), PageAccess::kWrite).ok());
  const absl::Status second = frames_->Install(Gfn(0), Bytes(Filled(2)), PageAccess::kWrite);
  EXPECT_EQ(second.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(second.message()), testing::HasSubstr("/s.1, GFN 0x0"));
  EXPECT_EQ(PageOf(0), Filled(1));
  EXPECT_EQ(frames_->frame_bytes(), kPageSize);
}

// A program stores 1, 2, 3 ... to all words of a line in turn, and says which it has done. Whenever the page is taken
// away, it stands still at the next store: what was kept must have each store before that, and none after.
TEST_F(SpaceFramesTest, WhatIsTakenAwayHasEveryStore) {
  Make(2);
  // As many as it takes to meet a store in the moment that matters where threads share a CPU with other work.
  constexpr uint64_t kRounds = 4000, kLine = 8;
  std::atomic<uint64_t> done{0};
  std::atomic<bool> stop{false};
  ASSERT_TRUE(frames_->Install(Gfn(1), {}, PageAccess::kWrite).ok());
  std::thread program([&] {
    for (uint64_t n = 1; !stop; n++) {
      At(1, n % kLine).Store(n);
      done.store(n, std::memory_order_release);
      done.notify_one();
    }
  });
  uint64_t last = 0;
  for (uint64_t round = 0; round < kRounds; round++) {
    // It stores some, and at full speed when the page goes.
    for (uint64_t seen = done; seen < last + round % 7; seen = done) done.wait(seen);
    Words kept = Filled(99);
    if (round % 2 == 0) {
      ASSERT_TRUE(frames_->SetAccess(Gfn(1), PageAccess::kRead).ok());
    }
    ASSERT_TRUE(frames_->Remove(Gfn(1), Bytes(&kept)).ok());
    const auto fault = faults_.Next();
    ASSERT_EQ(fault, (Fault{Gfn(1), true}));
    const uint64_t n = done;
    for (uint64_t i = 0; i < std::min(n, kLine); i++) ASSERT_EQ(kept[(n - i) % kLine], n - i) << "round " << round;
    ASSERT_EQ(kept[kLine], 0u);
    last = n;
    ASSERT_TRUE(frames_->Install(Gfn(1), Bytes(kept), PageAccess::kWrite).ok());
    frames_->Wake(Gfn(1));
  }
  stop = true;
  program.join();
  EXPECT_GT(done, kRounds);
}

// The same with only the protection: no store is seen after SetAccess(kRead) came back.
TEST_F(SpaceFramesTest, AProtectedPageStandsStill) {
  Make(2);
  std::atomic<bool> stop{false};
  ASSERT_TRUE(frames_->Install(Gfn(1), {}, PageAccess::kWrite).ok());
  std::thread program([&] {
    for (uint64_t n = 1; !stop; n++) At(1).Store(n);
  });
  for (uint64_t round = 0; round < 1000; round++) {
    ASSERT_TRUE(frames_->SetAccess(Gfn(1), PageAccess::kRead).ok());
    const Words at_once = PageOf(1);
    ASSERT_EQ(faults_.Next(), (Fault{Gfn(1), true}));
    ASSERT_EQ(PageOf(1), at_once);
    ASSERT_TRUE(frames_->SetAccess(Gfn(1), PageAccess::kWrite).ok());
    frames_->Wake(Gfn(1));
  }
  stop = true;
  program.join();
}

TEST_F(SpaceFramesTest, WhoWaitsForAFailedPageGetsAnErrorAndNeverZeroes) {
  Make(4);
  KernelTouch touch;
  int missing = -1, protected_page = -1;
  std::thread first([&] { missing = touch.Read(frames_->view() + 2 * kPageSize); });
  ASSERT_EQ(faults_.Next(), (Fault{Gfn(2), false}));
  frames_->Fail(Gfn(2));
  first.join();
  EXPECT_EQ(missing, EFAULT);
  ASSERT_TRUE(frames_->Install(Gfn(1), Bytes(Filled(1)), PageAccess::kRead).ok());
  std::thread second([&] { protected_page = touch.Write(frames_->view() + kPageSize); });
  ASSERT_EQ(faults_.Next(), (Fault{Gfn(1), true}));
  frames_->Fail(Gfn(1));
  second.join();
  EXPECT_EQ(protected_page, EFAULT);
  EXPECT_EQ(PageOf(1), Filled(1)) << "the daemon still has its bytes";
  // Pages beside it are as they were.
  ASSERT_TRUE(frames_->Install(Gfn(3), Bytes(Filled(3)), PageAccess::kRead).ok());
  EXPECT_EQ(At(3).Load(), 3u);
  EXPECT_FALSE(frames_->Install(Gfn(2), {}, PageAccess::kRead).ok());
}

TEST_F(SpaceFramesTest, AThreadThatNeedsAFailedPageDies) {
  const auto die = [this] {
    ::signal(SIGSEGV, SIG_DFL);  // a sanitizer would make an exit of it
    Make(4);
    Unmount();  // this process has no TearDown
    std::filesystem::remove_all(directory_);
    std::thread thread([&] { At(2).Store(1); });
    const auto fault = faults_.Next();
    frames_->Fail(fault->page);
    thread.join();
  };
  EXPECT_EXIT(die(), testing::KilledBySignal(SIGSEGV), "");
}

TEST_F(SpaceFramesTest, WhenFaultsAreNoLongerServedEveryWaiterEnds) {
  Make(64);
  ASSERT_TRUE(frames_->Install(Gfn(0), Bytes(Filled(5)), PageAccess::kWrite).ok());
  constexpr size_t kThreads = 8;
  std::array<int, kThreads> results{};
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kThreads; i++) {
    threads.emplace_back([&, i] { results[i] = KernelTouch().Read(frames_->view() + (i + 1) * kPageSize); });
  }
  for (size_t i = 0; i < kThreads; i++) ASSERT_TRUE(faults_.Next().has_value());
  frames_->StopServing();
  for (std::thread& thread : threads) thread.join();
  for (const int result : results) EXPECT_EQ(result, EFAULT);
  EXPECT_EQ(KernelTouch().Read(frames_->view()), EFAULT) << "also what was here";
  EXPECT_EQ(PageOf(0), Filled(5));
  EXPECT_TRUE(faults_.empty());
  frames_.reset();
  EXPECT_TRUE(std::filesystem::is_empty(directory_));
}

TEST_F(SpaceFramesTest, StripesMeetWithoutAGap) {
  constexpr uint64_t kStripe = (uint64_t{1} << 30) / kPageSize;
  Open(uint64_t{4} << 30);
  Make(kStripe + 8);
  std::vector<std::thread> threads;
  const std::vector<uint64_t> pages{0, kStripe - 1, kStripe, kStripe + 7};
  for (const uint64_t page : pages) threads.emplace_back([this, page] { At(page, page % kWords).Store(page + 1); });
  for (size_t i = 0; i < pages.size(); i++) {
    const auto fault = faults_.Next();
    ASSERT_TRUE(fault.has_value() && fault->write);
    EXPECT_THAT(pages, testing::Contains(fault->page.value()));
    ASSERT_TRUE(frames_->Install(fault->page, Bytes(Filled(fault->page.value())), PageAccess::kWrite).ok());
    frames_->Wake(fault->page);
  }
  for (std::thread& thread : threads) thread.join();
  for (const uint64_t page : pages) {
    Words expected = Filled(page);
    expected[page % kWords] = page + 1;
    Words kept;
    ASSERT_TRUE(frames_->Remove(Gfn(page), Bytes(&kept)).ok());
    EXPECT_EQ(kept, expected);
  }
  EXPECT_EQ(frames_->frame_bytes(), 0u);
}

TEST_F(SpaceFramesTest, ASpaceTakesItsSizeOfTheBudgetAndGivesItBack) {
  Make(40 * kMib / kPageSize);
  EXPECT_EQ(SpaceFrames::Create(*store_, "t", 1, 40 * kMib / kPageSize, 40 * kMib / kPageSize).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(SpaceFrames::Create(*store_, "s", 1, 1, 1).status().code(), absl::StatusCode::kAlreadyExists);
  frames_.reset();
  EXPECT_TRUE(SpaceFrames::Create(*store_, "t", 1, 40 * kMib / kPageSize, 40 * kMib / kPageSize).ok());
}

TEST_F(SpaceFramesTest, AFullFrameStoreIsAnErrorOfTheInstallation) {
  Make(8 * kMib / kPageSize);
  if (!FillStore(directory_)) {
    GTEST_SKIP() << "the frame store is not a file system of its own here (no CAP_SYS_ADMIN); the lab covers it";
  }
  // What the last block left free.
  absl::Status last;
  for (uint64_t page = 0; page < 2 * kMib / kPageSize && last.ok(); page++)
    last = frames_->Install(Gfn(page), {}, PageAccess::kWrite);
  EXPECT_EQ(last.code(), absl::StatusCode::kResourceExhausted) << last;
}

}  // namespace
}  // namespace hk
