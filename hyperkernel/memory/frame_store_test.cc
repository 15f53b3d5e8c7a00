#include "hyperkernel/memory/frame_store.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/fd.h"
#include "hyperkernel/memory/host_swap.h"

namespace hk {
namespace {

constexpr uint64_t kMib = 1 << 20;
constexpr int kNoNamespaces = 77;  // exit status of a child

// Has spare frames, and gives them back by the MiB.
class Holder final : public SpareFrames {
 public:
  explicit Holder(FrameReservation reservation, uint64_t bytes) : reservation_(std::move(reservation)), bytes_(bytes) {
    reservation_.MakeSpare(bytes_);
  }
  void GiveBack(uint64_t bytes) override {
    asked.push_back(bytes);
    bytes_ -= std::min(bytes_, (bytes + kMib - 1) / kMib * kMib);
    reservation_.MakeSpare(bytes_);
  }
  std::vector<uint64_t> asked;

 private:
  FrameReservation reservation_;
  uint64_t bytes_;
};

class FrameStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/dev/shm/hk_frame_store_test.XXXXXX";
    ASSERT_NE(::mkdtemp(pattern), nullptr);
    directory_ = pattern;
    may_mount_ = ::mount("hk-test", directory_.c_str(), "tmpfs", 0, "size=4k") == 0;
    if (may_mount_) ::umount(directory_.c_str());
  }
  void TearDown() override {
    while (::umount2(directory_.c_str(), MNT_DETACH) == 0) {
    }
    std::filesystem::remove_all(directory_);
  }
  void Write(const std::string& name, size_t size) { std::ofstream(directory_ + "/" + name) << std::string(size, 'x'); }

  // Whether the mount at the directory has the option.
  bool HasOption(const std::string& option) const {
    std::ifstream mounts("/proc/self/mountinfo");
    std::string line, found;
    while (std::getline(mounts, line)) {
      if (line.find(" " + directory_ + " ") != std::string::npos) found = line;  // the last one is the one seen
    }
    std::ranges::replace(found, ' ', ',');
    return ("," + found + ",").find("," + option + ",") != std::string::npos;
  }

  std::string directory_;
  bool may_mount_ = false;
};

TEST_F(FrameStoreTest, CountsWhatFilesHold) {
  auto store = FrameStore::Open(directory_, 32 * kMib);
  ASSERT_TRUE(store.ok()) << store.status();
  const uint64_t before = *store->UsedBytes();
  Write("frames", 3 * kMib);
  EXPECT_EQ(*store->UsedBytes() - before, 3 * kMib);
}

TEST_F(FrameStoreTest, PromisesNoMoreThanItsBudget) {
  const auto store = FrameStore::Open(directory_, 32 * kMib);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(store->reserved_bytes(), 0u);
  auto one = store->Reserve(20 * kMib);
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(store->reserved_bytes(), 20 * kMib);
  EXPECT_TRUE(absl::IsResourceExhausted(store->Reserve(12 * kMib + 1).status()));
  EXPECT_EQ(store->reserved_bytes(), 20 * kMib) << "what is refused takes nothing";
  {
    const auto two = store->Reserve(12 * kMib);
    ASSERT_TRUE(two.ok()) << two.status();
    EXPECT_EQ(store->reserved_bytes(), 32 * kMib);
  }
  EXPECT_EQ(store->reserved_bytes(), 20 * kMib);
  const FrameReservation moved = *std::move(one);
  EXPECT_EQ(store->reserved_bytes(), 20 * kMib);
}

TEST_F(FrameStoreTest, RemovesWhatAKilledDaemonLeftAndNothingElse) {
  auto store = FrameStore::Open(directory_, 32 * kMib);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(store->PathOf("web-1", 12), directory_ + "/web-1.12");
  const uint64_t before = *store->UsedBytes();
  Write("web-1.12", kMib);
  Write("db.1", kMib);
  for (const char* kept : {"lock", "web-1", "web-1.", ".3", "web.12x"}) Write(kept, 1);
  const absl::StatusOr<int> removed = store->RemoveLeftovers();
  ASSERT_TRUE(removed.ok()) << removed.status();
  EXPECT_EQ(*removed, 2);
  EXPECT_LT(*store->UsedBytes() - before, kMib);
  for (const char* kept : {"lock", "web-1", "web-1.", ".3", "web.12x"}) {
    EXPECT_TRUE(std::filesystem::exists(directory_ + "/" + kept)) << kept;
  }
  EXPECT_EQ(*store->RemoveLeftovers(), 0);
}

