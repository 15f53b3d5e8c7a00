#include "hyperkernel/node/transport_collector.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/node/metrics.h"

namespace hk {
namespace {

using testing::HasSubstr;
using testing::Not;

// A transport that has statistics and nothing else. Node 1 is a peer, others are not.
class FixedTransport final : public Transport {
 public:
  absl::Status Start() override { return absl::UnimplementedError(""); }
  void Stop() override {}
  absl::Status AddPeer(NodeId, const std::string&) override { return absl::UnimplementedError(""); }
  void RemovePeer(NodeId) override {}
  void ResetPeer(NodeId, Epoch) override {}
  void SetNodeEpoch(Epoch) override {}
  absl::Status SetEpoch(GuestId, uint32_t, Epoch) override { return absl::UnimplementedError(""); }
  void ForgetGuest(GuestId) override {}
  absl::Status Send(NodeId, const Message&, const SendOptions&) override { return absl::UnimplementedError(""); }
  absl::StatusOr<SlotId> AcquireSlot(MessageClass, SlotUse) override { return absl::UnimplementedError(""); }
  std::span<std::byte> SlotBytes(SlotId) override { return {}; }
  void ReleaseSlot(SlotId) override {}
  absl::Status CancelRequest(SlotId) override { return absl::UnimplementedError(""); }
  absl::StatusOr<PeerStatistics> Statistics(NodeId peer) const override {
    if (peer != NodeId(1)) return absl::NotFoundError("");
    return peer_;
  }
  TransportStatistics Statistics() const override { return all_; }

  PeerStatistics peer_;
  TransportStatistics all_;
};

class TransportCollectorTest : public testing::Test {
 protected:
  std::string Text() {
    Metrics metrics;
    metrics.DescribeTransport(transport_, [] {
      return std::vector<std::pair<NodeId, std::string>>{{NodeId(1), "b"}, {NodeId(2), "c"}};
    });
    return metrics.Text();
  }
  FixedTransport transport_;
};

TEST_F(TransportCollectorTest, EachClassOfEachPeerIsTold) {
  transport_.peer_.up = true;
  transport_.peer_.sessions = 3;
  ClassStatistics& bulk = transport_.peer_.classes[static_cast<size_t>(MessageClass::kBulk)];
  bulk.sent_messages = 5;
  bulk.received_bytes = 4096;
  bulk.resent_messages = 2;
  bulk.dropped[static_cast<size_t>(DropReason::kDuplicate)] = 4;
  const std::string text = Text();
  EXPECT_THAT(text, HasSubstr("hyperkernel_transport_peer_up{peer=\"b\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("hyperkernel_transport_sessions_total{peer=\"b\"} 3\n"));
  EXPECT_THAT(text,
              HasSubstr("hyperkernel_transport_messages_total{class=\"bulk\",peer=\"b\",direction=\"sent\"} 5\n"));
  EXPECT_THAT(text,
              HasSubstr("hyperkernel_transport_messages_total{class=\"fault\",peer=\"b\",direction=\"sent\"} 0\n"));
  EXPECT_THAT(text,
              HasSubstr("hyperkernel_transport_bytes_total{class=\"bulk\",peer=\"b\",direction=\"received\"} 4096\n"));
  EXPECT_THAT(text, HasSubstr("hyperkernel_transport_resent_messages_total{class=\"bulk\",peer=\"b\"} 2\n"));
  EXPECT_THAT(
      text,
      HasSubstr("hyperkernel_transport_dropped_messages_total{class=\"bulk\",peer=\"b\",reason=\"duplicate\"} 4\n"));
  EXPECT_THAT(text, Not(HasSubstr("peer=\"c\""))) << "the transport does not have it";
}

TEST_F(TransportCollectorTest, LatenciesAreAHistogram) {
  auto& latency = transport_.peer_.classes[static_cast<size_t>(MessageClass::kFault)].latency;
  latency[4] = 1;    // 16 to 32 ns
  latency[15] = 2;   // 33 to 66 us
  latency[31] = 10;  // 2.1 s and more
  const std::string text = Text();
  const std::string bucket = "hyperkernel_transport_request_seconds_bucket{class=\"fault\",peer=\"b\",le=\"";
  EXPECT_THAT(text, HasSubstr(bucket + "2.048e-06\"} 1\n"));
  EXPECT_THAT(text, HasSubstr(bucket + "3.2768e-05\"} 1\n"));
  EXPECT_THAT(text, HasSubstr(bucket + "6.5536e-05\"} 3\n"));
  EXPECT_THAT(text, HasSubstr(bucket + "2.147483648\"} 3\n"));
  EXPECT_THAT(text, HasSubstr(bucket + "+Inf\"} 13\n"));
  EXPECT_THAT(text, HasSubstr("hyperkernel_transport_request_seconds_count{class=\"fault\",peer=\"b\"} 13\n"));
}

TEST_F(TransportCollectorTest, WhatIsNoPeersIsTold) {
  transport_.all_ = {.slots_quarantined = 7, .handshakes_refused = 1, .strangers_closed = 2, .malformed = 3};
  const std::string text = Text();
  EXPECT_THAT(text, HasSubstr("hyperkernel_transport_slots{state=\"quarantined\"} 7\n"));
  EXPECT_THAT(text, HasSubstr("hyperkernel_transport_handshakes_refused_total 1\n"));
  EXPECT_THAT(text, HasSubstr("hyperkernel_transport_strangers_closed_total 2\n"));
  EXPECT_THAT(text, HasSubstr("hyperkernel_transport_malformed_total 3\n"));
}

}  // namespace
}  // namespace hk
