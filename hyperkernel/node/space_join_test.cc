// What managers of a cluster do when an operator has a node join a space: what comes between, and what peers may not
// say.

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/guest_space_testing.h"
#include "hyperkernel/node/space_manager.h"

namespace hk {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint64_t kBytes = 1 << 20;
constexpr std::chrono::seconds kLong(30);

class JoinNode;

// Calls between managers of one process. Silent: does what it is told, and does not answer.
class JoinCluster {
 public:
  using Before = std::function<void(const std::string& call)>;
  std::map<std::string, JoinNode*> nodes;

  void SetBefore(Before before) {
    MutexLock lock(&mutex_);
    before_ = std::move(before);
  }
  void SetSilent(std::set<std::string> nodes_of) {
    MutexLock lock(&mutex_);
    silent_ = std::move(nodes_of);
  }
  // They hear nothing either.
  void SetDeaf(std::set<std::string> nodes_of) {
    MutexLock lock(&mutex_);
    deaf_ = std::move(nodes_of);
  }
  Before before() {
    MutexLock lock(&mutex_);
    return before_;
  }
  bool IsSilent(const std::string& node) {
    MutexLock lock(&mutex_);
    return silent_.contains(node);
  }
  bool IsDeaf(const std::string& node) {
    MutexLock lock(&mutex_);
    return deaf_.contains(node);
  }

 private:
  Mutex mutex_;
  Before before_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> silent_ ABSL_GUARDED_BY(mutex_), deaf_ ABSL_GUARDED_BY(mutex_);
};

class JoinNode final : public SpacePeers {
 public:
  JoinNode(std::string name, NodeId number, JoinCluster* cluster)
      : name_(std::move(name)), number_(number), cluster_(cluster) {
    cluster->nodes[name_] = this;
    manager_ = std::make_unique<SpaceManager>(
        name_, [this](GuestSpace::Options options) { return std::make_unique<FakeSpace>(std::move(options), &host_); },
        this, RealClock());
  }
  void Hello(const std::string& coordinator) {
    const auto unknown = cluster_->nodes.at(coordinator)->manager_->UnknownOf(name_, manager_->IdsOf(coordinator));
    manager_->Drop(coordinator, unknown);
  }
  absl::StatusOr<NodeId> NumberOf(const std::string& node) const override {
    const auto found = cluster_->nodes.find(node);
    if (found == cluster_->nodes.end()) return absl::NotFoundError("no node '" + node + "' in this cluster");
    return found->second->number_;
  }
  std::vector<SpaceMemberId> Everyone() const override {
    std::vector<SpaceMemberId> everyone;
    for (const auto& [name, node] : cluster_->nodes) everyone.push_back({name, node->number_});
    return everyone;
  }
  absl::Status CheckUp(const std::string&) const override { return absl::OkStatus(); }
  absl::Status WaitDataUp(const std::vector<std::string>&) override { return absl::OkStatus(); }
  absl::Status Attach(const std::string& node, const v1::AttachSpaceRequest& request) override {
    return Call<absl::Status>(node, "attach", [&](SpaceManager* manager) { return manager->Attach(request); });
  }
  absl::Status Detach(const std::string& node, uint64_t id) override {
    v1::DetachSpaceRequest request;
    request.set_from(name_);
    request.set_id(id);
    return Call<absl::Status>(node, "detach", [&](SpaceManager* manager) { return manager->Detach(request); });
  }
  absl::StatusOr<v1::SpaceStatusResponse> Status(const std::string& node,
                                                 const v1::SpaceStatusRequest& request) override {
    return cluster_->nodes.at(node)->manager_->Status(request);
  }
  absl::StatusOr<v1::RemoveSpaceResponse> Remove(const std::string&, uint64_t) override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<v1::LeaveSpaceResponse> Leave(const std::string& node, const v1::LeaveSpaceRequest& request) override {
    return cluster_->nodes.at(node)->manager_->Leave(request);
  }
  absl::StatusOr<v1::ChangeSpaceEpochResponse> ChangeEpoch(const std::string& node,
                                                           const v1::ChangeSpaceEpochRequest& request,
                                                           std::chrono::milliseconds) override {
    return Call<absl::StatusOr<v1::ChangeSpaceEpochResponse>>(
        node, v1::SpaceEpochStep_Name(request.step()),
        [&](SpaceManager* manager) { return manager->ChangeEpoch(request); });
  }

  const std::string name_;
  const NodeId number_;
  JoinCluster* const cluster_;
  FakeHost host_;
  std::unique_ptr<SpaceManager> manager_;

