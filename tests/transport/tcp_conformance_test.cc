// The conformance suite over TCP on this host's loopback.
#include <memory>

#include "tests/transport/tcp_back_end.h"

namespace hk {
namespace {

BackEndMaker Maker(WaitMode wait, bool tls = false) {
  return {[wait, tls] { return std::make_unique<TcpBackEnd>(wait, tls); }};
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Blocking, TransportConformance, testing::Values(Maker(WaitMode::kBlocking)));
INSTANTIATE_TEST_SUITE_P(BoundedSpin, TransportConformance, testing::Values(Maker(WaitMode::kBoundedSpin)));
INSTANTIATE_TEST_SUITE_P(Tls, TransportConformance, testing::Values(Maker(WaitMode::kBlocking, true)));

}  // namespace hk
