// What a policy would have made of a machine that was recorded (trace.proto): an estimate, to compare policies by.
//
// The model, all of it:
//  1. A vCPU that is where it was when it was recorded waits as recorded, but not for a page that rule 3 has on its
//  node.
//  2. A vCPU that the policy has on another node does not wait for a page that is there, and for any other as long as
//     recorded. What it did without waiting goes on without: see 4.
//  3. A page is where it was recorded to be, until a vCPU of rule 2 has had it: then with that, until another has it.
//  4. A move costs `move`, and a wait of mean length for each page that the vCPU leaves: those that it has had within
//     the last 10 to 20 s, unless it only read them and the node that it goes to kept them. Others that it has used
//     since before cannot be seen, and cost nothing.
//  5. Moves that were recorded are not made. A trace says most of other policies if it was recorded under `fetch`.
// Pure. Memory is bounded: 64 Ki pages of each vCPU, and 4 Mi pages of rule 3; beyond that they are where recorded.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "migration/placement_policy.h"
#include "proto/trace_file.h"

namespace hk {

// A move that the policy made. Plain value.
struct ReplayMove {
  std::chrono::nanoseconds time{};  // since the trace began
  VcpuId vcpu;
  std::string from, to;
  double waited = 0;  // PolicyMove
};

// What came of it; times are sums over vCPUs. Plain value.
struct ReplayScore {
  std::string machine, recorded_policy, policy;
  size_t nodes = 0, vcpus = 0;
  std::chrono::nanoseconds length{};
  uint64_t stalls = 0, dropped = 0;
  double recorded_s = 0;  // waited as recorded
  double policy_s = 0;    // with the policy, moves included
  double moves_s = 0;     // of that: what moves cost
  std::vector<ReplayMove> moves;
  bool torn = false;  // the trace ended within a record
};

// REQUIRES: nothing was read. Errors: kInvalidArgument, one line: what the trace has that none has, or MakePolicy's.
absl::StatusOr<ReplayScore> ReplayTrace(TraceReader* trace, std::string_view policy,
                                        std::chrono::nanoseconds move = std::chrono::milliseconds(50));

// For people, and as one JSON object; both end with a newline.
std::string ScoreText(const ReplayScore& score);
std::string ScoreJson(const ReplayScore& score);

}  // namespace hk
