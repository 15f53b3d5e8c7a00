// Every page carries its GFN and a version in each of its words, while programs and tools of several nodes move it
// about at random: what is read is of that page, whole, and not older than what had been written before.
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/host/space_cluster.h"

namespace hk {
namespace {

constexpr size_t kNodes = 3, kThreadsOfANode = 2, kWriters = kNodes * kThreadsOfANode;
constexpr size_t kPagesUsed = 60, kExtents = 6;  // so every node is home of some
constexpr size_t kCounterPages = 4, kCountersOfAPage = 4;
constexpr size_t kWords = kPageSize / sizeof(uint64_t);

using PageWords = std::array<uint64_t, kWords>;

bool Soak() {
  return std::getenv("HK_SOAK") != nullptr;
}

// What a word says. Plain value. Writer 0: never written.
struct Word {
  uint64_t gfn = 0, writer = 0, version = 0, index = 0;
};
uint64_t Encode(const Word& word) {
  return word.gfn << 45 | word.writer << 41 | word.version << 9 | word.index;
}
Word Decode(uint64_t word) {
  return {word >> 45, word >> 41 & 0xf, word >> 9 & 0xffffffff, word & 0x1ff};
}

// What is known of a page outside of the space. Times are ticks of one counter.
struct Known {
  std::mutex mutex;
  uint64_t next_version = 1;
  uint64_t latest_start = 0;                            // of all writes that have ended
  std::array<uint64_t, kWriters + 1> version{}, end{};  // of each writer's last write that has ended
};

// One cluster under random moves.
class Moves {
 public:
  Moves(const SpaceCluster::Settings& settings, uint64_t seed) : cluster_(settings), seed_(seed) {}

  void Run(std::chrono::steady_clock::duration time) {
    const auto end = std::chrono::steady_clock::now() + time;
    std::vector<std::thread> threads;
    for (size_t i = 0; i < kWriters; i++) threads.emplace_back([this, i, end] { Thread(i, end); });
    for (std::thread& thread : threads) thread.join();
    for (size_t node = 0; node < kNodes; node++) {
      EXPECT_TRUE(cluster_.space(node).state().ok()) << cluster_.space(node).state();
      for (size_t page = 0; page < kPagesUsed && !failed_; page++) Read(node, page);
      uint64_t counted = 0;
      for (size_t page = 0; page < kCounterPages; page++) {
        for (size_t word = 0; word < kWords; word += kWords / kCountersOfAPage)
          counted += Counter(node, page, word).load();
      }
      EXPECT_EQ(counted, added_.load()) << "stores of programs, as node " << node << " sees them";
    }
  }
  uint64_t reads() const { return reads_; }
  uint64_t writes() const { return writes_; }
  uint64_t revoked() {
    uint64_t sum = 0;
    for (size_t node = 0; node < kNodes; node++) sum += cluster_.space(node).Statistics().revoked;
    return sum;
  }
  bool failed() const { return failed_; }

 private:
  static uint64_t GfnOfPage(size_t page) { return page % kExtents * kExtentPages + page / kExtents; }

  void Thread(size_t thread, std::chrono::steady_clock::time_point end) {
    std::mt19937_64 random(seed_ * kWriters + thread);
    const size_t node = thread % kNodes;
    while (!failed_ && std::chrono::steady_clock::now() < end) {
      // Some pages are in use by all, the others by few at a time.
      const size_t page = random() % 4 == 0 ? random() % 4 : random() % kPagesUsed;
      switch (random() % 5) {
        case 0:
          Write(node, thread + 1, page);
          break;
        case 1:
          Read(node, page);
          break;
        case 2:
          Counter(node, random() % kCounterPages, random() % kCountersOfAPage * (kWords / kCountersOfAPage))
              .fetch_add(1);
          added_++;
          break;
        default:
          Load(node, page, random() % kWords, random() % kWords);
      }
    }
  }

  // Programs of all nodes count in these: a store that is lost is missed at the end.
  std::atomic_ref<uint64_t> Counter(size_t node, size_t page, size_t word) {
    const uint64_t gfn = page % kExtents * kExtentPages + kExtentPages - 1 - page / kExtents;
    return std::atomic_ref<uint64_t>(reinterpret_cast<uint64_t*>(cluster_.view(node) + gfn * kPageSize)[word]);
  }

  void Write(size_t node, uint64_t writer, size_t page) {
    Known& known = known_[page];
    uint64_t version = 0;
    const uint64_t start = ++tick_;
    {
      const std::scoped_lock lock(known.mutex);
      version = known.next_version++;
    }
    PageWords words;
    const uint64_t gfn = GfnOfPage(page);
    for (size_t i = 0; i < kWords; i++) words[i] = Encode({gfn, writer, version, i});
    const absl::Status status =
        cluster_.space(node).Write(Gpa(gfn * kPageSize), std::as_bytes(std::span(words)), SpaceCluster::Soon());
    if (!status.ok()) return Fail(page, fmt::format("a write ended with {}", status.ToString()));
    writes_++;
    const std::scoped_lock lock(known.mutex);
    known.latest_start = std::max(known.latest_start, start);
    known.version[writer] = version;
    known.end[writer] = ++tick_;
  }

