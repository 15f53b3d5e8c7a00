// What the I/O node of a machine knows of the clocks of its other nodes (clock_follower.h): the offset that they
// follow, what they say, and when this node's own vCPUs have to step. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/node/clock_follower.h"

namespace hk {

// See above.
class MachineClocks {
 public:
  // Once, before all else: the machine's TSC less this host's, and its rate; 0: not known, and nobody follows.
  void Begin(uint64_t offset, uint32_t tsc_khz);
  // What the others follow.
  uint64_t offset() const;
  // What a node says, having been told offset().
  void Take(NodeId node, const ClockWord& word, Monotonic now);
  // What this node's vCPUs are to step, by what was said since the last call; 0: nothing.
  uint64_t TakeStep();
  // They have.
  void Stepped(uint64_t ticks);
  // By how much a node's TSC may differ now, ns; nullopt: not known.
  std::optional<uint64_t> Bound(NodeId node, Monotonic now) const;

 private:
  struct Said {
    uint64_t lead = 0;
    std::optional<uint64_t> bound_ns;
    Monotonic at{};
  };

  mutable Mutex mutex_;
  uint64_t offset_ ABSL_GUARDED_BY(mutex_) = 0;
  uint32_t tsc_khz_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<NodeId, Said> said_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hk
