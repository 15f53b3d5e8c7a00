// What a space's coordinator does when nodes are lost, on virtual time: epochs, one call at each survivor after the
// other or at once, each late by chance; from the beginning if anything fails. No thread safety: the Simulation's
// thread.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "hyperkernel/base/node_set.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/space_engine.h"
#include "rdma/simulation.h"

namespace hk::sim {

// Drives the engines of one space.
class SpaceCoordinator {
 public:
  // `engine_of`: null if the node is gone. `give_up`: a node that lives is no survivor of this epoch; it must stop.
  // `let_go`: a node that has nothing is to leave with this epoch; false: it has something again.
  SpaceCoordinator(Simulation* simulation, NodeId self, NodeSet nodes, Epoch epoch,
                   std::function<SpaceEngine*(NodeId)> engine_of,
                   std::function<void(NodeId, const SpaceEpoch&)> give_up,
                   std::function<bool(NodeId, const SpaceEpoch&)> let_go)
      : simulation_(simulation),
        self_(self),
        live_(nodes),
        epoch_(epoch),
        engine_of_(std::move(engine_of)),
        give_up_(std::move(give_up)),
        let_go_(std::move(let_go)) {}

  // A node lost its connection to another.
  void OnLost(NodeId lost);
  // A node that lives has given everything away: the space goes on without it, unless somebody is lost first.
  void OnLeft(NodeId left);
  // A node is to take part from the next epoch on. REQUIRES: settled. `end`: whether it does: not if anything fails
  // before that epoch is committed anywhere. Then nobody is given up for it, whoever said what.
  void OnJoin(NodeId node, std::function<void(bool)> end);
  // All that is lost is known, and all others run.
  bool settled() const { return settled_; }
  NodeSet live() const { return live_; }
  // It takes part: not only to be asked in.
  bool IsMember(NodeId node) const { return live_.Contains(node) && !joining_.Contains(node); }
  int epochs() const { return epochs_; }
  Epoch epoch() const { return epoch_; }
  const std::vector<NodeSet>& committed_sets() const { return committed_sets_; }

 private:
  enum class Step { kBegin, kRebuild, kCommit, kRun };
  void Begin();
  SpaceEpoch Change() const;
  void EndJoin(bool joined);
  void Call(Step step);
  void OnEnd(int attempt, Step step, NodeId node, const absl::Status& status);

  Simulation* const simulation_;
  const NodeId self_;
  NodeSet live_;
  Epoch epoch_, committed_{epoch_};
  const std::function<SpaceEngine*(NodeId)> engine_of_;
  const std::function<void(NodeId, const SpaceEpoch&)> give_up_;
  const std::function<bool(NodeId, const SpaceEpoch&)> let_go_;
  NodeSet given_up_, left_, joining_;
  NodeSet begun_;  // joined in epochs that did not hold
  std::function<void(bool)> join_end_;
  std::vector<NodeSet> committed_sets_{live_};
  bool settled_ = true;
  bool scheduled_ = false;
  int attempt_ = 0, epochs_ = 0;
  NodeSet waiting_;
};

}  // namespace hk::sim
