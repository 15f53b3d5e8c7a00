#include "hyperkernel/node/space_manager.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hyperkernel/base/status.h"
#include "hyperkernel/node/data_plane.h"
#include "hyperkernel/node/guest_space_testing.h"

namespace hk {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint64_t kBytes = 1 << 20;
// A condition that a test waits for comes within this, or the test fails.
constexpr std::chrono::seconds kLong(30);

class FakeNode;

// Calls between managers of one process. Nodes may be down for membership, or silent for calls.
struct FakeCluster {
  std::map<std::string, FakeNode*> nodes;
  std::set<std::string> down, silent;
};

class FakeNode final : public SpacePeers {
 public:
  FakeNode(std::string name, NodeId number, FakeCluster* cluster)
      : name_(std::move(name)), number_(number), cluster_(cluster) {
    cluster->nodes[name_] = this;
    Restart();
  }
  // All that the manager knew is gone.
  void Restart() {
    manager_.reset();
    manager_ = std::make_unique<SpaceManager>(
        name_,
        [this](GuestSpace::Options options) -> absl::StatusOr<std::unique_ptr<GuestSpace>> {
          if (host_.before_attach) host_.before_attach();
          if (!host_.attach.ok()) return host_.attach;
          return std::make_unique<FakeSpace>(std::move(options), &host_);
        },
        this, RealClock());
  }
  // What a hello to `coordinator` does.
  void Hello(const std::string& coordinator) {
    const auto unknown = cluster_->nodes.at(coordinator)->manager_->UnknownOf(name_, manager_->IdsOf(coordinator));
    manager_->Drop(coordinator, unknown);
  }

  absl::StatusOr<NodeId> NumberOf(const std::string& node) const override {
    const auto found = cluster_->nodes.find(node);
    if (found == cluster_->nodes.end()) return absl::NotFoundError("no node '" + node + "' in this cluster");
    return found->second->number_;
  }
  absl::Status CheckUp(const std::string& node) const override {
    return cluster_->down.contains(node) ? absl::UnavailableError("node '" + node + "' is unreachable")
                                         : absl::OkStatus();
  }
  absl::Status WaitDataUp(const std::vector<std::string>&) override { return data_up_; }
  absl::Status Attach(const std::string& node, const v1::AttachSpaceRequest& request) override {
    const absl::Status status = cluster_->nodes.at(node)->manager_->Attach(request);
    if (cluster_->silent.contains(node)) return absl::DeadlineExceededError("node '" + node + "': no answer in time");
    return WithContext(status, "node '" + node + "'");
  }
  absl::Status Detach(const std::string& node, uint64_t id) override {
    if (cluster_->silent.contains(node)) return absl::DeadlineExceededError("node '" + node + "': no answer in time");
    v1::DetachSpaceRequest request;
    request.set_from(name_);
    request.set_id(id);
    return cluster_->nodes.at(node)->manager_->Detach(request);
  }
  absl::StatusOr<v1::SpaceStatusResponse> Status(const std::string& node,
                                                 const v1::SpaceStatusRequest& request) override {
    if (cluster_->silent.contains(node)) return absl::DeadlineExceededError("node '" + node + "': no answer in time");
    return cluster_->nodes.at(node)->manager_->Status(request);
  }
  absl::StatusOr<v1::RemoveSpaceResponse> Remove(const std::string& node, uint64_t id) override {
    v1::RemoveSpaceRequest request;
    request.set_from(name_);
    request.set_id(id);
    const auto notes = cluster_->nodes.at(node)->manager_->Remove(request);
    if (!notes.ok()) return notes.status();
    v1::RemoveSpaceResponse response;
    for (const std::string& note : *notes) response.add_notes(note);
    return response;
  }

