// Mutual TLS of the TCP transport: who is turned away, and that it is counted. That pages go over it, and that it is
// resumed, reset and left like a bare connection, is the conformance suite's to show (tcp_conformance_test).
#include <memory>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/transport/frames.h"
#include "tests/transport/tcp_back_end.h"

namespace hk {
namespace {

using testing::HasSubstr;

class TcpTlsTest : public testing::Test {
 protected:
  static constexpr NodeId kDialler{0}, kListener{1};

  static TransportSettings Settings(NodeId node) {
    TransportSettings settings;
    settings.cluster = "conformance";
    settings.self = node;
    settings.node_epoch = Epoch(1);
    settings.backoff_ms = 1;
    settings.backoff_max_ms = 5;
    // Nothing here may end because time passes.
    settings.handshake_ms = settings.lease_ms = 300'000;
    return settings;
  }
  std::unique_ptr<Node> Make(NodeId id) {
    auto node = std::make_unique<Node>(&back_end_, Settings(id));
    const absl::Status started = node->Start();
    EXPECT_TRUE(started.ok()) << started;
    return node;
  }
  void Introduce(Node& a, Node& b) {
    EXPECT_TRUE(a->AddPeer(b.id(), back_end_.Address(a.id(), b.id())).ok());
    EXPECT_TRUE(b->AddPeer(a.id(), back_end_.Address(b.id(), a.id())).ok());
  }
  static std::array<std::byte, kHelloBytes> HelloOf(NodeId from) {
    return EncodeHello(GoodHello(from, kListener, MessageClass::kFault, 5));
  }
  // The listener closes the connection, having said nothing that can be read, and counts it.
  void ExpectTurnedAway(Node& listener, std::unique_ptr<Stranger> stranger) {
    ASSERT_TRUE(back_end_.RunUntil([&] { return stranger->Closed(); }));
    EXPECT_TRUE(stranger->Read().empty());
    ASSERT_TRUE(back_end_.RunUntil([&] { return listener->Statistics().strangers_closed > 0; }));
    EXPECT_EQ(listener->Statistics().strangers_closed, 1u);
    EXPECT_EQ(listener.Count(Seen::Kind::kUp), 0u);
  }
  // The two, made as SetIdentity said, try, and never become peers.
  void ExpectNeverUp() {
    const std::unique_ptr<Node> dialler = Make(kDialler), listener = Make(kListener);
    Introduce(*dialler, *listener);
    // Each class was tried, and tried again.
    ASSERT_TRUE(back_end_.RunUntil([&] {
      const TransportStatistics seen = (*listener)->Statistics();
      return seen.strangers_closed + seen.malformed >= 2 * kMessageClasses;
    }));
    EXPECT_EQ(dialler->Count(Seen::Kind::kUp) + listener->Count(Seen::Kind::kUp), 0u);
  }

