// What every probe's unit test checks, whatever the host: the answers' structure, and that nothing is left behind.
#pragma once

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <set>
#include <string>
#include <thread>

#include "gtest/gtest.h"
#include "hyperkernel/base/hang_guard.h"
#include "hyperkernel/base/probe.h"

namespace hk {

// Prints the answers, so that a test's output on a new host says what it ran on.
inline void PrintProbe(const ProbeItems& items) {
  for (const ProbeItem& item : items) {
    std::cout << item.group << ": " << (item.yes ? "yes " : "NO  ") << item.name << (item.required ? " [required]" : "")
              << ": " << item.detail << "\n";
    if (!item.yes) std::cout << "      lost: " << item.lost << "\n      fix:  " << item.fix << "\n";
  }
}

// Every item is complete, on one line, and asked once; a no says what is lost and how to get it, a yes does not.
inline void ExpectWellFormed(const ProbeItems& items) {
  EXPECT_FALSE(items.empty());
  std::set<std::string> seen;
  for (const ProbeItem& item : items) {
    SCOPED_TRACE(item.group + "/" + item.name);
    EXPECT_TRUE(seen.insert(item.group + "/" + item.name).second) << "asked twice";
    EXPECT_NE(item.group, "");
    EXPECT_NE(item.name, "");
    EXPECT_NE(item.detail, "");
    EXPECT_EQ(item.lost.empty(), item.yes);
    EXPECT_EQ(item.fix.empty(), item.yes);
    for (const std::string* text : {&item.group, &item.name, &item.detail, &item.lost, &item.fix}) {
      EXPECT_EQ(text->find_first_of("\n\r\t"), std::string::npos) << *text;
      EXPECT_LT(text->size(), 600u) << *text;
    }
  }
}

// What a probe could leave behind in its process and thread.
struct ProcessState {
  size_t descriptors = 0;
  size_t threads = 0;
  std::string signals;  // pending, blocked, ignored, caught
};

inline ProcessState CurrentProcessState() {
  auto count = [](const char* path) {
    return static_cast<size_t>(
        std::distance(std::filesystem::directory_iterator(path), std::filesystem::directory_iterator()));
  };
  ProcessState state = {.descriptors = count("/proc/self/fd"), .threads = count("/proc/self/task"), .signals = ""};
  std::ifstream status("/proc/thread-self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("SigPnd") || line.starts_with("ShdPnd") || line.starts_with("SigBlk") ||
        line.starts_with("SigIgn") || line.starts_with("SigCgt")) {
      state.signals += line + "\n";
    }
  }
  return state;
}

inline size_t CountMappings() {
  std::ifstream maps("/proc/self/maps");
  size_t lines = 0;
  for (std::string line; std::getline(maps, line);) ++lines;
  return lines;
}

// Calls `probe` 20 times after a first one (which may set up what a library keeps) and compares the process' state. A
// thread that has been joined may be listed a moment longer, on either side: what there is more of is looked at again,
// and there may be less. Mappings: an allocator may keep a few more, a leak in every round is caught.
template <typename Probe>
void ExpectLeavesNothingBehind(Probe probe) {
  constexpr size_t kRounds = 20;
  probe();
  const ProcessState before = CurrentProcessState();
  const size_t mappings = CountMappings();
  for (size_t i = 0; i < kRounds; ++i) probe();
  const auto limit = std::chrono::steady_clock::now() + HangGuard();
  ProcessState after = CurrentProcessState();
  while ((after.threads > before.threads || after.descriptors > before.descriptors) &&
         std::chrono::steady_clock::now() < limit) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    after = CurrentProcessState();
  }
  EXPECT_LE(after.descriptors, before.descriptors);
  EXPECT_LE(after.threads, before.threads);
  EXPECT_EQ(after.signals, before.signals);
#ifdef __SANITIZE_THREAD__
  static_cast<void>(mappings);  // ThreadSanitizer keeps mappings of its own for every thread that was
#else
  EXPECT_LT(CountMappings(), mappings + kRounds);
#endif
}

}  // namespace hk
