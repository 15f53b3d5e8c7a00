// What is seen of the others while a machine runs, and moves of its vCPUs.
#include <memory>
#include <set>
#include <string>
#include <utility>
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

TEST_F(MachineSpreadTest, WhoHasNotHeardOfAnOrderIsToldAgain) {
  Open(Spec(1, 1, 1));
  ASSERT_TRUE(Attach().ok());
  ASSERT_TRUE(spread_->Resume().ok());
  peers_.Calls();
  peers_.Forget("b");
  peers_.AwaitAsked(4);  // of the first two one may have been asked before
  EXPECT_THAT(peers_.Calls(), ElementsAre("b RUN"));
}

TEST_F(MachineSpreadTest, TheIoNodeStepsUpToAClockThatLeads) {
  Open(Spec(1, 1, 1));
  ASSERT_TRUE(Attach().ok());
  peers_.AwaitAsked(2);
  EXPECT_EQ(peers_.Offset("b"), 77u);
  constexpr uint64_t kLead = 100'000;  // 50 us
  const auto lead = [&](absl::Status status) {
    {
      MutexLock lock(&mutex_);
      steps_.clear();
      step_status_ = std::move(status);
    }
    peers_.Lead(kLead);
    peers_.AwaitAsked(6);  // it is asked, steps, and asks all again
    MutexLock lock(&mutex_);
    return steps_;
  };
  EXPECT_THAT(lead(absl::DeadlineExceededError("busy")), ElementsAre(kLead));
  EXPECT_EQ(peers_.Offset("b"), 77u) << "nothing has changed";
  EXPECT_THAT(lead(absl::OkStatus()), ElementsAre(kLead)) << "once";
  EXPECT_EQ(peers_.Offset("b"), 77 + kLead);
  EXPECT_EQ(peers_.Offset("c"), 77 + kLead);
  const std::vector<v1::NodeClock> clocks = spread_->clocks();
  ASSERT_EQ(clocks.size(), 2u);
  for (const v1::NodeClock& clock : clocks) {
    EXPECT_EQ(clock.has_bound_ns(), clock.node() == "b");
    if (clock.node() == "b") {
      EXPECT_EQ(clock.bound_ns(), 3000u);
    }
  }
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
  auto moved = spread_->MoveVcpu(VcpuId(1), "b", &moves_);
  ASSERT_TRUE(moved.ok()) << moved.status();
  EXPECT_EQ(moved->from, "c");
  EXPECT_EQ(moved->to, "b");
  EXPECT_THAT(peers_.Calls(), ElementsAre("b PREPARE", "c PREPARE"));
  EXPECT_EQ(spread_->NodeOf(VcpuId(1)), "b");
  // What its time went to at both.
  ASSERT_TRUE(spread_->Hold().ok());
  EXPECT_EQ(spread_->vcpu_times().at(1).halted_ns(), 202u);
  EXPECT_EQ(spread_->vcpu_times().at(1).node(), "b");
  peers_.Calls();
  moved = spread_->MoveVcpu(VcpuId(1), "a", &moves_);
  ASSERT_TRUE(moved.ok()) << moved.status();
  EXPECT_TRUE(spread_->Here(VcpuId(1)));
  EXPECT_THAT(peers_.Calls(), ElementsAre("b PREPARE"));
  EXPECT_THAT(moves_.steps, ElementsAre(v1::MOVE_STEP_PREPARE));
  moved = spread_->MoveVcpu(VcpuId(1), "a", &moves_);
  ASSERT_TRUE(moved.ok()) << moved.status();
  EXPECT_EQ(moved->from, "a") << "it is there already";
  EXPECT_EQ(moves_.steps.size(), 1u);
  ASSERT_TRUE(spread_->MoveVcpu(VcpuId(1), "c", &moves_).ok());
  EXPECT_THAT(peers_.Calls(), ElementsAre("c PREPARE"));
  EXPECT_THAT(moves_.crossed, ElementsAre("c to b: 3 to 2", "b to a: 2 to 1", "a to c: 1 to 3"));
  EXPECT_EQ(spread_->vcpu_moves(), 3u);
  EXPECT_THAT(metrics_.Text(), HasSubstr("hyperkernel_vcpu_moves_total{result=\"made\"} 3\n"));
  EXPECT_EQ(Failures(), 0u);
}

TEST_F(MachineSpreadTest, WhatCannotMoveIsWhereItWas) {
  Open(Spec(1, 1, 1));
  ASSERT_TRUE(Attach().ok());
  peers_.Calls();
  EXPECT_EQ(MessageOf(spread_->MoveVcpu(VcpuId(3), "b", &moves_).status()), "there is no vCPU 3: they are 0 to 2");
  EXPECT_THAT(MessageOf(spread_->MoveVcpu(VcpuId(1), "x", &moves_).status()),
              HasSubstr("node 'x' is none that may have vCPUs of the machine, which are a, c, b"));
  EXPECT_THAT(peers_.Calls(), ElementsAre());
  moves_.crossing = {
      .left = MoveWord{.refused = "a vCPU does not stop"}, .come = absl::UnknownError(""), .stopped = {}};
  EXPECT_EQ(MessageOf(spread_->MoveVcpu(VcpuId(1), "b", &moves_).status()), "node 'c': a vCPU does not stop");
  EXPECT_THAT(metrics_.Text(), HasSubstr("hyperkernel_vcpu_moves_total{result=\"refused\"} 1\n"));
  EXPECT_EQ(spread_->NodeOf(VcpuId(1)), "c");
  EXPECT_EQ(Failures(), 0u);
}

TEST_F(MachineSpreadTest, AVcpuThatIsLostEndsTheMachine) {
  Open(Spec(1, 1, 1));
  ASSERT_TRUE(Attach().ok());
  moves_.crossing = {.left = MoveWord(), .come = MoveWord{.refused = "full"}, .stopped = {}};
  peers_.Refuse("TAKE_BACK", "full here too");
  const absl::Status lost = spread_->MoveVcpu(VcpuId(1), "b", &moves_).status();
  EXPECT_TRUE(absl::IsDataLoss(lost)) << lost;
  EXPECT_THAT(metrics_.Text(), HasSubstr("hyperkernel_vcpu_moves_total{result=\"failed\"} 1\n"));
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

}  // namespace
}  // namespace hk
