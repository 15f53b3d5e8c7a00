// The swap file: what is written is read, what is not is an error, and the disk and its files are given back.
#include "hyperkernel/memory/space_swap.h"
#include "hyperkernel/memory/swap_store.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hk {
namespace {

using testing::HasSubstr;

constexpr std::chrono::seconds kHangGuard{60};

// A directory of its own, gone afterwards with what is in it.
class SpaceSwapTest : public testing::Test {
 protected:
  SpaceSwapTest() {
    const char* const base = std::getenv("TMPDIR");
    std::string name = fmt::format("{}/swap_test.XXXXXX", base != nullptr ? base : "/tmp");
    if (::mkdtemp(name.data()) == nullptr) std::abort();
    directory_ = name;
  }
  ~SpaceSwapTest() override {
    swap_.reset();
    EXPECT_EQ(SpaceSwap::RemoveLeftovers(directory_ + "/swap").value_or(-1), 0) << "a file was left behind";
    static_cast<void>(::rmdir((directory_ + "/swap").c_str()));
    static_cast<void>(::rmdir(directory_.c_str()));
  }
  void Make(uint64_t pages) {
    auto made = SpaceSwap::Create(directory_ + "/swap", "pool", 1, pages * kPageSize);
    ASSERT_TRUE(made.ok()) << made.status();
    swap_ = *std::move(made);
  }
  static std::shared_ptr<SwapPage> PageOf(uint64_t seed) {
    auto page = std::make_shared<SwapPage>();
    for (size_t i = 0; i < kPageSize; ++i) page->bytes[i] = static_cast<std::byte>((seed * 31 + i * 7) >> (i % 8));
    return page;
  }
  PageSwap::Done Note(absl::Status* status) {
    return [this, status](const absl::Status& end) {
      MutexLock lock(&mutex_);
      *status = end;
      ++ended_;
      changed_.SignalAll();
    };
  }
  void WaitFor(int ended) {
    MutexLock lock(&mutex_);
    const auto deadline = std::chrono::steady_clock::now() + kHangGuard;
    while (ended_ < ended && changed_.WaitUntil(&mutex_, deadline)) {
    }
    ASSERT_EQ(ended_, ended);
    ended_ = 0;
  }
  absl::Status Write(uint64_t gfn, uint64_t seed) {
    absl::Status status = absl::UnknownError("not yet");
    swap_->Write(Gfn(gfn), PageOf(seed), Note(&status));
    WaitFor(1);
    return status;
  }
  absl::Status Read(uint64_t gfn, SwapPage* to) {
    absl::Status status = absl::UnknownError("not yet");
    auto page = std::make_shared<SwapPage>();
    swap_->Read(Gfn(gfn), page, Note(&status));
    WaitFor(1);
    *to = *page;
    return status;
  }