  void Read(size_t node, size_t page) {
    const Before before = Look(page);
    PageWords words;
    const uint64_t gfn = GfnOfPage(page);
    const absl::Status status =
        cluster_.space(node).Read(Gpa(gfn * kPageSize), std::as_writable_bytes(std::span(words)), SpaceCluster::Soon());
    if (!status.ok()) return Fail(page, fmt::format("a read ended with {}", status.ToString()));
    reads_++;
    const Word first = Decode(words[0]);
    for (size_t i = 0; i < kWords; i++) {
      const Word word = Decode(words[i]);
      if (word.writer != first.writer || word.version != first.version)
        return Fail(page, fmt::format("word {} is of writer {} version {}, word 0 of {} {}", i, word.writer,
                                      word.version, first.writer, first.version));
      Check(page, i, words[i], before);
    }
  }

  // A program's two loads, one after the other: what the second sees is not older. Pages are written as a whole here,
  // so they grow old as a whole; but programs may see half of what a tool of their own node writes.
  void Load(size_t node, size_t page, size_t one, size_t other) {
    auto* const words = reinterpret_cast<uint64_t*>(cluster_.view(node) + GfnOfPage(page) * kPageSize);
    const Before before = Look(page);
    const uint64_t first = std::atomic_ref<uint64_t>(words[one]).load();
    const uint64_t second = std::atomic_ref<uint64_t>(words[other]).load();
    reads_++;
    Check(page, one, first, before);
    Check(page, other, second, before);
    const Word a = Decode(first), b = Decode(second);
    if (a.writer != 0 && (a.writer - 1) % kNodes == node) return;
    if ((a.writer != 0 && b.writer == 0) || (a.writer == b.writer && b.version < a.version))
      Fail(page, fmt::format("a load saw writer {} version {} after {} {}", b.writer, b.version, a.writer, a.version));
  }

  // What had been written for certain before a read began.
  struct Before {
    uint64_t latest_start = 0;
    std::array<uint64_t, kWriters + 1> version{};
  };
  Before Look(size_t page) {
    const std::scoped_lock lock(known_[page].mutex);
    return {known_[page].latest_start, known_[page].version};
  }

  void Check(size_t page, size_t index, uint64_t value, const Before& before) {
    const Word word = Decode(value);
    if (value == 0) {
      if (before.latest_start != 0) Fail(page, fmt::format("word {} is zero, after a write", index));
      return;
    }
    if (word.gfn != GfnOfPage(page) || word.index != index || word.writer == 0 || word.writer > kWriters)
      return Fail(page, fmt::format("word {} is {:#x}, of page {} word {}", index, value, word.gfn, word.index));
    if (word.version < before.version[word.writer])
      return Fail(page, fmt::format("writer {} had written version {}, and {} is read", word.writer,
                                    before.version[word.writer], word.version));
    const std::scoped_lock lock(known_[page].mutex);
    const Known& known = known_[page];
    if (known.version[word.writer] == word.version && known.end[word.writer] < before.latest_start)
      Fail(page, fmt::format("version {} of writer {} had been overwritten", word.version, word.writer));
  }

  void Fail(size_t page, const std::string& what) {
    if (failed_.exchange(true)) return;
    ADD_FAILURE() << "GFN " << GfnOfPage(page) << ": " << what;
  }

  SpaceCluster cluster_;
  const uint64_t seed_;
  std::array<Known, kPagesUsed> known_;
  std::atomic<uint64_t> tick_{1}, reads_{0}, writes_{0}, added_{0};
  std::atomic<bool> failed_{false};
};

TEST(SpaceContent, RandomMovesKeepWhatEachPageSays) {
  const char* const set = std::getenv("HK_SEED");
  const uint64_t seed = set != nullptr ? std::strtoull(set, nullptr, 0) : std::random_device()();
  fmt::print("HK_SEED={}\n", seed);
  std::mt19937_64 random(seed);
  // Holds that are long against a move, and none; frames for all, and for hardly more than there are pages.
  struct World {
    std::chrono::microseconds hold;
    uint64_t max_pages;
  };
  constexpr World kWorlds[] = {{std::chrono::microseconds(0), 0},
                               {std::chrono::microseconds(200), 0},
                               {std::chrono::microseconds(20), 26},
                               {std::chrono::microseconds(100), 40}};
  for (const World& world : kWorlds) {
    Moves moves({.nodes = kNodes,
                 .pages = kExtents * kExtentPages,
                 .max_pages = world.max_pages,
                 .hold = world.hold,
                 .wait = WaitMode::kBlocking},
                random());
    moves.Run(Soak() ? std::chrono::seconds(75) : std::chrono::seconds(1));
    fmt::print("hold {} us, {} frames each: {} reads, {} writes, {} pages taken away\n", world.hold.count(),
               world.max_pages, moves.reads(), moves.writes(), moves.revoked());
    ASSERT_FALSE(moves.failed());
    EXPECT_GT(moves.revoked(), 100u);
  }
}

}  // namespace
}  // namespace hk
