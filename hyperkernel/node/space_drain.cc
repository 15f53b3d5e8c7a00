#include "hyperkernel/node/space_drain.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "hyperkernel/base/log.h"
#include "hyperkernel/base/mutant.h"
#include "hyperkernel/base/status.h"

namespace hk {
namespace {

// How often nodes that leave are asked how far they are: people watch.
constexpr std::chrono::milliseconds kAskInterval(200);
constexpr std::chrono::seconds kIdle(60);  // a wait has a deadline

}  // namespace

SpaceDrains::SpaceDrains(std::string self, SpaceRecovery::Find find, SpaceRecovery* recovery, SpacePeers* peers,
                         const Clock& clock)
    : self_(std::move(self)),
      find_(std::move(find)),
      recovery_(recovery),
      peers_(peers),
      clock_(clock),
      thread_(&SpaceDrains::Run, this) {}

SpaceDrains::~SpaceDrains() {
  Stop();
}

void SpaceDrains::Stop() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

absl::Status SpaceDrains::Begin(uint64_t id, const SpaceMemberId& node) {
  MutexLock lock(&mutex_);
  const auto found = drains_.find(id);
  if (found == drains_.end()) {
    Drain& drain = drains_[id];
    drain.node = node.name;
    drain.number = node.number;
    drain.since = drain.progress = clock_.Wall();
    changed_.SignalAll();
    return absl::OkStatus();
  }
  if (found->second.node == node.name && !found->second.cancelled) return absl::OkStatus();
  return absl::FailedPreconditionError(
      fmt::format("node '{}' is {}; wait for that", found->second.node,
                  found->second.cancelled ? "being told that it stays" : "being drained"));
}

absl::Status SpaceDrains::Cancel(uint64_t id, const std::string& node) {
  MutexLock lock(&mutex_);
  const auto found = drains_.find(id);
  if (found == drains_.end() || found->second.node != node) {
    return absl::FailedPreconditionError(fmt::format("node '{}' is not being drained", node));
  }
  found->second.cancelled = true;
  recovery_->Withdraw(id, found->second.number);
  changed_.SignalAll();
  return absl::OkStatus();
}

std::optional<SpaceDrains::Drain> SpaceDrains::Of(uint64_t id) const {
  MutexLock lock(&mutex_);
  const auto found = drains_.find(id);
  if (found == drains_.end()) return std::nullopt;
  return found->second;
}

void SpaceDrains::Run() {
  while (true) {
    std::vector<std::pair<uint64_t, Drain>> drains;
    {
      MutexLock lock(&mutex_);
      while (!stopping_ && drains_.empty()) changed_.WaitUntil(&mutex_, std::chrono::steady_clock::now() + kIdle);
      if (stopping_) return;
      drains.assign(drains_.begin(), drains_.end());
    }
    for (const auto& [id, drain] : drains) {
      const bool over = Step(id, drain);
      MutexLock lock(&mutex_);
      if (stopping_) return;
      if (over) drains_.erase(id);
    }
    const Monotonic until = std::chrono::steady_clock::now() + kAskInterval;
    MutexLock lock(&mutex_);
    while (!stopping_ && !drains_.empty() && changed_.WaitUntil(&mutex_, until)) {
    }
  }
}

bool SpaceDrains::Step(uint64_t id, const Drain& drain) {
  const std::optional<SpaceRecovery::Space> space = find_(id);
  if (!space.has_value() || space->part == nullptr || space->part->stop().has_value()) return true;
  // What is to be done without it, or without others, comes first.
  if (recovery_->IsBusy(id)) return false;
  for (const SpacePart::Loss& loss : space->part->losses()) {
    if (loss.node != drain.number) continue;
    if (!loss.left) {
      log::Warning("space", "a node was lost while it was drained",
                   {{"guest", space->identity.name}, {"peer", drain.node}});
      return true;
    }
    // It has stopped its part, which is of no use to anybody. Else it drops that at its next hello.
    const absl::Status detached = peers_->Detach(drain.node, id);
    log::Info("space", "a node has left",
              {{"guest", space->identity.name},
               {"peer", drain.node},
               {"epoch", fmt::to_string(loss.epoch)},
               {"detached", detached.ok() ? "yes" : MessageOf(detached)}});
    return true;
  }
  v1::LeaveSpaceRequest request;
  request.set_from(self_);
  request.set_id(id);
  request.set_leave(!drain.cancelled);
  request.set_number(++orders_);
  const absl::StatusOr<v1::LeaveSpaceResponse> answer = peers_->Leave(drain.node, request);
  MutexLock lock(&mutex_);
  Drain& now = drains_[id];
  now.reason = answer.ok() ? "" : MessageOf(answer.status());
  if (!answer.ok()) return false;  // lost or not: that others find out
  if (drain.cancelled) return true;
  if (answer->pages_left() < now.least_left) {
    now.least_left = answer->pages_left();
    now.progress = clock_.Wall();
  }
  now.pages_left = answer->pages_left();
  now.pages_pinned = answer->pages_pinned();
  if (answer->pages_lost() > 0) {
    now.reason = fmt::format("it is the home of {} lost pages, of which nobody else knows: it cannot leave",
                             answer->pages_lost());
  }
  if (answer->empty() && !now.cancelled) recovery_->OnEmpty(id, drain.number);
  return false;
}

}  // namespace hk
