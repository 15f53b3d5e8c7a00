// A simulated cluster that does with its transports what the page protocol will do (requests, forwards, pages, epochs),
// while everything fails by seed, under the eyes of the ContractChecker.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "rdma/sim_network.h"
#include "rdma/transport.h"
#include "tests/transport/contract_checker.h"

namespace hk {

class SimActor;

// What fails. A seed draws which of them its run has.
enum class SimFault : uint8_t {
  kBreakOne,    // one connection
  kBreak,       // all of a pair
  kCut,         // and none can be made for a while
  kSilence,     // a pair does not hear one another for a while
  kDeaf,        // one of a pair does not hear the other
  kCrash,       // a node is gone for a while, its connections are reset
  kPowerLoss,   // the same, and nobody is told
  kRestart,     // a node stops orderly and comes back
  kFence,       // ResetPeer, and the node's new epoch later
  kRemovePeer,  // and AddPeer
  kBusy,        // a class's handlers take long
  kRaiseEpoch,
  kEpochStorm,    // raised more often than the queues have room for
  kForgetGuest,   // and known again later
  kSecondAnswer,  // a request is answered twice, by one node or by two
  kUnasked,       // a node answers what it was not asked
  kStranger,      // garbage, silence, and hellos of nobody
  kSpikes,        // of the network, see SimNetworkSettings
  kStalls,
  kSplits,
  kRepeats,
  kFlips,
};
inline constexpr size_t kSimFaults = 22;
// For people.
std::string_view NameOf(SimFault fault);

// One run of one seed. Single-threaded, as the Simulation.
class SimCluster {
 public:
  // `keep_trace`: trace() is the whole of it, not only its hash.
  SimCluster(uint64_t seed, bool keep_trace);
  ~SimCluster();

  // Runs the storm, heals all, waits until all is quiet, and checks.
  void Run();

  const std::vector<std::string>& violations() const { return checker_.violations(); }
  const Simulation& simulation() const { return simulation_; }
  const ContractChecker& checker() const { return checker_; }
  const SimNetworkCounters& network() { return network_.counters(); }
  // How often each fault happened.
  const std::array<uint64_t, kSimFaults>& faults() const { return faults_; }
  uint64_t failures(PeerFailure why) const { return failures_[static_cast<size_t>(why)]; }
  uint64_t expired() const { return expired_; }
  uint64_t late() const { return late_; }

 private:
  friend class SimActor;
  using Duration = Simulation::Duration;

  bool Has(SimFault fault) const { return kinds_.count(fault) != 0; }
  void Count(SimFault fault) { ++faults_[static_cast<size_t>(fault)]; }
  NodeId PickNode() { return NodeId(static_cast<uint16_t>(simulation_.Below(nodes_))); }
  NodeId PickOther(NodeId node);
  Duration Pick(int least_ms, int most_ms);
  void Draw();
  void StartNode(NodeId node);
  void Disturb();
  void Do(SimFault fault);
  void Fence(NodeId by, NodeId node);
  void Separate(SimFault fault);
  void TakeDown(SimFault fault);
  void SendStranger();
  TransportSettings DrawSettings(NodeId node);
  void RaiseEpoch(uint64_t by);
  void StormEpochs(NodeId node);
  void ForgetGuest(NodeId node);
  // A lease after `since` nobody takes `node` for up any more, unless `changes_` says that something healed.
  void ExpectDown(NodeId observer, NodeId node, uint64_t changes);
  void HealAll();
  void CheckAllUp();

  Simulation simulation_;
  SimNetwork network_;
  ContractChecker checker_;
  uint16_t nodes_ = 3;
  int most_pause_ms_ = 0;                    // between two faults
  std::vector<TransportSettings> settings_;  // of each node
  std::set<SimFault> kinds_;
  bool storm_ = true;
  std::map<NodeId, std::unique_ptr<SimActor>> actors_;
  std::map<NodeId, Epoch> node_epochs_;
  std::map<std::pair<NodeId, NodeId>, uint64_t> separations_;  // raised whenever the pair is healed or cut
  std::array<std::pair<uint32_t, Epoch>, 3> guests_{};         // generation, epoch; [0] is no guest
  uint64_t next_transaction_ = 1;
  uint64_t superfluous_ = 0;  // answers
  std::vector<std::shared_ptr<void>> strangers_;
  std::array<uint64_t, kSimFaults> faults_{};
  std::array<uint64_t, 8> failures_{};
  uint64_t expired_ = 0, late_ = 0;
};

}  // namespace hk
