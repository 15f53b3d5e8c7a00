// The storage replicas of this node's machines, by name: made at a machine's first run, kept over its resets and over
// the death of the daemon, and dropped with the machine's end.
//
// What a killed daemon left, and what happens with it:
// - frames and no table, or a table of a machine that is not defined here: removed.
// - A table of a machine that was deleted and defined anew, or has no replica any more: removed, and said.
// - A table that another process uses, or of another boot, frame store, size of memory or version, or damaged: the
// same.
// - A table of a later run than the record's: the same, since the record is an old one.
// - Several tables of one machine: the last counts, the others are removed.
// - A frame file of another size, that is no file of ours, or beyond room: removed with its entries, and said.
// - Entries whose frame file is not there: they go. Pages without an entry that counts: punched.
// - An image that is another, or was changed since: its entries go when it is attached, and said.
// - A page whose bytes are not what its checksum says: its entry goes when it is read, and said once.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "hyperkernel/base/mutex.h"
#include "hyperkernel/node/guest_replica.h"
#include "hyperkernel/node/replica_site.h"
#include "proto/state.pb.h"
#include "proto/vm.pb.h"

namespace hk {

// All of one node. Thread-safe.
class GuestReplicas {
 public:
  explicit GuestReplicas(ReplicaSite site) : site_(std::move(site)) {}

  // Takes over what a daemon that was killed left of the machines in `records`, which are all that are defined here,
  // and removes all else that it left in the frame store. What is not believed is logged, one line a machine. Returns
  // how many files were removed. `in_use`: names of frame files that are a guest's present memory, which goes on with
  // them: they stay as they are, and nothing else that there is of that guest is believed. REQUIRES: as
  // FrameStore::RemoveLeftovers; before all else. Errors: of that.
  absl::StatusOr<int> Recover(const std::vector<v1::VmRecord>& records, const std::set<std::string>& in_use = {});

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
  // Of the tables that were left of it, by the generations that they began with, takes the last over. Not kept: null.
  std::shared_ptr<GuestReplica> RecoverOne(const v1::VmRecord& record, uint64_t table);

  const ReplicaSite site_;
  mutable Mutex mutex_;
  std::map<std::string, std::shared_ptr<GuestReplica>> replicas_ ABSL_GUARDED_BY(mutex_);
};

// Why the machine, as it is, has none, and what to do: one line. REQUIRES: Find gave none.
absl::Status WhyNoReplica(const v1::Vm& vm);

}  // namespace hk
