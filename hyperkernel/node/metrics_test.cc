#include "hyperkernel/node/metrics.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/memory/frame_store_testing.h"

namespace hk {
namespace {

using testing::HasSubstr;

TEST(MetricsTest, TextHasWhatWasTold) {
  Metrics metrics;
  metrics.SetPeerUp("b", true);
  metrics.SetPeerUp("b", false);
  metrics.CountHelloFailure("b");
  metrics.CountHelloFailure("b");
  metrics.ObserveHello("b", std::chrono::microseconds(300));
  metrics.CountRequest("ListNodes", 0);
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("hyperkernel_peer_up{peer=\"b\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("hyperkernel_hello_failures_total{peer=\"b\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("hyperkernel_hello_seconds_bucket{peer=\"b\",le=\"0.0005\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("hyperkernel_requests_total{code=\"0\",method=\"ListNodes\"} 1\n"));
}

TEST(MetricsTest, MovesAreCountedByWhatBecameOfThem) {
  Metrics metrics;
  EXPECT_THAT(metrics.Text(), HasSubstr("hyperkernel_vcpu_moves_total{result=\"failed\"} 0\n"));
  metrics.CountMove(std::chrono::microseconds(700));
  metrics.CountMove(std::chrono::milliseconds(3));
  metrics.CountMoveNotMade(/*lost=*/false);
  metrics.CountMoveNotMade(/*lost=*/true);
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("hyperkernel_vcpu_moves_total{result=\"made\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("hyperkernel_vcpu_moves_total{result=\"refused\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("hyperkernel_vcpu_moves_total{result=\"failed\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("hyperkernel_vcpu_move_pause_seconds_count 2\n"));
  EXPECT_THAT(text, HasSubstr("hyperkernel_vcpu_move_pause_seconds_bucket{le=\"0.001\"} 1\n"));
}

class MetricsStoresTest : public OwnStoreTest {};

TEST_F(MetricsStoresTest, BudgetsAreReadAtEachScrape) {
  OpenStore(16 << 20);
  const SwapStore swap(directory_ + "/swap", 8 << 20);
  Metrics metrics;
  metrics.DescribeNode({}, *frames_, swap);
  const std::string before = metrics.Text();
  EXPECT_THAT(before, HasSubstr("hyperkernel_frame_budget_bytes 16777216\n"));
  EXPECT_THAT(before, HasSubstr("hyperkernel_frames_reserved_bytes 0\n"));
  EXPECT_THAT(before, HasSubstr("hyperkernel_swap_budget_bytes 8388608\n"));
  EXPECT_THAT(before, HasSubstr("hyperkernel_swap_reserved_bytes 0\n"));
  EXPECT_THAT(before, HasSubstr("hyperkernel_swap_used_bytes 0\n"));
  const auto reservation = frames_->Reserve(3 << 20);
  const auto file = swap.Make("pool", 1, 4 << 20);
  ASSERT_TRUE(reservation.ok() && file.ok()) << file.status();
  const std::string after = metrics.Text();
  EXPECT_THAT(after, HasSubstr("hyperkernel_frames_reserved_bytes 3145728\n"));
  EXPECT_THAT(after, HasSubstr("hyperkernel_swap_reserved_bytes 4194304\n"));
}

TEST(MetricsTest, AnAddressInUseIsAnErrorThatNamesIt) {
  Metrics first, second;
  // TEST-NET-1 (RFC 5737) is no address of this host.
  const auto address = ParseAddress("192.0.2.1:7471", AddressForm::kListenTcp);
  const absl::Status status = first.Serve(*address);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("192.0.2.1:7471"));
}

}  // namespace
}  // namespace hk
