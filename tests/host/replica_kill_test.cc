// A daemon that is killed (SIGKILL) at any moment while its guest reads, writes, erases, flushes, stores and is reset;
// and another, and another: what a guest reads at its start is what its disk has, whatever was left.
#include <linux/virtio_blk.h>
#include <signal.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>

#include "gtest/gtest.h"
#include "hyperkernel/node/replica_killed_testing.h"

namespace hk {
namespace {

constexpr uint64_t kUsed = 96;  // blocks, and pages
constexpr int kLives = 40;
constexpr std::chrono::seconds kStartGuard{60};

// HK_SEED repeats one, but for the moment of death.
uint64_t Seed() {
  const char* const text = std::getenv("HK_SEED");
  return text == nullptr ? std::random_device{}() : std::strtoull(text, nullptr, 10);
}

// What outlives the daemons. In memory that all of them share.
struct Outside {
  std::atomic<uint64_t> generation{0};  // of the last run that was begun: the machine's record
  std::atomic<uint64_t> checked{0};     // daemons whose guest has read all
  std::atomic<uint64_t> hits{0}, recovered{0};
};

class ReplicaKill : public KilledReplicaTest {
 protected:
  void SetUp() override {
    KilledReplicaTest::SetUp();
    site_.databases = image_directory_ + "/replicas";
    outside_ = static_cast<Outside*>(
        ::mmap(nullptr, sizeof(Outside), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(outside_, MAP_FAILED);
    outside_ = new (outside_) Outside;
  }
  v1::VmRecord RecordNow() const {
    v1::VmRecord record = Record(outside_->generation.load());
    record.mutable_spec()->set_no_durable_replica(!durable_);
    return record;
  }
  void NextRun() {
    outside_->generation.fetch_add(1);
    generation_ = outside_->generation.load();
    replica_ = replicas_->BeginRun(RecordNow());
    ASSERT_NE(replica_, nullptr);
    BeginRun();
  }
  // The guest's first act: all of its disk.
  void ReadAll() {
    for (uint64_t block = 0; block < kUsed; block += 8) {
      ASSERT_TRUE(Read(block, 8, kData + block * kPageSize) == ImageText(block, 8)) << "block " << block;
    }
    outside_->hits.fetch_add(hits());
  }
  void StartDaemon() {
    Recover({RecordNow()});
    if (replica_ != nullptr) outside_->recovered.fetch_add(replica_->Describe().recovered());
  }
  // Until it is killed.
  void Live(uint64_t seed) {
    StartDaemon();
    NextRun();
    ReadAll();
    if (HasFatalFailure()) return;
    outside_->checked.fetch_add(1);
    std::byte* page = machine_->FindForGuest(Gpa(kData), kUsed * kPageSize);
    std::thread vcpu([page, seed] {
      std::mt19937_64 random(seed + 1);
      for (;;) {
        std::atomic_ref<std::byte>(page[random() % (kUsed * kPageSize)]).store(std::byte(random()));
        std::this_thread::yield();
      }
    });
    std::mt19937_64 random(seed);
    const auto pick = [&random](uint64_t below) { return random() % below; };
    for (;;) {
      const uint64_t count = 1 + pick(8), block = pick(kUsed - 8), at = kData + pick(kUsed - 8) * kPageSize;
      const auto bytes = static_cast<uint32_t>(count * kBlockSize);
      switch (pick(8)) {
        case 0:
        case 1:
        case 2:
          Do(VIRTIO_BLK_T_IN, block * 8, {{at, bytes, true}});
          break;
        case 3:
        case 4:
          Do(VIRTIO_BLK_T_OUT, block * 8, {{at, bytes, false}});
          break;
        case 5:
          Do(VIRTIO_BLK_T_OUT, block * 8 + pick(8), {{at + 512 * pick(8), 1024, false}});
          break;
        case 6: {
          const virtio_blk_discard_write_zeroes erase{block * 8 + pick(8), static_cast<uint32_t>(1 + pick(32)), 0};
          machine_->drivers[0]->SetText(kHeader + 0x800,
                                        std::string(reinterpret_cast<const char*>(&erase), sizeof erase));
          Do(VIRTIO_BLK_T_WRITE_ZEROES, 0, {{kHeader + 0x800, 16, false}});
          break;
        }
        default:
          Do(VIRTIO_BLK_T_FLUSH, 0, {});
      }
    }
  }
  // The same without stores, but with resets.
  void LiveWithResets(uint64_t seed) {
    StartDaemon();
    std::mt19937_64 random(seed);
    for (;;) {
      NextRun();
      ReadAll();
      if (HasFatalFailure()) return;
      outside_->checked.fetch_add(1);
      for (uint64_t i = 0; i < random() % 16; ++i) {
        const uint64_t block = random() % (kUsed - 8), at = kData + (random() % kUsed) * kPageSize;
        Do(VIRTIO_BLK_T_IN, block * 8, {{at, kBlockSize, true}});
        if (random() % 2 == 0) continue;
        machine_->drivers[0]->SetText(at, std::string(1 + random() % 64, static_cast<char>(random())));
        Do(VIRTIO_BLK_T_OUT, block * 8, {{at, kBlockSize, false}});
      }
      EndRun();
    }
  }
  // Daemon after daemon, each killed some time after its guest was started.
  void Kill(const std::function<void(uint64_t)>& life) {
    const uint64_t seed = Seed();
    SCOPED_TRACE("HK_SEED=" + std::to_string(seed));
    std::mt19937_64 random(seed);
    for (int i = 0; i < kLives; ++i) {
      durable_ = random() % 2 == 0;
      const uint64_t checked = outside_->checked.load(), of_life = random();
      const pid_t child = Fork([&] { life(of_life); });
      const auto deadline = std::chrono::steady_clock::now() + kStartGuard;
      int status = 0;
      pid_t ended = 0;
      // Every third dies before its guest has read all.
      const bool early = i % 3 == 2;
      while (ended == 0 && !early && outside_->checked.load() == checked &&
             std::chrono::steady_clock::now() < deadline) {
        std::this_thread::yield();
        ended = ::waitpid(child, &status, WNOHANG);
      }
      const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(random() % 20000);
      while (ended == 0 && std::chrono::steady_clock::now() < until) ended = ::waitpid(child, &status, WNOHANG);
      if (ended == 0) {
        ::kill(child, SIGKILL);
        ASSERT_EQ(::waitpid(child, &status, 0), child);
      }
      ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << "life " << i << ": " << status;
    }
    EXPECT_GE(outside_->checked.load(), static_cast<uint64_t>(kLives) / 2);
    EXPECT_GT(outside_->recovered.load(), 0u) << "the test is of nothing";
    EXPECT_GT(outside_->hits.load(), 0u) << "the test is of nothing";
  }

  Outside* outside_ = nullptr;
  bool durable_ = false;
};

TEST_F(ReplicaKill, WhatIsReadAfterwardsIsWhatTheDiskHas) {
  Kill([this](uint64_t seed) { Live(seed); });
}

TEST_F(ReplicaKill, AlsoAmongResets) {
  Kill([this](uint64_t seed) { LiveWithResets(seed); });
}

}  // namespace
}  // namespace hk
