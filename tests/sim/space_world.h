// A simulated cluster of fault engines: production engines, protocol and transport on virtual time, frames in ordinary
// memory, and programs that load and store words of a few pages. An oracle sees each change of access and each load and
// store when it happens. No thread safety: the Simulation's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "hyperkernel/memory/space_engine.h"
#include "rdma/sim_network.h"
#include "rdma/sim_transport.h"
#include "rdma/simulation.h"
#include "rdma/transport.h"
#include "tests/sim/space_coordinator.h"
#include "tests/sim/space_oracle.h"

namespace hk::sim {

// The run of one seed.
class SpaceWorld {
 public:
  // Plain value: what a run has beside its seed.
  struct Options {
    bool crash = false;  // a node is lost in the middle, and the space stops
    bool lose = false;   // nodes are lost in the middle, and the space goes on, unless the coordinator is
    bool leave = false;  // with `lose`: the first of them gives away all it has, and leaves
    // With `lose`: a node more takes part from some moment on, as soon as it can; in half of the worlds without losses.
    bool join = false;
    bool again = false;  // with `leave`: alone, and that node comes again
    bool both = false;   // programs need two pages at once, as one instruction may; nothing but messages takes time
    // With `both`: more pages than come while one is held, and threads that are known.
    bool gather = false;
    bool keep_trace = false;
  };
  // What was seen. Plain value.
  struct Totals {
    uint64_t seeds = 0, loads = 0, stores = 0, served = 0, revoked = 0, upgrades = 0, stopped = 0, refused_full = 0,
             broken = 0, stalls = 0, waited_for_slots = 0, dropped = 0, adopted = 0, swap_writes = 0, swap_reads = 0,
             swap_failures = 0, went_on = 0, lost_pages = 0, later_loads = 0, epochs = 0, stopped_by_lost = 0, pins = 0,
             left = 0, joined = 0, joiners_troubled = 0, joiners_refused = 0, joiners_lost = 0, zeroed = 0, batches = 0,
             empties = 0, peeks = 0, peeks_used = 0, peeks_refused = 0;
    uint64_t both = 0, both_faults = 0, most_faults = 0;  // all pages had at once, faults for that, most for one
  };
  SpaceWorld(uint64_t seed, const Options& options);
  ~SpaceWorld();

  void Run();
  Simulation& simulation() { return simulation_; }
  const std::vector<std::string>& violations() const { return oracle_.violations(); }
  void AddTo(Totals* totals) const;

 private:
  class Node;
  using Duration = Simulation::Duration;

  void Draw();
  void DrawScans();
  void DrawBoth();
  void StartNode(NodeId id);
  void Disturb();
  void Crash();
  bool AllUp() const;
  void CheckEnd();
  void DrawLosses();
  void LoseOne();
  void LeaveOne(NodeId id);
  SpaceEngine* EngineOf(NodeId id);
  // It lives, and is told that the space goes on without it.
  void GiveUp(NodeId id, const SpaceEpoch& epoch);
  // It is leaving, and to go now. False: it has something still.
  bool LetGo(NodeId id, const SpaceEpoch& epoch);
  // The node that joins comes, and is asked in; if that fails it goes, and comes again. Its own troubles: it dies, or
  // loses one of the others.
  void JoinOne();
  void AskIn();
  void OnJoined(bool joined);
  void TroubleJoiner();
  void CutJoiner(NodeId other, Monotonic until);
  // All that is left of it goes, if it takes no part.
  void JoinerGoes();
  bool IsToJoin(NodeId id) const { return joins() && id == joiner_ && !coordinator_->IsMember(id); }
  bool joins() const { return options_.join || (options_.again && totals_.left != 0); }
  // How many take part at first.
  uint16_t founders() const { return options_.join ? static_cast<uint16_t>(node_count_ - 1) : node_count_; }
  // Nobody is lost: so nothing is, and nobody stops.
  bool nothing_lost() const {
    return options_.lose && !joiner_lost_ && (victims_.empty() || (options_.leave && victims_.size() == 1));
  }
  void CutTwo();
  // Pages that it is about to write or to take over.
  std::set<uint64_t> WantedBy(NodeId id) const;
  void NoteWishes();
  // With what may come back when an epoch begins.
  uint64_t MostFrames(const TransportSettings& settings) const {
    if (config_.max_pages == 0) return 0;
    return config_.max_pages + (options_.lose ? settings.fault_send_slots : 0);
  }
  // Reads every page that is not lost through each node, then one that is.
  void ReadAll();
  Gfn PickPage() { return pages_[simulation_.Below(pages_.size())]; }

  const Options options_;
  const uint64_t seed_;
  Simulation simulation_;
  SimNetwork network_;
  SpaceOracle oracle_;
  uint16_t node_count_ = 3;
  SpaceConfig config_;
  std::vector<TransportSettings> settings_;
  std::vector<Gfn> pages_;
  std::vector<std::unique_ptr<Node>> nodes_;  // null: crashed
  uint64_t words_ = 1;
  uint32_t store_percent_ = 50, fault_percent_ = 50, overwrite_percent_ = 0, zero_percent_ = 0, pin_percent_ = 0;
  int operations_ = 0, programs_ = 1;
  Duration think_{};
  bool breaks_ = false, busy_ = false, over_ = false, scans_ = false;
  bool crashed_ = false;
  uint32_t swap_failures_ = 0;
  std::vector<NodeId> victims_;
  std::vector<Gfn> victims_pages_;  // that only they touch, before they are lost
  uint32_t victims_store_percent_ = 0;
  std::unique_ptr<SpaceCoordinator> coordinator_;
  size_t dead_ = 0, losses_ = 0;
  bool join_pending_ = false;
  NodeId joiner_;
  Epoch joins_after_;
  bool joiner_troubled_ = false, trouble_when_asked_ = false;
  bool joiner_cut_ = false;   // from one of the others, now or just before
  bool joiner_lost_ = false;  // its troubles were those of a member
  size_t joiner_dead_ = 0;
  bool cut_ = false;  // two members lose each other, and nobody else
  std::vector<std::unique_ptr<Node>> given_up_;
  uint64_t loads_before_ = 0;
  Totals totals_;
};

}  // namespace hk::sim
