#include "hyperkernel/node/guest_agent.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/agent_answer.h"
#include "hyperkernel/node/agent_testing.h"

namespace hk {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;
using Phase = GuestAgentExec::Phase;
using End = GuestCommandResult::End;

constexpr Monotonic kStart{std::chrono::hours(1)};

GuestAgentExec Make(const GuestCommand& command = {.words = {"true"}, .input = ""}, seconds timeout = seconds(60)) {
  return *GuestAgentExec::Create(command, 100, kStart, kStart + timeout);
}

// Lets the agent answer, and time pass from one due time to the next, until the command has ended.
Monotonic RunToEnd(GuestAgentExec* exec, FakeAgent* agent, Monotonic now = kStart) {
  for (int i = 0; i < 10000 && !exec->finished(); i++) {
    if (const std::string sent = exec->TakeOutput(); !sent.empty()) {
      if (const std::string answer = agent->Answer(sent); !answer.empty()) {
        exec->OnBytes(answer, now);
        continue;
      }
    }
    now = std::max(now, exec->next_time());
    exec->OnTime(now);
  }
  EXPECT_TRUE(exec->finished());
  return now;
}

// Brings it to kStarting or kRunning.
void Sync(GuestAgentExec* exec) {
  exec->TakeOutput();
  exec->OnBytes("\xff{\"return\": 101}\n", kStart);
  ASSERT_EQ(exec->phase(), Phase::kStarting);
  exec->TakeOutput();
}
void StartCommand(GuestAgentExec* exec) {
  Sync(exec);
  exec->OnBytes("{\"return\": {\"pid\": 7}}\n", kStart);
  ASSERT_EQ(exec->phase(), Phase::kRunning);
  exec->OnTime(exec->next_time());
  ASSERT_THAT(exec->TakeOutput(), HasSubstr("guest-exec-status"));
}

TEST(GuestAgentExec, ACommandRunsToItsEnd) {
  GuestAgentExec exec = Make({.words = {"sh", "-c", "echo \"x\""}, .input = "in\n"});
  FakeAgent agent;
  agent.statuses = {R"({"return": {"exited": false}})", R"({"return": {"exited": false}})",
                    FakeAgent::Exited(3, "out\n", std::string("e\0\xff", 3))};
  RunToEnd(&exec, &agent);
  ASSERT_EQ(exec.phase(), Phase::kDone) << exec.failure();
  EXPECT_EQ(exec.result().end, End::kExited);
  EXPECT_EQ(exec.result().number, 3);
  EXPECT_EQ(exec.result().output, "out\n");
  EXPECT_EQ(exec.result().error_output, std::string("e\0\xff", 3));
  EXPECT_EQ(agent.last_exec,
            R"({"arguments":{"arg":["-c","echo \"x\""],"capture-output":true,"input-data":"aW4K","path":"sh"},)"
            R"("execute":"guest-exec"})");
}

TEST(GuestAgentExec, AnythingBeforeTheLastSynchronisationIsSkipped) {
  GuestAgentExec exec = Make();
  EXPECT_EQ(exec.TakeOutput(), "\xff{\"arguments\":{\"id\":101},\"execute\":\"guest-sync-delimited\"}\n");
  exec.OnBytes("half of an answer\xff{\"return\": {\"pid\": 1}}\n{\"return\": 5}\n{\"error\": {\"class\": \"x\"}}\n\n",
               kStart);
  exec.OnBytes(std::string(1 << 20, 'x') + "\n", kStart);  // longer than any answer that matters here
  EXPECT_EQ(exec.phase(), Phase::kSync);
  exec.OnTime(exec.next_time());
  EXPECT_THAT(exec.TakeOutput(), HasSubstr("\"id\":102"));
  exec.OnBytes("\xff{\"return\": 101}\n", kStart);
  EXPECT_EQ(exec.phase(), Phase::kSync) << "the answer to the first one leaves the second one's to come";
  exec.OnBytes("\xff{\"ret", kStart);
  exec.OnBytes("urn\": 102}\r\n", kStart);
  EXPECT_EQ(exec.phase(), Phase::kStarting);
  EXPECT_THAT(exec.TakeOutput(), HasSubstr("guest-exec"));
}

