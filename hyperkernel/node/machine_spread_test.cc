#include "hyperkernel/node/machine_spread.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/irq/irq_testing.h"
#include "hyperkernel/memory/space_testing.h"
#include "hyperkernel/node/machine_cpu.h"
#include "hyperkernel/node/machine_link_testing.h"

namespace hk {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

// Nodes a, b and c, numbers 1, 2 and 3, of which the test is a.
class FakePeers final : public MachinePeers {
 public:
  absl::StatusOr<NodeId> NumberOf(const std::string& node) const override {
    if (node.size() != 1 || node[0] < 'a' || node[0] > 'c') return absl::NotFoundError("no node '" + node + "'");
    return NodeId(static_cast<uint16_t>(node[0] - 'a' + 1));
  }
  absl::StatusOr<v1::DescribeMachineHostResponse> Describe(const std::string& node, const v1::CpuSpec&) override {
    MutexLock lock(&mutex_);
    return hosts[node];
  }
  absl::StatusOr<v1::AttachMachineResponse> Attach(const std::string& node,
                                                   const v1::AttachMachineRequest& request) override {
    MutexLock lock(&mutex_);
    requests_[node] = request;
    calls_.push_back(node + " attach");
    if (const auto status = attach_.find(node); status != attach_.end()) return status->second;
    parts_.insert(node);
    return v1::AttachMachineResponse();
  }
  absl::StatusOr<v1::OrderMachineResponse> Order(const std::string& node, uint64_t id, v1::MachineOrder order,
                                                 uint64_t number) override {
    MutexLock lock(&mutex_);
    EXPECT_EQ(id, requests_[node].id());
    v1::OrderMachineResponse response;
    if (number != 0) {
      EXPECT_GT(number, std::exchange(numbers_[node], number));
    }
    if (order == v1::MACHINE_ORDER_RUN) running_.insert(node);
    if (order == v1::MACHINE_ORDER_HOLD && !hold_.contains(node)) running_.erase(node);
    response.set_running(running_.contains(node));
    (*response.mutable_exits_by_kind())["port"] = node == "b" ? 5 : 7;
    (*response.mutable_exits_by_kind())[node] = 1;
    for (const uint32_t vcpu : node == "b" ? std::vector{2U, 1U, 0U, 77U} : std::vector{1U, 0U, 77U}) {
      v1::VcpuTimes* times = response.add_vcpu_times();
      times->set_vcpu(vcpu);
      times->set_node("zoe");
      times->set_halted_ns(100 + vcpu);
    }
    if (order == v1::MACHINE_ORDER_STATUS || order == v1::MACHINE_ORDER_STALLS) {
      if (order == v1::MACHINE_ORDER_STALLS) {
        response.mutable_stalls()->set_now_ns(1);
        v1::Stall* stall = response.mutable_stalls()->add_stalls();
        stall->set_time_ns(1);
        stall->set_vcpu(node == "b" ? 2 : 1);
        stall->set_kind(v1::STALL_KIND_READ);
      }
      asked_++;
      changed_.SignalAll();
      const auto status = status_.find(node);
      return status == status_.end() ? absl::StatusOr<v1::OrderMachineResponse>(response) : status->second;
    }
    calls_.push_back(node + " " + v1::MachineOrder_Name(order).substr(sizeof("MACHINE_ORDER")));
    if (order == v1::MACHINE_ORDER_HOLD && hold_.contains(node)) return hold_[node];
    if (order == v1::MACHINE_ORDER_END) parts_.erase(node);
    return response;
  }

