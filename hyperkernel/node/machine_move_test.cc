#include "hyperkernel/node/machine_move.h"

#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

using testing::ElementsAre;

// Time passes when it is asked for.
class StepClock final : public Clock {
 public:
  Monotonic Now() const override { return Monotonic(std::chrono::milliseconds(100) * ++asked_); }
  WallTime Wall() const override { return {}; }

 private:
  mutable int asked_ = 0;
};

MoveWord Done(uint64_t took_ns) {
  return {.of = MoveWord::Of::kSource, .took_ns = took_ns, .refused = {}};
}
MoveWord Refused(const std::string& why) {
  return {.of = MoveWord::Of::kSource, .took_ns = 0, .refused = why};
}
absl::Status Silence() {
  return absl::DeadlineExceededError("no answer in time");
}

// vCPU 3 goes from a, number 1, to b, number 2.
class MachineMoveTest : public testing::Test {
 protected:
  VcpuMoveEnd Move() {
    const MoveCalls calls{
        .at = [this](const std::string& node, const v1::MoveMachineVcpuRequest& request) { return At(node, request); },
        .cross =
            [this](const VcpuMove& move, uint64_t number) {
              EXPECT_EQ(move.vcpu, VcpuId(3));
              EXPECT_EQ(number, move_) << "as was prepared";
              calls_.push_back("cross");
              return crossing_;
            }};
    return MoveVcpu({.vcpu = VcpuId(3), .from = "a", .to = "b", .from_number = NodeId(1), .to_number = NodeId(2)},
                    calls, clock_, &numbers_);
  }
  absl::StatusOr<v1::MoveMachineVcpuResponse> At(const std::string& node, const v1::MoveMachineVcpuRequest& request) {
    calls_.push_back(node + " " + v1::MoveStep_Name(request.step()).substr(sizeof("MOVE_STEP")));
    EXPECT_EQ(request.vcpu(), 3u);
    EXPECT_EQ(request.from_node(), 1u);
    EXPECT_EQ(request.to_node(), 2u);
    const std::string before = asked_.empty() ? "" : asked_.back();
    EXPECT_TRUE(request.number() > number_ || (request.number() == number_ && before == calls_.back()));
    number_ = request.number();
    move_ = request.move();
    asked_.push_back(calls_.back());
    if (lost_[calls_.back()] > 0) {
      lost_[calls_.back()]--;
      return absl::UnavailableError("down");
    }
    v1::MoveMachineVcpuResponse response;
    response.set_refused(refused_[calls_.back()]);
    return response;
  }

  StepClock clock_;
  uint64_t numbers_ = 0, number_ = 0, move_ = 0;
  std::vector<std::string> calls_, asked_;
  std::map<std::string, int> lost_;             // so many answers of a call
  std::map<std::string, std::string> refused_;  // of a call
  Crossing crossing_{.left = Done(5), .come = Done(7), .stopped = std::chrono::nanoseconds(20)};
};

TEST_F(MachineMoveTest, PreparedThenCrossed) {
  for (int i = 0; i < 2; i++) {
    const VcpuMoveEnd end = Move();
    EXPECT_TRUE(end.status.ok()) << end.status;
    EXPECT_FALSE(end.lost);
    EXPECT_EQ(end.stopped.count(), 20);
    EXPECT_EQ(end.source.count(), 5);
    EXPECT_EQ(end.target.count(), 7);
  }
  EXPECT_THAT(calls_, ElementsAre("b PREPARE", "a PREPARE", "cross", "b PREPARE", "a PREPARE", "cross"));
}

TEST_F(MachineMoveTest, ANodeThatIsNotReadyIsNothingToTheGuest) {
  refused_["b PREPARE"] = "no vCPU is left";
  VcpuMoveEnd end = Move();
  EXPECT_EQ(MessageOf(end.status), "node 'b': no vCPU is left");
  EXPECT_FALSE(end.lost);
  EXPECT_THAT(calls_, ElementsAre("b PREPARE"));
  refused_.clear();
  for (const char* call : {"b PREPARE", "a PREPARE"}) {
    lost_[call] = 1000;
    end = Move();
    EXPECT_EQ(MessageOf(end.status), "down");
    EXPECT_FALSE(end.lost);
    lost_.clear();
  }
  EXPECT_THAT(calls_, testing::Not(testing::Contains("cross")));
}

