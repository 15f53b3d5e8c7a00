#include "hyperkernel/node/move_steps.h"

#include <array>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/machine_link_testing.h"

namespace hk {
namespace {

using testing::HasSubstr;
constexpr auto kFault = MessageClass::kFault;
constexpr VcpuId kVcpu{3};
constexpr uint32_t kVcpus = 4;

// More than one piece.
std::vector<std::byte> State() {
  std::vector<std::byte> state(3 * kMostPieceBytes + 5);
  for (size_t i = 0; i < state.size(); ++i) state[i] = static_cast<std::byte>(i % 253);
  return state;
}

// What a node does for a move. Thread-safe as far as a test looks when nothing is under way.
class FakeEnd final : public VcpuMoveEndpoint {
 public:
  absl::Status Prepare(VcpuId) override {
    prepared++;
    return prepare;
  }
  absl::StatusOr<MovedVcpu> Leave(VcpuId id, NodeId to, const Left& left) override {
    if (!leave.ok()) return leave;
    if (!has) return absl::NotFoundError("it is not here");
    has = false;
    version++;
    MovedVcpu moved{
        .id = id, .state = State(), .local_apic = {std::byte{static_cast<uint8_t>(to.value())}}, .version = version};
    left(moved);
    return moved;
  }
  absl::Status Arrive(const MovedVcpu& moved) override {
    if (!arrive.ok()) return arrive;
    if (has || moved.version <= version) return absl::FailedPreconditionError("that cannot be");
    EXPECT_EQ(moved.id, kVcpu);
    EXPECT_EQ(moved.state, State());
    EXPECT_EQ(moved.local_apic.size(), 1u);
    has = true;
    version = moved.version;
    return absl::OkStatus();
  }

  absl::Status prepare, leave, arrive;
  int prepared = 0;
  bool has = false;
  uint32_t version = 1;
};

// Three nodes, of which 2 is the I/O node.
class MoveStepsTest : public testing::Test {
 protected:
  MoveStepsTest() {
    for (uint16_t i = 0; i < 3; ++i) {
      steps_[i] = std::make_unique<MoveSteps>(network_.link(i), kVcpus, limits_);
      steps_[i]->Begin(&ends_[i]);
    }
    network_.Open({&exits_[0], &exits_[1], &exits_[2]}, kVcpus, {steps_[0].get(), steps_[1].get(), steps_[2].get()});
  }
  ~MoveStepsTest() override {
    network_.Close();
    for (auto& steps : steps_) steps->Stop();
  }

  static VcpuMove Move(uint16_t from, uint16_t to) {
    return {.vcpu = kVcpu, .from = "from", .to = "to", .from_number = NodeId(from), .to_number = NodeId(to)};
  }
  v1::MoveMachineVcpuRequest Request(v1::MoveStep step, uint16_t from, uint16_t to) {
    v1::MoveMachineVcpuRequest request;
    request.set_step(step);
    request.set_vcpu(kVcpu.value());
    request.set_number(++number_);
    request.set_from_node(from);
    request.set_to_node(to);
    request.set_move(move_);
    return request;
  }
  // For the next move.
  void Prepare(uint16_t from, uint16_t to) {
    move_ = number_ + 10;
    for (const uint16_t node : {to, from}) {
      EXPECT_EQ(steps_[node]->Do(Request(v1::MOVE_STEP_PREPARE, from, to)).refused(), "");
    }
  }
  std::future<Crossing> Begin(uint16_t from, uint16_t to) {
    Prepare(from, to);
    return std::async(std::launch::async, [this, from, to] { return steps_[2]->Cross(Move(from, to), move_); });
  }
  Crossing End(std::future<Crossing>* crossing) {
    network_.DeliverUntil([&] { return crossing->wait_for(std::chrono::seconds(0)) == std::future_status::ready; });
    number_ = move_;
    return crossing->get();
  }
  Crossing Cross(uint16_t from, uint16_t to) {
    std::future<Crossing> crossing = Begin(from, to);
    return End(&crossing);
  }
  std::string TakeBack(uint16_t from, uint16_t to) {
    return steps_[from]->Do(Request(v1::MOVE_STEP_TAKE_BACK, from, to)).refused();
  }
  void Give(uint16_t from, uint16_t to, uint16_t type, std::span<const std::byte> body) {
    network_.Give(from, to, type, move_, body);
  }
  std::vector<std::byte> Piece(size_t at) { return EncodeMovePiece(kVcpu, packed_, at); }

