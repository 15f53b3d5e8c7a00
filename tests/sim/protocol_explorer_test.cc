// Every interleaving of a few nodes on one page, with the production code: see protocol_world.h. HK_SOAK=1: the larger
// worlds, to the end.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "tests/sim/protocol_world.h"

namespace hk::sim {
namespace {

bool Soak() {
  return std::getenv("HK_SOAK") != nullptr;
}

// Of all tests of this program, which CTest runs in one process.
SeenRows* seen = new SeenRows;

void Holds(const WorldConfig& config, uint64_t max_states = 3'000'000) {
  const Exploration found = Explore(config, Soak() ? 60'000'000 : max_states, seen);
  std::string trace;
  for (const std::string& step : found.trace) trace += step + "\n";
  EXPECT_EQ(found.violation, "") << config.name << ":\n" << trace;
  EXPECT_TRUE(found.complete || !found.violation.empty()) << config.name << ": more than " << found.states << " states";
  std::printf("%-12s %8lu states %9lu transitions depth %zu\n", config.name.c_str(), found.states, found.transitions,
              found.depth);
}

const int kMore = Soak() ? 1 : 0;
const int kEach = 2 + kMore;

TEST(ProtocolExplorer, ReadWriteDrop) {
  Holds({.name = "basic", .ops_per_node = kEach, .ops = 4 + kMore, .drop = true, .store = true});
}
TEST(ProtocolExplorer, DropAndAskAgain) {
  Holds({.name = "again", .ops_per_node = 3, .ops = 5 + kMore, .drop = true});
}
TEST(ProtocolExplorer, Evict) {
  Holds({.name = "evict", .ops_per_node = kEach, .ops = 4 + kMore, .evict = true, .store = true});
}
TEST(ProtocolExplorer, Overwrite) {
  Holds({.name = "overwrite", .ops_per_node = kEach, .ops = 4 + kMore, .overwrite = true, .drop = true});
}
TEST(ProtocolExplorer, Adopt) {
  Holds({.name = "adopt", .ops_per_node = kEach, .ops = 4 + kMore, .adopt = true, .evict = true});
}
TEST(ProtocolExplorer, HoldAndPin) {
  Holds({.name = "hold", .ops_per_node = kEach, .ops = 4 + kMore, .pin = true, .holds = true});
}
TEST(ProtocolExplorer, HoldAndTake) {
  Holds({.name = "take", .ops_per_node = kEach, .ops = 4 + kMore, .overwrite = true, .adopt = true, .holds = true});
}
TEST(ProtocolExplorer, Rehome) {
  Holds({.name = "rehome", .ops_per_node = kEach, .ops = 4 + kMore, .rehome = true});
}
TEST(ProtocolExplorer, Stored) {
  Holds({.name = "stored", .ops_per_node = kEach, .ops = 4 + kMore, .drop = true, .evict = true, .stored = true});
}
TEST(ProtocolExplorer, Crash) {
  Holds({.name = "crash", .ops_per_node = kEach, .ops = 4 + kMore, .evict = true, .crashes = 1});
}
TEST(ProtocolExplorer, CrashOverwrite) {
  Holds({.name = "crash2", .ops_per_node = kEach, .ops = 4 + kMore, .overwrite = true, .adopt = true, .crashes = 1});
}

TEST(ProtocolExplorer, Prefetch) {
  Holds({.name = "prefetch", .ops_per_node = 3, .ops = 4 + kMore, .drop = true, .evict = true, .bulk = true});
}
TEST(ProtocolExplorer, Peeks) {
  Holds({.name = "peeks", .ops_per_node = kEach, .ops = 4 + kMore, .drop = true, .store = true, .peeks = true});
}
TEST(ProtocolExplorer, PeeksAgain) {
  Holds({.name = "peeks2", .ops_per_node = 3, .ops = 5 + kMore, .peeks = true});
}
TEST(ProtocolExplorer, PeeksAndEvictions) {
  Holds({.name = "peeks3",
         .ops_per_node = kEach,
         .ops = 4 + kMore,
         .overwrite = true,
         .adopt = true,
         .evict = true,
         .peeks = true});
}
TEST(ProtocolExplorer, PeeksAndHolds) {
  Holds({.name = "peeks4", .ops_per_node = kEach, .ops = 4 + kMore, .pin = true, .holds = true, .peeks = true});
}
TEST(ProtocolExplorer, PeeksAndCrash) {
  Holds({.name = "peeks5", .ops_per_node = kEach, .ops = 4 + kMore, .evict = true, .crashes = 1, .peeks = true});
}
TEST(ProtocolExplorer, CrashTwice) {
  Holds({.name = "twice", .ops_per_node = kEach, .ops = 3 + kMore, .adopt = true, .evict = true, .crashes = 2});
}
TEST(ProtocolExplorer, Leave) {
  Holds({.name = "leave", .ops_per_node = kEach, .ops = 4 + kMore, .adopt = true, .evict = true, .leaves = 1});
}
TEST(ProtocolExplorer, LeaveOverwrite) {
  Holds({.name = "leave2",
         .ops_per_node = kEach,
         .ops = 4 + kMore,
         .overwrite = true,
         .adopt = true,
         .holds = true,
         .leaves = 1});
}
TEST(ProtocolExplorer, Join) {
  Holds(
      {.name = "join", .ops_per_node = kEach, .ops = 4 + kMore, .adopt = true, .evict = true, .joins = 1, .absent = 1});
}
TEST(ProtocolExplorer, LeaveAndComeAgain) {
  Holds({.name = "comes again",
         .ops_per_node = kEach,
         .ops = 3 + kMore,
         .adopt = true,
         .evict = true,
         .leaves = 1,
         .joins = 1});
}
TEST(ProtocolExplorer, LeaveJoinAndCrash) {
  Holds({.name = "members", .ops_per_node = kEach, .ops = 3, .adopt = true, .crashes = 1, .leaves = 1, .joins = 1});
}

TEST(ProtocolExplorer, Everything) {
  Holds({.name = "everything",
         .ops_per_node = kEach,
         .ops = 3 + kMore,
         .overwrite = true,
         .adopt = true,
         .drop = true,
         .evict = true,
         .pin = true,
         .store = true,
         .holds = true,
         .rehome = true,
         .crashes = 1,
         .peeks = true});
}

// Every row that the worlds above took is in the table, and every row of the table that says so was taken: the table
// has nothing that cannot happen. Runs last (tests of this program are not shuffled).
TEST(ProtocolExplorerTable, RowsAreTheTables) {
  std::set<std::string> taken;
  for (const auto& [machine, from, event, to] : *seen) {
    taken.insert(machine == 'p'
                     ? std::string("page ") + Name(static_cast<PageState>(from)) + " " +
                           Name(static_cast<PageEventType>(event)) + " " + Name(static_cast<PageState>(to))
                     : std::string("directory ") + Name(static_cast<DirectoryState>(from)) + " " +
                           Name(static_cast<DirectoryEventType>(event)) + " " + Name(static_cast<DirectoryState>(to)));
  }
  std::set<std::string> all;
  std::set<std::string> expected;
#define X(from, event, to, who)                 \
  all.insert("page " #from " " #event " " #to); \
  if (#who[0] == 'B') expected.insert("page " #from " " #event " " #to);
  HK_PAGE_ROWS(X)
#undef X
#define X(from, event, to, who)                      \
  all.insert("directory " #from " " #event " " #to); \
  if (#who[0] == 'B') expected.insert("directory " #from " " #event " " #to);
  HK_DIRECTORY_ROWS(X)
#undef X
  if (const char* path = std::getenv("HK_ROWS")) {  // for people: what was taken
    if (std::FILE* file = std::fopen(path, "w")) {
      for (const std::string& row : taken) std::fprintf(file, "%s\n", row.c_str());
      std::fclose(file);
    }
  }
  for (const std::string& row : taken) EXPECT_TRUE(all.contains(row)) << "not in the table: " << row;
  for (const std::string& row : expected) EXPECT_TRUE(taken.contains(row)) << "never taken: " << row;
}

}  // namespace
}  // namespace hk::sim
