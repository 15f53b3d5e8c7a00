#include "tests/sim/space_coordinator.h"

#include <utility>

#include "fmt/format.h"
#include "hyperkernel/memory/space_placement.h"

namespace hk::sim {

using std::chrono::microseconds;

void SpaceCoordinator::OnLost(NodeId lost) {
  if (!live_.Contains(lost) || lost == self_) return;
  EndJoin(false);
  if (!live_.Contains(lost)) return Begin();  // it was to join
  live_.Remove(lost);
  given_up_.Add(lost);
  Begin();
}

void SpaceCoordinator::OnLeft(NodeId left) {
  if (!settled_ || !live_.Contains(left)) return;
  epoch_ = Epoch(epoch_.value() + 1);
  const NodeSet gone(left_.bits() | NodeSet::Of(left).bits());
  if (!let_go_(left, {.epoch = epoch_, .survivors = {}, .committed = committed_, .left = gone})) return;
  left_ = gone;
  live_.Remove(left);
  Begin();
}

void SpaceCoordinator::OnJoin(NodeId node, std::function<void(bool)> end) {
  joining_ = NodeSet::Of(node);
  join_end_ = std::move(end);
  live_.Add(node);
  Begin();
}

// It had nothing, so it is not lost.
void SpaceCoordinator::EndJoin(bool joined) {
  if (joining_.empty()) return;
  if (!joined) {
    live_ = NodeSet(live_.bits() & ~joining_.bits());
    begun_ = NodeSet(begun_.bits() | joining_.bits());
  } else {
    left_ = NodeSet(left_.bits() & ~joining_.bits());
  }
  joining_ = NodeSet();
  std::exchange(join_end_, nullptr)(joined);
}

SpaceEpoch SpaceCoordinator::Change() const {
  const NodeSet left((left_.bits() | begun_.bits()) & ~live_.bits());
  return {.epoch = epoch_, .survivors = live_, .committed = committed_, .left = left, .joined = joining_};
}

// The attempt of before is over, whatever its calls still say.
void SpaceCoordinator::Begin() {
  settled_ = false;
  ++attempt_;
  if (std::exchange(scheduled_, true)) return;
  simulation_->After(simulation_->Between({}, microseconds(3000)), [this] {
    scheduled_ = false;
    epoch_ = Epoch(epoch_.value() + 1);
    ++epochs_;
    for (uint16_t id = 0; id < kMaxNodes; ++id) {
      if (!given_up_.Contains(NodeId(id)) || engine_of_(NodeId(id)) == nullptr) continue;
      SpaceEpoch change = Change();
      change.left.Remove(NodeId(id));  // it is told that it has no part in it
      give_up_(NodeId(id), change);
    }
    given_up_ = NodeSet();
    Call(Step::kBegin);
  });
}

void SpaceCoordinator::Call(Step step) {
  waiting_ = live_;
  for (uint16_t id = 0; id < kMaxNodes; ++id) {
    const NodeId node(id);
    if (!live_.Contains(node)) continue;
    simulation_->After(simulation_->Between({}, microseconds(3000)), [this, attempt = attempt_, step, node] {
      if (attempt != attempt_) return;
      SpaceEngine* const engine = engine_of_(node);
      simulation_->Trace(
          fmt::format("step {} of epoch {} at {}", static_cast<int>(step), epoch_.value(), node.value()));
      if (engine == nullptr) {  // the lease ends; who joins is not waited for
        return joining_.Contains(node) ? OnEnd(attempt, step, node, absl::UnavailableError("no answer")) : void();
      }
      switch (step) {
        case Step::kBegin:
          return OnEnd(attempt, step, node, engine->BeginEpoch(Change()));
        case Step::kRebuild:
          return engine->Rebuild(epoch_, [this, attempt, step, node](const absl::Status& status) {
            simulation_->After({}, [this, attempt, step, node, status] { OnEnd(attempt, step, node, status); });
          });
        case Step::kCommit:
          if (committed_ != epoch_) AddSet(&committed_sets_, live_);
          committed_ = epoch_;
          begun_ = NodeSet();
          EndJoin(true);
          return OnEnd(attempt, step, node, engine->Commit(epoch_));
        case Step::kRun:
          return OnEnd(attempt, step, node, engine->Run(epoch_));
      }
    });
  }
}

void SpaceCoordinator::OnEnd(int attempt, Step step, NodeId node, const absl::Status& status) {
  if (attempt != attempt_) return;
  if (!status.ok()) {
    simulation_->Trace(fmt::format("{} says {}", node.value(), status.ToString()));
    if (!joining_.empty()) {
      // What is wrong with others is found out without it.
      EndJoin(false);
      return Begin();
    }
    SpaceEngine* const engine = engine_of_(node);
    if (!absl::IsUnavailable(status) && !absl::IsAborted(status)) {
      // It has stopped, and its word for the others may be of an epoch that is over.
      settled_ = true;
      ++attempt_;
      if (engine_of_(self_) != nullptr) engine_of_(self_)->Stop(status);
      return;
    }
    const NodeSet failed = engine == nullptr ? NodeSet() : engine->EpochState().failed;
    const NodeSet gone(live_.bits() & failed.bits() & ~NodeSet::Of(self_).bits());
    given_up_ = NodeSet(given_up_.bits() | gone.bits());
    live_ = NodeSet(live_.bits() & ~gone.bits());
    return Begin();
  }
  waiting_.Remove(node);
  if (!waiting_.empty()) return;
  if (step == Step::kRun) {
    settled_ = true;
    return;
  }
  Call(static_cast<Step>(static_cast<int>(step) + 1));
}

}  // namespace hk::sim
