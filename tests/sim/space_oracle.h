// What a simulated cluster of fault engines must look like at any moment. No thread safety: the Simulation's thread.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/page_frames.h"
#include "rdma/simulation.h"

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
  // One that was gone comes again, with nothing.
  void OnComes(NodeId node);
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
  std::map<uint64_t, std::set<NodeId>> went_;               // who gave it up since anybody was given it
  std::set<uint64_t> stored_, gone_, had_, wished_, dead_;  // pages; nodes
  std::vector<std::string> violations_;
  uint64_t loads_ = 0, stores_ = 0;
};

}  // namespace hk::sim