  const std::string name_;
  const NodeId number_;
  FakeCluster* const cluster_;
  FakeHost host_;
  absl::Status data_up_;
  std::unique_ptr<SpaceManager> manager_;
};

class SpaceManagerTest : public testing::Test {
 protected:
  // Over two nodes, with so much of each.
  static v1::CreateSpaceRequest WithFrames(uint64_t bytes, uint64_t swap = 0) {
    v1::CreateSpaceRequest request = Request("pool", kBytes, {"a", "b"});
    request.set_node_frames_bytes(bytes);
    request.set_node_swap_bytes(swap);
    return request;
  }
  static v1::CreateSpaceRequest Request(const std::string& name = "pool", uint64_t bytes = kBytes,
                                        std::vector<std::string> nodes = {"a", "b", "c"}) {
    v1::CreateSpaceRequest request;
    request.set_name(name);
    request.set_memory_bytes(bytes);
    for (const std::string& node : nodes) request.add_nodes(node);
    return request;
  }
  static Monotonic Soon() { return std::chrono::steady_clock::now() + kLong; }
  // Waits for what another thread does.
  static bool Eventually(const std::function<bool()>& condition) {
    const Monotonic deadline = Soon();
    while (!condition()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::yield();
    }
    return true;
  }
  int Spaces() const { return a_.host_.spaces + b_.host_.spaces + c_.host_.spaces; }
  void ExpectNothing() {
    EXPECT_EQ(Spaces(), 0);
    for (FakeNode* node : {&a_, &b_, &c_}) EXPECT_THAT(node->manager_->List(), IsEmpty()) << node->name_;
  }

