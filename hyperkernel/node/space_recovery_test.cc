// What a coordinator asks of whom, and in which order, when nodes are lost; with engines that note what they are told.
#include "hyperkernel/node/space_recovery.h"

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/node/guest_space_testing.h"
#include "hyperkernel/node/space_peers_testing.h"

namespace hk {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using FakePeers = FakeSpacePeers;

constexpr uint64_t kId = 5;
constexpr NodeId kA(0), kB(1), kC(2), kD(3);

class NodeSpaceRecoveryTest : public testing::Test {
 protected:
  void Make(const std::string& coordinator) {
    space_.identity = {.name = "pool",
                       .id = kId,
                       .bytes = 1 << 20,
                       .members = {{"a", kA}, {"b", kB}, {"c", kC}, {"d", kD}},
                       .coordinator = coordinator,
                       .created = {}};
    auto part = SpacePart::Attach(
        space_.identity, kA,
        [this](GuestSpace::Options options) { return std::make_unique<FakeSpace>(std::move(options), &host_); },
        RealClock());
    ASSERT_TRUE(part.ok());
    space_.part = *std::move(part);
    recovery_ = std::make_unique<SpaceRecovery>(
        "a", [this](uint64_t id) { return id == kId ? std::optional(space_) : std::nullopt; }, &peers_, RealClock(),
        SpaceRecovery::Joined(), keep_);
  }
  static absl::StatusOr<v1::ChangeSpaceEpochResponse> Lost(NodeId node) {
    v1::ChangeSpaceEpochResponse response;
    response.add_lost(node.value());
    response.set_reason("it is gone");
    return response;
  }

