#include "hyperkernel/node/machine_move.h"

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Time passes when it is asked for.
class StepClock final : public Clock {
 public:
  Monotonic Now() const override { return Monotonic(std::chrono::milliseconds(100) * ++asked_); }
  WallTime Wall() const override { return {}; }

 private:
  mutable int asked_ = 0;
};

// Nodes a and b, of which a has the vCPU: each with its steps, and what the test says of a call.
class FakeNode final : public VcpuMoveEndpoint {
 public:
  explicit FakeNode(bool has) : has_(has) {}
  absl::Status Prepare(VcpuId) override {
    prepared++;
    return prepare;
  }
  absl::StatusOr<MovedVcpu> Leave(VcpuId id, NodeId to) override {
    if (!leave.ok()) return leave;
    if (!has_) return absl::NotFoundError("it is not here");
    has_ = false;
    version_++;
    return MovedVcpu{.id = id,
                     .state = {std::byte{7}, std::byte{0}},
                     .local_apic = {std::byte{static_cast<uint8_t>(to.value())}},
                     .version = version_};
  }
  absl::Status Arrive(const MovedVcpu& moved) override {
    if (!arrive.ok()) return arrive;
    if (has_ || moved.version <= version_) return absl::FailedPreconditionError("that cannot be");
    EXPECT_THAT(moved.state, ElementsAre(std::byte{7}, std::byte{0}));
    EXPECT_THAT(moved.local_apic, ElementsAre(std::byte{2}));
    has_ = true;
    version_ = moved.version;
    return absl::OkStatus();
  }
  bool has() const { return has_; }
  uint32_t version() const { return version_; }

  absl::Status prepare, leave, arrive;
  int prepared = 0;

 private:
  bool has_;
  uint32_t version_ = 1;
};

class MachineMoveTest : public testing::Test {
 protected:
  // What becomes of the answers to the next calls at a node, oldest first; none: they come.
  enum class Answer { kComes, kIsLost, kCallIsLost };

  VcpuMoveEnd Move() {
    return MoveVcpu(
        {.vcpu = VcpuId(3), .from = "a", .to = "b", .to_number = NodeId(2)},
        [this](const std::string& node, const v1::MoveMachineVcpuRequest& request) { return At(node, request); },
        clock_, &numbers_);
  }
  absl::StatusOr<v1::MoveMachineVcpuResponse> At(const std::string& node, const v1::MoveMachineVcpuRequest& request) {
    calls_.push_back(node + " " + v1::MoveStep_Name(request.step()).substr(sizeof("MOVE_STEP")));
    Answer answer = Answer::kComes;
    if (auto& next = answers_[calls_.back()]; !next.empty()) {
      answer = next.front();
      next.erase(next.begin());
    }
    if (answer == Answer::kCallIsLost || dead_ == calls_.back()) return absl::UnavailableError("down");
    const v1::MoveMachineVcpuResponse response = (node == "a" ? a_steps_ : b_steps_).Do(request);
    if (answer == Answer::kIsLost) return absl::UnavailableError("broken");
    return response;
  }

  StepClock clock_;
  FakeNode a_{true}, b_{false};
  MoveSteps a_steps_{&a_, 4}, b_steps_{&b_, 4};
  uint64_t numbers_ = 0;
  std::vector<std::string> calls_;
  std::map<std::string, std::vector<Answer>> answers_;
  std::string dead_;  // calls that never get through
};

TEST_F(MachineMoveTest, PreparedLeftArrived) {
  const VcpuMoveEnd end = Move();
  EXPECT_TRUE(end.status.ok()) << end.status;
  EXPECT_FALSE(end.lost);
  EXPECT_THAT(calls_, ElementsAre("b PREPARE", "a PREPARE", "a LEAVE", "b ARRIVE"));
  EXPECT_FALSE(a_.has());
  EXPECT_TRUE(b_.has());
  EXPECT_EQ(b_.version(), 2u);
  EXPECT_GT(end.stopped.count(), 0);
  EXPECT_EQ(numbers_, 4u);
}

TEST_F(MachineMoveTest, ATargetThatIsNotReadyIsNothingToTheGuest) {
  b_.prepare = absl::ResourceExhaustedError("no vCPU is left");
  const VcpuMoveEnd end = Move();
  EXPECT_EQ(MessageOf(end.status), "node 'b': no vCPU is left");
  EXPECT_FALSE(end.lost);
  EXPECT_THAT(calls_, ElementsAre("b PREPARE"));
  dead_ = "b PREPARE";
  EXPECT_EQ(MessageOf(Move().status), "down");
  EXPECT_FALSE(Move().lost);
  // Nor is a source that cannot be asked.
  b_.prepare = absl::OkStatus();
  dead_ = "a PREPARE";
  EXPECT_EQ(MessageOf(Move().status), "down");
  EXPECT_FALSE(Move().lost);
  EXPECT_TRUE(a_.has());
}

