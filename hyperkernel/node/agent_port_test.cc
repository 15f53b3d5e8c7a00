#include "hyperkernel/node/agent_port.h"

#include <atomic>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/agent_testing.h"

namespace hk {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;

bool Never() {
  return false;
}

class AgentPortTest : public testing::Test {
 protected:
  AgentPortTest() { port_.Begin(); }
  // As the device does it: some bytes at a time, and the answer from within.
  absl::StatusOr<GuestCommandResult> Run(const std::function<bool()>& cancelled = Never,
                                         seconds timeout = seconds(60)) {
    return RunGuestCommand(
        {.words = {"true"}, .input = ""}, &port_, [this](std::string_view bytes) { return Send(bytes); }, timeout,
        cancelled, RealClock());
  }
  absl::StatusOr<size_t> Send(std::string_view bytes) {
    if (!send_.ok()) return send_;
    const size_t taken = std::min(bytes.size(), room_);
    port_.Deliver(agent_.Answer(bytes.substr(0, taken)));
    return taken;
  }

  AgentPort port_;
  FakeAgent agent_;
  size_t room_ = 1000;
  absl::Status send_;
};

TEST_F(AgentPortTest, RunsACommand) {
  agent_.statuses = {R"({"return": {"exited": false}})", FakeAgent::Exited(5, "out")};
  const auto result = Run();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->number, 5);
  EXPECT_EQ(result->output, "out");
}

TEST_F(AgentPortTest, AChannelWithLittleRoomIsOfferedTheRest) {
  room_ = 7;
  const auto result = Run();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->number, 0);
}

TEST_F(AgentPortTest, TheEndOfTheRunEndsTheCommand) {
  agent_.statuses = {R"({"return": {"exited": false}})"};
  std::atomic<int> asked{0};
  const auto result = Run([&] {
    if (++asked == 5) port_.End();
    return false;
  });
  EXPECT_THAT(MessageOf(result.status()), HasSubstr("run has ended"));
  EXPECT_THAT(MessageOf(Run().status()), HasSubstr("run has ended"));
  port_.Begin();
  agent_.statuses = {FakeAgent::Exited(0)};
  EXPECT_TRUE(Run().ok());
}

TEST_F(AgentPortTest, AResetEndsTheCommandToo) {
  agent_.statuses = {R"({"return": {"exited": false}})"};
  std::atomic<int> asked{0};
  const auto result = Run([&] {
    if (++asked == 5) port_.Begin();
    return false;
  });
  EXPECT_THAT(MessageOf(result.status()), HasSubstr("run has ended"));
}

TEST_F(AgentPortTest, ACancelledCommandFreesTheAgent) {
  agent_.statuses = {R"({"return": {"exited": false}})"};
  std::atomic<int> asked{0};
  EXPECT_EQ(Run([&] { return ++asked > 5; }).status().code(), absl::StatusCode::kCancelled);
  agent_.statuses = {FakeAgent::Exited(0)};
  EXPECT_TRUE(Run().ok());
}

TEST_F(AgentPortTest, AGuestThatDoesNotRunIsTold) {
  send_ = absl::FailedPreconditionError("vm 'g' is stopped");
  EXPECT_EQ(MessageOf(Run().status()), "vm 'g' is stopped");
}

TEST_F(AgentPortTest, OneTalksAndTheNextWaits) {
  auto first = port_.Take(RealClock().Now(), Never);
  ASSERT_TRUE(first.ok());
  const auto late = port_.Take(RealClock().Now(), Never);
  EXPECT_THAT(MessageOf(late.status()), HasSubstr("another command"));
  EXPECT_EQ(port_.Take(RealClock().Now() + seconds(60), [] { return true; }).status().code(),
            absl::StatusCode::kCancelled);
  std::atomic<bool> waits{false};
  absl::StatusOr<GuestCommandResult> result;
  std::thread second([&] {
    result = Run([&] {
      waits = true;
      return false;
    });
  });
  while (!waits) std::this_thread::yield();
  first->reset();
  second.join();
  EXPECT_TRUE(result.ok()) << result.status();
}

TEST_F(AgentPortTest, OnlyWhoListensIsToldAndWithinABound) {
  port_.Deliver("before");
  EXPECT_EQ(port_.said_bytes(), 6u);
  auto turn = port_.Take(RealClock().Now(), Never);
  ASSERT_TRUE(turn.ok());
  EXPECT_EQ(*(*turn)->Receive(RealClock().Now()), "");
  port_.Deliver("now");
  EXPECT_EQ(*(*turn)->Receive(RealClock().Now()), "now");
  const std::string much(1 << 20, 'x');
  for (size_t i = 0; i <= AgentPort::kMaxUnreadBytes / much.size(); i++) port_.Deliver(much);
  EXPECT_THAT(MessageOf((*turn)->Receive(RealClock().Now()).status()), HasSubstr("more than an answer"));
}

TEST_F(AgentPortTest, ABadCommandIsRefusedBeforeAnybodyIsAsked) {
  const auto turn = port_.Take(RealClock().Now(), Never);
  const auto result = RunGuestCommand(
      {}, &port_, [this](std::string_view bytes) { return Send(bytes); }, seconds(60), Never, RealClock());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace hk
