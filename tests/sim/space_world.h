// A simulated cluster of fault engines: production engines, protocol and transport on virtual time, frames in ordinary
// memory, and programs that load and store words of a few pages. An oracle sees each change of access and each load and
// store when it happens. No thread safety: the Simulation's thread.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "hyperkernel/memory/page_frames.h"
#include "hyperkernel/memory/page_swap.h"
#include "hyperkernel/memory/space_engine.h"
#include "rdma/sim_network.h"
#include "rdma/sim_transport.h"
#include "rdma/simulation.h"
#include "rdma/transport.h"
#include "tests/sim/space_coordinator.h"

namespace hk::sim {

inline constexpr size_t kWords = kPageSize / sizeof(uint64_t);
using PageWords = std::array<uint64_t, kWords>;

// What all nodes together must look like: one writer or readers, and every word what was stored last.
class SpaceOracle {
 public:
  explicit SpaceOracle(Simulation* simulation) : simulation_(simulation) {}
  // A node's access to a page changes.
  void OnAccess(NodeId node, Gfn page, PageAccess access);
  // A load or store of that moment.
  void OnLoad(NodeId node, Gfn page, size_t word, uint64_t value);
  // A value that no store had before.
  uint64_t NextValue() { return ++stores_; }
  void OnStore(NodeId node, Gfn page, size_t word, uint64_t value);
  // What the page should be.
  const PageWords& Expected(Gfn page) { return expected_[page.value()]; }
  // A node is gone. `wanted`: pages that it was about to write or to take over.
  void OnCrash(NodeId node, const std::set<uint64_t>& wanted);
  // The page's bytes may have gone with the nodes that are: README.md of the memory, "After a loss".
  bool MayBeLost(Gfn page) const;
  // A program is about to store, or was when a node was lost: copies are taken away for it before the owner answers.
  void OnWishToStore(Gfn page) { wished_.insert(page.value()); }
  bool HeldBySomebody(Gfn page) const;

  void Report(const std::string& violation);
  const std::vector<std::string>& violations() const { return violations_; }
  uint64_t loads() const { return loads_; }
  uint64_t stores() const { return stores_; }

 private:
  Simulation* const simulation_;
  std::map<uint64_t, std::map<NodeId, PageAccess>> access_;  // by page
  std::map<uint64_t, PageWords> expected_;
  std::map<uint64_t, NodeId> last_;                         // whose access changed last
  std::set<uint64_t> stored_, gone_, had_, wished_, dead_;  // pages; nodes
  std::vector<std::string> violations_;
  uint64_t loads_ = 0, stores_ = 0;
};

// Frames of one node in ordinary memory, as strict as the real ones.
class SimFrames final : public PageFrames {
 public:
  // `most`: frames at a time; 0: no bound.
  SimFrames(Simulation* simulation, SpaceOracle* oracle, NodeId node, uint64_t most)
      : simulation_(simulation), oracle_(oracle), node_(node), most_(most) {}

  // PageFrames.
  absl::Status Install(Gfn page, std::span<const std::byte> bytes, PageAccess access) override;
  absl::Status SetAccess(Gfn page, PageAccess access) override;
  absl::Status Remove(Gfn page, std::span<std::byte> keep) override;
  absl::Status Read(Gfn page, size_t offset, std::span<std::byte> to) override;
  absl::Status Write(Gfn page, size_t offset, std::span<const std::byte> from) override;
  void Wake(Gfn page) override;
  void Fail(Gfn page) override;

  PageAccess access(Gfn page) const;
  // Loads or stores one word, as a program does. REQUIRES: access.
  uint64_t Load(Gfn page, size_t word);
  void Store(Gfn page, size_t word, uint64_t value);
  // A program waits until the page is woken (true) or failed (false).
  void WaitFor(Gfn page, std::function<void(bool)> then) { waiting_[page.value()].push_back(std::move(then)); }
  const std::map<uint64_t, std::pair<PageAccess, PageWords>>& pages() const { return pages_; }

 private:
  Simulation* const simulation_;
  SpaceOracle* const oracle_;
  const NodeId node_;
  const uint64_t most_;
  std::map<uint64_t, std::pair<PageAccess, PageWords>> pages_;
  std::map<uint64_t, std::vector<std::function<void(bool)>>> waiting_;
  std::map<uint64_t, bool> failed_;
};

// A swap of one node in ordinary memory: slow, and full now and then.
class SimSwap final : public PageSwap {
 public:
  using Later = std::function<void(Simulation::Duration, std::function<void()>)>;
  // `later` runs things on the node as long as it lives. `failures`: writes of a million that fail.
  SimSwap(Simulation* simulation, SpaceOracle* oracle, Later later, uint32_t failures)
      : simulation_(simulation), oracle_(oracle), later_(std::move(later)), failures_(failures) {}

  // PageSwap.
  void Write(Gfn gfn, std::shared_ptr<const SwapPage> page, Done done) override;
  void Read(Gfn gfn, std::shared_ptr<SwapPage> page, Done done) override;
  void Forget(Gfn gfn) override;

  size_t pages() const { return pages_.size(); }

 private:
  Simulation::Duration Delay();

  Simulation* const simulation_;
  SpaceOracle* const oracle_;
  const Later later_;
  const uint32_t failures_;
  std::map<uint64_t, SwapPage> pages_;
  std::map<uint64_t, bool> under_way_;
};

// The run of one seed.
class SpaceWorld {
 public:
  // Plain value: what a run has beside its seed.
  struct Options {
    bool crash = false;  // a node is lost in the middle, and the space stops
    bool lose = false;   // nodes are lost in the middle, and the space goes on, unless the coordinator is
    bool keep_trace = false;
  };
  // What was seen. Plain value.
  struct Totals {
    uint64_t seeds = 0, loads = 0, stores = 0, served = 0, revoked = 0, upgrades = 0, stopped = 0, refused_full = 0,
             broken = 0, stalls = 0, waited_for_slots = 0, dropped = 0, adopted = 0, swap_writes = 0, swap_reads = 0,
             swap_failures = 0, went_on = 0, lost_pages = 0, later_loads = 0, epochs = 0, stopped_by_lost = 0, pins = 0,
             zeroed = 0, batches = 0, empties = 0;
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
  void StartNode(NodeId id);
  void Disturb();
  void Crash();
  bool AllUp() const;
  void CheckEnd();
  void DrawLosses();
  void LoseOne();
  SpaceEngine* EngineOf(NodeId id);
  // It lives, and is told that the space goes on without it.
  void GiveUp(NodeId id, const SpaceEpoch& epoch);
  void CutTwo();
  // Pages that it is about to write or to take over.
  std::set<uint64_t> WantedBy(NodeId id) const;
  void NoteWishes();
  // Reads every page that is not lost through each node, then one that is.
  void ReadAll();
  Gfn PickPage() { return pages_[simulation_.Below(pages_.size())]; }

  const Options options_;
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
  bool cut_ = false;  // two members lose each other, and nobody else
  std::vector<std::unique_ptr<Node>> given_up_;
  uint64_t loads_before_ = 0;
  Totals totals_;
};

}  // namespace hk::sim