  absl::StatusOr<v1::MoveMachineVcpuResponse> Move(const std::string& node, uint64_t id,
                                                   const v1::MoveMachineVcpuRequest& request) override {
    MutexLock lock(&mutex_);
    EXPECT_EQ(id, requests_[node].id());
    EXPECT_EQ(request.vcpu(), 1u);
    EXPECT_GT(request.number(), std::exchange(steps_, request.number()));
    const std::string step = v1::MoveStep_Name(request.step()).substr(sizeof("MOVE_STEP"));
    calls_.push_back(node + " " + step);
    v1::MoveMachineVcpuResponse response;
    if (request.step() == v1::MOVE_STEP_LEAVE) response.mutable_moved()->set_version(request.to_node());
    if (request.step() == v1::MOVE_STEP_ARRIVE) {
      EXPECT_NE(request.moved().version(), 0u);
    }
    if (const auto refused = refused_.find(step); refused != refused_.end()) response.set_refused(refused->second);
    return response;
  }

  // What a call at a node says from now on.
  void Refuse(const std::string& step, const std::string& why) {
    MutexLock lock(&mutex_);
    refused_[step] = why;
  }
  void SetAttach(const std::string& node, absl::Status status) {
    MutexLock lock(&mutex_);
    attach_[node] = std::move(status);
  }
  void SetHold(const std::string& node, absl::Status status) {
    MutexLock lock(&mutex_);
    hold_[node] = std::move(status);
  }
  void SetStatus(const std::string& node, absl::Status status) {
    MutexLock lock(&mutex_);
    status_[node] = std::move(status);
  }
  // Orders but STATUS, since the last time.
  std::vector<std::string> Calls() {
    MutexLock lock(&mutex_);
    return std::exchange(calls_, {});
  }
  std::set<std::string> Parts() {
    MutexLock lock(&mutex_);
    return parts_;
  }
  v1::AttachMachineRequest Request(const std::string& node) {
    MutexLock lock(&mutex_);
    return requests_[node];
  }
  // It has not heard of the last order.
  void Forget(const std::string& node) {
    MutexLock lock(&mutex_);
    running_.erase(node);
  }
  void AwaitAsked(int more) {
    MutexLock lock(&mutex_);
    const auto guard = std::chrono::steady_clock::now() + HangGuard();
    for (const int until = asked_ + more; asked_ < until;) HK_CHECK(changed_.WaitUntil(&mutex_, guard));
  }

  std::map<std::string, v1::DescribeMachineHostResponse> hosts;

 private:
  Mutex mutex_;
  CondVar changed_;
  int asked_ = 0;
  std::map<std::string, absl::Status> attach_, hold_, status_;
  std::map<std::string, v1::AttachMachineRequest> requests_;
  std::vector<std::string> calls_;
  std::set<std::string> parts_, running_;
  std::map<std::string, uint64_t> numbers_;
  std::map<std::string, std::string> refused_;
  uint64_t steps_ = 0;
};

std::vector<kvm_cpuid_entry2> Cpuid(uint32_t features) {
  kvm_cpuid_entry2 vendor = {}, extended = {};
  vendor.eax = 0xd;
  extended.function = 7;
  extended.ebx = features;
  return {vendor, extended};
}

class MachineSpreadTest : public testing::Test {
 protected:
  MachineSpreadTest() { router_.SetTransport(&transport_); }
  ~MachineSpreadTest() override { spread_.reset(); }  // before the controller