  FakePeers peers_;
  FakeHost host_;
  SpaceRecovery::Space space_;
  SpaceRecovery::Keep keep_;
  std::unique_ptr<SpaceRecovery> recovery_;
};

TEST_F(NodeSpaceRecoveryTest, EachStepAtAllSurvivorsAndTheLostNodeFirst) {
  Make("a");
  recovery_->OnLost(kId, kC);
  const std::vector<std::string> calls = peers_.CallsUntil("d 4 of 2");
  ASSERT_EQ(calls.size() >= 8, true) << testing::PrintToString(calls);
  // It says that it has stopped: nobody is cut off, nothing is waited for.
  EXPECT_EQ(calls[0], "c 1 of 2");
  for (size_t step = 1; step <= 3; ++step) {
    EXPECT_THAT(std::vector<std::string>({calls[2 * step - 1], calls[2 * step]}),
                testing::UnorderedElementsAre(fmt::format("b {} of 2", step), fmt::format("d {} of 2", step)));
  }
  EXPECT_THAT(peers_.last().survivors(), ElementsAre(0, 1, 3));
  const std::vector<SpacePart::Loss> losses = space_.part->losses();
  ASSERT_EQ(losses.size(), 1u);
  EXPECT_EQ(losses[0].node, kC);
  EXPECT_EQ(space_.part->epoch(), 2u);
  // The same loss again is none.
  recovery_->OnLost(kId, kC);
  recovery_->OnLost(kId, kD);
  const std::vector<std::string> more = peers_.CallsUntil("b 4 of 3");
  EXPECT_THAT(more, Contains("d 1 of 3"));
  EXPECT_EQ(peers_.last().committed(), 2u);
  recovery_->Stop();
}

TEST_F(NodeSpaceRecoveryTest, AnEpochIsOnDiskBeforeItIsUsed) {
  std::vector<uint64_t> kept;
  bool used_before = false;
  keep_ = [&](const SpaceIdentity& space, uint64_t epoch) {
    used_before = used_before || !peers_.all().empty();
    kept.push_back(epoch);
    EXPECT_EQ(space.name, "pool");
    // The disk is full, once.
    return epoch == 2 ? absl::ResourceExhaustedError("no space left") : absl::OkStatus();
  };
  Make("a");
  recovery_->OnLost(kId, kC);
  const std::vector<std::string> calls = peers_.CallsUntil("d 4 of 3");
  EXPECT_EQ(calls[0], "c 1 of 3") << "an epoch that is not on disk is not used";
  recovery_->Stop();
  EXPECT_THAT(kept, ElementsAre(2, 3));
  EXPECT_FALSE(used_before);
}

TEST_F(NodeSpaceRecoveryTest, WhoIsSilentIsCutOffAndGivenItsLease) {
  Make("a");
  peers_.silent = {"c"};
  recovery_->OnLost(kId, kC);
  const std::vector<std::string> calls = peers_.CallsUntil("b 1 of 2");
  EXPECT_EQ(calls[1], "fence c");
  EXPECT_GE(std::chrono::steady_clock::now() - peers_.fenced_at, std::chrono::milliseconds(2400));
  peers_.CallsUntil("b 4 of 2");
  recovery_->Stop();
}

TEST_F(NodeSpaceRecoveryTest, ASecondLossBeginsAnewAndSaysWhatWasCommitted) {
  Make("a");
  peers_.answers.emplace("b 2", Lost(kD));
  recovery_->OnLost(kId, kC);
  std::vector<std::string> calls = peers_.CallsUntil("b 4 of 3");
  EXPECT_THAT(calls, Contains("d 1 of 3"));  // it is told
  EXPECT_THAT(calls, testing::Not(Contains("b 3 of 2")));
  EXPECT_EQ(peers_.last().committed(), 1u);
  EXPECT_THAT(peers_.last().survivors(), ElementsAre(0, 1));
  recovery_->Stop();
}

TEST_F(NodeSpaceRecoveryTest, OneThatStoppedStopsAll) {
  Make("a");
  peers_.answers.emplace("b 1", absl::FailedPreconditionError("page at GPA 0x1000: it is lost"));
  recovery_->OnLost(kId, kC);
  const Monotonic limit = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!space_.part->stop().has_value() && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
  ASSERT_TRUE(space_.part->stop().has_value());
  EXPECT_THAT(space_.part->stop()->why.ToString(), HasSubstr("0x1000: it is lost"));
  recovery_->Stop();
}

TEST_F(NodeSpaceRecoveryTest, WhoWasGivenUpHasNoSay) {
  Make("a");
  recovery_->OnTold(kId, kB, kC);
  peers_.CallsUntil("d 4 of 2");
  recovery_->OnTold(kId, kC, kB);
  recovery_->OnTold(kId, kB, kD);
  // The next epoch is without d only.
  peers_.CallsUntil("b 4 of 3");
  EXPECT_THAT(peers_.last().survivors(), ElementsAre(0, 1));
  recovery_->Stop();
}

// Who leaves is asked first, alone, and the others hear that it was not lost.
TEST_F(NodeSpaceRecoveryTest, ANodeThatLeavesSaysSoBeforeTheOthersGoOn) {
  Make("a");
  recovery_->OnEmpty(kId, kC);
  const std::vector<std::string> calls = peers_.CallsUntil("d 4 of 2");
  EXPECT_EQ(calls[0], "c 1 of 2");
  EXPECT_THAT(calls, testing::Not(Contains("fence c")));
  EXPECT_THAT(peers_.last().survivors(), ElementsAre(0, 1, 3));
  peers_.CallsUntil("b 4 of 2");
  for (const v1::ChangeSpaceEpochRequest& request : peers_.all()) EXPECT_THAT(request.gone(), ElementsAre(2));
  const std::vector<SpacePart::Loss> losses = space_.part->losses();
  ASSERT_EQ(losses.size(), 1u);
  EXPECT_TRUE(losses[0].node == kC && losses[0].left);
  // A loss after it is one, and the one before is none still.
  recovery_->OnLost(kId, kD);
  peers_.CallsUntil("b 4 of 3");
  EXPECT_THAT(peers_.last().gone(), ElementsAre(2));
  EXPECT_THAT(peers_.last().survivors(), ElementsAre(0, 1));
  recovery_->Stop();
}

TEST_F(NodeSpaceRecoveryTest, ALossWhileANodeLeavesIsNotItsLoss) {
  Make("a");
  peers_.answers.emplace("b 2", Lost(kD));
  recovery_->OnEmpty(kId, kC);
  peers_.CallsUntil("b 4 of 3");
  EXPECT_THAT(peers_.last().gone(), ElementsAre(2));
  EXPECT_THAT(peers_.last().survivors(), ElementsAre(0, 1));
  recovery_->Stop();
}

// Copies that it has may be the only ones of what is lost with another: it is asked when the others go on without that.
TEST_F(NodeSpaceRecoveryTest, WhoIsLostGoesBeforeWhoLeaves) {
  Make("a");
  peers_.before = [this](const std::string& call) {
    if (call == "b 1 of 2") recovery_->OnEmpty(kId, kC);
  };
  peers_.answers.emplace("b 2", Lost(kB));  // so that all begins anew
  recovery_->OnLost(kId, kD);
  const std::vector<std::string> calls = peers_.CallsUntil("c 1 of 4");
  EXPECT_THAT(calls, Contains("c 4 of 3")) << "it went on with c";
  for (const v1::ChangeSpaceEpochRequest& request : peers_.all()) {
    if (request.epoch() < 4) {
      EXPECT_THAT(request.gone(), testing::IsEmpty());
    }
  }
  recovery_->Stop();
}

// It may be there and not leave yet, or be on its way back: not lost for that.
TEST_F(NodeSpaceRecoveryTest, WhoCannotBeAskedToLeaveStays) {
  Make("a");
  peers_.down = {"c"};
  recovery_->OnEmpty(kId, kC);
  const Monotonic limit = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (recovery_->IsBusy(kId) && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
  EXPECT_TRUE(peers_.all().empty());
  EXPECT_TRUE(space_.part->losses().empty());
  recovery_->Stop();
}

// A step that it could not do is no leave.
TEST_F(NodeSpaceRecoveryTest, AReasonIsNoLeave) {
  Make("a");
  v1::ChangeSpaceEpochResponse response;
  response.set_reason("epoch 2 is over");
  peers_.answers.emplace("c 1", response);
  recovery_->OnEmpty(kId, kC);
  peers_.CallsUntil("d 4 of 2");
  EXPECT_THAT(peers_.last().gone(), testing::IsEmpty());
  recovery_->Stop();
}

TEST_F(NodeSpaceRecoveryTest, WhoHasPagesAgainStays) {
  Make("a");
  peers_.answers.emplace("c 1", absl::FailedPreconditionError("node 2 has 1 pages still"));
  recovery_->OnEmpty(kId, kC);
  EXPECT_THAT(peers_.CallsUntil("c 1 of 2"), ElementsAre("c 1 of 2"));
  const Monotonic limit = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (recovery_->IsBusy(kId) && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
  EXPECT_EQ(peers_.all().size(), 1u) << "nobody else was asked for anything";
  EXPECT_TRUE(space_.part->losses().empty());
  // It says again that it has none.
  recovery_->OnEmpty(kId, kC);
  peers_.CallsUntil("b 4 of 3");
  recovery_->Stop();
}

// It may have stopped: so it is treated as lost, and what the others find missing is Lost, not zero.
TEST_F(NodeSpaceRecoveryTest, WhoDoesNotSayThatItLeftIsLost) {
  Make("a");
  peers_.answers.emplace("c 1", absl::DeadlineExceededError("node 'c' does not answer"));
  recovery_->OnEmpty(kId, kC);
  peers_.CallsUntil("d 4 of 2");
  EXPECT_THAT(peers_.last().gone(), testing::IsEmpty());
  EXPECT_THAT(peers_.last().survivors(), ElementsAre(0, 1, 3));
  const std::vector<SpacePart::Loss> losses = space_.part->losses();
  ASSERT_EQ(losses.size(), 1u);
  EXPECT_FALSE(losses[0].left);
  recovery_->Stop();
}

TEST_F(NodeSpaceRecoveryTest, AMemberTellsTheCoordinator) {
  Make("b");
  recovery_->OnLost(kId, kC);
  EXPECT_THAT(peers_.CallsUntil("tell b of 5 2"), ElementsAre("tell b of 5 2"));
  recovery_->Stop();
}

}  // namespace
}  // namespace hk
