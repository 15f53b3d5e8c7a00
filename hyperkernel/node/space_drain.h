// Empties nodes of the spaces that this node coordinates. Thread-safe.
//
// The node gives its pages away by itself (memory/README.md, "Leaving"); here it is told to, asked how far it is, and
// given up when it has nothing any more. A drain goes on by itself, whoever asked for it, until the node has left, is
// lost, stays after all, or the space ends.
//
// Invariants:
//  1. One node of a space is drained at a time.
//  2. A node leaves only after it said that it has nothing, and says so again when it is given up (space_recovery.h).
//  3. Who was told to leave and is to stay has been told so when its drain is over; or it is lost.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/node/space_peers.h"
#include "hyperkernel/node/space_recovery.h"

namespace hk {

// All drains that this node coordinates.
class SpaceDrains {
 public:
  // How far one is. Plain value.
  struct Drain {
    std::string node;
    NodeId number{};
    WallTime since, progress;            // progress: when less was left than ever before
    std::optional<uint64_t> pages_left;  // none: it was not asked yet
    uint64_t least_left = UINT64_MAX;
    uint64_t pages_pinned = 0;
    std::string reason;      // why the node was not asked last time
    bool cancelled = false;  // it is to be told that it stays
  };

  // `recovery`, `peers` and `clock` outlive it.
  SpaceDrains(std::string self, SpaceRecovery::Find find, SpaceRecovery* recovery, SpacePeers* peers,
              const Clock& clock);
  // REQUIRES: Stop.
  ~SpaceDrains();
  // Asks nobody any more; waits for what is under way.
  void Stop();

  // REQUIRES: `node` is a member of the space, lives, and is not this one. Errors: kFailedPrecondition, when another is
  // drained, or the same one is to stay and does not know yet.
  absl::Status Begin(uint64_t id, const SpaceMemberId& node);
  // Errors: kFailedPrecondition: it is not being drained.
  absl::Status Cancel(uint64_t id, const std::string& node);
  std::optional<Drain> Of(uint64_t id) const;

 private:
  void Run();
  // Asks the node of one drain. True: the drain is over.
  bool Step(uint64_t id, const Drain& drain);

  const std::string self_;
  const SpaceRecovery::Find find_;
  SpaceRecovery* const recovery_;
  SpacePeers* const peers_;
  const Clock& clock_;
  mutable Mutex mutex_;
  CondVar changed_;
  uint64_t orders_ = 0;                                       // of Run's thread
  std::map<uint64_t, Drain> drains_ ABSL_GUARDED_BY(mutex_);  // by space id; one per space
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace hk
