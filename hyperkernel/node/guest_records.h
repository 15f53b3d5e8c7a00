// What is defined on this node, on disk. Thread-safe.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hyperkernel/node/state_store.h"
#include "proto/state.pb.h"

namespace hk {

// The records of all machines of a node, each under its machine's name. A change is on disk when its call returns.
class GuestRecords {
 public:
  // `store` outlives it.
  explicit GuestRecords(StateStore* store) : store_(store) {}

  // By name. Errors: kDataLoss naming a record that cannot be read; the store's.
  absl::StatusOr<std::vector<v1::VmRecord>> List() const;
  absl::Status Put(const v1::VmRecord& record);
  absl::Status Delete(const std::string& name);

 private:
  StateStore* const store_;
};

}  // namespace hk
