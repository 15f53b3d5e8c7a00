// What a coordinator makes of a node that joins: whatever it says, and whatever comes between, costs nobody but it
// until its epoch holds.

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/node/guest_space_testing.h"
#include "hyperkernel/node/space_peers_testing.h"
#include "hyperkernel/node/space_recovery.h"

namespace hk {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Answer = absl::StatusOr<v1::ChangeSpaceEpochResponse>;

constexpr uint64_t kId = 5;
constexpr NodeId kA(0), kB(1), kC(2), kD(3);
const char* const kStep[] = {"", "begin", "rebuild", "commit", "run", "prepare"};

Answer Lost(NodeId node) {
  v1::ChangeSpaceEpochResponse response;
  response.add_lost(node.value());
  response.set_reason("it is gone");
  return response;
}

// A space of a, which coordinates it, b and c; d joins.
class RecoveryJoinTest : public testing::Test {
 protected:
  RecoveryJoinTest() {
    space_.identity = {.name = "pool",
                       .id = kId,
                       .bytes = 1 << 20,
                       .members = {{"a", kA}, {"b", kB}, {"c", kC}},
                       .coordinator = "a",
                       .created = {}};
    auto part = SpacePart::Attach(
        space_.identity, kA,
        [this](GuestSpace::Options options) { return std::make_unique<FakeSpace>(std::move(options), &host_); },
        RealClock());
    space_.part = *std::move(part);
    const auto find = [this](uint64_t id) {
      while (held_) std::this_thread::yield();
      return id == kId && !deleted_ ? std::optional(space_) : std::nullopt;
    };
    recovery_ = std::make_unique<SpaceRecovery>("a", find, &peers_, RealClock(),
                                                [this](uint64_t id, const std::vector<SpaceMemberId>& members) {
                                                  EXPECT_EQ(id, kId);
                                                  EXPECT_EQ(ends_, 0) << "members are known before the join ends";
                                                  members_ = members.size();
                                                });
  }
  ~RecoveryJoinTest() override { recovery_->Stop(); }

  void Join(NodeId node, uint64_t epoch) {
    ends_ = 0;
    recovery_->OnJoin(space_, {std::string(1, static_cast<char>('a' + node.value())), node}, epoch,
                      [this](const absl::Status& how) {
                        {
                          MutexLock lock(&mutex_);
                          how_ = how;
                        }
                        ends_++;
                      });
  }
  template <typename Condition>
  static bool Until(const Condition& condition) {
    const Monotonic limit = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!condition() && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
    return condition();
  }
  absl::Status How() {
    EXPECT_TRUE(Until([&] { return ends_ > 0; }));
    MutexLock lock(&mutex_);
    return how_;
  }
  bool Idle() {
    return Until([&] { return !recovery_->IsBusy(kId); });
  }
  // It is over, nobody was given up, and the others go on by `epoch` (0: none has begun).
  void ExpectOnlyTheJoinIsOver(uint64_t epoch) {
    EXPECT_FALSE(How().ok());
    ASSERT_TRUE(Idle());
    EXPECT_EQ(ends_, 1);
    EXPECT_FALSE(space_.part->stop().has_value()) << space_.part->stop()->why;
    EXPECT_THAT(space_.part->losses(), IsEmpty());
    EXPECT_EQ(members_, 0u);
    const std::vector<v1::ChangeSpaceEpochRequest> all = peers_.all();
    if (epoch == 0) {
      for (const auto& request : all) EXPECT_EQ(request.step(), v1::SPACE_EPOCH_STEP_PREPARE);
      return;
    }
    EXPECT_EQ(all.back().epoch(), epoch);
    EXPECT_EQ(all.back().step(), v1::SPACE_EPOCH_STEP_RUN);
    EXPECT_THAT(all.back().survivors(), ElementsAre(0, 1, 2));
    EXPECT_THAT(all.back().joined(), IsEmpty());
    EXPECT_THAT(all.back().gone(), ElementsAre(3)) << "it is not called lost";
    EXPECT_EQ(all.back().members_size(), 3);
    for (const auto& request : all) {
      if (request.epoch() < epoch) {
        EXPECT_NE(request.step(), v1::SPACE_EPOCH_STEP_COMMIT);
      }
    }
  }