TEST_F(FrameStoreTest, MountsATmpfsOfItsOwnOnceAndFindsItAgain) {
  if (!may_mount_) GTEST_SKIP() << "needs CAP_SYS_ADMIN; the lab runs this as root";
  auto store = FrameStore::Open(directory_, 32 * kMib);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_TRUE(store->warnings().empty());
  Write("kept", kMib);
  auto again = FrameStore::Open(directory_, 32 * kMib);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(std::filesystem::exists(directory_ + "/kept"));
  ASSERT_EQ(::umount(directory_.c_str()), 0);
  EXPECT_NE(::umount(directory_.c_str()), 0) << "mounted twice";
}

TEST_F(FrameStoreTest, ADirectoryThatIsNotOursAloneIsRefused) {
  const std::string link = directory_ + "/link", target = directory_ + "/target";
  std::filesystem::create_directory(target);
  std::filesystem::create_directory_symlink(target, link);
  EXPECT_THAT(std::string(FrameStore::Open(link, 32 * kMib).status().message()),
              testing::HasSubstr("is a symbolic link"));
  ASSERT_EQ(::chmod(target.c_str(), 0777), 0);
  EXPECT_THAT(std::string(FrameStore::Open(target, 32 * kMib).status().message()), testing::HasSubstr("chmod 0700"));
  ASSERT_EQ(::chmod(target.c_str(), 0700), 0);
  std::ofstream(target + "/precious") << "x";
  EXPECT_THAT(std::string(FrameStore::Open(target, 32 * kMib).status().message()), testing::HasSubstr("holds files"));
  EXPECT_TRUE(std::filesystem::exists(target + "/precious"));
  if (::geteuid() == 0) {
    ASSERT_EQ(::chown(target.c_str(), 1, 1), 0);
    EXPECT_THAT(std::string(FrameStore::Open(target, 32 * kMib).status().message()),
                testing::HasSubstr("belongs to user 1"));
  }
}

TEST_F(FrameStoreTest, GrowsATmpfsThatIsTooSmallAndKeepsItsFiles) {
  if (!may_mount_) GTEST_SKIP() << "needs CAP_SYS_ADMIN; the lab runs this as root";
  ASSERT_TRUE(FrameStore::Open(directory_, 16 * kMib).ok());
  Write("kept", kMib);
  auto store = FrameStore::Open(directory_, 64 * kMib);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_LT(std::filesystem::space(directory_).capacity, 64 * kMib) << "changed before its lock could be taken";
  ASSERT_TRUE(store->EnsureCapacity().ok()) << store->EnsureCapacity();
  EXPECT_GE(std::filesystem::space(directory_).capacity, 64 * kMib);
  EXPECT_TRUE(std::filesystem::exists(directory_ + "/kept"));
}

TEST_F(FrameStoreTest, IsNotSwappedWhereTheKernelHasSuchMounts) {
  if (!may_mount_) GTEST_SKIP() << "needs CAP_SYS_ADMIN; the lab runs this as root";
  const absl::Status noswap = TryNoswapTmpfs();
  const auto store = FrameStore::Open(directory_, 16 * kMib);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(HasOption("noswap"), noswap.ok()) << noswap;
  const auto larger = FrameStore::Open(directory_, 64 * kMib);
  ASSERT_TRUE(larger.ok()) << larger.status();
  ASSERT_TRUE(larger->EnsureCapacity().ok()) << larger->EnsureCapacity();
  EXPECT_GE(std::filesystem::space(directory_).capacity, 64 * kMib);
  EXPECT_EQ(HasOption("noswap"), noswap.ok()) << "changed by the remount";
  EXPECT_TRUE(HasOption("noexec")) << "changed by the remount";
}