TEST_F(MachineMoveTest, ASourceThatCannotStopItKeepsIt) {
  a_.leave = absl::DeadlineExceededError("vCPU 3 does not leave the guest");
  const VcpuMoveEnd end = Move();
  EXPECT_EQ(MessageOf(end.status), "node 'a': vCPU 3 does not leave the guest");
  EXPECT_FALSE(end.lost);
  EXPECT_THAT(calls_, ElementsAre("b PREPARE", "a PREPARE", "a LEAVE"));
  EXPECT_TRUE(a_.has());
}

TEST_F(MachineMoveTest, WhatIsRefusedGoesBack) {
  b_.arrive = absl::FailedPreconditionError("MSR 0x10a: this host refuses 0x1");
  const VcpuMoveEnd end = Move();
  EXPECT_EQ(MessageOf(end.status), "node 'b': MSR 0x10a: this host refuses 0x1");
  EXPECT_FALSE(end.lost);
  EXPECT_THAT(calls_, ElementsAre("b PREPARE", "a PREPARE", "a LEAVE", "b ARRIVE", "a ARRIVE"));
  EXPECT_TRUE(a_.has());
  EXPECT_EQ(a_.version(), 3u) << "one later than where it was refused";
  // And it can go later.
  b_.arrive = absl::OkStatus();
  EXPECT_TRUE(Move().status.ok());
  EXPECT_TRUE(b_.has());
}

TEST_F(MachineMoveTest, WhatNobodyTakesIsLost) {
  b_.arrive = absl::FailedPreconditionError("full");
  a_.arrive = absl::InternalError("broken here");
  const VcpuMoveEnd end = Move();
  EXPECT_TRUE(end.lost);
  EXPECT_EQ(MessageOf(end.status),
            "vCPU 3 is lost: it was refused (node 'b': full), and node 'a' does not have it back: broken here");
}

TEST_F(MachineMoveTest, AnAnswerThatIsLostIsAskedForAgain) {
  for (const char* call : {"b PREPARE", "a LEAVE", "b ARRIVE"}) {
    answers_[call] = {Answer::kIsLost, Answer::kCallIsLost};
  }
  const VcpuMoveEnd end = Move();
  EXPECT_TRUE(end.status.ok()) << end.status;
  EXPECT_THAT(calls_, ElementsAre("b PREPARE", "b PREPARE", "b PREPARE", "a PREPARE", "a LEAVE", "a LEAVE", "a LEAVE",
                                  "b ARRIVE", "b ARRIVE", "b ARRIVE"));
  EXPECT_EQ(b_.prepared, 1) << "done once";
  EXPECT_TRUE(b_.has());
}

TEST_F(MachineMoveTest, WithoutAnAnswerItIsLost) {
  dead_ = "a LEAVE";
  VcpuMoveEnd end = Move();
  EXPECT_TRUE(end.lost);
  EXPECT_EQ(MessageOf(end.status),
            "vCPU 3 is lost: node 'a' was told to let it go to node 'b', and has not said whether it did: down");
  dead_ = "b ARRIVE";
  end = Move();
  EXPECT_TRUE(end.lost);
  EXPECT_EQ(MessageOf(end.status), "vCPU 3 is lost: it left node 'a', and node 'b' has not said whether it came: down");
  EXPECT_NE(calls_.back(), "a ARRIVE") << "it may run at b";
}

TEST_F(MachineMoveTest, AStepThatComesLateIsNotDone) {
  v1::MoveMachineVcpuRequest request;
  request.set_step(v1::MOVE_STEP_LEAVE);
  request.set_vcpu(3);
  request.set_to_node(2);
  request.set_number(5);
  EXPECT_EQ(a_steps_.Do(request).refused(), "");
  request.set_number(4);
  EXPECT_EQ(a_steps_.Do(request).refused(), "step 4 came after step 5");
  request.set_number(0);
  EXPECT_NE(a_steps_.Do(request).refused(), "");
  EXPECT_NE(MoveSteps(&a_, 4).Do(request).refused(), "");
}

TEST_F(MachineMoveTest, WhatNoIoNodeSendsIsRefused) {
  v1::MoveMachineVcpuRequest request;
  request.set_step(v1::MOVE_STEP_LEAVE);
  request.set_vcpu(4);
  request.set_number(1);
  EXPECT_EQ(a_steps_.Do(request).refused(), "there is no vCPU 4");
  request.set_vcpu(3);
  request.set_number(2);
  request.set_to_node(kMaxNodes);
  EXPECT_EQ(a_steps_.Do(request).refused(), "to_node: no node's number");
  request.set_number(3);
  request.clear_step();
  EXPECT_EQ(a_steps_.Do(request).refused(), "step: not one this daemon knows");
  EXPECT_TRUE(a_.has());
}

}  // namespace
}  // namespace hk