  std::string directory_;
  Mutex mutex_;
  CondVar changed_;
  int ended_ ABSL_GUARDED_BY(mutex_) = 0;
  std::unique_ptr<SpaceSwap> swap_;
};

TEST_F(SpaceSwapTest, WhatIsWrittenIsRead) {
  constexpr uint64_t kPages = 3000;
  Make(kPages);
  EXPECT_EQ(swap_->table_bytes(), 0u);
  // In any order, many at once.
  std::vector<absl::Status> ends(kPages);
  for (uint64_t i = 0; i < kPages; ++i) {
    const uint64_t gfn = i * 7919 % kPages * 37;
    swap_->Write(Gfn(gfn), PageOf(gfn), Note(&ends[i]));
  }
  WaitFor(kPages);
  for (const absl::Status& end : ends) ASSERT_TRUE(end.ok()) << end;
  EXPECT_EQ(swap_->pages(), kPages);
  EXPECT_GE(swap_->table_bytes(), kPages * 37 / kExtentPages * kExtentPages * 12) << "12 bytes for each of an extent";
  struct stat found = {};
  ASSERT_EQ(::stat(swap_->path().c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777, 0600u);
  EXPECT_EQ(static_cast<uint64_t>(found.st_size), kPages * kPageSize);
  std::vector<std::shared_ptr<SwapPage>> pages;
  for (uint64_t i = 0; i < kPages; ++i) {
    pages.push_back(std::make_shared<SwapPage>());
    swap_->Read(Gfn(i * 37), pages.back(), Note(&ends[i]));
  }
  WaitFor(kPages);
  for (uint64_t i = 0; i < kPages; ++i) {
    ASSERT_TRUE(ends[i].ok()) << ends[i];
    ASSERT_EQ(pages[i]->bytes, PageOf(i * 37)->bytes);
    swap_->Forget(Gfn(i * 37));
  }
  EXPECT_EQ(swap_->pages(), 0u);
}

TEST_F(SpaceSwapTest, AFullSwapTakesNoMoreUntilAPageIsForgotten) {
  Make(2);
  ASSERT_TRUE(Write(10, 1).ok());
  ASSERT_TRUE(Write(20, 2).ok());
  const absl::Status full = Write(30, 3);
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_THAT(std::string(full.message()), HasSubstr("are full"));
  swap_->Forget(Gfn(10));
  ASSERT_TRUE(Write(30, 3).ok());
  const auto memory = std::make_unique<SwapPage>();  // asan does not align a stack that far
  SwapPage& page = *memory;
  ASSERT_TRUE(Read(20, &page).ok());
  EXPECT_EQ(page.bytes, PageOf(2)->bytes);
  ASSERT_TRUE(Read(30, &page).ok());
  EXPECT_EQ(page.bytes, PageOf(3)->bytes);
  EXPECT_EQ(swap_->disk_bytes(), 2 * kPageSize);
}

TEST_F(SpaceSwapTest, AWrongByteIsAnError) {
  Make(4);
  ASSERT_TRUE(Write(10, 1).ok());
  ASSERT_TRUE(Write(11, 2).ok());
  OwnedFd fd(::open(swap_->path().c_str(), O_WRONLY | O_CLOEXEC));
  ASSERT_TRUE(fd.valid());
  ASSERT_EQ(::pwrite(fd.get(), "!", 1, kPageSize - 1), 1);
  const auto memory = std::make_unique<SwapPage>();  // asan does not align a stack that far
  SwapPage& page = *memory;
  const absl::Status wrong = Read(10, &page);
  EXPECT_TRUE(absl::IsDataLoss(wrong)) << wrong;
  EXPECT_THAT(std::string(wrong.message()), HasSubstr(swap_->path()));
  // The other page at its place: right bytes of a wrong page.
  ASSERT_EQ(::pwrite(fd.get(), PageOf(2)->bytes.data(), kPageSize, 0), static_cast<ssize_t>(kPageSize));
  EXPECT_TRUE(absl::IsDataLoss(Read(10, &page)));
  EXPECT_TRUE(Read(11, &page).ok());
  // Cut off.
  ASSERT_EQ(::ftruncate(fd.get(), kPageSize), 0);
  EXPECT_TRUE(absl::IsDataLoss(Read(11, &page)));
}

// A limit on the size of files stands for a full disk: the piece that would be taken from it is refused.
TEST_F(SpaceSwapTest, WhatTheDiskRefusesIsAnErrorOfTheWrite) {
  Make(8);
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit old = {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const rlimit little = {.rlim_cur = 4 * kPageSize, .rlim_max = old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &little), 0);
  const absl::Status refused = Write(1, 1);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  EXPECT_FALSE(refused.ok());
  EXPECT_THAT(std::string(refused.message()), HasSubstr(swap_->path()));
  EXPECT_EQ(swap_->pages(), 0u);
  // And it goes on when there is room.
  for (uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(Write(i, i).ok());
  EXPECT_FALSE(Write(9, 9).ok());
}

TEST_F(SpaceSwapTest, TheDiskMustHaveWhatIsAskedFor) {
  const auto made = SpaceSwap::Create(directory_ + "/swap", "pool", 1, uint64_t{1} << 43);
  ASSERT_FALSE(made.ok());
  EXPECT_TRUE(absl::IsResourceExhausted(made.status())) << made.status();
  EXPECT_THAT(std::string(made.status().message()), HasSubstr("the disk has"));
  for (const char* name : {"", "a/b"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(SpaceSwap::Create(directory_, name, 1, kPageSize).status()));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(SpaceSwap::Create(directory_, "pool", 1, kPageSize - 1).status()));
}

TEST_F(SpaceSwapTest, FilesOfADaemonThatWasKilledAreRemoved) {
  EXPECT_EQ(SpaceSwap::RemoveLeftovers(directory_ + "/swap").value_or(-1), 0);
  Make(4);
  EXPECT_TRUE(absl::IsAlreadyExists(SpaceSwap::Create(directory_ + "/swap", "pool", 1, kPageSize).status()));
  OwnedFd fd(::open((directory_ + "/swap/old.3").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  EXPECT_EQ(SpaceSwap::RemoveLeftovers(directory_ + "/swap").value_or(-1), 2);
}

TEST_F(SpaceSwapTest, AllSpacesOfANodeShareABudget) {
  const SwapStore store(directory_ + "/swap", 10 * kPageSize);
  EXPECT_EQ(store.budget_bytes(), 10 * kPageSize);
  EXPECT_EQ(store.UsedBytes().value_or(1), 0u);
  auto one = store.Make("one", 1, 6 * kPageSize);
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(store.reserved_bytes(), 6 * kPageSize);
  EXPECT_EQ(store.UsedBytes().value_or(1), 0u) << "nothing is taken of the disk before it is needed";
  const absl::Status two = store.Make("two", 1, 5 * kPageSize).status();
  EXPECT_TRUE(absl::IsResourceExhausted(two));
  EXPECT_THAT(std::string(two.message()), HasSubstr("swap_mib"));
  // What could not be made takes nothing.
  EXPECT_TRUE(absl::IsAlreadyExists(store.Make("one", 1, kPageSize).status()));
  EXPECT_TRUE(store.Make("two", 1, 4 * kPageSize).ok());
  EXPECT_EQ(store.reserved_bytes(), 6 * kPageSize);
  absl::Status written = absl::UnknownError("");
  (*one)->Write(Gfn(7), PageOf(7), Note(&written));
  WaitFor(1);
  EXPECT_TRUE(written.ok()) << written;
  EXPECT_GE(store.UsedBytes().value_or(0), kPageSize);
  EXPECT_LE(store.UsedBytes().value_or(~0u), 6 * kPageSize + 4096) << "a block more for the file system's own";
  one->reset();
  EXPECT_EQ(store.reserved_bytes(), 0u);
  EXPECT_EQ(store.UsedBytes().value_or(1), 0u);
  EXPECT_TRUE(store.Make("three", 1, 10 * kPageSize).ok());
}

TEST_F(SpaceSwapTest, StopEndsWhatIsUnderWay) {
  constexpr uint64_t kPages = 500;
  Make(kPages);
  std::vector<absl::Status> ends(kPages);
  for (uint64_t i = 0; i < kPages; ++i) swap_->Write(Gfn(i), PageOf(i), Note(&ends[i]));
  swap_->Stop();
  MutexLock lock(&mutex_);
  EXPECT_EQ(static_cast<uint64_t>(ended_), swap_->pages());
  ended_ = 0;
}

}  // namespace
}  // namespace hk
