// Which nodes take part, what they are made of, and orders to all.
#include "hyperkernel/node/machine_spread.h"

#include <memory>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/machine_spread_testing.h"

namespace hk {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

TEST_F(MachineSpreadTest, NoneForAMachineWhoseVcpusAreHere) {
  const auto spread = Plan(Spec(2, 0, 0));
  ASSERT_TRUE(spread.ok()) << spread.status();
  EXPECT_EQ(*spread, nullptr);
}

TEST_F(MachineSpreadTest, ANodeMayTakeVcpusThatHasNone) {
  v1::VmSpec spec = Spec(1, 0, 1);
  spec.mutable_placement(2)->set_takes_vcpus(true);
  Open(spec);
  ASSERT_TRUE(Attach().ok());
  EXPECT_THAT(peers_.Calls(), UnorderedElementsAre("b attach", "c attach"));
  const v1::AttachMachineRequest request = peers_.Request("b");
  EXPECT_THAT(std::vector<uint32_t>(request.vcpu_nodes().begin(), request.vcpu_nodes().end()), ElementsAre(1, 3));
  EXPECT_THAT(std::vector<uint32_t>(request.nodes().begin(), request.nodes().end()), UnorderedElementsAre(1, 2, 3));
  EXPECT_TRUE(spread_->MoveVcpu(VcpuId(1), "b", &moves_).ok());
}

TEST_F(MachineSpreadTest, ANodeThatNobodyKnowsIsAnError) {
  v1::VmSpec spec = Spec(1, 1, 0);
  spec.mutable_placement(2)->set_node("x");
  EXPECT_THAT(MessageOf(Plan(spec).status()), HasSubstr("no node 'x'"));
}

TEST_F(MachineSpreadTest, OrdersGoToAllOthers) {
  Open(Spec(1, 1, 2));
  EXPECT_TRUE(spread_->Here(VcpuId(0)));
  EXPECT_FALSE(spread_->Here(VcpuId(1)));
  EXPECT_EQ(spread_->NodeOf(VcpuId(0)), "a");
  EXPECT_EQ(spread_->NodeOf(VcpuId(2)), "c");
  EXPECT_EQ(spread_->NodeOf(VcpuId(3)), "b");
  ASSERT_TRUE(Attach().ok());
  EXPECT_THAT(peers_.Calls(), UnorderedElementsAre("b attach", "c attach"));
  const v1::AttachMachineRequest request = peers_.Request("b");
  EXPECT_THAT(std::vector<uint32_t>(request.vcpu_nodes().begin(), request.vcpu_nodes().end()), ElementsAre(1, 3, 3, 2));
  EXPECT_THAT(std::vector<uint32_t>(request.nodes().begin(), request.nodes().end()), UnorderedElementsAre(1, 2, 3));
  EXPECT_EQ(request.space_id(), 9u);
  EXPECT_NE(request.id(), 0u);
  EXPECT_EQ(request.boot_id(), "boot a");
  EXPECT_EQ(request.id(), peers_.Request("c").id());
  EXPECT_TRUE(spread_->Resume().ok());
  EXPECT_THAT(peers_.Calls(), UnorderedElementsAre("b RUN", "c RUN"));
  EXPECT_TRUE(spread_->Hold().ok());
  EXPECT_THAT(peers_.Calls(), UnorderedElementsAre("b HOLD", "c HOLD"));
  spread_->End();
  EXPECT_THAT(peers_.Calls(), UnorderedElementsAre("b END", "c END"));
  spread_.reset();
  EXPECT_THAT(peers_.Calls(), ElementsAre()) << "they have ended already";
}

TEST_F(MachineSpreadTest, NoTwoRunsHaveOneId) {
  std::set<uint64_t> ids;
  for (int i = 0; i < 8; i++) {
    Open(Spec(1, 1, 0));
    ASSERT_TRUE(Attach().ok());
    EXPECT_TRUE(ids.insert(peers_.Request("b").id()).second);
    spread_.reset();
  }
}

TEST_F(MachineSpreadTest, AllStartOrNone) {
  peers_.SetAttach("c", absl::ResourceExhaustedError("node 'c': no room"));
  Open(Spec(1, 1, 1));
  EXPECT_EQ(MessageOf(Attach()), "node 'c': no room");
  EXPECT_THAT(peers_.Parts(), UnorderedElementsAre());
  // Also that of one that has not answered may be there.
  EXPECT_THAT(peers_.Calls(), UnorderedElementsAre("b attach", "c attach", "b END", "c END"));
}

TEST_F(MachineSpreadTest, IfOneCannotHoldAllGoOn) {
  Open(Spec(1, 1, 1));
  ASSERT_TRUE(Attach().ok());
  ASSERT_TRUE(spread_->Resume().ok());
  peers_.Calls();
  peers_.SetHold("b", absl::DeadlineExceededError("node 'b': a vCPU does not stop"));
  EXPECT_EQ(MessageOf(spread_->Hold()), "node 'b': a vCPU does not stop");
  const std::vector<std::string> calls = peers_.Calls();
  EXPECT_THAT(calls, UnorderedElementsAre("b HOLD", "c HOLD", "b RUN", "c RUN"));
  EXPECT_THAT(std::vector(calls.begin() + 2, calls.end()), UnorderedElementsAre("b RUN", "c RUN"));
}

TEST_F(MachineSpreadTest, RenewsTheOthers) {
  Open(Spec(1, 1, 1));
  ASSERT_TRUE(Attach().ok());
  peers_.Calls();
  EXPECT_TRUE(spread_->Renew().ok());
  EXPECT_THAT(peers_.Calls(), UnorderedElementsAre("b RENEW", "c RENEW"));
}

TEST_F(MachineSpreadTest, ALostNodeEndsTheMachineByItsName) {
  Open(Spec(1, 1, 1));
  router_.OnPeerFailed(NodeId(3), PeerFailure::kLeaseExpired, "nothing was heard");
  EXPECT_THAT(AwaitFailure(), HasSubstr("node 'c', which runs vCPUs of it: "));
}

TEST_F(MachineSpreadTest, HostsAgreeOnOneCpuAndOneRate) {
  const auto host = [&](const std::string& node, uint32_t features, uint32_t khz, const std::string& boot_id) {
    SetCpuid(Cpuid(features), peers_.hosts[node].mutable_cpuid());
    peers_.hosts[node].set_tsc_khz(khz);
    peers_.hosts[node].set_boot_id(boot_id);
  };
  v1::VmSpec spec = Spec(1, 1, 1);
  Open(spec);
  host("b", 7, 2'000'000, "boot b");
  host("c", 3, 2'000'000, "boot c");
  auto model = spread_->AgreeOnHosts(Cpuid(3), 2'000'000);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->at(1).ebx, 3u);
  EXPECT_THAT(MessageOf(spread_->AgreeOnHosts(Cpuid(7), 2'000'000).status()), HasSubstr("node 'c' lacks features"));
  EXPECT_THAT(MessageOf(spread_->AgreeOnHosts(Cpuid(3), 2'100'000).status()), HasSubstr("its TSC runs at"));
  // Daemons of one host have one TSC, whatever two measurements of its rate say.
  host("b", 7, 2'100'000, "boot a");
  EXPECT_TRUE(spread_->AgreeOnHosts(Cpuid(3), 2'000'000).ok());
  // A node that says nonsense.
  peers_.hosts["b"].clear_cpuid();
  EXPECT_THAT(MessageOf(spread_->AgreeOnHosts(Cpuid(3), 2'000'000).status()), HasSubstr("node 'b': cpuid: 0 entries"));
  host("b", 6, 2'000'000, "boot b");
  spread_.reset();
  spec.mutable_cpu()->set_profile("common");
  Open(spec);
  model = spread_->AgreeOnHosts(Cpuid(7), 2'000'000);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->at(1).ebx, 2u);
}