  FakeCluster cluster_;
  FakeNode a_{"a", NodeId(0), &cluster_}, b_{"b", NodeId(1), &cluster_}, c_{"c", NodeId(2), &cluster_};
};

TEST_F(SpaceManagerTest, ASpaceIsOnAllItsNodesAndGoesFromAll) {
  const auto space = b_.manager_->Create(Request());
  ASSERT_TRUE(space.ok()) << space.status();
  EXPECT_THAT(space->nodes(), ElementsAre("a", "b", "c"));
  EXPECT_EQ(space->coordinator(), "b");
  EXPECT_EQ(space->state(), v1::SPACE_STATE_RUNNING);
  EXPECT_NE(space->id(), 0u);
  EXPECT_EQ(space->id() >> 63, 0u);
  for (FakeNode* node : {&a_, &b_, &c_}) {
    const auto seen = node->manager_->Get("pool");
    ASSERT_TRUE(seen.ok()) << seen.status();
    EXPECT_EQ(seen->id(), space->id());
    ASSERT_EQ(seen->parts_size(), 3);
    for (const v1::SpacePart& part : seen->parts()) EXPECT_EQ(part.state(), v1::SPACE_STATE_RUNNING);
    EXPECT_TRUE(node->manager_->Write("pool", 0x1000, "hello", Soon()).ok());
    EXPECT_EQ(node->manager_->Read("pool", 0x1001, 3, Soon()).value(), "ell");
  }
  const auto map = a_.manager_->Map("pool", 0);
  ASSERT_TRUE(map.ok());
  ASSERT_EQ(map->extents_size(), 1);
  EXPECT_EQ(map->extents(0).holders_size(), 3);
  EXPECT_EQ(map->extents(0).home(), "b");
  const auto top = a_.manager_->Top("pool");
  EXPECT_EQ(top->nodes(2).counters().read_faults(), 3u);
  ASSERT_EQ(top->nodes(2).hot_pages_size(), 1);
  EXPECT_EQ(top->nodes(2).hot_pages(0).address(), 5 * kPageSize);
  EXPECT_EQ(top->nodes(2).hot_pages(0).taker(), "c");
  // At another node than the one that coordinates it.
  const auto notes = a_.manager_->Delete("pool");
  ASSERT_TRUE(notes.ok()) << notes.status();
  EXPECT_THAT(*notes, IsEmpty());
  ExpectNothing();
  EXPECT_TRUE(a_.manager_->Create(Request()).ok()) << "the name is free again";
}

TEST_F(SpaceManagerTest, WhatOneNodeRefusesIsMadeOnNone) {
  c_.host_.attach = absl::ResourceExhaustedError("640 MiB of frames do not fit: 128 MiB are the budget");
  const auto space = a_.manager_->Create(Request());
  EXPECT_EQ(MessageOf(space.status()), "node 'c': 640 MiB of frames do not fit: 128 MiB are the budget");
  ExpectNothing();
  c_.host_.attach = absl::OkStatus();
  a_.host_.attach = absl::InternalError("no userfaultfd");
  EXPECT_EQ(MessageOf(a_.manager_->Create(Request()).status()), "node 'a': no userfaultfd");
  ExpectNothing();
  a_.host_.attach = absl::OkStatus();
  b_.data_up_ = absl::UnavailableError("the data plane to node 'c' is down");
  EXPECT_EQ(MessageOf(a_.manager_->Create(Request()).status()), "node 'b': the data plane to node 'c' is down");
  ExpectNothing();
}

TEST_F(SpaceManagerTest, ANodeThatDoesNotAnswerLeavesAtItsNextHello) {
  cluster_.silent.insert("b");
  const auto space = a_.manager_->Create(Request());
  EXPECT_EQ(MessageOf(space.status()), "node 'b': no answer in time");
  // It had attached, and neither its answer nor the order to leave arrived.
  EXPECT_EQ(Spaces(), 1);
  EXPECT_EQ(b_.host_.spaces, 1);
  b_.Hello("a");
  EXPECT_TRUE(Eventually([&] { return b_.manager_->List().empty(); }));
  ExpectNothing();
}

TEST_F(SpaceManagerTest, AHelloDropsNothingThatIsKnown) {
  ASSERT_TRUE(a_.manager_->Create(Request()).ok());
  const auto ids = b_.manager_->IdsOf("a");
  ASSERT_EQ(ids.size(), 1u);
  EXPECT_THAT(b_.manager_->IdsOf("c"), IsEmpty());
  EXPECT_THAT(a_.manager_->UnknownOf("b", ids), IsEmpty());
  // A node cannot end what another one coordinates.
  b_.manager_->Drop("c", ids);
  ASSERT_TRUE(a_.manager_->Create(Request("second")).ok());
  a_.Restart();
  c_.Hello("a");
  EXPECT_TRUE(Eventually([&] { return c_.manager_->List().empty(); }));
  EXPECT_EQ(b_.manager_->List().size(), 2u);
}

TEST_F(SpaceManagerTest, NodesGiveWhatIsAskedOfThem) {
  const uint64_t frames = (kBytes / 2 + kBytes / 32 + kPageSize - 1) / kPageSize * kPageSize;
  const absl::StatusOr<v1::Space> space = a_.manager_->Create(WithFrames(frames));
  ASSERT_TRUE(space.ok()) << space.status();
  EXPECT_EQ(space->node_frames_bytes(), frames);
  const absl::StatusOr<v1::Space> there = b_.manager_->Get("pool");
  ASSERT_TRUE(there.ok()) << there.status();
  EXPECT_EQ(there->node_frames_bytes(), frames);
  EXPECT_EQ(there->own_frames_size(), 0);
  // One has less, another more.
  v1::CreateSpaceRequest request = WithFrames(kBytes / 4);
  request.set_name("second");
  v1::SpaceNodeFrames& own = *request.add_own_frames();
  own.set_node("b");
  own.set_frames_bytes(kBytes - kPageSize);
  const absl::StatusOr<v1::Space> second = a_.manager_->Create(request);
  ASSERT_TRUE(second.ok()) << second.status();
  for (auto* node : {&a_, &b_}) {
    const absl::StatusOr<v1::Space> seen = node->manager_->Get("second");
    ASSERT_TRUE(seen.ok()) << seen.status();
    ASSERT_EQ(seen->own_frames_size(), 1);
    EXPECT_EQ(seen->own_frames(0).SerializeAsString(), own.SerializeAsString());
  }
}

TEST_F(SpaceManagerTest, RequestsThatAreNoSpaceGetTheirOneLine) {
  const std::string long_name(64, 'x');
  struct Case {
    v1::CreateSpaceRequest request;
    const char* says;
  };
  const Case cases[] = {
      {Request(""), "name: ''"},
      {Request("Pool"), "name: 'Pool' is not [a-z0-9-]{1,63}"},
      {Request("../x"), "name:"},
      {Request(long_name), "name:"},
      {Request("pool", 0), "memory_bytes: 0 is not from 4096"},
      {Request("pool", 4097), "memory_bytes: 4097 is not a multiple of 4096"},
      {Request("pool", 1), "memory_bytes: 1 is not a multiple"},
      {Request("pool", (uint64_t{4} << 50) + 4096), "(4 PiB)"},
      {Request("pool", ~uint64_t{0}), "(4 PiB)"},
      {Request("pool", kBytes, {}), "nodes: 'a', the node that is asked, is not among them"},
      {Request("pool", kBytes, {"b", "c"}), "nodes: 'a', the node that is asked, is not among them"},
      {Request("pool", kBytes, {"a", "b", "b"}), "nodes: 'b' is there twice"},
      {Request("pool", kBytes, {"a", "x"}), "nodes: no node 'x' in this cluster"},
      {WithFrames(kBytes / 2 + 1), "node_frames_bytes: "},
      {WithFrames(kBytes + kPageSize), "is more than the space's"},
      {WithFrames(kBytes / 2), "and a sixteenth more"},
      {WithFrames(kPageSize), "and a sixteenth more"},
      {WithFrames(0, kPageSize), "node_swap_bytes: without a bound of frames"},
      {WithFrames(kBytes / 2, kPageSize + 1), "node_swap_bytes: "},
      {WithFrames(kBytes / 2, kBytes + kPageSize), "is more than the space's"},
      {WithFrames(kBytes / 2, kPageSize), "of swap cannot hold"},
  };
  for (const Case& c : cases) {
    const std::string message = MessageOf(a_.manager_->Create(c.request).status());
    EXPECT_THAT(message, HasSubstr(c.says));
    EXPECT_THAT(message, testing::Not(HasSubstr("\n")));
  }
  cluster_.down.insert("c");
  EXPECT_THAT(MessageOf(a_.manager_->Create(Request()).status()), HasSubstr("node 'c' is unreachable"));
  ExpectNothing();
  cluster_.down.clear();
  ASSERT_TRUE(b_.manager_->Create(Request("pool", kBytes, {"b", "c"})).ok());
  EXPECT_THAT(MessageOf(b_.manager_->Create(Request()).status()), HasSubstr("a space 'pool' is there already"));
  // Where the name is taken on another node only.
  EXPECT_THAT(MessageOf(a_.manager_->Create(Request()).status()),
              HasSubstr("node 'b': a space 'pool' is there already (coordinated by node 'b')"));
  EXPECT_THAT(a_.manager_->List(), IsEmpty());
}

TEST_F(SpaceManagerTest, ReadsAndWritesStayInside) {
  ASSERT_TRUE(a_.manager_->Create(Request()).ok());
  struct Case {
    uint64_t address;
    uint32_t bytes;
    absl::StatusCode code;
  };
  for (const Case& c :
       {Case{0, 0, absl::StatusCode::kInvalidArgument}, Case{0, 65537, absl::StatusCode::kInvalidArgument},
        Case{kBytes - 1, 1, absl::StatusCode::kOk}, Case{0, 65536, absl::StatusCode::kOk},
        Case{kBytes, 1, absl::StatusCode::kOutOfRange}, Case{kBytes - 1, 2, absl::StatusCode::kOutOfRange},
        Case{~uint64_t{0}, 1, absl::StatusCode::kOutOfRange},
        Case{~uint64_t{0} - 100, 200, absl::StatusCode::kOutOfRange}}) {
    // A read that is let through where there is nothing would end this program, not the test.
    EXPECT_EQ(CheckSpaceRange(kBytes, c.address, c.bytes).code(), c.code) << c.address << " " << c.bytes;
    if (CheckSpaceRange(kBytes, c.address, c.bytes).code() != c.code) continue;
    EXPECT_EQ(a_.manager_->Read("pool", c.address, c.bytes, Soon()).status().code(), c.code);
    EXPECT_EQ(a_.manager_->Write("pool", c.address, std::string(c.bytes, 'x'), Soon()).code(), c.code);
  }
  EXPECT_EQ(a_.manager_->Read("nothing", 0, 1, Soon()).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SpaceManagerTest, AStoppedSpaceSaysWhyAndCanOnlyBeDeleted) {
  ASSERT_TRUE(a_.manager_->Create(Request()).ok());
  b_.host_.last.load()->Stop(absl::UnavailableError("node 2 failed: silent for too long"));
  const auto space = b_.manager_->Get("pool");
  ASSERT_TRUE(space.ok());
  EXPECT_EQ(space->state(), v1::SPACE_STATE_STOPPED);
  EXPECT_EQ(space->reason(), "node 'c' failed: silent for too long");
  EXPECT_GT(space->since().seconds(), 0);
  EXPECT_EQ(space->parts(0).state(), v1::SPACE_STATE_RUNNING);
  EXPECT_EQ(space->parts(1).state(), v1::SPACE_STATE_STOPPED);
  const absl::Status read = b_.manager_->Read("pool", 0, 1, Soon()).status();
  EXPECT_EQ(read.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(read), HasSubstr("space 'pool' is stopped on node 'b': node 'c' failed"));
  EXPECT_FALSE(b_.manager_->Write("pool", 0, "x", Soon()).ok());
  EXPECT_TRUE(b_.manager_->Delete("pool").ok());
  ExpectNothing();
}

TEST_F(SpaceManagerTest, WithoutItsCoordinatorAStoppedSpaceIsDeletedByTheRest) {
  ASSERT_TRUE(a_.manager_->Create(Request()).ok());
  cluster_.down.insert("a");
  // As long as it runs, its coordinator may only be slow.
  EXPECT_THAT(MessageOf(b_.manager_->Delete("pool").status()),
              testing::AllOf(HasSubstr("node 'a' is unreachable"), HasSubstr("coordinates")));
  EXPECT_EQ(Spaces(), 3);
  b_.host_.last.load()->Stop(absl::UnavailableError("node 0 failed"));
  const auto notes = b_.manager_->Delete("pool");
  ASSERT_TRUE(notes.ok()) << notes.status();
  EXPECT_THAT(*notes, ElementsAre(HasSubstr("node 'a', which coordinates it, does not answer")));
  EXPECT_EQ(b_.host_.spaces, 0);
  EXPECT_EQ(c_.host_.spaces, 0);
  EXPECT_EQ(a_.host_.spaces, 1) << "it may live behind a broken network";
}

TEST_F(SpaceManagerTest, ADeletionThatAMemberDoesNotHearIsNoted) {
  ASSERT_TRUE(a_.manager_->Create(Request()).ok());
  cluster_.silent.insert("c");
  const auto notes = a_.manager_->Delete("pool");
  ASSERT_TRUE(notes.ok()) << notes.status();
  EXPECT_THAT(*notes, ElementsAre(HasSubstr("node 'c': no answer in time; it drops its part")));
  EXPECT_EQ(c_.host_.spaces, 1);
  c_.Hello("a");
  EXPECT_TRUE(Eventually([&] { return c_.manager_->List().empty(); }));
  ExpectNothing();
}

TEST_F(SpaceManagerTest, WhoWaitsInASpaceThatIsDeletedHearsIt) {
  ASSERT_TRUE(a_.manager_->Create(Request()).ok());
  b_.host_.hang = true;
  absl::Status read;
  std::thread reader([&] { read = b_.manager_->Read("pool", 0, 1, Soon()).status(); });
  EXPECT_TRUE(Eventually([&] { return b_.host_.readers == 1; }));
  EXPECT_TRUE(a_.manager_->Delete("pool").ok());
  reader.join();
  EXPECT_THAT(MessageOf(read), HasSubstr("space 'pool' is deleted"));
  ExpectNothing();
}

TEST_F(SpaceManagerTest, AMachinesSpaceStaysUntilTheMachineHasLetGo) {
  ASSERT_TRUE(a_.manager_->Create(Request()).ok());
  std::vector<std::string> ends;
  const auto note = [&ends](const absl::Status& why) { ends.push_back(MessageOf(why)); };
  absl::StatusOr<std::shared_ptr<GuestSpace>> held = a_.manager_->Hold("pool", note);
  ASSERT_TRUE(held.ok()) << held.status();
  EXPECT_EQ((*held)->bytes(), a_.manager_->List().at(0).memory_bytes());
  EXPECT_THAT(MessageOf(a_.manager_->Hold("pool", note).status()), HasSubstr("a machine's already"));
  for (SpaceManager* const manager : {a_.manager_.get(), b_.manager_.get()}) {
    EXPECT_THAT(MessageOf(manager->Delete("pool").status()),
                HasSubstr("space 'pool' is the memory of vm 'pool' on node 'a'; stop that first (hkctl vm stop pool"));
  }
  EXPECT_THAT(ends, testing::IsEmpty());
  a_.host_.last.load()->Stop(absl::DataLossError("page 7 is lost"));
  ASSERT_EQ(ends.size(), 1u);
  EXPECT_THAT(ends[0], HasSubstr("page 7 is lost"));
  *held = nullptr;
  EXPECT_TRUE(a_.manager_->Delete("pool").ok());
  EXPECT_EQ(ends.size(), 1u) << "told once, and not of what comes after";
  EXPECT_EQ(a_.manager_->Hold("pool", note).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SpaceManagerTest, WhoDoesNotEndKeepsTheSpaceAndItCanBeDeletedLater) {
  ASSERT_TRUE(a_.manager_->Create(Request()).ok());
  a_.host_.stuck = true;
  std::thread reader([&] { EXPECT_FALSE(a_.manager_->Read("pool", 0, 1, Soon()).ok()); });
  EXPECT_TRUE(Eventually([&] { return a_.host_.readers == 1; }));
  // Asked at a member: its coordinator's word is not taken for silence.
  EXPECT_THAT(MessageOf(b_.manager_->Delete("pool").status()), HasSubstr("space 'pool' is in use still; try again"));
  EXPECT_EQ(a_.manager_->List().at(0).state(), v1::SPACE_STATE_STOPPED);
  EXPECT_THAT(MessageOf(a_.manager_->Read("pool", 0, 1, Soon()).status()), HasSubstr("is stopped"));
  EXPECT_EQ(a_.host_.spaces, 1);
  a_.host_.stuck = false;
  reader.join();
  EXPECT_TRUE(a_.manager_->Delete("pool").ok());
  ExpectNothing();
}

TEST_F(SpaceManagerTest, WhatIsBeingMadeCanBeNeitherUsedNorMadeTwice) {
  std::string made_twice, deleted, read;
  c_.host_.before_attach = [&] {
    made_twice = MessageOf(a_.manager_->Create(Request()).status());
    deleted = MessageOf(a_.manager_->Delete("pool").status());
    read = MessageOf(a_.manager_->Read("pool", 0, 1, Soon()).status());
    EXPECT_EQ(a_.manager_->List().at(0).state(), v1::SPACE_STATE_CREATING);
  };
  ASSERT_TRUE(a_.manager_->Create(Request()).ok());
  EXPECT_THAT(made_twice, HasSubstr("is there already"));
  EXPECT_THAT(deleted, HasSubstr("is being made"));
  EXPECT_THAT(read, HasSubstr("is being made"));
}

TEST_F(SpaceManagerTest, ANodeThatIsToldToLeaveWhileItAttachesDoesNotStay) {
  c_.host_.before_attach = [&] {
    const uint64_t id = a_.manager_->List().at(0).id();
    EXPECT_FALSE(a_.Detach("c", id).ok());
  };
  EXPECT_THAT(MessageOf(a_.manager_->Create(Request()).status()), HasSubstr("node 'c': it was deleted meanwhile"));
  ExpectNothing();
}

TEST_F(SpaceManagerTest, ANodeWhereAMachineUsesTheSpaceDoesNotLeaveIt) {
  ASSERT_TRUE(a_.manager_->Create(Request()).ok());
  const uint64_t id = a_.manager_->List().at(0).id();
  const auto ignore = [](const absl::Status&) {};
  EXPECT_TRUE(absl::IsPermissionDenied(b_.manager_->HoldOf("c", id, ignore).status())) << "a coordinates it";
  EXPECT_TRUE(absl::IsNotFound(b_.manager_->HoldOf("a", id + 1, ignore).status()));
  absl::StatusOr<std::shared_ptr<GuestSpace>> held = b_.manager_->HoldOf("a", id, ignore);
  ASSERT_TRUE(held.ok()) << held.status();
  v1::DrainSpaceRequest drain;
  drain.set_name("pool");
  drain.set_node("b");
  EXPECT_THAT(MessageOf(a_.manager_->Drain(drain)), HasSubstr("vCPUs of vm 'pool' run on node 'b'"));
  // Also if the coordinator did not look, or they came after that.
  v1::LeaveSpaceRequest leave;
  leave.set_from("a");
  leave.set_id(id);
  leave.set_number(1);
  leave.set_leave(true);
  EXPECT_THAT(MessageOf(b_.manager_->Leave(leave).status()), HasSubstr("vCPUs of the machine run on this node"));
  leave.set_leave(false);
  EXPECT_TRUE(b_.manager_->Leave(leave).ok()) << "it stays in any case";
  *held = nullptr;
  leave.set_leave(true);
  leave.set_number(2);
  EXPECT_TRUE(b_.manager_->Leave(leave).ok());
}

TEST_F(SpaceManagerTest, PeersAreNotTrusted) {
  v1::AttachSpaceRequest good;
  good.set_from("a");
  good.set_name("pool");
  good.set_id(7);
  good.set_memory_bytes(kBytes);
  for (const auto& [name, number] : std::map<std::string, uint32_t>{{"a", 0}, {"b", 1}}) {
    good.add_members()->set_name(name);
    good.mutable_members(good.members_size() - 1)->set_number(number);
  }
  const auto refused = [&](const std::function<void(v1::AttachSpaceRequest*)>& spoil) {
    v1::AttachSpaceRequest request = good;
    spoil(&request);
    const absl::Status status = b_.manager_->Attach(request);
    EXPECT_FALSE(status.ok()) << request.DebugString();
    return MessageOf(status);
  };
  EXPECT_THAT(refused([](auto* r) { r->set_id(0); }), HasSubstr("id: 0"));
  EXPECT_THAT(refused([](auto* r) { r->set_name("/etc"); }), HasSubstr("name:"));
  EXPECT_THAT(refused([](auto* r) { r->set_memory_bytes(5); }), HasSubstr("memory_bytes:"));
  EXPECT_THAT(refused([](auto* r) { r->set_from("c"); }), HasSubstr("'c' is not among them"));
  EXPECT_THAT(refused([](auto* r) { r->mutable_members(1)->set_name("c"); }),
              HasSubstr("'c' has number 2 here, not 1"));
  EXPECT_THAT(refused([](auto* r) { r->mutable_members()->RemoveLast(); }), HasSubstr("'b' is not among them"));
  EXPECT_THAT(refused([](auto* r) { r->mutable_members()->SwapElements(0, 1); }), HasSubstr("ascending"));
  EXPECT_THAT(refused([](auto* r) { *r->add_members() = r->members(1); }), HasSubstr("ascending"));
  ASSERT_TRUE(b_.manager_->Attach(good).ok());
  EXPECT_THAT(refused([](auto*) {}), HasSubstr("there already"));
  EXPECT_THAT(refused([](auto* r) { r->set_name("other"); }), HasSubstr("has this id already"));
  // Only a member may end it.
  EXPECT_EQ(c_.Detach("b", 7).code(), absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(a_.Detach("b", 7).ok());
  EXPECT_TRUE(a_.Detach("b", 7).ok()) << "it is not there: that is what was wanted";
}

TEST(SpaceRules, PercentilesComeFromTheHistogram) {
  std::array<uint64_t, SpaceStatistics::kLatencyBuckets> buckets{};
  EXPECT_EQ(LatencyOf(buckets).p99_ns(), 0u);
  buckets[10] = 98;
  buckets[20] = 2;
  const v1::FaultLatency latency = LatencyOf(buckets);
  EXPECT_EQ(latency.count(), 100u);
  EXPECT_EQ(latency.p50_ns(), 1536u);
  EXPECT_EQ(latency.p90_ns(), 1536u);
  EXPECT_EQ(latency.p99_ns(), 3u << 19);
  EXPECT_EQ(latency.max_ns(), 2u << 20);
  EXPECT_EQ(latency.buckets(10), 98u);
}

TEST(SpaceRules, ReasonsNameTheNodes) {
  const std::vector<SpaceMemberId> members{{"a", NodeId(0)}, {"far", NodeId(12)}};
  EXPECT_EQ(WithNodeNames("node 0 failed: page 0x1 is node 12's (node 12)", members),
            "node 'a' failed: page 0x1 is node 'far''s (node 'far')");
  // What is no node of the space, or no number, stays.
  for (const char* same : {"", "node", "node ", "node 1 failed", "node 'a' failed", "node 99999999", "anode 0"})
    EXPECT_EQ(WithNodeNames(same, members), same);
}

TEST(SpaceRules, MapsOfNodesAreJoinedPartByPart) {
  NodeExtents many{.node = "a", .extents = {}}, few{.node = "b", .extents = {}};
  for (uint64_t i = 0; i < kMaxExtentsPerCall; i++) many.extents.emplace_back().set_extent(2 * i);
  few.extents.emplace_back().set_extent(2);
  few.extents.emplace_back().set_extent(1'000'000);
  v1::SpaceMapResponse map;
  // What b has after a's last is for the next part: a may have it too.
  EXPECT_EQ(MergeExtents({many, few}, &map), 2 * kMaxExtentsPerCall - 1);
  EXPECT_EQ(map.extents_size(), static_cast<int>(kMaxExtentsPerCall));
  EXPECT_EQ(map.extents(1).holders_size(), 2);
  v1::SpaceMapResponse last;
  EXPECT_EQ(MergeExtents({few}, &last), 0u);
  EXPECT_EQ(last.extents_size(), 2);
}

TEST(DataAddress, OnlyWhatLeadsSomewhereIsTaken) {
  v1::NodeInfo peer;
  peer.set_boot_id("theirs");
  peer.set_data_address("10.0.0.2:7470");
  EXPECT_EQ(DataAddressOf(peer, "ours").value(), "10.0.0.2:7470");
  peer.set_data_address("127.0.0.1:7470");
  EXPECT_EQ(DataAddressOf(peer, "theirs").value(), "127.0.0.1:7470");
  EXPECT_THAT(MessageOf(DataAddressOf(peer, "ours").status()), HasSubstr("set data in its entry of peers"));
  for (const char* nowhere : {"0.0.0.0:7470", "[::]:7470", "", "unix:/x", "host"}) {
    peer.set_data_address(nowhere);
    EXPECT_FALSE(DataAddressOf(peer, "theirs").ok()) << nowhere;
  }
}

}  // namespace
}  // namespace hk
