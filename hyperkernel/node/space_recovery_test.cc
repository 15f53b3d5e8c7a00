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

namespace hk {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint64_t kId = 5;
constexpr NodeId kA(0), kB(1), kC(2), kD(3);

// The others, by name.
class FakePeers final : public SpacePeers {
 public:
  absl::StatusOr<NodeId> NumberOf(const std::string&) const override { return kA; }
  absl::Status CheckUp(const std::string&) const override { return absl::OkStatus(); }
  absl::Status WaitDataUp(const std::vector<std::string>&) override { return absl::OkStatus(); }
  absl::Status Attach(const std::string&, const v1::AttachSpaceRequest&) override { return absl::OkStatus(); }
  absl::Status Detach(const std::string&, uint64_t) override { return absl::OkStatus(); }
  absl::StatusOr<v1::SpaceStatusResponse> Status(const std::string&, const v1::SpaceStatusRequest&) override {
    return v1::SpaceStatusResponse();
  }
  absl::StatusOr<v1::RemoveSpaceResponse> Remove(const std::string&, uint64_t) override {
    return v1::RemoveSpaceResponse();
  }
  absl::StatusOr<v1::ChangeSpaceEpochResponse> ChangeEpoch(const std::string& node,
                                                           const v1::ChangeSpaceEpochRequest& request,
                                                           std::chrono::milliseconds) override {
    MutexLock lock(&mutex_);
    const std::string call = fmt::format("{} {}", node, static_cast<int>(request.step()));
    calls_.push_back(fmt::format("{} of {}", call, request.epoch()));
    requests_.push_back(request);
    changed_.SignalAll();
    if (silent.contains(node)) return absl::UnavailableError("node '" + node + "' does not answer");
    const auto found = answers.find(call);
    if (found == answers.end()) return v1::ChangeSpaceEpochResponse();
    const absl::StatusOr<v1::ChangeSpaceEpochResponse> answer = found->second;
    answers.erase(found);
    return answer;
  }
  absl::Status TellLost(const std::string& coordinator, uint64_t id, NodeId lost) override {
    MutexLock lock(&mutex_);
    calls_.push_back(fmt::format("tell {} of {} {}", coordinator, id, lost.value()));
    changed_.SignalAll();
    return absl::OkStatus();
  }
  void Fence(const std::string& node) override {
    MutexLock lock(&mutex_);
    calls_.push_back("fence " + node);
    fenced_at = std::chrono::steady_clock::now();
  }

  // Until this was called.
  std::vector<std::string> CallsUntil(const std::string& call) {
    const Monotonic limit = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    MutexLock lock(&mutex_);
    while (std::find(calls_.begin(), calls_.end(), call) == calls_.end()) {
      if (!changed_.WaitUntil(&mutex_, limit)) {
        ADD_FAILURE() << "no " << call;
        break;
      }
    }
    return calls_;
  }
  v1::ChangeSpaceEpochRequest last() {
    MutexLock lock(&mutex_);
    return requests_.back();
  }

  std::set<std::string> silent;
  std::map<std::string, absl::StatusOr<v1::ChangeSpaceEpochResponse>> answers;  // by node and step, each once
  Monotonic fenced_at;

 private:
  Mutex mutex_;
  CondVar changed_;
  std::vector<std::string> calls_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::ChangeSpaceEpochRequest> requests_ ABSL_GUARDED_BY(mutex_);
};

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
        "a", [this](uint64_t id) { return id == kId ? std::optional(space_) : std::nullopt; }, &peers_, RealClock());
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

TEST_F(NodeSpaceRecoveryTest, AMemberTellsTheCoordinator) {
  Make("b");
  recovery_->OnLost(kId, kC);
  EXPECT_THAT(peers_.CallsUntil("tell b of 5 2"), ElementsAre("tell b of 5 2"));
  recovery_->Stop();
}

}  // namespace
}  // namespace hk