TEST(GuestAgentExec, AnAgentThatTakesSecondsIsWaitedFor) {
  GuestAgentExec exec = Make();
  Monotonic now = kStart;
  std::vector<std::pair<Monotonic, std::string>> sent;
  while (exec.phase() == Phase::kSync) {
    if (const std::string bytes = exec.TakeOutput(); !bytes.empty()) sent.push_back({now, bytes});
    now += milliseconds(100);
    ASSERT_LT(now - kStart, GuestAgentExec::kSyncDeadline);
    FakeAgent agent;
    if (!sent.empty() && now - sent.front().first >= milliseconds(1500)) {
      exec.OnBytes(agent.Answer(sent.front().second), now);
      sent.erase(sent.begin());
    }
    if (exec.phase() == Phase::kSync && now >= exec.next_time()) exec.OnTime(now);
  }
  EXPECT_EQ(exec.phase(), Phase::kStarting);
}

TEST(GuestAgentExec, NoAgentIsOneLineThatSaysWhatToDo) {
  FakeAgent agent;
  agent.silent = true;
  GuestAgentExec exec = Make();
  EXPECT_EQ(RunToEnd(&exec, &agent) - kStart, GuestAgentExec::kSyncDeadline);
  EXPECT_EQ(exec.failure().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(exec.failure()), HasSubstr("did not answer within 10 s"));
  EXPECT_THAT(MessageOf(exec.failure()), HasSubstr("qemu-guest-agent installed"));
  GuestAgentExec impatient = Make({.words = {"true"}, .input = ""}, seconds(2));
  EXPECT_EQ(RunToEnd(&impatient, &agent) - kStart, seconds(2));
  EXPECT_THAT(MessageOf(impatient.failure()), HasSubstr("did not answer within 2 s"));
}

TEST(GuestAgentExec, AnswersToGuestExec) {
  const struct {
    const char* line;
    Phase phase;
    const char* text;  // in the failure, or the reason of a command not started
  } kTable[] = {
      {R"({"return": {"pid": 5}})", Phase::kRunning, ""},
      {R"({"return": {"pid": 5, "new": [{"pid": 6}, []], "x": {"pid": "y"}}})", Phase::kRunning, ""},
      {R"({"error": {"class": "GenericError", "desc": "Failed to execute child process “x”"}})", Phase::kDone,
       "Failed to execute"},
      {R"({"error": {"class": "CommandNotFound", "desc": "has been disabled"}})", Phase::kFailed, "has been disabled"},
      {R"({"error": {}})", Phase::kDone, ""},
      {R"({"error": 5})", Phase::kFailed, "no process"},
      {R"({"return": {}})", Phase::kFailed, "no process"},
      {R"({"return": 5})", Phase::kFailed, "no process"},
      {R"({"return": {"pid": "5"}})", Phase::kFailed, "no process"},
      {R"({"return": {"pid": 5.5}})", Phase::kFailed, "no process"},
      {R"({"return": {"pid": 18446744073709551615}})", Phase::kFailed, "no process"},
      {R"({"return": [{"pid": 5}]})", Phase::kFailed, "no process"},
      {R"({})", Phase::kFailed, "no process"},
      {R"([])", Phase::kFailed, "makes no sense"},
      {R"(5)", Phase::kFailed, "makes no sense"},
      {R"({"return": {"pid": 5}} {})", Phase::kFailed, "makes no sense"},
      {R"({"return": {"pid": 5})", Phase::kFailed, "makes no sense"},
      {R"(nonsense)", Phase::kFailed, "makes no sense"},
      {"{\"return\": {\"pid\": 5}, \"x\": \"\xc0\"}", Phase::kFailed, "makes no sense"},
      {R"({"x":{"x":{"x":{"x":{"x":{"x":{"x":{"x":{"x":1}}}}}}}}})", Phase::kFailed, "makes no sense"},
  };
  for (const auto& [line, phase, text] : kTable) {
    GuestAgentExec exec = Make();
    Sync(&exec);
    exec.OnBytes(std::string(line) + "\n", kStart);
    EXPECT_EQ(exec.phase(), phase) << line;
    if (phase == Phase::kFailed) {
      EXPECT_THAT(MessageOf(exec.failure()), HasSubstr(text)) << line;
    }
    if (phase == Phase::kDone) {
      EXPECT_EQ(exec.result().end, End::kNotStarted) << line;
      EXPECT_THAT(exec.result().reason, HasSubstr(text)) << line;
    }
  }
}

