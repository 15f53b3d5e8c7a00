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

}  // namespace
}  // namespace hk