  // So many vCPUs at each node.
  static v1::VmSpec Spec(uint32_t a, uint32_t b, uint32_t c) {
    v1::VmSpec spec;
    spec.set_name("g");
    spec.set_memory_mib(64);
    spec.set_vcpus(a + b + c);
    spec.set_io_node("a");
    spec.mutable_cpu()->set_profile("host");
    for (const auto& [name, vcpus] : std::vector<std::pair<std::string, uint32_t>>{{"c", c}, {"a", a}, {"b", b}}) {
      v1::PlacementSpec* const place = spec.add_placement();
      place->set_node(name);
      place->set_vcpus(vcpus);
    }
    return spec;
  }
  absl::StatusOr<std::unique_ptr<MachineSpread>> Plan(const v1::VmSpec& spec) {
    return MachineSpread::Plan(spec, {.self = "a",
                                      .boot_id = "boot a",
                                      .peers = &peers_,
                                      .transport = &transport_,
                                      .router = &router_,
                                      .clock = &RealClock(),
                                      .policy = policy_});
  }
  void Open(const v1::VmSpec& spec) {
    auto spread = Plan(spec);
    ASSERT_TRUE(spread.ok() && *spread != nullptr) << spread.status();
    spread_ = *std::move(spread);
    interrupts_ = std::make_unique<InterruptController>(InterruptControllerOptions{.vcpus = spec.vcpus()},
                                                        spread_->interrupt_nodes(), &RealClock(), &waker_);
    ASSERT_TRUE(spread_
                    ->Open(interrupts_.get(), &devices_,
                           [this](const std::string& reason) {
                             // Who is told may wait for one who asks for what is counted.
                             static_cast<void>(spread_->exits_by_kind());
                             MutexLock lock(&mutex_);
                             failures_.push_back(reason);
                             changed_.SignalAll();
                           })
                    .ok());
  }
  absl::Status Attach() { return spread_->Attach({.space_id = 9, .cpuid = Cpuid(1), .tsc_khz = 2'000'000}); }
  std::string AwaitFailure() {
    MutexLock lock(&mutex_);
    const auto guard = std::chrono::steady_clock::now() + HangGuard();
    while (failures_.empty()) HK_CHECK(changed_.WaitUntil(&mutex_, guard));
    return failures_.front();
  }
  size_t Failures() {
    MutexLock lock(&mutex_);
    return failures_.size();
  }

  FakePeers peers_;
  NotingTransport transport_;
  SpaceRouter router_;
  RecordingWaker waker_;
  NotingDevices devices_;
  std::unique_ptr<InterruptController> interrupts_;
  std::shared_ptr<MachinePolicy> policy_;
  std::unique_ptr<MachineSpread> spread_;
  Mutex mutex_;
  CondVar changed_;
  std::vector<std::string> failures_;
};

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
  const auto here = [](const v1::MoveMachineVcpuRequest&) { return v1::MoveMachineVcpuResponse(); };
  EXPECT_TRUE(spread_->MoveVcpu(VcpuId(1), "b", here).ok());
}

TEST_F(MachineSpreadTest, ANodeThatNobodyKnowsIsAnError) {
  v1::VmSpec spec = Spec(1, 1, 0);
  spec.mutable_placement(2)->set_node("x");
  EXPECT_THAT(MessageOf(Plan(spec).status()), HasSubstr("no node 'x'"));
}

