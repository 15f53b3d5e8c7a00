#include "hyperkernel/node/console_log.h"

#include <string>
#include <thread>

#include "gtest/gtest.h"
#include "hyperkernel/base/clock.h"

namespace hk {
namespace {

Monotonic Soon() {
  return std::chrono::steady_clock::now() + std::chrono::seconds(20);
}

TEST(ConsoleLog, ReadersGetEverythingInOrderAndThenTheEnd) {
  ConsoleLog log;
  std::thread writer([&] {
    for (int i = 0; i < 1000; i++) log.Append(std::to_string(i) + "\n");
    log.End();
  });
  std::string got;
  uint64_t next = 0;
  while (true) {
    const ConsoleLog::Piece piece = log.Read(next, 100, Soon());
    got += piece.bytes;
    next = piece.next;
    if (piece.ended) break;
  }
  writer.join();
  std::string expected;
  for (int i = 0; i < 1000; i++) expected += std::to_string(i) + "\n";
  EXPECT_EQ(got, expected);
}

TEST(ConsoleLog, ALateReaderGetsTheNewestHistory) {
  ConsoleLog log;
  const std::string block(ConsoleLog::kHistoryBytes, 'x');
  for (int i = 0; i < 5; i++) log.Append(block);
  log.Append("end");
  std::string got;
  uint64_t next = 0;
  while (true) {
    const ConsoleLog::Piece piece = log.Read(next, 1 << 20, std::chrono::steady_clock::now());
    if (piece.bytes.empty()) break;
    got += piece.bytes;
    next = piece.next;
  }
  EXPECT_GE(got.size(), ConsoleLog::kHistoryBytes);
  EXPECT_LE(got.size(), 2 * ConsoleLog::kHistoryBytes + 3);
  EXPECT_TRUE(got.ends_with("xend"));
}

TEST(ConsoleLog, LastLinesAreFoundFromTheEnd) {
  const auto tail = [](const std::string& text, uint64_t lines) {
    ConsoleLog log;
    log.Append(text);
    return log.Read(log.LastLines(lines), 1000, Monotonic()).bytes;
  };
  EXPECT_EQ(tail("a\nb\nc\n", 1), "c\n");
  EXPECT_EQ(tail("a\nb\nc\n", 2), "b\nc\n");
  EXPECT_EQ(tail("a\nb\nc\n", 3), "a\nb\nc\n");
  EXPECT_EQ(tail("a\nb\nc\n", 9), "a\nb\nc\n");
  EXPECT_EQ(tail("a\nb\nc", 1), "c");
  EXPECT_EQ(tail("a\n\n", 1), "\n");
  EXPECT_EQ(tail("a\nb\n", 0), "");
  EXPECT_EQ(tail("", 3), "");
  EXPECT_EQ(tail("\n", 1), "\n");
}

TEST(ConsoleLog, WhatIsNoLongerKeptIsCounted) {
  ConsoleLog log;
  const std::string line(1024, 'x');
  for (size_t i = 0; i < 3 * ConsoleLog::kHistoryBytes / line.size(); i++) log.Append(line);
  EXPECT_EQ(log.written(), 3 * ConsoleLog::kHistoryBytes);
  const ConsoleLog::Piece piece = log.Read(100, 10, Monotonic());
  EXPECT_EQ(piece.lost, log.oldest() - 100);
  EXPECT_GT(piece.lost, 0u);
  EXPECT_EQ(log.Read(piece.next, 10, Monotonic()).lost, 0u);
}

}  // namespace
}  // namespace hk