  TcpBackEnd back_end_{WaitMode::kBlocking, true};
};

TEST_F(TcpTlsTest, NodesOfTheClusterComeUp) {
  const std::unique_ptr<Node> dialler = Make(kDialler), listener = Make(kListener);
  Introduce(*dialler, *listener);
  ASSERT_TRUE(back_end_.RunUntil([&] { return dialler->IsUp(kListener) && listener->IsUp(kDialler); }));
  EXPECT_EQ((*listener)->Statistics().strangers_closed, 0u);
}

TEST_F(TcpTlsTest, AStrangerWithoutTlsIsTurnedAway) {
  const std::unique_ptr<Node> listener = Make(kListener);
  auto stranger = back_end_.ConnectBare(kListener);
  stranger->Write(HelloOf(kDialler));
  ASSERT_TRUE(back_end_.RunUntil([&] { return stranger->Closed(); }));
  // What it may get is an alert of TLS, no reply of ours.
  Hello reply;
  EXPECT_NE(DecodeHello(stranger->Read(), &reply), WireError::kNone);
  ASSERT_TRUE(back_end_.RunUntil([&] { return (*listener)->Statistics().strangers_closed == 1; }));
}

// These say no hello: they are turned away before.
TEST_F(TcpTlsTest, AStrangerWithoutCertificateIsTurnedAway) {
  const std::unique_ptr<Node> listener = Make(kListener);
  ExpectTurnedAway(*listener, back_end_.ConnectTls(kListener, TcpTls()));
}

TEST_F(TcpTlsTest, ACertificateOfAnotherAuthorityIsTurnedAway) {
  const std::unique_ptr<Node> listener = Make(kListener);
  ExpectTurnedAway(*listener, back_end_.ConnectTls(kListener, TestCluster::TlsAs("node:n0", 1)));
}

TEST_F(TcpTlsTest, ACertificateOfAnotherNodeOrOfNoNodeIsTurnedAway) {
  for (const char* name : {"node:n2", "node:", "admin:n0", "n0"}) {
    SCOPED_TRACE(name);
    const std::unique_ptr<Node> listener = Make(kListener);
    ASSERT_TRUE((*listener)->AddPeer(kDialler, back_end_.Address(kListener, kDialler)).ok());
    auto stranger = back_end_.ConnectTls(kListener, TestCluster::TlsAs(name));
    stranger->Write(HelloOf(kDialler));
    ExpectTurnedAway(*listener, std::move(stranger));
  }
}

// A handshake of TLS takes longer than a hello, so a flood of strangers meets more of them under way.
TEST_F(TcpTlsTest, AFloodFromOneAddressEndsNoOthersHandshake) {
  constexpr uint8_t kFloodFrom = 2;
  constexpr size_t kFlood = 2'000;
  const std::unique_ptr<Node> listener = Make(kListener);
  ASSERT_TRUE((*listener)->AddPeer(kDialler, back_end_.Address(kListener, kDialler)).ok());
  auto slow = back_end_.ConnectTls(kListener, TestCluster::TlsAs("node:n0"));
  EXPECT_TRUE(slow->Read().empty());  // its first flight is on its way
  const uint32_t kept = listener->settings().strangers;
  std::vector<std::unique_ptr<Stranger>> silent(2 * kept);
  for (size_t i = 0; i < kFlood; ++i) silent[i % silent.size()] = back_end_.ConnectBareFrom(kFloodFrom, kListener);
  ASSERT_TRUE(back_end_.RunUntil([&] { return (*listener)->Statistics().strangers_closed >= kFlood - kept; }));
  EXPECT_FALSE(slow->Closed());
  slow->Write(HelloOf(kDialler));
  ASSERT_TRUE(back_end_.RunUntil([&] { return slow->Read().size() >= kHelloBytes || slow->Closed(); }));
  Hello reply;
  ASSERT_EQ(DecodeHello(slow->Read(), &reply), WireError::kNone);
  EXPECT_EQ(reply.kind, HelloKind::kAcceptFresh);
}

TEST_F(TcpTlsTest, AHelloOfANodeWithoutNameIsTurnedAway) {
  // The listener knows no name for any node: an empty name is nobody's.
  TcpTls identity = TestCluster::TlsAs("node:n1");
  identity.name_of = [](NodeId) { return std::string(); };
  back_end_.SetIdentity(kListener, identity);
  const std::unique_ptr<Node> listener = Make(kListener);
  ASSERT_TRUE((*listener)->AddPeer(kDialler, back_end_.Address(kListener, kDialler)).ok());
  auto stranger = back_end_.ConnectTls(kListener, TestCluster::TlsAs("node:"));
  stranger->Write(HelloOf(kDialler));
  ExpectTurnedAway(*listener, std::move(stranger));
}

TEST_F(TcpTlsTest, ADiallerTurnsAwayAnotherAuthority) {
  back_end_.SetIdentity(kListener, TestCluster::TlsAs("node:n1", 1));
  ExpectNeverUp();
}

TEST_F(TcpTlsTest, ADiallerTurnsAwayAnotherNode) {
  back_end_.SetIdentity(kListener, TestCluster::TlsAs("node:n2"));
  ExpectNeverUp();
}

TEST_F(TcpTlsTest, ABareNodeAndOneWithTlsNeverComeUp) {
  back_end_.SetIdentity(kDialler, std::nullopt);
  ExpectNeverUp();
  back_end_.SetIdentity(kDialler, TestCluster::TlsAs("node:n0"));
  back_end_.SetIdentity(kListener, std::nullopt);
  ExpectNeverUp();
}

TEST_F(TcpTlsTest, WhatIsWrongWithTheSettingsIsNamed) {
  const auto refusal = [&](const TcpTls& identity) {
    back_end_.SetIdentity(kListener, identity);
    Node node(&back_end_, Settings(kListener));
    const absl::Status status = back_end_.Make(Settings(kListener), &node).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  const TcpTls good = TestCluster::TlsAs("node:n1");
  TcpTls bad = good;
  bad.ca_pem = "nothing";
  EXPECT_THAT(refusal(bad), HasSubstr("ca"));
  bad = good;
  bad.certificate_pem = "";
  EXPECT_THAT(refusal(bad), HasSubstr("certificate"));
  bad = good;
  bad.key_pem = TestCluster::TlsAs("node:n0").key_pem;
  EXPECT_THAT(refusal(bad), HasSubstr("key"));
  bad = good;
  bad.name_of = nullptr;
  EXPECT_THAT(refusal(bad), HasSubstr("name_of"));
}

}  // namespace
}  // namespace hk
