// The storage replicas of this node's machines, by name: made at a machine's first run, kept over its resets, and
// dropped with its end.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/memory/frame_store.h"
#include "hyperkernel/node/guest_replica.h"
#include "proto/state.pb.h"
#include "proto/vm.pb.h"

namespace hk {

// All of one node. Thread-safe.
class GuestReplicas {
 public:
  // Both outlive it and what it gives.
  GuestReplicas(const FrameStore& frames, const Clock& clock) : frames_(frames), clock_(clock) {}

  // For the run that is about to begin of a machine whose memory is here alone: what there is of the run before, or a
  // new one. Null: it has none, by its specification, for want of disks, or because it cannot be made (which is
  // logged).
  std::shared_ptr<GuestReplica> BeginRun(const v1::VmRecord& record);
  // The machine has ended for good, or begins cold; nothing if it has none.
  void Drop(const std::string& name);
  // Null: it has none.
  std::shared_ptr<GuestReplica> Find(const std::string& name) const;
  // As GuestReplica::Describe, by name; without what takes long to count.
  std::vector<v1::Replica> Samples() const;

 private:
  const FrameStore& frames_;
  const Clock& clock_;
  mutable Mutex mutex_;
  std::map<std::string, std::shared_ptr<GuestReplica>> replicas_ ABSL_GUARDED_BY(mutex_);
};

// Why the machine, as it is, has none, and what to do: one line. REQUIRES: Find gave none.
absl::Status WhyNoReplica(const v1::Vm& vm);

}  // namespace hk