  FakeSpacePeers peers_;
  FakeHost host_;
  SpaceRecovery::Space space_;
  std::atomic<bool> deleted_{false}, held_{false};
  std::atomic<int> ends_{0};
  std::atomic<size_t> members_{0};
  Mutex mutex_;
  absl::Status how_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<SpaceRecovery> recovery_;
};

TEST_F(RecoveryJoinTest, ANodeTakesPartFromTheNextEpochOn) {
  const auto history = recovery_->HistoryOf(space_);
  ASSERT_TRUE(history.ok());
  EXPECT_EQ(history->epoch, 1u);
  EXPECT_THAT(history->committed, ElementsAre(NodeSet(0b111)));
  Join(kD, 1);
  EXPECT_TRUE(How().ok()) << How();
  EXPECT_EQ(members_, 4u);
  ASSERT_TRUE(Idle());
  const std::vector<v1::ChangeSpaceEpochRequest> all = peers_.all();
  ASSERT_EQ(all.size(), 15u);
  for (size_t i = 0; i < 15; ++i) {
    static constexpr v1::SpaceEpochStep kOrder[] = {v1::SPACE_EPOCH_STEP_PREPARE, v1::SPACE_EPOCH_STEP_BEGIN,
                                                    v1::SPACE_EPOCH_STEP_REBUILD, v1::SPACE_EPOCH_STEP_COMMIT,
                                                    v1::SPACE_EPOCH_STEP_RUN};
    EXPECT_EQ(all[i].step(), kOrder[i / 3]) << i;
    EXPECT_THAT(all[i].joined(), ElementsAre(3));
    EXPECT_THAT(all[i].survivors(), ElementsAre(0, 1, 2, 3));
  }
  EXPECT_EQ(ends_, 1);
  const auto now = recovery_->HistoryOf(space_);
  ASSERT_TRUE(now.ok());
  EXPECT_EQ(now->epoch, 2u);
  EXPECT_EQ(now->members.size(), 4u);
  EXPECT_THAT(now->committed, ElementsAre(NodeSet(0b1111))) << "what says nothing is not kept";
  // It is a member like any other.
  recovery_->OnLost(kId, kD);
  peers_.CallsUntil("c 4 of 3");
  ASSERT_TRUE(Idle());
  ASSERT_EQ(space_.part->losses().size(), 1u);
  EXPECT_FALSE(space_.part->losses()[0].left);
}

// An answer of the joiner, or of a member about it, at each step before COMMIT.
struct BadAnswer {
  const char* who;
  v1::SpaceEpochStep step;
  const char* what;
  std::function<Answer()> answer;
};

std::vector<BadAnswer> BadAnswers() {
  std::vector<BadAnswer> bad;
  for (const auto step : {v1::SPACE_EPOCH_STEP_PREPARE, v1::SPACE_EPOCH_STEP_BEGIN, v1::SPACE_EPOCH_STEP_REBUILD}) {
    bad.push_back({"d", step, "stopped", [] { return absl::FailedPreconditionError("it has stopped"); }});
    bad.push_back({"d", step, "exhausted", [] { return absl::ResourceExhaustedError("too many"); }});
    bad.push_back({"d", step, "internal", [] { return absl::InternalError("it was not rebuilt"); }});
    bad.push_back({"d", step, "denied", [] { return absl::PermissionDeniedError("who are you"); }});
    bad.push_back({"d", step, "silent", [] { return absl::UnavailableError("no answer"); }});
    bad.push_back({"d", step, "late", [] { return absl::DeadlineExceededError("no answer in time"); }});
    bad.push_back({"d", step, "unknown", [] { return absl::NotFoundError("no such space"); }});
    bad.push_back({"d", step, "lost_b", [] { return Lost(kB); }});
    bad.push_back({"b", step, "lost_d", [] { return Lost(kD); }});
    // What is wrong with a member is found out without the joiner, if it is so still.
    bad.push_back({"b", step, "lost_c", [] { return Lost(kC); }});
    bad.push_back({"b", step, "member_silent", [] { return absl::UnavailableError("no answer"); }});
  }
  return bad;
}

class BadAnswerTest : public RecoveryJoinTest, public testing::WithParamInterface<BadAnswer> {};

TEST_P(BadAnswerTest, CostsOnlyTheJoiner) {
  peers_.answers.emplace(fmt::format("{} {}", GetParam().who, static_cast<int>(GetParam().step)), GetParam().answer());
  Join(kD, 1);
  ExpectOnlyTheJoinIsOver(GetParam().step == v1::SPACE_EPOCH_STEP_PREPARE ? 0 : 3);
  EXPECT_THAT(How().ToString(), HasSubstr(fmt::format("node '{}'", GetParam().who)));
  // It may come again.
  const auto history = recovery_->HistoryOf(space_);
  ASSERT_TRUE(history.ok()) << history.status();
  Join(kD, history->epoch);
  EXPECT_TRUE(How().ok()) << How();
  ASSERT_TRUE(Idle());
  EXPECT_THAT(peers_.last().gone(), IsEmpty());
  EXPECT_THAT(space_.part->losses(), IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(Answers, BadAnswerTest, testing::ValuesIn(BadAnswers()), [](const auto& param) {
  return fmt::format("{}_{}_at_{}", param.param.who, param.param.what, kStep[param.param.step]);
});

TEST_F(RecoveryJoinTest, ItsLossBeforeCommitCostsOnlyIt) {
  peers_.before = [this](const std::string& call) {
    if (call == "b 2 of 2") recovery_->OnLost(kId, kD);
  };
  Join(kD, 1);
  ExpectOnlyTheJoinIsOver(3);
  EXPECT_THAT(How().ToString(), HasSubstr("node 'd' was lost"));
  // A word that came late: it is none of the space's.
  recovery_->OnTold(kId, kB, kD);
  EXPECT_FALSE(recovery_->IsBusy(kId));
}

TEST_F(RecoveryJoinTest, AfterCommitItsLossIsOne) {
  peers_.answers.emplace("d 3", absl::UnavailableError("node 'd' does not answer"));
  Join(kD, 1);
  EXPECT_TRUE(How().ok()) << How();
  peers_.CallsUntil("c 4 of 3");
  ASSERT_TRUE(Idle());
  EXPECT_THAT(peers_.last().survivors(), ElementsAre(0, 1, 2));
  EXPECT_THAT(peers_.last().gone(), IsEmpty());
  EXPECT_EQ(peers_.last().committed(), 2u);
  ASSERT_EQ(space_.part->losses().size(), 1u);
  EXPECT_TRUE(space_.part->losses()[0].node == kD && !space_.part->losses()[0].left);
}

// What another one is told of the space must be all of one epoch: nothing is told while one changes.
TEST_F(RecoveryJoinTest, NobodyElseIsAskedInMeanwhile) {
  absl::Status history, second;
  peers_.before = [&](const std::string& call) {
    if (call != "b 2 of 2") return;
    history = recovery_->HistoryOf(space_).status();
    recovery_->OnJoin(space_, {"e", NodeId(4)}, 2, [&](const absl::Status& how) { second = how; });
  };
  Join(kD, 1);
  EXPECT_TRUE(How().ok()) << How();
  ASSERT_TRUE(Idle());
  EXPECT_TRUE(absl::IsAborted(history)) << history;
  EXPECT_TRUE(absl::IsAborted(second)) << second;
  // One that attached with what was so before.
  Join(NodeId(4), 1);
  EXPECT_TRUE(absl::IsAborted(How())) << How();
  EXPECT_FALSE(recovery_->IsBusy(kId));
}

// Another change that is queued with it comes first, and the joiner knows only what was before that.
TEST_F(RecoveryJoinTest, AnotherNodeThatLeavesComesFirst) {
  held_ = true;
  Join(kD, 1);
  recovery_->OnEmpty(kId, kC);
  held_ = false;
  EXPECT_TRUE(absl::IsAborted(How())) << How();
  ASSERT_TRUE(Idle());
  EXPECT_EQ(peers_.last().epoch(), 2u);
  EXPECT_THAT(peers_.last().survivors(), ElementsAre(0, 1));
  EXPECT_FALSE(space_.part->stop().has_value());
}

TEST_F(RecoveryJoinTest, ALossComesFirst) {
  held_ = true;
  Join(kD, 1);
  recovery_->OnLost(kId, kC);
  held_ = false;
  EXPECT_TRUE(absl::IsAborted(How())) << How();
  ASSERT_TRUE(Idle());
  EXPECT_EQ(peers_.last().epoch(), 2u);
  EXPECT_THAT(peers_.last().survivors(), ElementsAre(0, 1));
  EXPECT_THAT(peers_.last().gone(), IsEmpty());
}

TEST_F(RecoveryJoinTest, ALossMeanwhileEndsIt) {
  peers_.before = [this](const std::string& call) {
    if (call == "b 1 of 2") recovery_->OnTold(kId, kB, kC);
  };
  Join(kD, 1);
  EXPECT_FALSE(How().ok());
  ASSERT_TRUE(Idle());
  EXPECT_EQ(peers_.last().epoch(), 3u);
  EXPECT_THAT(peers_.last().survivors(), ElementsAre(0, 1));
  EXPECT_THAT(peers_.last().gone(), ElementsAre(3));
  ASSERT_EQ(space_.part->losses().size(), 1u);
  EXPECT_EQ(space_.part->losses()[0].node, kC);
}

// One that was lost and comes again, and is lost again before it takes part: its loss is the old one.
TEST_F(RecoveryJoinTest, ALostNodeThatDoesNotComeAgain) {
  recovery_->OnLost(kId, kC);
  peers_.CallsUntil("b 4 of 2");
  ASSERT_TRUE(Idle());
  ASSERT_EQ(space_.part->losses().size(), 1u);
  const SpacePart::Loss before = space_.part->losses()[0];
  for (const bool silent : {true, false}) {
    if (silent) {
      peers_.answers.emplace("c 1", absl::NotFoundError("no such space"));
    } else {
      peers_.before = [this](const std::string& call) {
        if (call.rfind("c 2", 0) == 0) recovery_->OnLost(kId, kC);
      };
    }
    Join(kC, recovery_->HistoryOf(space_)->epoch);
    EXPECT_FALSE(How().ok());
    ASSERT_TRUE(Idle());
    EXPECT_EQ(peers_.last().step(), v1::SPACE_EPOCH_STEP_RUN);
    EXPECT_THAT(peers_.last().survivors(), ElementsAre(0, 1));
    EXPECT_EQ(peers_.last().committed(), silent ? 2u : 4u);
    ASSERT_EQ(space_.part->losses().size(), 1u);
    EXPECT_EQ(space_.part->losses()[0].epoch, before.epoch);
    EXPECT_EQ(space_.part->losses()[0].since, before.since);
    EXPECT_FALSE(space_.part->losses()[0].left);
  }
  // Its word does not count before it is a member again.
  peers_.before = [this](const std::string& call) {
    if (call.rfind("c 2", 0) == 0) recovery_->OnTold(kId, kC, kB);
  };
  Join(kC, recovery_->HistoryOf(space_)->epoch);
  EXPECT_TRUE(How().ok()) << How();
  ASSERT_TRUE(Idle());
  EXPECT_THAT(space_.part->losses(), IsEmpty());
  EXPECT_EQ(members_, 3u);
}

TEST_F(RecoveryJoinTest, ItIsWithdrawnBeforeCommitOrNotAtAll) {
  peers_.before = [this](const std::string& call) {
    if (call == "b 2 of 2") recovery_->EndJoin(kId, absl::DeadlineExceededError("too late"));
  };
  Join(kD, 1);
  ExpectOnlyTheJoinIsOver(3);
  EXPECT_TRUE(absl::IsDeadlineExceeded(How()));
  peers_.before = [this](const std::string& call) {
    if (call == "b 3 of 4") recovery_->EndJoin(kId, absl::DeadlineExceededError("too late"));
  };
  Join(kD, 3);
  EXPECT_TRUE(How().ok()) << How();
  ASSERT_TRUE(Idle());
  EXPECT_EQ(ends_, 1);
  EXPECT_EQ(members_, 4u);
}

TEST_F(RecoveryJoinTest, TheSpaceIsDeletedMeanwhile) {
  peers_.before = [this](const std::string& call) {
    if (call == "b 1 of 2") deleted_ = true;
  };
  peers_.answers.emplace("d 1", absl::FailedPreconditionError("the space is being deleted"));
  Join(kD, 1);
  EXPECT_FALSE(How().ok());
  EXPECT_TRUE(Idle());
  EXPECT_EQ(ends_, 1);
  // Before it began.
  Join(kD, 1);
  EXPECT_FALSE(How().ok());
}

TEST_F(RecoveryJoinTest, TheDaemonStopsMeanwhile) {
  std::atomic<bool> stopping{false};
  peers_.before = [&](const std::string& call) {
    if (call == "b 1 of 2") stopping = true;
  };
  Join(kD, 1);
  EXPECT_TRUE(Until([&] { return stopping.load(); }));
  recovery_->Stop();
  EXPECT_EQ(ends_, 1);
  Join(kD, 1);
  EXPECT_TRUE(absl::IsAborted(How()));
}

}  // namespace
}  // namespace hk