TEST_F(MachineMoveTest, AnAnswerThatIsLostIsAskedForAgain) {
  lost_ = {{"b PREPARE", 2}, {"a PREPARE", 1}};
  EXPECT_TRUE(Move().status.ok());
  EXPECT_THAT(calls_, ElementsAre("b PREPARE", "b PREPARE", "b PREPARE", "a PREPARE", "a PREPARE", "cross"));
}

TEST_F(MachineMoveTest, ASourceThatCannotStopItKeepsIt) {
  crossing_ = {.left = Refused("vCPU 3 does not leave the guest"), .come = Silence(), .stopped = {}};
  const VcpuMoveEnd end = Move();
  EXPECT_EQ(MessageOf(end.status), "node 'a': vCPU 3 does not leave the guest");
  EXPECT_FALSE(end.lost);
}

TEST_F(MachineMoveTest, WhatIsRefusedGoesBack) {
  // Whether or not the source has said that it left.
  for (const absl::StatusOr<MoveWord>& left :
       {absl::StatusOr<MoveWord>(Done(5)), absl::StatusOr<MoveWord>(Silence())}) {
    calls_.clear();
    crossing_ = {.left = left, .come = Refused("MSR 0x10a: this host refuses 0x1"), .stopped = {}};
    const VcpuMoveEnd end = Move();
    EXPECT_EQ(MessageOf(end.status), "node 'b': MSR 0x10a: this host refuses 0x1");
    EXPECT_FALSE(end.lost);
    EXPECT_THAT(calls_, ElementsAre("b PREPARE", "a PREPARE", "cross", "a TAKE_BACK"));
  }
}

TEST_F(MachineMoveTest, WhatNobodyTakesIsLost) {
  crossing_.come = Refused("full");
  refused_["a TAKE_BACK"] = "broken here";
  VcpuMoveEnd end = Move();
  EXPECT_TRUE(end.lost);
  EXPECT_EQ(MessageOf(end.status),
            "vCPU 3 is lost: it was refused (node 'b': full), and node 'a' does not have it back: broken here");
  lost_["a TAKE_BACK"] = 1000;
  end = Move();
  EXPECT_TRUE(end.lost);
  EXPECT_THAT(MessageOf(end.status), testing::EndsWith("node 'a' does not have it back: down"));
}

TEST_F(MachineMoveTest, WithoutAWordItIsLost) {
  crossing_ = {.left = Silence(), .come = Silence(), .stopped = {}};
  VcpuMoveEnd end = Move();
  EXPECT_TRUE(end.lost);
  EXPECT_EQ(MessageOf(end.status),
            "vCPU 3 is lost: node 'a' was told to let it go to node 'b', and has not said whether it did: no answer in "
            "time");
  crossing_.left = Done(5);
  end = Move();
  EXPECT_TRUE(end.lost);
  EXPECT_EQ(MessageOf(end.status),
            "vCPU 3 is lost: it left node 'a', and node 'b' has not said whether it came: no answer in time");
  EXPECT_THAT(calls_, testing::Not(testing::Contains("a TAKE_BACK"))) << "it may run at b";
}

TEST_F(MachineMoveTest, WhatCameHasLeft) {
  crossing_.left = Silence();
  const VcpuMoveEnd end = Move();
  EXPECT_TRUE(end.status.ok()) << end.status;
  EXPECT_EQ(end.target.count(), 7);
}

TEST_F(MachineMoveTest, AtBothIsLost) {
  crossing_.left = Refused("it does not stop");
  const VcpuMoveEnd end = Move();
  EXPECT_TRUE(end.lost);
  EXPECT_EQ(MessageOf(end.status),
            "vCPU 3 is lost: node 'a' says that it has not left (it does not stop), and node 'b' has one");
}

}  // namespace
}  // namespace hk