  const MoveLimits limits_{.leave = std::chrono::milliseconds(HangGuard()),
                           .arrive = std::chrono::milliseconds(HangGuard())};
  const std::vector<std::byte> packed_ =
      PackMoved({.id = kVcpu, .state = State(), .local_apic = {std::byte{1}}, .version = 9});
  uint64_t number_ = 0, move_ = 0;
  std::array<NoExits, 3> exits_;
  std::array<FakeEnd, 3> ends_;
  MachineNetwork network_{3};
  std::array<std::unique_ptr<MoveSteps>, 3> steps_;
};

TEST_F(MoveStepsTest, AVcpuGoesRound) {
  ends_[0].has = true;
  for (const auto& [from, to] : std::vector<std::pair<uint16_t, uint16_t>>{{0, 1}, {1, 2}, {2, 0}, {0, 2}, {2, 1}}) {
    const Crossing crossing = Cross(from, to);
    ASSERT_TRUE(crossing.left.ok() && crossing.come.ok()) << crossing.left.status() << crossing.come.status();
    EXPECT_EQ(crossing.left->refused + crossing.come->refused, "");
    EXPECT_GT(crossing.stopped.count(), 0);
    EXPECT_GT(crossing.left->took_ns, 0u);
    EXPECT_FALSE(ends_[from].has);
    EXPECT_TRUE(ends_[to].has);
    EXPECT_EQ(ends_[to].version, ends_[from].version);
  }
  for (uint16_t i = 0; i < 3; ++i) EXPECT_EQ(network_.Failures(i), 0u);
}

TEST_F(MoveStepsTest, OverAQueueThatRefuses) {
  ends_[0].has = true;
  network_.SetRoom(1);
  std::future<Crossing> made = Begin(0, 1);
  network_.Deliver(2, 0, MessageClass::kFault);
  network_.WaitRefused(1);  // its second piece
  const Crossing crossing = End(&made);
  EXPECT_TRUE(crossing.come.ok() && crossing.come->refused.empty());
  EXPECT_TRUE(ends_[1].has);
}

TEST_F(MoveStepsTest, ASourceThatRefusesKeepsIt) {
  for (const uint16_t from : {uint16_t{0}, uint16_t{2}}) {
    ends_[from].has = true;
    ends_[from].leave = absl::DeadlineExceededError("it does not stop");
    const Crossing crossing = Cross(from, 1);
    ASSERT_TRUE(crossing.left.ok()) << crossing.left.status();
    EXPECT_EQ(crossing.left->refused, "it does not stop");
    EXPECT_FALSE(crossing.come.ok());
    EXPECT_EQ(TakeBack(from, 1), "it has not left here in this move");
    ends_[from].leave = absl::OkStatus();
    EXPECT_TRUE(Cross(from, 1).come.ok());
    EXPECT_TRUE(std::exchange(ends_[1].has, false));
    ends_[1].version = 1;
  }
}

TEST_F(MoveStepsTest, WhatIsRefusedGoesBack) {
  for (const uint16_t from : {uint16_t{0}, uint16_t{2}}) {
    ends_[from].has = true;
    ends_[1].arrive = absl::FailedPreconditionError("MSR 0x10a: this host refuses 0x1");
    const Crossing crossing = Cross(from, 1);
    ASSERT_TRUE(crossing.come.ok()) << crossing.come.status();
    EXPECT_EQ(crossing.come->refused, "MSR 0x10a: this host refuses 0x1");
    const uint32_t version = ends_[from].version;
    EXPECT_EQ(TakeBack(from, 1), "");
    EXPECT_TRUE(ends_[from].has);
    EXPECT_EQ(ends_[from].version, version + 1) << "one later than where it was refused";
    EXPECT_EQ(TakeBack(from, 1), "it has not left here in this move") << "it is back";
    // And it can go later.
    ends_[1].arrive = absl::OkStatus();
    EXPECT_TRUE(Cross(from, 1).come->refused.empty());
    EXPECT_TRUE(std::exchange(ends_[1].has, false));
    ends_[1].version = 1;
  }
}

TEST_F(MoveStepsTest, WhatTheSourceDoesNotHaveBackItMayBeAskedForAgain) {
  ends_[0].has = true;
  ends_[1].arrive = absl::InternalError("full");
  EXPECT_TRUE(Cross(0, 1).come.ok());
  ends_[0].arrive = absl::InternalError("broken here");
  EXPECT_EQ(TakeBack(0, 1), "broken here");
  ends_[0].arrive = absl::OkStatus();
  EXPECT_EQ(TakeBack(0, 1), "");
}

TEST_F(MoveStepsTest, AStepIsDoneOnceAndNotLate) {
  move_ = 100;
  const v1::MoveMachineVcpuRequest prepare = Request(v1::MOVE_STEP_PREPARE, 0, 1);
  EXPECT_EQ(steps_[0]->Do(prepare).refused(), "");
  EXPECT_EQ(steps_[0]->Do(prepare).refused(), "");
  EXPECT_EQ(ends_[0].prepared, 1) << "done once";
  EXPECT_EQ(steps_[0]->Do(Request(v1::MOVE_STEP_PREPARE, 0, 1)).refused(), "");
  EXPECT_EQ(steps_[0]->Do(prepare).refused(), "step 1 came after step 2");
  v1::MoveMachineVcpuRequest none = prepare;
  none.set_number(0);
  EXPECT_NE(steps_[1]->Do(none).refused(), "");
}

TEST_F(MoveStepsTest, WhatNoIoNodeAsksIsRefused) {
  move_ = 100;
  const auto refused = [&](const std::function<void(v1::MoveMachineVcpuRequest*)>& change) {
    v1::MoveMachineVcpuRequest request = Request(v1::MOVE_STEP_PREPARE, 0, 1);
    change(&request);
    return steps_[0]->Do(request).refused();
  };
  EXPECT_EQ(refused([](auto* request) { request->set_vcpu(kVcpus); }), "there is no vCPU 4");
  EXPECT_THAT(refused([](auto* request) { request->set_from_node(kMaxNodes); }), HasSubstr("from_node"));
  EXPECT_THAT(refused([](auto* request) { request->set_to_node(3); }), HasSubstr("to_node"));
  EXPECT_THAT(refused([](auto* request) { request->set_to_node(0); }), HasSubstr("not between"));
  EXPECT_THAT(refused([](auto* request) { request->set_from_node(2); }), HasSubstr("not between"));
  EXPECT_THAT(refused([](auto* request) { request->set_move(request->number()); }), HasSubstr("move"));
  EXPECT_THAT(refused([](auto* request) { request->clear_step(); }), HasSubstr("step"));
  EXPECT_EQ(ends_[0].prepared, 0);
  MoveSteps early(network_.link(0), kVcpus);
  EXPECT_THAT(early.Do(Request(v1::MOVE_STEP_PREPARE, 0, 1)).refused(), HasSubstr("not made yet"));
}

TEST_F(MoveStepsTest, OneThatIsSilentIsGivenUp) {
  ends_[0].has = true;
  MoveSteps steps(network_.link(2), kVcpus,
                  {.leave = std::chrono::milliseconds(1), .arrive = std::chrono::milliseconds(1)});
  const Crossing crossing = steps.Cross(Move(0, 1), 50);  // which nobody delivers
  EXPECT_EQ(MessageOf(crossing.left.status()), "no answer in time");
  EXPECT_EQ(MessageOf(crossing.come.status()), "no answer in time");
}

TEST_F(MoveStepsTest, ALinkThatEndsIsWaitedForNoLonger) {
  ends_[0].has = true;
  std::future<Crossing> crossing = Begin(0, 1);
  network_.link(2)->Fail(NodeId(1), "is lost");
  EXPECT_EQ(MessageOf(crossing.get().left.status()), "the machine's link has ended");
}

TEST_F(MoveStepsTest, AWordThatComesTooLateIsNothing) {
  move_ = 7;
  Give(0, 2, kMachineMoveWordType, EncodeMoveWord({.of = MoveWord::Of::kSource, .took_ns = 0, .refused = {}}));
  ends_[0].has = true;
  EXPECT_TRUE(Cross(0, 1).come.ok());
}

// Each ends the machine.
TEST_F(MoveStepsTest, AnOrderThatWasNotPrepared) {
  move_ = 7;
  Give(2, 0, kMachineMoveOrderType, EncodeMoveOrder({.vcpu = kVcpu, .to = NodeId(1)}));
  EXPECT_THAT(network_.Failure(0), HasSubstr("2: is not to be relied on: an order to let a vCPU go that was not"));
}

TEST_F(MoveStepsTest, AnOrderOfAnotherNode) {
  Prepare(0, 1);
  Give(1, 0, kMachineMoveOrderType, EncodeMoveOrder({.vcpu = kVcpu, .to = NodeId(1)}));
  EXPECT_THAT(network_.Failure(0), HasSubstr("1: is not to be relied on"));
}

TEST_F(MoveStepsTest, AnOrderToGoElsewhere) {
  Prepare(0, 1);
  Give(2, 0, kMachineMoveOrderType, EncodeMoveOrder({.vcpu = kVcpu, .to = NodeId(2)}));
  EXPECT_THAT(network_.Failure(0), HasSubstr("an order"));
}

TEST_F(MoveStepsTest, ASecondOrder) {
  ends_[0].has = true;
  Prepare(0, 1);
  for (int i = 0; i < 2; ++i) {
    Give(2, 0, kMachineMoveOrderType, EncodeMoveOrder({.vcpu = kVcpu, .to = NodeId(1)}));
  }
  EXPECT_THAT(network_.Failure(0), HasSubstr("an order"));
}

TEST_F(MoveStepsTest, APieceOfAnotherNode) {
  Prepare(0, 1);
  Give(2, 1, kMachineMovePieceType, Piece(0));
  EXPECT_THAT(network_.Failure(1), HasSubstr("2: is not to be relied on: a piece of a vCPU that is not to come"));
}

TEST_F(MoveStepsTest, APieceOfAnotherMove) {
  Prepare(0, 1);
  move_++;
  Give(0, 1, kMachineMovePieceType, Piece(0));
  EXPECT_THAT(network_.Failure(1), HasSubstr("not to come"));
}

TEST_F(MoveStepsTest, APieceTwice) {
  Prepare(0, 1);
  for (int i = 0; i < 2; ++i) Give(0, 1, kMachineMovePieceType, Piece(0));
  EXPECT_THAT(network_.Failure(1), HasSubstr("out of its order"));
}

TEST_F(MoveStepsTest, APieceToTheSource) {
  Prepare(0, 1);
  Give(1, 0, kMachineMovePieceType, Piece(0));
  EXPECT_THAT(network_.Failure(0), HasSubstr("not to come"));
}

TEST_F(MoveStepsTest, AWordOfAnotherNode) {
  ends_[0].has = true;
  std::future<Crossing> crossing = Begin(0, 1);
  network_.Deliver(2, 0, kFault);
  Give(0, 2, kMachineMoveWordType, EncodeMoveWord({.of = MoveWord::Of::kTarget, .took_ns = 0, .refused = {}}));
  EXPECT_THAT(network_.Failure(2), HasSubstr("0: is not to be relied on: a word about a move of others"));
  EXPECT_FALSE(crossing.get().come.ok());
}

TEST_F(MoveStepsTest, AWordToANodeThatHasNoMovesMade) {
  move_ = 7;
  Give(0, 1, kMachineMoveWordType, EncodeMoveWord({.of = MoveWord::Of::kSource, .took_ns = 0, .refused = {}}));
  EXPECT_THAT(network_.Failure(1), HasSubstr("has none made"));
}

}  // namespace
}  // namespace hk