TEST_F(MachineSpreadTest, WhoHasNotHeardOfAnOrderIsToldAgain) {
  Open(Spec(1, 1, 1));
  ASSERT_TRUE(Attach().ok());
  ASSERT_TRUE(spread_->Resume().ok());
  peers_.Calls();
  peers_.Forget("b");
  peers_.AwaitAsked(4);  // of the first two one may have been asked before
  EXPECT_THAT(peers_.Calls(), ElementsAre("b RUN"));
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

TEST_F(MachineSpreadTest, VcpusThatHaveEndedEndTheMachine) {
  const std::string none = "node 'c': it has no vCPUs of this machine";
  // A part knows nodes by number.
  for (const auto& [status, told] :
       {std::pair(absl::FailedPreconditionError("node 'c': its vCPUs have ended: node 2: is lost"),
                  std::string("node 'c': its vCPUs have ended: node 'b': is lost")),
        std::pair(absl::NotFoundError(none), none)}) {
    failures_.clear();
    peers_.SetStatus("c", status);
    Open(Spec(1, 1, 1));
    ASSERT_TRUE(Attach().ok());
    EXPECT_EQ(AwaitFailure(), told);
    spread_->End();
    EXPECT_EQ(Failures(), 1u) << "told once";
    spread_.reset();
  }
}

TEST_F(MachineSpreadTest, ANodeThatDoesNotAnswerIsLeftToTheMemory) {
  Open(Spec(1, 1, 0));
  ASSERT_TRUE(Attach().ok());
  peers_.SetStatus("b", absl::DeadlineExceededError("node 'b': no answer within 1 s"));
  peers_.AwaitAsked(1);
  peers_.SetStatus("b", absl::UnavailableError("node 'b': down"));
  peers_.AwaitAsked(2);
  EXPECT_EQ(Failures(), 0u);
}

TEST_F(MachineSpreadTest, ExitsAreThoseOfAllOthers) {
  Open(Spec(1, 1, 1));
  ASSERT_TRUE(Attach().ok());
  EXPECT_TRUE(spread_->exits_by_kind().empty());
  ASSERT_TRUE(spread_->Resume().ok());
  EXPECT_EQ(spread_->exits_by_kind(), (std::map<std::string, uint64_t>{{"port", 12}, {"b", 1}, {"c", 1}}));
}

TEST_F(MachineSpreadTest, TimesAreBelievedOfANodesOwnVcpus) {
  Open(Spec(1, 1, 1));
  ASSERT_TRUE(Attach().ok());
  ASSERT_TRUE(spread_->Resume().ok());
  const std::map<uint32_t, v1::VcpuTimes> times = spread_->vcpu_times();
  ASSERT_EQ(times.size(), 2u);
  EXPECT_EQ(times.at(1).node(), "c");
  EXPECT_EQ(times.at(1).halted_ns(), 101u);
  EXPECT_EQ(times.at(2).node(), "b");
  EXPECT_EQ(times.at(2).halted_ns(), 102u);
}

// vCPU 1 is at c.
TEST_F(MachineSpreadTest, AVcpuMovesBetweenOthersAndHere) {
  Open(Spec(1, 1, 1));
  ASSERT_TRUE(Attach().ok());
  ASSERT_TRUE(spread_->Resume().ok());
  peers_.Calls();
  std::vector<v1::MoveStep> here;
  const auto at_here = [&](const v1::MoveMachineVcpuRequest& request) {
    here.push_back(request.step());
    v1::MoveMachineVcpuResponse response;
    if (request.step() == v1::MOVE_STEP_LEAVE) response.mutable_moved()->set_version(9);
    return response;
  };
  auto moved = spread_->MoveVcpu(VcpuId(1), "b", at_here);
  ASSERT_TRUE(moved.ok()) << moved.status();
  EXPECT_EQ(moved->from, "c");
  EXPECT_EQ(moved->to, "b");
  EXPECT_THAT(peers_.Calls(), ElementsAre("b PREPARE", "c PREPARE", "c LEAVE", "b ARRIVE"));
  EXPECT_EQ(spread_->NodeOf(VcpuId(1)), "b");
  // What its time went to at both.
  ASSERT_TRUE(spread_->Hold().ok());
  EXPECT_EQ(spread_->vcpu_times().at(1).halted_ns(), 202u);
  EXPECT_EQ(spread_->vcpu_times().at(1).node(), "b");
  peers_.Calls();
  moved = spread_->MoveVcpu(VcpuId(1), "a", at_here);
  ASSERT_TRUE(moved.ok()) << moved.status();
  EXPECT_TRUE(spread_->Here(VcpuId(1)));
  EXPECT_THAT(peers_.Calls(), ElementsAre("b PREPARE", "b LEAVE"));
  EXPECT_THAT(here, ElementsAre(v1::MOVE_STEP_PREPARE, v1::MOVE_STEP_ARRIVE));
  moved = spread_->MoveVcpu(VcpuId(1), "a", at_here);
  ASSERT_TRUE(moved.ok()) << moved.status();
  EXPECT_EQ(moved->from, "a") << "it is there already";
  EXPECT_EQ(here.size(), 2u);
  ASSERT_TRUE(spread_->MoveVcpu(VcpuId(1), "c", at_here).ok());
  EXPECT_THAT(peers_.Calls(), ElementsAre("c PREPARE", "c ARRIVE"));
  EXPECT_EQ(Failures(), 0u);
}

TEST_F(MachineSpreadTest, WhatCannotMoveIsWhereItWas) {
  Open(Spec(1, 1, 1));
  ASSERT_TRUE(Attach().ok());
  peers_.Calls();
  const auto at_here = [](const v1::MoveMachineVcpuRequest&) { return v1::MoveMachineVcpuResponse(); };
  EXPECT_EQ(MessageOf(spread_->MoveVcpu(VcpuId(3), "b", at_here).status()), "there is no vCPU 3: they are 0 to 2");
  EXPECT_THAT(MessageOf(spread_->MoveVcpu(VcpuId(1), "x", at_here).status()),
              HasSubstr("node 'x' is none that may have vCPUs of the machine, which are a, c, b"));
  EXPECT_THAT(peers_.Calls(), ElementsAre());
  peers_.Refuse("LEAVE", "a vCPU does not stop");
  EXPECT_EQ(MessageOf(spread_->MoveVcpu(VcpuId(1), "b", at_here).status()), "node 'c': a vCPU does not stop");
  EXPECT_EQ(spread_->NodeOf(VcpuId(1)), "c");
  EXPECT_EQ(Failures(), 0u);
}

TEST_F(MachineSpreadTest, AVcpuThatIsLostEndsTheMachine) {
  Open(Spec(1, 1, 1));
  ASSERT_TRUE(Attach().ok());
  peers_.Refuse("ARRIVE", "full");  // at both
  const auto at_here = [](const v1::MoveMachineVcpuRequest&) { return v1::MoveMachineVcpuResponse(); };
  const absl::Status lost = spread_->MoveVcpu(VcpuId(1), "b", at_here).status();
  EXPECT_TRUE(absl::IsDataLoss(lost)) << lost;
  EXPECT_EQ(AwaitFailure(), MessageOf(lost));
  EXPECT_THAT(AwaitFailure(), HasSubstr("vCPU 1 is lost: it was refused (node 'b': full), and node 'c'"));
}

TEST_F(MachineSpreadTest, WhatOthersWaitForComesToThePolicy) {
  const v1::VmSpec spec = Spec(1, 1, 1);
  const auto number_of = [this](const std::string& node) { return peers_.NumberOf(node); };
  auto options = PolicyOptions(spec, "a", {}, number_of, RealClock());
  ASSERT_TRUE(options.ok()) << options.status();
  options->policy = "fetch";
  auto policy = MachinePolicy::Make(*std::move(options));
  ASSERT_TRUE(policy.ok()) << policy.status();
  policy_ = *std::move(policy);
  const std::shared_ptr<StallRecording> recording = *policy_->Record();
  Open(spec);
  ASSERT_TRUE(Attach().ok());
  std::set<std::pair<uint32_t, uint32_t>> stalls;
  bool ticked = false;
  const auto guard = std::chrono::steady_clock::now() + HangGuard();
  while (stalls.size() < 2 || !ticked) {
    ASSERT_LT(std::chrono::steady_clock::now(), guard);
    for (const v1::TraceRecord& record : recording->Read(guard)) {
      for (const v1::Stall& stall : record.stalls().stalls()) stalls.emplace(stall.node(), stall.vcpu());
      ticked |= record.has_tick();
    }
  }
  EXPECT_THAT(stalls, ElementsAre(std::pair(2, 2), std::pair(3, 1)));
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

TEST(CheckMachineProtocol, OneReleaseOnAllNodes) {
  EXPECT_TRUE(CheckMachineProtocol(kMachineProtocolVersion, "b").ok());
  const absl::Status status = CheckMachineProtocol(kMachineProtocolVersion + 1, "b");
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(MessageOf(status), HasSubstr(fmt::format("node 'b' speaks version {} in machines, this node version {}",
                                                       kMachineProtocolVersion + 1, kMachineProtocolVersion)));
}

}  // namespace
}  // namespace hk
