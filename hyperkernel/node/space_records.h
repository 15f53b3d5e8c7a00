// The spaces that this node coordinates, on disk: who took part, and which epoch each has reached. Thread-safe.
//
// Spaces live in the daemons' memory and end with their coordinator; what is here outlives it: no epoch is used before
// it is on disk, so none is ever used twice, and the next daemon can say which spaces ended with the one before.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/node/space_rules.h"
#include "hyperkernel/node/state_store.h"
#include "proto/state.pb.h"

namespace hk {

// A change is on disk when its call returns.
class SpaceRecords {
 public:
  // `store` outlives it.
  explicit SpaceRecords(StateStore* store) : store_(store) {}

  // Errors: the store's.
  absl::Status Put(const SpaceIdentity& space, uint64_t epoch);
  absl::Status Forget(uint64_t id);
  // The spaces of earlier daemons, which are forgotten. One that cannot be read is logged and left out: nothing depends
  // on it any more. REQUIRES: no Put came before.
  absl::StatusOr<std::vector<v1::SpaceRecord>> TakeLeftovers();

 private:
  StateStore* const store_;
};

}  // namespace hk