TEST(GuestAgentExec, AnswersToGuestExecStatus) {
  const struct {
    const char* line;
    Phase phase;
    int number;
    const char* text;
  } kTable[] = {
      {R"({"return": {"exited": false}})", Phase::kRunning, 0, ""},
      {R"({"return": {"exited": true, "exitcode": 255}})", Phase::kDone, 255, ""},
      {R"({"return": {"exited": true, "signal": 9, "exitcode": 0}})", Phase::kDone, 9, ""},
      {R"({"return": {"exited": true, "exitcode": 0, "out-data": "eA==", "out-truncated": true}})", Phase::kDone, 0,
       ""},
      {R"({"return": {"exited": true, "exitcode": 256}})", Phase::kFailed, 0, "neither an exit status"},
      {R"({"return": {"exited": true, "exitcode": -1}})", Phase::kFailed, 0, "neither an exit status"},
      {R"({"return": {"exited": true, "signal": 0}})", Phase::kFailed, 0, "neither an exit status"},
      {R"({"return": {"exited": true, "signal": 65}})", Phase::kFailed, 0, "neither an exit status"},
      {R"({"return": {"exited": true}})", Phase::kFailed, 0, "neither an exit status"},
      {R"({"return": {"exited": true, "exitcode": 0, "out-data": "?"}})", Phase::kFailed, 0, "not base64"},
      {R"({"return": {"exited": true, "exitcode": 0, "err-data": "a"}})", Phase::kFailed, 0, "not base64"},
      {R"({"return": {"exited": 1}})", Phase::kFailed, 0, "no 'exited'"},
      {R"({"return": {}})", Phase::kFailed, 0, "no 'exited'"},
      {R"({"error": {"class": "GenericError", "desc": "PID 7 does not exist"}})", Phase::kFailed, 0, "PID 7"},
      {R"(nonsense)", Phase::kFailed, 0, "makes no sense"},
  };
  for (const auto& [line, phase, number, text] : kTable) {
    GuestAgentExec exec = Make();
    StartCommand(&exec);
    exec.OnBytes(std::string(line) + "\n", kStart);
    EXPECT_EQ(exec.phase(), phase) << line;
    if (phase == Phase::kFailed) {
      EXPECT_THAT(MessageOf(exec.failure()), HasSubstr(text)) << line;
    }
    if (phase == Phase::kDone) {
      EXPECT_EQ(exec.result().number, number) << line;
      EXPECT_EQ(exec.result().end == End::kSignalled, number == 9) << line;
      EXPECT_EQ(exec.result().output_truncated, std::string(line).find("truncated") != std::string::npos);
    }
  }
}

TEST(GuestAgentExec, LinesHaveABound) {
  GuestAgentExec starting = Make();
  Sync(&starting);
  starting.OnBytes("{\"return\": {\"pid\": 5, \"x\": \"", kStart);
  starting.OnBytes(std::string(GuestAgentExec::kMaxShortAnswerBytes, 'x') + "\"}}\n", kStart);
  EXPECT_EQ(starting.phase(), Phase::kFailed);
  EXPECT_THAT(MessageOf(starting.failure()), HasSubstr("longer than"));

  GuestAgentExec running = Make();
  StartCommand(&running);
  const std::string piece(1 << 20, 'x');
  for (size_t bytes = 0; bytes <= GuestAgentExec::kMaxAnswerBytes; bytes += piece.size())
    running.OnBytes(piece, kStart);
  EXPECT_EQ(running.phase(), Phase::kRunning) << "a line that has not ended is no answer yet";
  running.OnBytes("\n", kStart);
  EXPECT_THAT(MessageOf(running.failure()), HasSubstr("longer than"));
}

