// This node's part of a space: the attached memory, who uses it, and why it stopped. Thread-safe.
//
// Invariants:
//  1. Nobody uses the memory after Close returned true: uses are counted, and none begins once Close has begun.
//  2. The reason of the stop is the first one, and is known without a lock that the memory's own threads hold.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/node_set.h"
#include "hyperkernel/memory/guest_space.h"
#include "hyperkernel/node/space_rules.h"

namespace hk {

// Makes the memory of a space on this node; GuestSpace::Attach, but for tests.
using SpaceFactory = std::function<absl::StatusOr<std::unique_ptr<GuestSpace>>(GuestSpace::Options)>;

// One attached space. Whoever uses it owns it meanwhile.
class SpacePart {
 public:
  // When and why a space stopped.
  struct Stop {
    absl::Status why;
    WallTime at;
  };

  // A node that the space goes on without.
  struct Loss {
    NodeId node;
    uint64_t epoch = 0;
    WallTime since;
    bool left = false;  // nothing was lost with it
  };

  // `self` is one of the space's members; `clock` outlives the part. `lost` is told of nodes that the space may go on
  // without; it must not block. Errors: the factory's.
  static absl::StatusOr<std::unique_ptr<SpacePart>> Attach(const SpaceIdentity& space, NodeId self,
                                                           const SpaceFactory& factory, const Clock& clock,
                                                           std::function<void(NodeId)> lost = {});
  // Runs `body` with the memory. Errors: kFailedPrecondition once Close has begun, or what `body` returns.
  absl::Status Use(const std::function<absl::Status(GuestSpace*)>& body);
  // Stops the space here: what waits in it ends with this reason.
  void StopNow(const absl::Status& why);
  // The memory for a machine, which uses it for long: it is there as long as the result, and Close waits for that.
  // `stopped` is told once, of a stop, at once if that was before; it must not block. One machine at a time. Errors:
  // kFailedPrecondition once Close has begun, or of a second machine.
  static absl::StatusOr<std::shared_ptr<GuestSpace>> Hold(const std::shared_ptr<SpacePart>& part,
                                                          std::function<void(const absl::Status&)> stopped);
  // A machine has it.
  bool held() const;
  // Gives the memory back when nobody uses it any more. False: not until the deadline; it may be called again.
  bool Close(Monotonic deadline);
  // Nothing: it runs.
  std::optional<Stop> stop() const;
  // Has the memory leave or stay (SpaceEngine::Leave), as the last order says: `number` is above those before. Errors:
  // kAborted, of an order that comes late; Use's.
  absl::StatusOr<SpaceLeaving> Leave(uint64_t number, bool leave);
  // An epoch began without these nodes; of those, `left` were not lost. `joined`: are with it, but it is not known yet
  // whether it will hold; who is told of as lost of these stays so.
  void NoteEpoch(uint64_t epoch, NodeSet lost, NodeSet left, NodeSet joined, WallTime now);
  uint64_t epoch() const;
  std::vector<Loss> losses() const;

 private:
  // What the memory's threads write: outlives the memory, and its lock is held for nothing else.
  struct Note {
    mutable Mutex mutex;
    std::optional<Stop> stop ABSL_GUARDED_BY(mutex);
    uint64_t epoch ABSL_GUARDED_BY(mutex) = 1;
    std::vector<Loss> losses ABSL_GUARDED_BY(mutex);
    std::function<void(const absl::Status&)> watcher ABSL_GUARDED_BY(mutex);
  };

  SpacePart(std::shared_ptr<Note> note, std::unique_ptr<GuestSpace> memory)
      : note_(std::move(note)), memory_(std::move(memory)) {}

  const std::shared_ptr<Note> note_;
  Mutex orders_mutex_;  // before mutex_
  uint64_t last_order_ ABSL_GUARDED_BY(orders_mutex_) = 0;
  void LetGo();

  mutable Mutex mutex_;
  CondVar unused_;
  int users_ ABSL_GUARDED_BY(mutex_) = 0;
  bool held_ ABSL_GUARDED_BY(mutex_) = false;
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  std::unique_ptr<GuestSpace> memory_;  // changed only by Close, when nobody uses it
};

}  // namespace hk