// In a user namespace every kernel refuses noswap, as one before 6.4 does anywhere.
TEST_F(FrameStoreTest, IsMountedWhereTheKernelRefusesNoswap) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const std::string map = fmt::format("0 {} 1", ::geteuid());
    if (::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) ::_exit(kNoNamespaces);
    const OwnedFd file(::open("/proc/self/uid_map", O_WRONLY | O_CLOEXEC));
    if (::write(file.get(), map.data(), map.size()) < 0) ::_exit(kNoNamespaces);
    const auto store = FrameStore::Open(directory_, 16 * kMib);
    EXPECT_TRUE(store.ok()) << store.status();
    EXPECT_TRUE(HasOption("huge=never") || HasOption("size=21504k")) << "not a mount of its own";
    EXPECT_FALSE(HasOption("noswap"));
    const auto larger = FrameStore::Open(directory_, 64 * kMib);
    EXPECT_TRUE(larger.ok() && larger->EnsureCapacity().ok());
    EXPECT_GE(std::filesystem::space(directory_).capacity, 64 * kMib);
    ::_exit(HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << status;
  if (WEXITSTATUS(status) == kNoNamespaces) GTEST_SKIP() << "this host allows no user namespaces here";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_F(FrameStoreTest, RefusesHugePagesAndOtherFileSystems) {
  if (!may_mount_) GTEST_SKIP() << "needs CAP_SYS_ADMIN; the lab runs this as root";
  ASSERT_EQ(::mount("hk-test", directory_.c_str(), "proc", 0, nullptr), 0);
  EXPECT_THAT(std::string(FrameStore::Open(directory_, 16 * kMib).status().message()),
              testing::HasSubstr("another file system"));
  ASSERT_EQ(::umount(directory_.c_str()), 0);
  if (::mount("hk-test", directory_.c_str(), "tmpfs", 0, "size=64m,huge=always,mode=0700") != 0)
    GTEST_SKIP() << "this kernel has no huge tmpfs";
  const auto store = FrameStore::Open(directory_, 16 * kMib);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_THAT(std::string(store->EnsureCapacity().message()), testing::HasSubstr("remount,huge=never"));
}

TEST_F(FrameStoreTest, SpareFramesAreInNobodysWay) {
  const auto store = FrameStore::Open(directory_, 32 * kMib);
  ASSERT_TRUE(store.ok()) << store.status();
  const auto one = store->Reserve(8 * kMib);
  const auto holder = std::make_shared<Holder>(*store->Reserve(20 * kMib), 16 * kMib);
  store->AddSpare(holder);
  EXPECT_EQ(store->reserved_bytes(), 8 * kMib);
  EXPECT_EQ(store->spare_bytes(), 16 * kMib);
  const auto fits = store->Reserve(8 * kMib);
  ASSERT_TRUE(fits.ok()) << fits.status();
  EXPECT_TRUE(holder->asked.empty()) << "there was room";
  const auto some = store->Reserve(4 * kMib);
  ASSERT_TRUE(some.ok()) << some.status();
  EXPECT_THAT(holder->asked, testing::ElementsAre(4 * kMib)) << "what is missing, not more";
  EXPECT_EQ(store->spare_bytes(), 12 * kMib);
  EXPECT_TRUE(absl::IsResourceExhausted(store->Reserve(33 * kMib).status()));
  EXPECT_EQ(store->spare_bytes(), 12 * kMib) << "nothing goes for what can never fit";
  const auto all = store->Reserve(12 * kMib);
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(store->spare_bytes(), 0u);
  EXPECT_EQ(store->reserved_bytes(), 32 * kMib);
  const absl::Status none = store->Reserve(kMib).status();
  EXPECT_TRUE(absl::IsResourceExhausted(none));
  EXPECT_THAT(std::string(none.message()), testing::HasSubstr("32 MiB are taken"));
}

TEST_F(FrameStoreTest, WhatLiesBesideTheFramesHasRoomOfItsOwn) {
  const auto store = FrameStore::Open(directory_, 48 * kMib);
  ASSERT_TRUE(store.ok()) << store.status();
  const uint64_t most = store->most_beside_bytes();
  EXPECT_GE(most, 2 * kMib);
  EXPECT_FALSE(store->TakeBeside(most + 1));
  ASSERT_TRUE(store->TakeBeside(most - 1));
  EXPECT_FALSE(store->TakeBeside(2));
  EXPECT_FALSE(store->TakeBeside(~uint64_t{0}));
  EXPECT_TRUE(store->Reserve(48 * kMib).ok()) << "no frame's room was taken";
  store->GiveBeside(most - 1);
  EXPECT_EQ(store->beside_bytes(), 0u);
}

TEST_F(FrameStoreTest, LeftoversThatAreKeptStay) {
  const auto store = FrameStore::Open(directory_, 32 * kMib);
  ASSERT_TRUE(store.ok()) << store.status();
  for (const char* name : {"web.12", "web.12.replica", "web.3", ".replica", "x.replica", "db.1.replica"})
    Write(name, 1);
  const auto all = store->Leftovers();
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->size(), 4u);
  for (const FrameStore::Leftover& left : *all) {
    EXPECT_EQ(left.file, left.guest + "." + std::to_string(left.generation) + (left.table ? ".replica" : ""));
  }
  EXPECT_EQ(store->TablePathOf("web", 12), directory_ + "/web.12.replica");
  EXPECT_EQ(store->RemoveLeftovers({"web.12", "web.12.replica"}).value_or(-1), 2);
  for (const char* kept : {"web.12", "web.12.replica", ".replica", "x.replica"}) {
    EXPECT_TRUE(std::filesystem::exists(directory_ + "/" + kept)) << kept;
  }
}

}  // namespace
}  // namespace hk
