// Which nodes a machine is spread over when its spec leaves that to us: by free memory and cores. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/node.pb.h"
#include "proto/vm.pb.h"

namespace hk {

// A node that could have a part of the machine. Plain value.
struct PlacementCandidate {
  std::string node;
  uint64_t free_mib = 0;  // of its frame store, what nobody has reserved
  uint32_t cpus = 0;
};

// What is to be placed. Plain value.
struct PlacementWish {
  uint64_t memory_mib = 0;  // on one node alone
  uint64_t spread_mib = 0;  // on several nodes together: with what pages need to change places
  uint64_t least_mib = 0;   // on each of several
  uint32_t vcpus = 1;
  uint32_t max_nodes = 0;  // 0: as many as there are
};

// The machine's placement, the I/O node first: as few nodes as have the memory, and a core for each virtual CPU; where
// there are not so many cores, as few as have the memory. Each gives the same memory (memory_mib is set with several
// nodes). The I/O node has a virtual CPU for each of its cores before others have any: fewer nodes share less. Of nodes
// with enough memory those with most cores are taken, then those with most memory, then by name. Errors:
// kResourceExhausted, saying what each node has.
absl::StatusOr<std::vector<v1::PlacementSpec>> PlaceAutomatically(const PlacementWish& wish, const std::string& io_node,
                                                                  const std::vector<PlacementCandidate>& candidates);

// The same for a machine that node `self` is asked to make, on the members that are up: in place of its
// automatic_placement. Without that it stays as it is, and so it does if it asks for no possible memory or vCPUs
// (CompleteVmSpec says so). Errors: also kInvalidArgument.
absl::Status PlaceMachine(v1::VmSpec* spec, const std::string& self, const std::vector<v1::Member>& members);

}  // namespace hk