 private:
  template <typename Result, typename Body>
  Result Call(const std::string& node, const std::string& what, const Body& body) {
    if (const JoinCluster::Before before = cluster_->before()) before(node + " " + what);
    const absl::Status late = absl::DeadlineExceededError("node '" + node + "': no answer in time");
    if (cluster_->IsDeaf(node)) return late;
    Result result = body(cluster_->nodes.at(node)->manager_.get());
    if (cluster_->IsSilent(node)) return late;
    return result;
  }
};

// A space of a, b and c; d joins, or c again.
class SpaceJoinTest : public testing::Test {
 protected:
  SpaceJoinTest() {
    v1::CreateSpaceRequest request;
    request.set_name("pool");
    request.set_memory_bytes(kBytes);
    for (const char* const node : {"a", "b", "c"}) request.add_nodes(node);
    const auto made = a_.manager_->Create(request);
    EXPECT_TRUE(made.ok()) << made.status();
    if (made.ok()) id_ = made->id();
  }
  ~SpaceJoinTest() override {
    for (JoinNode* node : {&a_, &b_, &c_, &d_}) node->manager_->StopAll();
  }
  absl::Status Join(const std::string& node) {
    v1::JoinSpaceRequest request;
    request.set_name("pool");
    request.set_node(node);
    return a_.manager_->Join(request).status();
  }
  // When nothing changes any more.
  absl::Status JoinSoon(const std::string& node) {
    absl::Status status;
    Eventually([&] {
      status = Join(node);
      return !absl::IsAborted(status);
    });
    return status;
  }
  absl::Status Drain(const std::string& node) {
    v1::DrainSpaceRequest request;
    request.set_name("pool");
    request.set_node(node);
    return a_.manager_->Drain(request);
  }
  std::vector<std::string> MembersAt(const JoinNode& node) {
    std::vector<std::string> names;
    const auto space = node.manager_->Get("pool");
    if (!space.ok()) return names;
    for (const auto& part : space->parts()) names.push_back(part.node());
    return names;
  }
  static bool Eventually(const std::function<bool()>& condition) {
    const Monotonic limit = std::chrono::steady_clock::now() + kLong;
    while (!condition()) {
      if (std::chrono::steady_clock::now() > limit) return false;
      std::this_thread::yield();
    }
    return true;
  }
  absl::Status Lose(NodeId lost) {
    v1::SpaceNodeLostRequest request;
    request.set_from("b");
    request.set_id(id_);
    request.set_lost(lost.value());
    return a_.manager_->NodeLost(request);
  }
  size_t LossesAt(const JoinNode& node) { return static_cast<size_t>(node.manager_->Get("pool")->lost_size()); }

