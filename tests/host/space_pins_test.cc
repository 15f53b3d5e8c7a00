// Pins over several nodes of this host, with threads: what is pinned stays where it is, whoever wants it and however
// few frames there are, and nobody waits for ever for it.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/mutex.h"
#include "tests/host/space_cluster.h"

namespace hk {
namespace {

using testing::HasSubstr;

constexpr size_t kWords = kPageSize / sizeof(uint64_t);

uint64_t Seed() {
  const char* const set = std::getenv("HK_SEED");
  const uint64_t seed = set != nullptr ? std::strtoull(set, nullptr, 0) : std::random_device()();
  fmt::print("HK_SEED={}\n", seed);
  return seed;
}

std::atomic_ref<uint64_t> Word(const std::byte* page, size_t word) {
  return std::atomic_ref<uint64_t>(
      const_cast<uint64_t*>(reinterpret_cast<const uint64_t*>(page))[word]);  // C++20's atomic_ref is not of const
}

PinnedPages Pin(SpaceCluster* cluster, size_t node, uint64_t page, uint64_t count,
                PageAccess access = PageAccess::kWrite) {
  absl::StatusOr<PinnedPages> pinned =
      cluster->space(node).Pin(Gpa(page * kPageSize), count * kPageSize, access, SpaceCluster::Soon());
  EXPECT_TRUE(pinned.ok()) << pinned.status();
  return pinned.ok() ? *std::move(pinned) : PinnedPages();
}

// Waits for what the nodes do by themselves, within the time in which a wish that gets nowhere stops the space.
void Until(const std::function<bool()>& condition) {
  const Monotonic guard = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    ASSERT_LT(std::chrono::steady_clock::now(), guard);
    std::this_thread::yield();
  }
}

// A pin is a lock of its pages over the nodes: what is counted under it, without any atomic operation, is all there.
TEST(SpacePins, OnlyOneNodeHasAPage) {
  constexpr uint64_t kPages = 4 * kExtentPages, kUsed = 12, kRounds = 400;
  SpaceCluster cluster({.nodes = 3, .pages = kPages});
  const uint64_t seed = Seed();
  std::atomic<uint64_t> counted{0};
  std::vector<std::thread> threads;
  for (size_t node = 0; node < 3; node++) {
    threads.emplace_back([&, node] {
      std::mt19937_64 random(seed + node);
      for (uint64_t round = 0; round < kRounds; round++) {
        // Over the end of an extent, and so over homes.
        const uint64_t first = kExtentPages - kUsed / 2 + random() % kUsed, count = 1 + random() % 3;
        const PinnedPages pin = Pin(&cluster, node, first, count);
        ASSERT_EQ(pin.writable().size(), count * kPageSize);
        for (uint64_t page = 0; page < count; page++) {
          const std::byte* const at = pin.writable().data() + page * kPageSize;
          const uint64_t before = Word(at, 7).load(std::memory_order_relaxed);
          if (random() % 4 == 0) std::this_thread::yield();
          Word(at, 7).store(before + 1, std::memory_order_relaxed);
        }
        counted += count;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t node = 0; node < 3; node++) {
    uint64_t sum = 0;
    for (uint64_t page = 0; page < kUsed + 3; page++) {
      sum += Word(cluster.view(node) + (kExtentPages - kUsed / 2 + page) * kPageSize, 7);
    }
    EXPECT_EQ(sum, counted) << "as node " << node << " sees it";
    EXPECT_EQ(cluster.space(node).Statistics().pages_pinned, 0u);
  }
}

// Far fewer frames than pages, and programs on all nodes that touch all of them: evictions and forwards all the time.
TEST(SpacePins, PinnedPagesStayWhateverIsMissing) {
  constexpr uint64_t kPages = 512, kMost = 96, kSwap = 300, kRounds = 150;
  SpaceCluster cluster({.nodes = 2, .pages = kPages, .max_pages = kMost, .swap_pages = kSwap});
  const uint64_t seed = Seed();
  std::vector<std::atomic<uint64_t>> written(kPages), touches(kPages);
  std::atomic<size_t> pinning{2};
  std::vector<std::thread> threads;
  for (size_t node = 0; node < 2; node++) {
    threads.emplace_back([&, node] {
      std::mt19937_64 random(seed + node);
      for (uint64_t round = 1; round <= kRounds; round++) {
        const uint64_t count = 1 + random() % 16, first = random() % (kPages - count);
        const PinnedPages pin = Pin(&cluster, node, first, count);
        ASSERT_FALSE(pin.writable().empty());
        const std::byte* const bytes = pin.writable().data();
        const uint64_t value = round << 8 | node;
        for (uint64_t page = 0; page < count; page++) {
          ASSERT_EQ(Word(bytes + page * kPageSize, 9), written[first + page]);
          for (size_t word = 8; word < kWords; word += 50) Word(bytes + page * kPageSize, word + 1) = value;
          written[first + page] = value;
        }
        for (int look = 0; look < 200; look++) {
          for (uint64_t page = 0; page < count; page++) ASSERT_EQ(Word(bytes + page * kPageSize, 59), value);
          ASSERT_EQ(pin.bytes().data(), bytes);
        }
      }
      --pinning;
    });
    threads.emplace_back([&, node] {
      std::mt19937_64 random(seed + 10 + node);
      while (pinning > 0) {
        const uint64_t page = random() % kPages;
        Word(cluster.view(node) + page * kPageSize, 0).fetch_add(1);
        touches[page]++;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t node = 0; node < 2; node++) {
    ASSERT_TRUE(cluster.space(node).state().ok()) << cluster.space(node).state();
    for (uint64_t page = 0; page < kPages; page++) {
      const std::byte* const at = cluster.view(node) + page * kPageSize;
      ASSERT_EQ(Word(at, 0), touches[page]) << "page " << page;
      for (size_t word = 8; word < kWords; word += 50) ASSERT_EQ(Word(at, word + 1), written[page]) << "page " << page;
    }
    const SpaceStatistics statistics = cluster.space(node).Statistics();
    EXPECT_EQ(statistics.pages_pinned, 0u);
    EXPECT_GT(statistics.swap_writes + statistics.adopted + statistics.dropped, 0u);
    EXPECT_GT(statistics.revoked, 0u);
    EXPECT_LE(cluster.space(node).frame_bytes(), kMost * kPageSize);
  }
}

// A disk's request of as many pieces as it may have, each on two pages, where a node has the fewest frames that a
// placed machine's may have (4 MiB), and all of them together half of the space.
TEST(SpacePins, TheLargestRequestFitsTheFewestFrames) {
  constexpr uint64_t kMost = 1024, kPages = 4 * kMost, kPieces = 254, kRounds = 6, kAt = 512;
  SpaceCluster cluster({.nodes = 2, .pages = kPages, .max_pages = kMost, .swap_pages = kPages});
  const uint64_t seed = Seed();
  std::vector<std::atomic<uint64_t>> touches(kPages);
  std::atomic<bool> ended{false};
  std::vector<std::thread> programs;
  for (size_t node = 0; node < 2; node++) {
    for (uint64_t page = node; page < kPages; page += 2) Word(cluster.view(node) + page * kPageSize, 1).store(page + 1);
    programs.emplace_back([&, node] {
      std::mt19937_64 random(seed + node);
      while (!ended) {
        const uint64_t page = random() % kPages;
        Word(cluster.view(node) + page * kPageSize, 0).fetch_add(1);
        touches[page]++;
      }
    });
  }
  std::mt19937_64 random(seed + 2);
  std::vector<uint64_t> written(kPages);
  for (uint64_t round = 1; round <= kRounds; round++) {
    std::vector<PinnedPages> request;
    std::vector<uint64_t> pages;
    for (uint64_t piece = 0; piece < kPieces; piece++) {
      pages.push_back(random() % (kPages - 1));
      auto pinned = cluster.space(0).Pin(Gpa(pages.back() * kPageSize + kAt), kPageSize, PageAccess::kWrite,
                                         SpaceCluster::Soon());
      EXPECT_TRUE(pinned.ok()) << pinned.status();
      if (!pinned.ok()) break;
      request.push_back(*std::move(pinned));
    }
    if (request.size() < kPieces) break;
    EXPECT_EQ(cluster.space(0).Statistics().pages_pinned, 2 * kPieces);
    for (size_t piece = 0; piece < kPieces; piece++) {
      Word(request[piece].writable().data(), 0) = written[pages[piece]] = round << 16 | piece;
    }
  }
  ended = true;
  for (std::thread& program : programs) program.join();
  for (size_t node = 0; node < 2; node++) {
    ASSERT_TRUE(cluster.space(node).state().ok()) << cluster.space(node).state();
    for (uint64_t page = 0; page < kPages; page++) {
      const std::byte* const at = cluster.view(node) + page * kPageSize;
      ASSERT_EQ(Word(at, 0), touches[page]) << "page " << page;
      ASSERT_EQ(Word(at, 1), page + 1);
      ASSERT_EQ(Word(at, kAt / sizeof(uint64_t)), written[page]) << "page " << page;
    }
    EXPECT_GT(cluster.space(node).Statistics().swap_writes, 0u);
    EXPECT_LE(cluster.space(node).frame_bytes(), kMost * kPageSize);
  }
}

TEST(SpacePins, WhoDoesNotGetItsPinInTimeHasNone) {
  SpaceCluster cluster({.nodes = 2, .pages = kExtentPages});
  PinnedPages held = Pin(&cluster, 0, 4, 2);
  // The first page is to be had, the second is not.
  const Monotonic soon = std::chrono::steady_clock::now() + std::chrono::milliseconds(50);
  const absl::Status late = cluster.space(1).Pin(Gpa(3 * kPageSize), 3 * kPageSize, PageAccess::kRead, soon).status();
  EXPECT_EQ(late.code(), absl::StatusCode::kDeadlineExceeded) << late;
  EXPECT_THAT(std::string(late.message()), HasSubstr("GPA 0x3000"));
  Word(held.writable().data(), 0) = 5;
  held.Release();
  Until([&] {
    return cluster.space(1).engine().RightOf(Gfn(5)) == PageRight::kExclusive &&
           cluster.space(1).Statistics().pages_pinned == 0;
  });
  if (HasFatalFailure()) return;
  {
    const PinnedPages back = Pin(&cluster, 0, 3, 3);
    ASSERT_FALSE(back.bytes().empty());
    EXPECT_EQ(Word(back.bytes().data() + kPageSize, 0), 5u);
  }
  // One that is over when it is asked for: at once, and nothing stays.
  const Monotonic over = std::chrono::steady_clock::now();
  const absl::StatusOr<PinnedPages> never = cluster.space(1).Pin(Gpa(0), 8 * kPageSize, PageAccess::kWrite, over);
  EXPECT_TRUE(never.ok() || never.status().code() == absl::StatusCode::kDeadlineExceeded) << never.status();
  Until([&] { return never.ok() || cluster.space(1).Statistics().pages_pinned == 0; });
}

TEST(SpacePins, AStopEndsThoseThatWaitAndLeavesWhatIsHeld) {
  SpaceCluster cluster({.nodes = 2, .pages = kExtentPages});
  PinnedPages held = Pin(&cluster, 0, 4, 1);
  Word(held.writable().data(), 3) = 77;
  std::vector<std::thread> waiting;
  // This node's own pins of the page are pins beside it.
  EXPECT_FALSE(Pin(&cluster, 0, 4, 1).bytes().empty());
  for (int i = 0; i < 3; i++) {
    waiting.emplace_back([&] {
      const absl::Status end =
          cluster.space(1).Pin(Gpa(4 * kPageSize), 1, PageAccess::kWrite, SpaceCluster::Soon()).status();
      EXPECT_THAT(std::string(end.message()), HasSubstr("because"));
    });
  }
  Until([&] { return cluster.space(1).engine().Residue().active_pages > 0; });
  cluster.space(0).engine().Stop(absl::UnavailableError("because"));
  for (std::thread& thread : waiting) thread.join();
  EXPECT_EQ(Word(held.bytes().data(), 3), 77u);
  Word(held.writable().data(), 3) = 78;
  EXPECT_EQ(Word(held.bytes().data(), 3), 78u);
  cluster.Stop(0);
  EXPECT_EQ(Word(held.bytes().data(), 3), 78u);
  held.Release();
  EXPECT_THAT(std::string(cluster.WaitStopped(1).message()), HasSubstr("because"));
}

// Of the steps of the coordinator, at nodes 0 and 1.
void GoOnWithoutTheThird(SpaceCluster* cluster) {
  NodeSet survivors;
  survivors.Add(NodeId(0));
  survivors.Add(NodeId(1));
  const auto rebuilt = std::make_shared<std::atomic<int>>(0);
  for (size_t node = 0; node < 2; node++) {
    const absl::Status begun =
        cluster->space(node).engine().BeginEpoch({.epoch = Epoch(2), .survivors = survivors, .committed = Epoch(1)});
    ASSERT_TRUE(begun.ok()) << begun;
  }
  for (size_t node = 0; node < 2; node++) {
    cluster->space(node).engine().Rebuild(Epoch(2), [rebuilt](const absl::Status& end) {
      EXPECT_TRUE(end.ok()) << end;
      ++*rebuilt;
    });
  }
  Until([&] { return *rebuilt == 2; });
  for (size_t node = 0; node < 2; node++) ASSERT_TRUE(cluster->space(node).engine().Commit(Epoch(2)).ok());
  for (size_t node = 0; node < 2; node++) ASSERT_TRUE(cluster->space(node).engine().Run(Epoch(2)).ok());
}

TEST(SpacePins, AnEpochChangeLeavesPinsAsTheyAre) {
  constexpr uint64_t kExtents = 6;  // each node is home of two
  SpaceCluster cluster({.nodes = 3, .pages = kExtents * kExtentPages, .survives = true});
  std::vector<PinnedPages> held;
  for (uint64_t extent = 0; extent < kExtents; extent++) {
    held.push_back(Pin(&cluster, 0, extent * kExtentPages + 4, 2));
    for (size_t word = 0; word < kWords; word++) Word(held.back().writable().data(), word) = extent + word;
  }
  cluster.Stop(2);
  for (size_t node = 0; node < 2; node++) cluster.WaitLost(node);
  // Node 1 wants what node 0 has pinned, and pages of the lost home that nobody has.
  std::atomic<uint64_t> got{0};
  std::vector<std::thread> waiting;
  for (uint64_t extent = 0; extent < kExtents; extent++) {
    for (const uint64_t page : {4, 9}) {
      waiting.emplace_back([&, extent, page] {
        const PinnedPages pin = Pin(&cluster, 1, extent * kExtentPages + page, 1);
        ASSERT_FALSE(pin.bytes().empty());
        EXPECT_EQ(Word(pin.bytes().data(), 5), page == 4 ? extent + 1005 : 0);
        if (page != 4) got++;
      });
    }
  }
  Until([&] { return cluster.space(1).engine().Residue().active_pages >= 2 * kExtents; });
  GoOnWithoutTheThird(&cluster);
  Until([&] { return got == kExtents; });
  EXPECT_EQ(cluster.space(0).Statistics().pages_pinned, 2 * kExtents);
  for (uint64_t extent = 0; extent < kExtents; extent++) {
    for (size_t word = 0; word < kWords; word++) {
      ASSERT_EQ(Word(held[extent].bytes().data(), word), extent + word);
      Word(held[extent].writable().data(), word) = extent + word + 1000;
    }
    EXPECT_EQ(cluster.space(0).engine().RightOf(Gfn(extent * kExtentPages + 4)), PageRight::kExclusive);
  }
  for (PinnedPages& pin : held) pin.Release();
  for (std::thread& thread : waiting) thread.join();
  for (size_t node = 0; node < 2; node++) {
    EXPECT_TRUE(cluster.space(node).state().ok()) << cluster.space(node).state();
    EXPECT_EQ(cluster.space(node).Statistics().pages_pinned, 0u);
  }
}

}  // namespace
}  // namespace hk
