// A virtual CPU has waited for another node: what a placement policy sees (placement_policy.h) and a trace holds.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include "hyperkernel/base/clock.h"
#include "hyperkernel/base/types.h"

namespace hk {

// What it lacked.
enum class StallKind : uint8_t {
  kRead,     // the page, to read
  kWrite,    // the page, to write
  kUpgrade,  // the right to write to a page that was on its node
};

// One wait that is over. Plain value.
struct StallEvent {
  Monotonic end{};  // of one clock, whichever node the vCPU is on
  VcpuId vcpu{};
  NodeId node{};  // that it ran on
  Gfn page{};
  StallKind kind = StallKind::kRead;
  std::optional<NodeId> holder{};  // who had the page, or the right to it; nothing: nobody, its home alone was asked
  std::chrono::nanoseconds waited{};
};

}  // namespace hk
