// One guest-physical space over several nodes of this host: programs on the views of its nodes see one memory.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/host/space_cluster.h"

namespace hk {
namespace {

constexpr size_t kWords = kPageSize / sizeof(uint64_t);

bool Soak() {
  return std::getenv("HK_SOAK") != nullptr;
}

uint64_t Seed() {
  const char* const set = std::getenv("HK_SEED");
  const uint64_t seed = set != nullptr ? std::strtoull(set, nullptr, 0) : std::random_device()();
  fmt::print("HK_SEED={}\n", seed);
  return seed;
}

std::atomic_ref<uint64_t> Word(std::byte* view, uint64_t page, size_t word) {
  return std::atomic_ref<uint64_t>(reinterpret_cast<uint64_t*>(view + page * kPageSize)[word]);
}

template <typename T>
std::span<const std::byte> In(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}
template <typename T>
std::span<std::byte> Out(T* value) {
  return std::as_writable_bytes(std::span(value, 1));
}

using PageWords = std::array<uint64_t, kWords>;

TEST(SpaceTest, APageMovesAndIsReadBack) {
  SpaceCluster cluster({.nodes = 2, .pages = 2048});
  PageWords sent, read{};
  std::iota(sent.begin(), sent.end(), 1000);
  const Gpa at(3 * kPageSize + 100);
  for (size_t from = 0; from < 2; from++) {
    ASSERT_TRUE(cluster.space(from).Write(at, In(sent), SpaceCluster::Soon()).ok());
    ASSERT_TRUE(cluster.space(1 - from).Read(at, Out(&read), SpaceCluster::Soon()).ok());
    EXPECT_EQ(read, sent);
    sent.fill(from + 7);
  }
  // Programs see the same.
  Word(cluster.view(0), 1500, 3) = 42;
  EXPECT_EQ(Word(cluster.view(1), 1500, 3), 42u);
  Word(cluster.view(1), 1500, 4) = 43;
  EXPECT_EQ(Word(cluster.view(0), 1500, 4), 43u);
  EXPECT_EQ(Word(cluster.view(0), 1500, 3), 42u);
  EXPECT_EQ(cluster.space(0).Read(Gpa(2048 * kPageSize - 8), Out(&read), SpaceCluster::Soon()).code(),
            absl::StatusCode::kOutOfRange);
  EXPECT_EQ(cluster.space(0).Read(Gpa(~uint64_t{0}), Out(&read), SpaceCluster::Soon()).code(),
            absl::StatusCode::kOutOfRange);
  EXPECT_TRUE(cluster.space(0).Read(Gpa(2048 * kPageSize), {}, SpaceCluster::Soon()).ok());
  EXPECT_TRUE(cluster.space(0).state().ok());
  EXPECT_GT(cluster.space(0).frame_bytes(), 0u);
}

TEST(SpaceTest, WholePagesAreReplacedAsOne) {
  constexpr uint64_t kPages = 40, kRounds = 400;
  SpaceCluster cluster({.nodes = 3, .pages = kPages});
  const uint64_t seed = Seed();
  std::vector<std::thread> threads;
  for (size_t node = 0; node < 3; node++) {
    threads.emplace_back([&, node] {
      std::mt19937_64 random(seed + node);
      std::vector<uint64_t> words(kWords * 3);
      for (uint64_t round = 1; round <= kRounds; round++) {
        const Gpa at((random() % (kPages - 2)) * kPageSize);
        std::fill(words.begin(), words.end(), round << 8 | node);
        ASSERT_TRUE(cluster.space(node).Write(at, std::as_bytes(std::span(words)), SpaceCluster::Soon()).ok());
        ASSERT_TRUE(cluster.space(node).Read(at, std::as_writable_bytes(std::span(words)), SpaceCluster::Soon()).ok());
        for (size_t i = 0; i < words.size(); i++) ASSERT_EQ(words[i], words[i / kWords * kWords]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Callers that do not wait for their pages: what they write comes whole or not at all, and what they read into is left
// alone. A page that was to be replaced is never left without its bytes.
TEST(SpaceTest, WhoGivesUpSpoilsNothing) {
  constexpr uint64_t kPages = 16, kRounds = 300;
  SpaceCluster cluster({.nodes = 2, .pages = kPages * kExtentPages});
  const uint64_t seed = Seed();
  std::mt19937_64 random(seed);
  uint64_t given_up = 0;
  for (uint64_t round = 1; round <= kRounds; round++) {
    const size_t node = round % 2;
    const uint64_t page = random() % kPages * kExtentPages;
    PageWords words, kept;
    words.fill(round);
    ASSERT_TRUE(cluster.space(node).Write(Gpa(page * kPageSize), In(words), SpaceCluster::Soon()).ok());
    words.fill(round + kRounds);
    const Monotonic over = std::chrono::steady_clock::now();
    const absl::Status written = cluster.space(1 - node).Write(Gpa(page * kPageSize), In(words), over);
    if (!written.ok()) {
      ASSERT_EQ(written.code(), absl::StatusCode::kDeadlineExceeded) << written;
      EXPECT_THAT(std::string(written.message()), testing::HasSubstr(fmt::format("{:#x}", page * kPageSize)));
      given_up++;
    }
    kept.fill(7);
    const absl::Status read = cluster.space(node).Read(Gpa(page * kPageSize), Out(&kept), over);
    const PageWords at_once = kept;
    ASSERT_TRUE(cluster.space(node).Read(Gpa(page * kPageSize), Out(&words), SpaceCluster::Soon()).ok());
    for (const uint64_t word : words) ASSERT_EQ(word, words[0]) << "round " << round;
    ASSERT_TRUE(words[0] == round || words[0] == round + kRounds) << "round " << round << " reads " << words[0];
    ASSERT_TRUE(!written.ok() || words[0] == round + kRounds);
    if (!read.ok()) {
      for (const uint64_t word : kept) ASSERT_EQ(word, 7u) << "it was read into after the caller had gone";
    }
    ASSERT_EQ(kept, at_once);
  }
  EXPECT_GT(given_up, kRounds / 4);
}

// A page of the content check: [0] a lock, [1] its GFN, [2] its version, the others follow from these.
uint64_t ContentOf(uint64_t gfn, uint64_t version, size_t word) {
  return (gfn * 0x9e3779b97f4a7c15U) ^ (version * 0xbf58476d1ce4e5b9U) ^ word;
}

void CheckPage(std::byte* view, uint64_t page) {
  const uint64_t version = Word(view, page, 2);
  ASSERT_EQ(Word(view, page, 1), version == 0 ? 0 : page);
  for (size_t i = 3; i < kWords; i++)
    ASSERT_EQ(Word(view, page, i), version == 0 ? 0 : ContentOf(page, version, i)) << "page " << page << " word " << i;
}

// Three nodes with frames for less than half of it each hold a space, filled by one, read by all, page for page.
TEST(SpaceTest, NodesPoolTheirFrames) {
  constexpr uint64_t kPages = 1280, kMost = 512;
  SpaceCluster cluster({.nodes = 3, .pages = kPages, .max_pages = kMost});
  const uint64_t seed = Seed();
  PageWords words;
  for (uint64_t page = 0; page < kPages; page++) {
    words.fill(ContentOf(page, 1, 0));
    const absl::Status written = cluster.space(0).Write(Gpa(page * kPageSize), In(words), SpaceCluster::Soon());
    ASSERT_TRUE(written.ok()) << "page " << page << ": " << written;
  }
  std::vector<std::thread> threads;
  for (size_t node = 0; node < 3; node++) {
    threads.emplace_back([&, node] {
      std::mt19937_64 random(seed + node);
      std::vector<uint64_t> order(kPages);
      std::iota(order.begin(), order.end(), 0);
      std::shuffle(order.begin(), order.end(), random);
      for (const uint64_t page : order) ASSERT_EQ(Word(cluster.view(node), page, page % kWords), ContentOf(page, 1, 0));
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t node = 0; node < 3; node++) EXPECT_LE(cluster.space(node).frame_bytes(), kMost * kPageSize);
}

// Two nodes with frames for a quarter of it together: the rest is in their swaps. Filled by stores, read by all in any
// order, then changed by both at once. One node alone, with all its swap, could not hold what it fills.
TEST(SpaceTest, ASpaceMayBeLargerThanAllFrames) {
  constexpr uint64_t kPages = 2048, kMost = 256, kSwap = 920;
  SpaceCluster cluster({.nodes = 2, .pages = kPages, .max_pages = kMost, .swap_pages = kSwap});
  const uint64_t seed = Seed();
  for (uint64_t page = 0; page < kPages; page++) {
    for (size_t i = 0; i < kWords; i += 64) Word(cluster.view(0), page, i) = ContentOf(page, 1, i);
  }
  EXPECT_GT(cluster.space(0).Statistics().pages_swapped, 0u);
  std::vector<std::thread> threads;
  for (size_t node = 0; node < 2; node++) {
    threads.emplace_back([&, node] {
      std::mt19937_64 random(seed + node);
      std::vector<uint64_t> order(kPages);
      std::iota(order.begin(), order.end(), 0);
      std::shuffle(order.begin(), order.end(), random);
      for (const uint64_t page : order) {
        for (size_t i = 0; i < kWords; i += 64) ASSERT_EQ(Word(cluster.view(node), page, i), ContentOf(page, 1, i));
      }
      for (const uint64_t page : order) Word(cluster.view(node), page, 1).fetch_add(node + 1);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (uint64_t page = 0; page < kPages; page++) ASSERT_EQ(Word(cluster.view(1), page, 1), 3u) << "page " << page;
  for (size_t node = 0; node < 2; node++) {
    const SpaceStatistics statistics = cluster.space(node).Statistics();
    EXPECT_LE(cluster.space(node).frame_bytes(), kMost * kPageSize);
    fmt::print("node {}: {} pages written to the swap, {} read\n", node, statistics.swap_writes, statistics.swap_reads);
    EXPECT_GT(statistics.swap_reads, 0u);
    EXPECT_TRUE(cluster.space(node).state().ok());
  }
}

// Threads of three nodes take pages by a spin lock in the page (lock cmpxchg over nodes), check every word, and give it
// the next version.
TEST(SpaceTest, PagesUnderALockHaveTheirContent) {
  constexpr uint64_t kPages = 48, kStride = 97;  // over several extents, and so homes
  const uint64_t rounds = Soak() ? 200'000 : 1500;
  SpaceCluster cluster({.nodes = 3, .pages = kPages * kStride});
  const uint64_t seed = Seed();
  std::atomic<bool> failed{false};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 6; t++) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(seed + t);
      std::byte* const view = cluster.view(t % 3);
      for (uint64_t round = 0; round < rounds && !failed; round++) {
        // Some pages are much in demand.
        const uint64_t page = random() % (random() % kPages + 1) * kStride;
        const std::atomic_ref<uint64_t> lock = Word(view, page, 0);
        uint64_t open = 0;
        while (!lock.compare_exchange_strong(open, t + 1)) {
          while (lock.load() != 0) std::this_thread::yield();
          open = 0;
        }
        CheckPage(view, page);
        if (testing::Test::HasFailure()) failed = true;
        const uint64_t version = Word(view, page, 2) + 1;
        Word(view, page, 1).store(page, std::memory_order_relaxed);
        Word(view, page, 2).store(version, std::memory_order_relaxed);
        for (size_t i = 3; i < kWords; i++)
          Word(view, page, i).store(ContentOf(page, version, i), std::memory_order_relaxed);
        if (lock.load() != t + 1) failed = true;
        lock.store(0, std::memory_order_release);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_FALSE(failed) << "somebody else had the lock, or a page was wrong";
  for (size_t node = 0; node < 3; node++) {
    uint64_t versions = 0;
    for (uint64_t page = 0; page < kPages * kStride; page += kStride) {
      CheckPage(cluster.view(node), page);
      PageWords words;
      ASSERT_TRUE(cluster.space(node).Read(Gpa(page * kPageSize), Out(&words), SpaceCluster::Soon()).ok());
      versions += words[2];
    }
    EXPECT_EQ(versions, 6 * rounds) << "a version is lost";
  }
  const SpaceStatistics statistics = cluster.space(0).Statistics();
  fmt::print("node 0: {} read and {} write faults, {} upgrades, {} served, {} retries\n", statistics.read_faults,
             statistics.write_faults, statistics.upgrades, statistics.served, statistics.retries);
  EXPECT_GT(statistics.write_faults + statistics.upgrades, rounds / 100) << "pages hardly moved";
}

// A bounded queue of many producers and consumers (Vyukov's) in the space: head, tail and cells on pages of their own.
class SpaceQueue {
 public:
  static constexpr uint64_t kCells = 64, kCellsPage = 600, kHeadPage = 0, kTailPage = 1100;
  explicit SpaceQueue(std::byte* view) : view_(view) {}
  // Once, by one node, before use.
  void Prepare() {
    for (uint64_t i = 0; i < kCells; i++) Sequence(i) = i;
  }
  bool Push(uint64_t value) {
    const std::atomic_ref<uint64_t> tail = Word(view_, kTailPage, 0);
    for (uint64_t at = tail.load(std::memory_order_relaxed);;) {
      const uint64_t sequence = Sequence(at).load(std::memory_order_acquire);
      if (sequence < at) return false;
      if (sequence == at && tail.compare_exchange_strong(at, at + 1, std::memory_order_relaxed)) {
        Value(at).store(value, std::memory_order_relaxed);
        Sequence(at).store(at + 1, std::memory_order_release);
        return true;
      }
      if (sequence > at) at = tail.load(std::memory_order_relaxed);
    }
  }
  bool Pop(uint64_t* value) {
    const std::atomic_ref<uint64_t> head = Word(view_, kHeadPage, 0);
    for (uint64_t at = head.load(std::memory_order_relaxed);;) {
      const uint64_t sequence = Sequence(at).load(std::memory_order_acquire);
      if (sequence < at + 1) return false;
      if (sequence == at + 1 && head.compare_exchange_strong(at, at + 1, std::memory_order_relaxed)) {
        *value = Value(at).load(std::memory_order_relaxed);
        Sequence(at).store(at + kCells, std::memory_order_release);
        return true;
      }
      if (sequence > at + 1) at = head.load(std::memory_order_relaxed);
    }
  }

 private:
  // Four cells on a page.
  std::atomic_ref<uint64_t> Sequence(uint64_t at) { return Word(view_, kCellsPage + at % kCells / 4, at % 4 * 128); }
  std::atomic_ref<uint64_t> Value(uint64_t at) { return Word(view_, kCellsPage + at % kCells / 4, at % 4 * 128 + 1); }
  std::byte* const view_;
};

TEST(SpaceTest, AQueueOverNodesLosesAndDoublesNothing) {
  const uint64_t each = Soak() ? 300'000 : 3000;
  SpaceCluster cluster({.nodes = 3, .pages = 1536});
  SpaceQueue(cluster.view(0)).Prepare();
  std::atomic<uint64_t> popped{0};
  std::array<std::vector<uint64_t>, 3> taken;
  std::vector<std::thread> threads;
  for (uint64_t node = 0; node < 3; node++) {
    threads.emplace_back([&, node] {
      SpaceQueue queue(cluster.view(node));
      for (uint64_t i = 0; i < each; i++) {
        while (!queue.Push(node << 32 | i)) std::this_thread::yield();
      }
    });
    threads.emplace_back([&, node] {
      SpaceQueue queue(cluster.view(node));
      uint64_t value = 0;
      while (popped < 3 * each) {
        if (queue.Pop(&value)) {
          taken[node].push_back(value);
          popped++;
        } else {
          std::this_thread::yield();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::set<uint64_t> all;
  for (const std::vector<uint64_t>& one : taken) {
    std::map<uint64_t, uint64_t> last;  // per producer: first in, first out
    for (const uint64_t value : one) {
      EXPECT_TRUE(all.insert(value).second) << "twice";
      const auto [entry, first] = last.try_emplace(value >> 32, value);
      EXPECT_TRUE(first || entry->second < value);
      entry->second = value;
    }
  }
  EXPECT_EQ(all.size(), 3 * each);
}

// Touches memory as KVM does, in the kernel: what cannot be had is EFAULT, not the end of the process.
class Toucher {
 public:
  Toucher() { EXPECT_EQ(::pipe(ends_), 0); }
  ~Toucher() {
    ::close(ends_[0]);
    ::close(ends_[1]);
  }
  // A store of one byte, or a load.
  bool Touch(std::byte* at, bool write) {
    std::byte byte{};
    if (!write) return ::write(ends_[1], at, 1) == 1 && ::read(ends_[0], &byte, 1) == 1;
    EXPECT_EQ(::write(ends_[1], &byte, 1), 1);
    if (::read(ends_[0], at, 1) == 1) return true;
    EXPECT_EQ(::read(ends_[0], &byte, 1), 1);  // it is still there
    return false;
  }

 private:
  int ends_[2];
};

TEST(SpaceTest, WhenANodeGoesTheOthersStopWithOneReasonAndNothingHangs) {
  constexpr uint64_t kPages = 2048;
  for (int round = 0; round < 3; round++) {
    SpaceCluster cluster({.nodes = 3, .pages = kPages});
    const uint64_t seed = Seed();
    std::atomic<bool> last_ends{false};
    std::atomic<uint64_t> touches{0};
    std::vector<std::thread> last, others;
    for (size_t node = 0; node < 3; node++) {
      for (int t = 0; t < 2; t++) {
        (node == 2 ? last : others).emplace_back([&, node, t] {
          std::mt19937_64 random(seed + node * 8 + static_cast<uint64_t>(t));
          Toucher toucher;
          const Monotonic guard = SpaceCluster::Soon();
          while (!(node == 2 && last_ends)) {
            ASSERT_LT(std::chrono::steady_clock::now(), guard) << "node " << node << " never stopped";
            const uint64_t page = random() % kPages;
            if (!toucher.Touch(cluster.view(node) + page * kPageSize, random() % 2 == 0)) return;
            touches++;
          }
        });
      }
      // The daemon's own way in.
      if (node == 2) continue;
      others.emplace_back([&, node] {
        std::mt19937_64 random(seed + node);
        PageWords words;
        for (absl::Status status; status.ok();) {
          status = cluster.space(node).Read(Gpa(random() % kPages * kPageSize), Out(&words), SpaceCluster::Soon());
          EXPECT_TRUE(status.ok() || absl::StrContains(status.message(), "node 2")) << status;
        }
      });
    }
    while (touches < 2000) std::this_thread::yield();
    last_ends = true;
    for (std::thread& thread : last) thread.join();
    cluster.Stop(2);
    for (size_t node = 0; node < 2; node++) {
      EXPECT_THAT(std::string(cluster.WaitStopped(node).message()), testing::HasSubstr("node 2"));
    }
    for (std::thread& thread : others) thread.join();
    for (size_t node = 0; node < 2; node++) {
      EXPECT_EQ(cluster.TimesStopped(node), 1);
      EXPECT_EQ(cluster.space(node).state(), cluster.WaitStopped(node));
      const uint64_t word = 1;
      EXPECT_EQ(cluster.space(node).Write(Gpa(0), In(word), SpaceCluster::Soon()), cluster.WaitStopped(node));
    }
  }
}

}  // namespace
}  // namespace hk
