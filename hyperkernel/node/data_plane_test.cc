#include "hyperkernel/node/data_plane.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/address.h"
#include "hyperkernel/base/status.h"
#include "rdma/tcp_socket.h"

namespace hk {
namespace {

using testing::HasSubstr;
using testing::Not;

// A data plane over TCP with one peer, which is at a port where nobody listens.
class DataPlaneTest : public testing::TestWithParam<bool> {
 protected:
  DataPlaneTest() {
    NodeSettings settings;
    settings.name = "a";
    settings.cluster = "test";
    settings.number = NodeId(0);
    PeerSettings peer;
    peer.name = "b";
    peer.number = NodeId(1);
    if (GetParam()) peer.data = ParseAddress("127.0.0.1:1", AddressForm::kConnectTcp).value();
    settings.peers.push_back(peer);
    settings.data_listen = ParseAddress("127.0.0.1:1", AddressForm::kListenTcp).value();
    Address any = settings.data_listen;
    any.port = 0;
    plane_ = DataPlane::Start(settings, "tcp", BindTcp(any).value(), RealClock()).value();
    heard_.set_boot_id("ours");
    heard_.set_data_address("127.0.0.1:1");
  }
  std::string HearOf(const std::string& transport) {
    heard_.set_transport(transport);
    plane_->Heard("b", heard_, "ours");
    const v1::DataLink link = plane_->LinkTo("b");
    EXPECT_EQ(link.state(), v1::DATA_LINK_STATE_DOWN);
    return link.reason();
  }

  std::unique_ptr<DataPlane> plane_;
  v1::NodeInfo heard_;
};

TEST_P(DataPlaneTest, APeerWithAnotherTransportIsToldOf) {
  const std::string reason = HearOf("verbs");
  EXPECT_THAT(reason, HasSubstr("its pages travel over verbs, this node's over tcp: set transport: TRANSPORT_TCP"));
  EXPECT_EQ(HearOf("verbs"), reason);
  EXPECT_THAT(MessageOf(plane_->WaitUp({"a", "b"}, std::chrono::steady_clock::now())),
              HasSubstr("node 'b': the data plane to it is down: its pages travel over verbs"));
  EXPECT_EQ(plane_->LinkTo("b").address(), GetParam() ? "127.0.0.1:1" : "");
  // It was started anew.
  EXPECT_EQ(HearOf("tcp"), "connecting");
  EXPECT_EQ(plane_->LinkTo("b").address(), "127.0.0.1:1");
  EXPECT_EQ(HearOf("verbs"), reason);
}

TEST_P(DataPlaneTest, APeerThatDoesNotSayIsDialled) {
  EXPECT_EQ(HearOf(""), "connecting");
  EXPECT_EQ(HearOf("tcp"), "connecting");
}

INSTANTIATE_TEST_SUITE_P(WhereItsAddressIs, DataPlaneTest, testing::Bool(),
                         [](const auto& which) { return which.param ? "Configured" : "Heard"; });

}  // namespace
}  // namespace hk
