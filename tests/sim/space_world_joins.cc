// Worlds with a node that joins: one more, or one that has left.
#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "tests/sim/space_world.h"
#include "tests/sim/space_world_node.h"

namespace hk::sim {

using std::chrono::milliseconds;

void SpaceWorld::JoinOne() {
  const auto stopped = [this](const auto& node) {
    return node != nullptr && !IsToJoin(node->id()) && !node->stopped().ok();
  };
  if (over_ || EngineOf(NodeId(0)) == nullptr || std::any_of(nodes_.begin(), nodes_.end(), stopped)) {
    join_pending_ = false;  // nobody is left to ask
    return;
  }
  if (!coordinator_->settled()) return (void)simulation_.After(milliseconds(1), [this] { JoinOne(); });
  JoinerGoes();
  oracle_.OnComes(joiner_);
  config_.epoch = joins_after_ = coordinator_->epoch();
  config_.live = coordinator_->live();
  config_.committed = coordinator_->committed_sets();
  simulation_.Trace(fmt::format("{} comes", joiner_.value()));
  nodes_[joiner_.value()] = std::make_unique<Node>(this, joiner_, settings_[joiner_.value()]);
  nodes_[joiner_.value()]->Begin();
  if (!std::exchange(joiner_troubled_, true) && simulation_.Below(2) == 0) {
    ++totals_.joiners_troubled;
    trouble_when_asked_ = simulation_.Below(2) == 0;
    if (!trouble_when_asked_) simulation_.After(simulation_.Between({}, milliseconds(60)), [this] { TroubleJoiner(); });
  }
  AskIn();
}

void SpaceWorld::AskIn() {
  Node* const node = nodes_[joiner_.value()].get();
  if (over_ || node == nullptr || coordinator_->epoch() != joins_after_ || !coordinator_->settled() ||
      !node->stopped().ok()) {
    return OnJoined(false);
  }
  bool connected = true;
  for (uint16_t id = 0; id < node_count_; ++id) {
    const NodeId other(id);
    if (other == joiner_ || !config_.live.Contains(other)) continue;
    const Node* const theirs = nodes_[id].get();
    connected =
        connected && theirs != nullptr && theirs->connected().Contains(joiner_) && node->connected().Contains(other);
  }
  if (!connected) return (void)simulation_.After(milliseconds(1), [this] { AskIn(); });
  simulation_.Trace(fmt::format("{} is asked in", joiner_.value()));
  if (std::exchange(trouble_when_asked_, false)) {
    // Before its epoch holds, or just after.
    simulation_.After(simulation_.Between({}, milliseconds(14)), [this] { TroubleJoiner(); });
  }
  coordinator_->OnJoin(joiner_, [this](bool joined) { OnJoined(joined); });
}

void SpaceWorld::OnJoined(bool joined) {
  if (joined) {
    join_pending_ = false;
    ++totals_.joined;
    // A member from now on; with what has befallen it.
    if (joiner_cut_ || nodes_[joiner_.value()] == nullptr) joiner_lost_ = crashed_ = true;
    if (nodes_[joiner_.value()] == nullptr) {
      ++joiner_dead_;
      oracle_.OnCrash(joiner_, WantedBy(joiner_));
    }
    return;
  }
  ++totals_.joiners_refused;
  simulation_.Trace(fmt::format("{} does not join", joiner_.value()));
  simulation_.After(simulation_.Between(milliseconds(1), milliseconds(20)), [this] { JoinOne(); });
}

void SpaceWorld::JoinerGoes() {
  if (!IsToJoin(joiner_)) return;
  if (nodes_[joiner_.value()] != nullptr) oracle_.OnCrash(joiner_, {});
  network_.Crash(joiner_, false);
  nodes_[joiner_.value()].reset();
  std::erase_if(given_up_, [this](const auto& node) { return node->id() == joiner_; });
}

void SpaceWorld::TroubleJoiner() {
  Node* const node = nodes_[joiner_.value()].get();
  if (over_ || node == nullptr) return;
  if (simulation_.Below(2) == 0) {
    std::vector<NodeId> others;
    for (uint16_t id = 0; id < node_count_; ++id) {
      if (NodeId(id) != joiner_ && coordinator_->IsMember(NodeId(id))) others.push_back(NodeId(id));
    }
    // A cut of members is a loss, of which there are worlds enough.
    if (coordinator_->IsMember(joiner_) || others.empty()) return;
    joiner_cut_ = true;
    return CutJoiner(others[simulation_.Below(others.size())],
                     simulation_.Now() + simulation_.Between(milliseconds(1), milliseconds(2 * kLeaseMs)));
  }
  simulation_.Trace(fmt::format("{} dies", joiner_.value()));
  if (coordinator_->IsMember(joiner_)) {
    joiner_lost_ = crashed_ = true;
    ++totals_.joiners_lost;
    ++joiner_dead_;
    breaks_ = busy_ = false;
    oracle_.OnCrash(joiner_, WantedBy(joiner_));
    NoteWishes();
  } else {
    oracle_.OnCrash(joiner_, {});
  }
  network_.Crash(joiner_, simulation_.Below(2) == 0);
  nodes_[joiner_.value()].reset();
}

// Again and again: what else would heal it may do so.
void SpaceWorld::CutJoiner(NodeId other, Monotonic until) {
  if (over_ || simulation_.Now() >= until) {
    network_.Heal(joiner_, other);
    // Until then it may be found out.
    return (void)simulation_.After(milliseconds(kLeaseMs), [this] { joiner_cut_ = false; });
  }
  network_.Cut(joiner_, other);
  simulation_.After(milliseconds(10), [this, other, until] { CutJoiner(other, until); });
}

}  // namespace hk::sim