  JoinCluster cluster_;
  JoinNode a_{"a", NodeId(0), &cluster_}, b_{"b", NodeId(1), &cluster_}, c_{"c", NodeId(2), &cluster_},
      d_{"d", NodeId(3), &cluster_};
  uint64_t id_ = 0;
};

TEST_F(SpaceJoinTest, AllKnowAMemberThatJoined) {
  const absl::Status joined = Join("d");
  ASSERT_TRUE(joined.ok()) << joined;
  for (const JoinNode* node : {&a_, &b_, &c_, &d_}) {
    EXPECT_THAT(MembersAt(*node), ElementsAre("a", "b", "c", "d")) << node->name_;
  }
  EXPECT_THAT(JoinSoon("d").ToString(), HasSubstr("node 'd' takes part in space 'pool' already"));
  // It is as any other: it can be lost, and leaves with the others when the space is deleted.
  d_.Hello("a");
  EXPECT_EQ(d_.host_.spaces, 1);
  ASSERT_TRUE(Lose(d_.number_).ok());
  EXPECT_TRUE(Eventually([&] { return LossesAt(a_) == 1; }));
}

TEST_F(SpaceJoinTest, OneJoinAtATimeAndNoDrainBesideIt) {
  std::string second, drain;
  cluster_.SetBefore([&](const std::string& call) {
    if (call != "d attach") return;
    second = MessageOf(Join("c"));
    drain = MessageOf(Drain("c"));
  });
  ASSERT_TRUE(Join("d").ok());
  EXPECT_EQ(second, "node 'd' is joining the space; wait for that");
  EXPECT_EQ(drain, "node 'd' is joining the space; wait for that");
  cluster_.SetBefore({});
  ASSERT_TRUE(Drain("c").ok());
  EXPECT_EQ(MessageOf(Join("d")), "node 'c' is being drained; wait for that");
}

// What is left of a join that failed does not stand in the way of the next one, nor for ever at the node.
TEST_F(SpaceJoinTest, APartThatNobodyKnowsGoes) {
  cluster_.SetSilent({"d"});
  EXPECT_FALSE(Join("d").ok()) << "it attached, and said nothing";
  cluster_.SetSilent({});
  EXPECT_EQ(d_.host_.spaces, 0) << "it was told to go";
  cluster_.SetBefore([&](const std::string& call) {
    if (call == "d SPACE_EPOCH_STEP_PREPARE") cluster_.SetDeaf({"d"});
  });
  EXPECT_FALSE(Join("d").ok());
  cluster_.SetBefore({});
  cluster_.SetDeaf({});
  EXPECT_EQ(d_.host_.spaces, 1);
  d_.Hello("a");
  EXPECT_TRUE(Eventually([&] { return d_.manager_->List().empty(); }));
  EXPECT_THAT(MembersAt(a_), ElementsAre("a", "b", "c"));
  EXPECT_EQ(LossesAt(a_), 0u);
  EXPECT_TRUE(JoinSoon("d").ok());
}

// While it joins, it is not told that it is unknown.
TEST_F(SpaceJoinTest, ANodeThatJoinsIsKnown) {
  cluster_.SetBefore([&](const std::string& call) {
    if (call == "d SPACE_EPOCH_STEP_BEGIN") d_.Hello("a");
  });
  EXPECT_TRUE(Join("d").ok());
  EXPECT_EQ(d_.host_.spaces, 1);
}

// Nor has it a say before.
TEST_F(SpaceJoinTest, WhomAJoinerLosesIsNotGivenUp) {
  absl::Status told;
  cluster_.SetBefore([&](const std::string& call) {
    if (call != "d SPACE_EPOCH_STEP_REBUILD") return;
    v1::SpaceNodeLostRequest request;
    request.set_from("d");
    request.set_id(id_);
    request.set_lost(1);
    told = a_.manager_->NodeLost(request);
  });
  EXPECT_TRUE(Join("d").ok());
  EXPECT_TRUE(absl::IsPermissionDenied(told)) << told;
  EXPECT_EQ(LossesAt(a_), 0u);
}

TEST_F(SpaceJoinTest, ALossOfAJoinerThatAMemberTellsOfEndsTheJoinOnly) {
  cluster_.SetBefore([&](const std::string& call) {
    if (call != "b SPACE_EPOCH_STEP_REBUILD") return;
    EXPECT_TRUE(Lose(d_.number_).ok());
  });
  EXPECT_FALSE(Join("d").ok());
  cluster_.SetBefore({});
  EXPECT_TRUE(Eventually([&] { return MembersAt(b_).size() == 3; }));
  EXPECT_EQ(LossesAt(a_), 0u);
  EXPECT_EQ(a_.manager_->List().at(0).state(), v1::SPACE_STATE_RUNNING);
}

// A node that was given up, and lives: what it has of before goes first.
TEST_F(SpaceJoinTest, ALostNodeThatLivesComesAgain) {
  cluster_.SetDeaf({"c"});
  ASSERT_TRUE(Lose(c_.number_).ok());
  EXPECT_TRUE(Eventually([&] { return LossesAt(a_) == 1; }));
  cluster_.SetDeaf({});
  c_.host_.last.load()->Stop(absl::UnavailableError("node 0 failed"));
  EXPECT_EQ(c_.host_.spaces, 1);
  const absl::Status joined = JoinSoon("c");
  EXPECT_TRUE(joined.ok()) << joined;
  EXPECT_EQ(c_.host_.spaces, 1);
  // The join has ended when its epoch holds; each node shows it when it has committed that.
  EXPECT_TRUE(Eventually([&] { return LossesAt(a_) == 0; }));
  EXPECT_EQ(c_.manager_->List().at(0).state(), v1::SPACE_STATE_RUNNING);
}

TEST_F(SpaceJoinTest, ADeletionEndsIt) {
  cluster_.SetBefore([&](const std::string& call) {
    if (call != "b SPACE_EPOCH_STEP_PREPARE") return;
    EXPECT_TRUE(a_.manager_->Delete("pool").ok());
  });
  EXPECT_FALSE(Join("d").ok());
  EXPECT_EQ(a_.host_.spaces + b_.host_.spaces + c_.host_.spaces + d_.host_.spaces, 0);
}

TEST_F(SpaceJoinTest, MembersOfAnEpochAreChecked) {
  v1::ChangeSpaceEpochRequest good;
  good.set_from("a");
  good.set_id(id_);
  good.set_epoch(2);
  good.set_step(v1::SPACE_EPOCH_STEP_BEGIN);
  for (const uint32_t number : {0U, 1U, 2U}) {
    v1::SpaceMember& member = *good.add_members();
    member.set_name(std::string(1, static_cast<char>('a' + number)));
    member.set_number(number);
    good.add_survivors(number);
  }
  const auto refused = [&](const std::function<void(v1::ChangeSpaceEpochRequest*)>& spoil) {
    v1::ChangeSpaceEpochRequest request = good;
    spoil(&request);
    const auto answer = b_.manager_->ChangeEpoch(request);
    EXPECT_FALSE(answer.ok()) << request.DebugString();
    return MessageOf(answer.status());
  };
  EXPECT_THAT(refused([](auto* r) { r->mutable_members()->DeleteSubrange(1, 1); }), HasSubstr("'b' is not among them"));
  EXPECT_THAT(refused([](auto* r) { r->mutable_members()->DeleteSubrange(0, 1); }), HasSubstr("'a' is not among them"));
  EXPECT_THAT(refused([](auto* r) { r->mutable_members()->SwapElements(1, 2); }), HasSubstr("ascending"));
  EXPECT_THAT(refused([](auto* r) { r->mutable_members(2)->set_number(3); }),
              HasSubstr("'c' has number 2 here, not 3"));
  EXPECT_THAT(refused([](auto* r) { r->mutable_members(2)->set_name("x"); }), HasSubstr("no node 'x'"));
  EXPECT_THAT(refused([](auto* r) { r->add_joined(64); }), HasSubstr("joined: 64 is no node"));
  EXPECT_THAT(MembersAt(b_), ElementsAre("a", "b", "c"));
  EXPECT_TRUE(b_.manager_->ChangeEpoch(good).ok());
}

TEST_F(SpaceJoinTest, WhatAJoinerIsToldIsChecked) {
  v1::AttachSpaceRequest good;
  good.set_from("a");
  good.set_name("pool");
  good.set_id(id_);
  good.set_memory_bytes(kBytes);
  good.set_epoch(4);
  const auto add = [](v1::SpaceMember* member, uint32_t number) {
    member->set_name(std::string(1, static_cast<char>('a' + number)));
    member->set_number(number);
  };
  for (const uint32_t number : {0U, 1U, 3U}) add(good.add_members(), number);
  for (const uint32_t number : {0U, 1U, 2U, 3U}) add(good.add_cluster(), number);
  good.add_committed(0b0111);
  good.add_committed(0b0011);
  const auto refused = [&](const std::function<void(v1::AttachSpaceRequest*)>& spoil) {
    v1::AttachSpaceRequest request = good;
    spoil(&request);
    const absl::Status status = d_.manager_->Attach(request);
    EXPECT_FALSE(status.ok()) << request.DebugString();
    return MessageOf(status);
  };
  EXPECT_THAT(refused([](auto* r) { r->mutable_cluster()->RemoveLast(); }), HasSubstr("cluster: the member 'd'"));
  EXPECT_THAT(refused([](auto* r) { r->mutable_cluster()->SwapElements(0, 1); }), HasSubstr("cluster: not ascending"));
  EXPECT_THAT(refused([](auto* r) { r->mutable_cluster(3)->set_number(5); }), HasSubstr("cluster: the member 'd'"));
  EXPECT_THAT(refused([](auto* r) { r->mutable_cluster(2)->set_number(64); }), HasSubstr("cluster:"));
  EXPECT_THAT(refused([](auto* r) { r->mutable_cluster(2)->set_name("b"); }), HasSubstr("cluster: 'b' is there twice"));
  EXPECT_THAT(refused([](auto* r) { r->set_epoch(0); }), HasSubstr("epoch:"));
  EXPECT_THAT(refused([](auto* r) { r->set_epoch(~uint64_t{0}); }), HasSubstr("epoch:"));
  EXPECT_THAT(refused([](auto* r) { r->clear_committed(); }), HasSubstr("epoch: 4 without who took part"));
  EXPECT_THAT(refused([](auto* r) { r->set_committed(0, 0); }), HasSubstr("committed:"));
  EXPECT_THAT(refused([](auto* r) { r->set_committed(0, 0b10011); }), HasSubstr("committed: has nodes that are none"));
  EXPECT_THAT(refused([](auto* r) { r->set_committed(1, 0b0111); }), HasSubstr("are no members"));
  EXPECT_THAT(refused([](auto* r) { r->set_committed(1, 0b1011); }), HasSubstr("'d', which joins, not"));
  EXPECT_THAT(refused([](auto* r) { r->set_committed(1, 0b0010); }), HasSubstr("'a' must be in the last"));
  EXPECT_THAT(refused([](auto* r) {
                for (int i = 0; i < 64; ++i) r->add_committed(0b0011);
              }),
              HasSubstr("66 sets are more than 64"));
  EXPECT_TRUE(d_.manager_->Attach(good).ok());
}

}  // namespace
}  // namespace hk
