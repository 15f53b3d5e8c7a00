// Whom a drain asks, when the node goes, and how it ends otherwise.
#include "hyperkernel/node/space_drain.h"

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/node/guest_space_testing.h"
#include "hyperkernel/node/space_peers_testing.h"

namespace hk {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::Not;

constexpr uint64_t kId = 5;

class SpaceDrainTest : public testing::Test {
 protected:
  SpaceDrainTest() {
    space_.identity = {.name = "pool",
                       .id = kId,
                       .bytes = 1 << 20,
                       .members = {{"a", NodeId(0)}, node_b_, node_c_},
                       .coordinator = "a",
                       .created = {}};
    auto part = SpacePart::Attach(
        space_.identity, NodeId(0),
        [this](GuestSpace::Options options) { return std::make_unique<FakeSpace>(std::move(options), &host_); },
        RealClock());
    space_.part = *std::move(part);
    const auto find = [this](uint64_t id) { return id == kId && !deleted_ ? std::optional(space_) : std::nullopt; };
    recovery_ = std::make_unique<SpaceRecovery>("a", find, &peers_, RealClock());
    drains_ = std::make_unique<SpaceDrains>("a", find, recovery_.get(), &peers_, RealClock());
    peers_.SetLeaving(Answer(7, false));
  }
  ~SpaceDrainTest() override {
    drains_->Stop();
    recovery_->Stop();
  }
  static v1::LeaveSpaceResponse Answer(uint64_t pages, bool empty) {
    v1::LeaveSpaceResponse response;
    response.set_pages_left(pages);
    response.set_empty(empty);
    return response;
  }
  template <typename Condition>
  static bool Until(const Condition& condition) {
    const Monotonic limit = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!condition() && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
    return condition();
  }
  bool Over() { return !drains_->Of(kId).has_value(); }

  const SpaceMemberId node_b_{"b", NodeId(1)}, node_c_{"c", NodeId(2)};
  FakeSpacePeers peers_;
  FakeHost host_;
  SpaceRecovery::Space space_;
  std::atomic<bool> deleted_{false};
  std::unique_ptr<SpaceRecovery> recovery_;
  std::unique_ptr<SpaceDrains> drains_;
};

TEST_F(SpaceDrainTest, ANodeGoesWhenItHasNothing) {
  ASSERT_TRUE(drains_->Begin(kId, node_c_).ok());
  ASSERT_TRUE(Until([&] { return drains_->Of(kId)->pages_left == 7u; }));
  EXPECT_TRUE(drains_->Begin(kId, node_c_).ok()) << "asked again";
  EXPECT_THAT(drains_->Begin(kId, node_b_).ToString(), HasSubstr("FAILED_PRECONDITION: node 'c' is being drained"));
  EXPECT_THAT(peers_.CallsUntil("c leaves 2"), Not(Contains("c 1 of 2")));
  peers_.SetLeaving(Answer(0, true));
  const std::vector<std::string> calls = peers_.CallsUntil("detach c");
  EXPECT_THAT(calls, Contains("b 4 of 2"));
  EXPECT_TRUE(Until([&] { return Over(); }));
  ASSERT_EQ(space_.part->losses().size(), 1u);
  EXPECT_TRUE(space_.part->losses()[0].left);
}

TEST_F(SpaceDrainTest, ANodeThatStaysIsToldSo) {
  EXPECT_THAT(drains_->Cancel(kId, "c").ToString(), HasSubstr("node 'c' is not being drained"));
  ASSERT_TRUE(drains_->Begin(kId, node_c_).ok());
  peers_.CallsUntil("c leaves");
  peers_.SetLeaving(absl::UnavailableError("node 'c' does not answer"));
  ASSERT_TRUE(drains_->Cancel(kId, "c").ok());
  peers_.CallsUntil("c stays");
  // It may not know: so it is told again, and nothing else is begun.
  EXPECT_THAT(drains_->Begin(kId, node_c_).ToString(), HasSubstr("is being told that it stays"));
  EXPECT_FALSE(Over());
  peers_.SetLeaving(Answer(0, true));
  EXPECT_TRUE(Until([&] { return Over(); }));
  EXPECT_THAT(peers_.CallsUntil("c stays"), Not(Contains("c 1 of 2"))) << "though it had nothing";
}

TEST_F(SpaceDrainTest, TheEndOfTheSpaceEndsIt) {
  ASSERT_TRUE(drains_->Begin(kId, node_c_).ok());
  peers_.CallsUntil("c leaves");
  deleted_ = true;
  EXPECT_TRUE(Until([&] { return Over(); }));
}

TEST_F(SpaceDrainTest, ALossOfTheNodeEndsIt) {
  ASSERT_TRUE(drains_->Begin(kId, node_c_).ok());
  peers_.CallsUntil("c leaves");
  recovery_->OnLost(kId, node_c_.number);
  EXPECT_TRUE(Until([&] { return Over(); }));
  EXPECT_THAT(peers_.CallsUntil("b 4 of 2"), Not(Contains("detach c")));
}

// An order to leave that waited in the node, behind the one that it stays.
TEST_F(SpaceDrainTest, AnOlderOrderIsRefused) {
  EXPECT_TRUE(space_.part->Leave(1, true).ok());
  EXPECT_TRUE(space_.part->Leave(3, false).ok());
  EXPECT_TRUE(absl::IsAborted(space_.part->Leave(2, true).status()));
}

}  // namespace
}  // namespace hk