TEST(GuestAgentExec, TheMostThatAnAgentKeepsFits) {
  GuestAgentExec exec = Make();
  FakeAgent agent;
  const std::string output(16 << 20, 'o');
  agent.statuses = {FakeAgent::Exited(0, output, output)};
  RunToEnd(&exec, &agent);
  ASSERT_EQ(exec.phase(), Phase::kDone) << exec.failure();
  EXPECT_TRUE(exec.result().output == output && exec.result().error_output == output);
}

TEST(GuestAgentExec, ManyMembersAreNoAnswer) {
  std::string line = R"({"return": [0)";
  for (int i = 0; i < 1000; i++) line += ",0";
  EXPECT_FALSE(ParseAgentAnswer(line + "]}").ok());
  EXPECT_FALSE(ParseAgentAnswer(std::string(100000, '[')).ok());
}

TEST(GuestAgentExec, TheAgentsWordsAreCutBetweenCharacters) {
  GuestAgentExec exec = Make();
  Sync(&exec);
  std::string words = "x";
  while (words.size() < 2000) words += "ä";
  exec.OnBytes(R"({"error": {"class": "GenericError", "desc": ")" + words + "\"}}\n", kStart);
  ASSERT_EQ(exec.phase(), Phase::kDone);
  const std::string& reason = exec.result().reason;
  EXPECT_LT(reason.size(), 600u);
  EXPECT_EQ(reason.substr(0, reason.size() - 3), words.substr(0, reason.size() - 3));
  EXPECT_EQ(reason.size() % 2, 0u) << "one byte, whole characters of two, three dots";
}

TEST(GuestAgentExec, PollsSlowDown) {
  GuestAgentExec exec = Make({.words = {"sleep"}, .input = ""}, seconds(60));
  FakeAgent agent;
  agent.statuses = {R"({"return": {"exited": false}})"};
  int polls = 0;
  Monotonic now = kStart;
  while (!exec.finished()) {
    const std::string sent = exec.TakeOutput();
    polls += sent.find("guest-exec-status") != std::string::npos ? 1 : 0;
    exec.OnBytes(agent.Answer(sent), now);
    if (!sent.empty()) continue;
    now = exec.next_time();
    exec.OnTime(now);
  }
  EXPECT_GT(polls, 60);
  EXPECT_LT(polls, 200);
  EXPECT_EQ(now - kStart, seconds(60));
  EXPECT_EQ(exec.failure().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(MessageOf(exec.failure()), HasSubstr("still runs after 60 s"));
  EXPECT_THAT(MessageOf(exec.failure()), HasSubstr("process 7 of the guest"));
}

TEST(GuestAgentExec, AnAgentThatStopsAnsweringIsGivenUp) {
  GuestAgentExec starting = Make();
  Sync(&starting);
  starting.OnTime(starting.next_time());
  EXPECT_THAT(MessageOf(starting.failure()), HasSubstr("stopped answering"));
  GuestAgentExec running = Make();
  StartCommand(&running);
  running.OnTime(running.next_time());
  EXPECT_THAT(MessageOf(running.failure()), HasSubstr("stopped answering"));
  GuestAgentExec impatient = Make({.words = {"true"}, .input = ""}, seconds(5));
  Sync(&impatient);
  impatient.OnTime(impatient.next_time());
  EXPECT_THAT(MessageOf(impatient.failure()), HasSubstr("no answer to guest-exec within 5 s"));
}

TEST(GuestAgentExec, CommandsThatCannotBeSentAreRefused) {
  const struct {
    GuestCommand command;
    const char* text;
  } kTable[] = {
      {{.words = {}, .input = ""}, "is empty"},
      {{.words = {""}, .input = ""}, "is empty"},
      {{.words = {std::string("a\0b", 3)}, .input = ""}, "zero byte"},
      {{.words = {"echo", "\xff"}, .input = ""}, "not UTF-8"},
      {{.words = {"echo", std::string(GuestAgentExec::kMaxWordBytes, 'x')}, .input = ""}, "at most"},
      {{.words = {"cat"}, .input = std::string(GuestAgentExec::kMaxInputBytes + 1, 'x')}, "standard input"},
  };
  for (const auto& [command, text] : kTable) {
    const auto exec = GuestAgentExec::Create(command, 1, kStart, kStart);
    EXPECT_EQ(exec.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(MessageOf(exec.status()), HasSubstr(text));
  }
}

}  // namespace
}  // namespace hk
