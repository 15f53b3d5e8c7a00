// Where the entries of an extent are: which node is its home, and which one is told what was ever written, so that it
// can be the home after the first. Pure; thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "hyperkernel/base/node_set.h"
#include "hyperkernel/base/types.h"

namespace hk {

// Adds who takes part in an epoch that holds to those of the epochs before. Leaves out whom IsForgotten does not need:
// it says the same of what is left, as long as no loss of two nodes at once is in it. So a space whose nodes leave and
// join one after another keeps one set.
void AddSet(std::vector<NodeSet>* sets, NodeSet next);

// The nodes of a space in the order in which they are an extent's home: the first that lives is it, the next that lives
// its second. One node may be the first of all extents, that which uses most of the space. So a home moves only when
// its node is lost, to the node that knows what was ever written; and what a lost node was home of is shared among all
// that are left.
class SpacePlacement {
 public:
  // `nodes`: ascending, not empty. `first`: one of them, before all others; nothing: extents take turns.
  explicit SpacePlacement(std::vector<NodeId> nodes, std::optional<NodeId> first = std::nullopt)
      : nodes_(std::move(nodes)), first_(first) {}

  // REQUIRES: one of the nodes lives.
  NodeId HomeOf(uint64_t extent, NodeSet live) const { return *Nth(extent, live, 0); }
  // Nothing: only one lives.
  std::optional<NodeId> SecondOf(uint64_t extent, NodeSet live) const { return Nth(extent, live, 1); }
  // True if home and second were lost at once, at any of the changes between the sets: then nobody knows what was ever
  // written there.
  bool IsForgotten(uint64_t extent, std::span<const NodeSet> sets) const;

 private:
  std::optional<NodeId> Nth(uint64_t extent, NodeSet live, int n) const;

  const std::vector<NodeId> nodes_;
  const std::optional<NodeId> first_;
};

}  // namespace hk
