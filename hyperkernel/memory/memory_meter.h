// What operators are told of a guest's memory of one node (guest_memory.h), in the words of a space of which this node
// has every page: which extents have frames, how fast they come to, and how long that takes. Thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/base/types.h"
#include "hyperkernel/memory/decayed_count.h"
#include "hyperkernel/memory/space_engine.h"

namespace hk {

// Counts what comes to be; nothing of such a memory ever goes. 16 bytes per extent.
class MemoryMeter {
 public:
  // `pages`: of the guest's address space, holes included.
  explicit MemoryMeter(uint64_t pages) : extents_((pages + kExtentPages - 1) / kExtentPages) {}

  // These pages, of one extent, got a frame. REQUIRES: within the address space.
  void Filled(Gfn first, uint64_t pages, Monotonic now);
  // A program waited that long for a page.
  void Waited(bool write, Monotonic::duration time);

  // Faults by what was wished, with their times, and pages; the rest does not occur.
  SpaceStatistics Statistics() const;
  // As SpaceEngine::Uses.
  std::vector<ExtentUse> Uses(uint64_t first, size_t most) const;

 private:
  struct Use {
    uint32_t pages = 0;
    DecayedCount heat;
  };
  mutable Mutex mutex_;
  std::vector<Use> extents_ ABSL_GUARDED_BY(mutex_);
  SpaceStatistics statistics_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hk
