// For tests of epochs: engines over simulated transports, whose steps the test calls as their coordinator does.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "hyperkernel/memory/engine_testing.h"
#include "hyperkernel/memory/space_engine.h"
#include "rdma/sim_network.h"
#include "rdma/sim_transport.h"
#include "rdma/simulation.h"

namespace hk::recovery_testing {

using std::chrono::milliseconds;

inline NodeSet Set(const std::vector<uint16_t>& nodes) {
  NodeSet set;
  for (const uint16_t node : nodes) set.Add(NodeId(node));
  return set;
}

// One node: transport, engine, frames that are ordinary memory. Not thread-safe: the Simulation's thread.
class Node final : public TransportHandler, public Timers {
 public:
  Node(Simulation* simulation, SimNetwork* network, SpaceConfig config) : simulation_(simulation) {
    TransportSettings settings;
    settings.cluster = "sim";
    settings.self = config.self;
    settings.lease_ms = 200;
    settings.heartbeat_ms = 25;
    settings.backoff_ms = 2;
    settings.backoff_max_ms = 10;
    transport = *MakeSimTransport(network, settings, this);
    EXPECT_TRUE(transport->Start().ok());
    for (const NodeId other : config.nodes) {
      if (other == config.self) continue;
      EXPECT_TRUE(transport->AddPeer(other, SimNetwork::AddressOf(other)).ok());
    }
    engine = *SpaceEngine::Create(config, transport.get(), &frames, this, *simulation,
                                  [this](const absl::Status& why) { stopped = why; });
    engine->WatchLosses([this](NodeId node) { lost.push_back(node); });
  }
  ~Node() override {
    alive_.reset();
    transport->Stop();
    engine.reset();
  }
  void After(Monotonic::duration delay, std::function<void()> run) override {
    simulation_->After(delay, [alive = std::weak_ptr<bool>(alive_), run = std::move(run)] {
      if (!alive.expired()) run();
    });
  }
  void OnMessage(NodeId from, const Message& message, std::span<const std::byte> payload, bool late) override {
    engine->OnMessage(from, message, payload, late);
  }
  void OnPeerUp(NodeId) override { ++up; }
  void OnPeerFailed(NodeId peer, PeerFailure why, const std::string& detail) override {
    engine->OnPeerFailed(peer, why, detail);
  }
  void OnWritable(NodeId peer, MessageClass c) override { engine->OnWritable(peer, c); }
  void OnSlotsFree(MessageClass c, SlotUse use) override { engine->OnSlotsFree(c, use); }
  void OnRequestExpired(NodeId asked, MessageClass c, uint64_t transaction, SlotId slot, RequestFailure why) override {
    engine->OnRequestExpired(asked, c, transaction, slot, why);
  }

  FakeFrames frames;
  std::unique_ptr<Transport> transport;
  std::unique_ptr<SpaceEngine> engine;
  absl::Status stopped;
  std::vector<NodeId> lost;
  int up = 0;

 private:
  Simulation* const simulation_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

inline constexpr NodeId kA(0), kB(1), kC(2), kD(3);

// Nodes a (which coordinates), b and c; extent N has home N modulo 3.
class SpaceRecoveryTest : public testing::Test {
 protected:
  // `live`: so many of them take part at first; 0: all.
  explicit SpaceRecoveryTest(std::vector<NodeId> nodes = {kA, kB, kC}, size_t live = 0,
                             uint64_t pages = 12 * kExtentPages) {
    config_.guest = GuestId(7);
    config_.nodes = std::move(nodes);
    for (size_t i = 0; i < live; ++i) config_.live.Add(config_.nodes[i]);
    config_.pages = pages;
    config_.hold = std::chrono::microseconds(0);
    config_.request_limit = std::chrono::seconds(5);
    config_.coordinator = kA;
    for (const NodeId node : config_.nodes) {
      if (live != 0 && !config_.live.Contains(node)) continue;
      config_.self = node;
      nodes_.push_back(std::make_unique<Node>(&simulation_, &network_, config_));
    }
    EXPECT_TRUE(Until([&] {
      return std::all_of(nodes_.begin(), nodes_.end(),
                         [this](const auto& node) { return node->up == static_cast<int>(nodes_.size()) - 1; });
    }));
  }
  Node& At(NodeId node) { return *nodes_[node.value()]; }
  bool Until(const std::function<bool()>& condition) {
    const Monotonic limit = simulation_.Now() + std::chrono::seconds(20);
    while (!condition() && simulation_.Now() < limit && simulation_.Step()) {
    }
    return condition();
  }
  static Gfn PageOf(uint64_t extent, uint64_t page = 3) { return Gfn(extent * kExtentPages + page); }
  void Write(NodeId node, Gfn page, char value) {
    bool done = false;
    At(node).engine->Want(page, PageAccess::kWrite, [&](const absl::Status& status) {
      EXPECT_TRUE(status.ok()) << status;
      if (status.ok()) At(node).frames.First(page) = value;
      done = true;
    });
    EXPECT_TRUE(Until([&] { return done; }));
  }
  // Its first byte, or the error.
  std::string Read(NodeId node, Gfn page) {
    std::string result;
    At(node).engine->Want(page, PageAccess::kRead, [&](const absl::Status& status) {
      result = status.ok() ? std::string(1, At(node).frames.First(page)) : status.ToString();
    });
    EXPECT_TRUE(Until([&] { return !result.empty(); }));
    return result;
  }
  void Settle() { simulation_.RunUntil(simulation_.Now() + milliseconds(50)); }
  void Lose(NodeId node) {
    Settle();
    network_.Crash(node, true);
    nodes_[node.value()].reset();
    EXPECT_TRUE(Until([&] {
      return std::all_of(nodes_.begin(), nodes_.end(), [](const auto& left) {
        return left == nullptr || !left->lost.empty() || !left->stopped.ok();
      });
    }));
  }
  std::vector<Node*> Left() {
    std::vector<Node*> left;
    for (const auto& node : nodes_) {
      if (node != nullptr) left.push_back(node.get());
    }
    return left;
  }
  void Begin(uint64_t epoch, const std::vector<uint16_t>& survivors, uint64_t committed,
             const std::vector<uint16_t>& left = {}) {
    for (const auto& node : nodes_) {
      if (node == nullptr) continue;
      const absl::Status status = node->engine->BeginEpoch(
          {.epoch = Epoch(epoch), .survivors = Set(survivors), .committed = Epoch(committed), .left = Set(left)});
      const bool leaves = Set(left).Contains(NodeId(static_cast<uint16_t>(&node - nodes_.data())));
      EXPECT_EQ(status.ok(), !leaves) << status;
    }
  }
  void Rebuild(uint64_t epoch) {
    size_t done = 0;
    for (Node* node : Left()) {
      node->engine->Rebuild(Epoch(epoch), [&done](const absl::Status& status) {
        EXPECT_TRUE(status.ok()) << status;
        ++done;
      });
    }
    EXPECT_TRUE(Until([&] { return done == Left().size(); }));
  }
  void GoOn(uint64_t epoch, const std::vector<uint16_t>& survivors) {
    Begin(epoch, survivors, 1);
    Rebuild(epoch);
    for (Node* node : Left()) EXPECT_TRUE(node->engine->Commit(Epoch(epoch)).ok());
    for (Node* node : Left()) EXPECT_TRUE(node->engine->Run(Epoch(epoch)).ok());
  }

  Simulation simulation_{1};
  SimNetwork network_{&simulation_, {}};
  SpaceConfig config_;
  std::vector<std::unique_ptr<Node>> nodes_;
};

}  // namespace hk::recovery_testing