TEST_F(MachineSpreadTest, AMachineHasTheCpuOfItsFirstStartAgain) {
  for (const char* node : {"b", "c"}) {
    SetCpuid(Cpuid(7), peers_.hosts[node].mutable_cpuid());
    peers_.hosts[node].set_tsc_khz(2'000'000);
  }
  SetCpuid(Cpuid(3), &recorded_);
  for (const char* profile : {"host", "common"}) {
    v1::VmSpec spec = Spec(1, 1, 1);
    spec.mutable_cpu()->set_profile(profile);
    spread_.reset();
    Open(spec);
    const auto model = spread_->AgreeOnHosts(Cpuid(15), 2'000'000);  // though all have more by now
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ(model->at(1).ebx, 3u);
    EXPECT_EQ(spread_->cpu_model()[1].ebx(), 3u);
    EXPECT_THAT(MessageOf(spread_->AgreeOnHosts(Cpuid(1), 2'000'000).status()),
                HasSubstr("node 'a' cannot give the CPU that the machine has had since its first start"));
  }
  SetCpuid(Cpuid(2), peers_.hosts["c"].mutable_cpuid());
  EXPECT_THAT(MessageOf(spread_->AgreeOnHosts(Cpuid(15), 2'000'000).status()),
              HasSubstr("node 'c' cannot give the CPU that the machine has had since its first start"));
  EXPECT_THAT(MessageOf(spread_->AgreeOnHosts(Cpuid(15), 2'000'000).status()), HasSubstr("it lacks fsgsbase;"));
}

TEST(CheckMachineProtocol, OneReleaseOnAllNodes) {
  EXPECT_TRUE(CheckMachineProtocol(kMachineProtocolVersion, "b").ok());
  const absl::Status status = CheckMachineProtocol(kMachineProtocolVersion + 1, "b");
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(MessageOf(status), HasSubstr(fmt::format("node 'b' speaks version {} in machines, this node version {}",
                                                       kMachineProtocolVersion + 1, kMachineProtocolVersion)));
}

}  // namespace
}  // namespace hk
