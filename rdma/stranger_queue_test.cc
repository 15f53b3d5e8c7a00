#include "rdma/stranger_queue.h"

#include "gtest/gtest.h"
#include "rdma/tcp_socket.h"

namespace hk {
namespace {

TEST(StrangerQueueTest, TheOldestOfTheSourceThatHasMostLoses) {
  StrangerQueue queue;
  EXPECT_EQ(queue.Victim(), std::nullopt);
  queue.Add(1, "a");
  EXPECT_EQ(queue.Victim(), 1u);
  for (uint64_t id = 2; id <= 10; ++id) queue.Add(id, "b");
  EXPECT_EQ(queue.Victim(), 2u);
  queue.Remove(2);
  queue.Remove(2);
  EXPECT_EQ(queue.Victim(), 3u);
  for (uint64_t id = 3; id <= 10; ++id) queue.Remove(id);
  EXPECT_EQ(queue.Victim(), 1u);
  EXPECT_EQ(queue.size(), 1u);
}

TEST(StrangerQueueTest, AFloodTakesNobodysElse) {
  constexpr size_t kMost = 64;
  StrangerQueue queue;
  for (uint64_t id = 1; id <= 3; ++id) queue.Add(id, "peer");
  for (uint64_t id = 4; id <= 10'000; ++id) {
    queue.Add(id, "flood");
    if (queue.size() <= kMost) continue;
    const auto victim = queue.Victim();
    ASSERT_TRUE(victim && *victim > 3);
    queue.Remove(*victim);
  }
  EXPECT_EQ(queue.size(), kMost);
}

// Else a flood from many addresses would take the peer's, who opens three at once.
TEST(StrangerQueueTest, APeersConnectionsAreNoMoreThanOne) {
  StrangerQueue queue;
  queue.Add(1, "a");
  for (uint64_t id = 2; id < 2 + StrangerQueue::kShare; ++id) queue.Add(id, "peer");
  EXPECT_EQ(queue.Victim(), 1u);
  queue.Add(10, "peer");
  EXPECT_EQ(queue.Victim(), 2u);
}

std::string SourceOf(const std::string& host) {
  const auto resolved = Resolve({.kind = Address::Kind::kTcp, .path = {}, .host = host, .port = 1, .is_literal = true});
  EXPECT_TRUE(resolved.ok()) << resolved.status();
  return resolved.ok() ? resolved->Source() : "";
}

TEST(StrangerQueueTest, ASourceIsWhatOnePartyHas) {
  EXPECT_EQ(SourceOf("192.0.2.1"), SourceOf("192.0.2.1"));
  EXPECT_NE(SourceOf("192.0.2.1"), SourceOf("192.0.2.2"));
  // A host has a whole subnet of addresses of IPv6; those of IPv4 that a socket of IPv6 shows are apart.
  EXPECT_EQ(SourceOf("2001:db8::1"), SourceOf("2001:db8::ffff:ffff:ffff:ffff"));
  EXPECT_NE(SourceOf("2001:db8::1"), SourceOf("2001:db8:0:1::1"));
  EXPECT_NE(SourceOf("::ffff:192.0.2.1"), SourceOf("::ffff:192.0.2.2"));
  EXPECT_EQ(SourceOf("::ffff:192.0.2.1"), SourceOf("192.0.2.1"));
}

}  // namespace
}  // namespace hk
