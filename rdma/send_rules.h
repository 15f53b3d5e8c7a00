// What every back end checks before it takes anything from its caller, so that all three refuse the same. Pure.
#pragma once

#include "absl/status/status.h"
#include "rdma/transport.h"

namespace hk {

// Longest deadline of a request: beyond it a guest's watchdogs have long fired.
inline constexpr std::chrono::milliseconds kMaxRequestDeadline{60'000};

// True if the message asks for an answer into a slot of this node.
inline bool IsRequest(NodeId self, const Message& message) {
  return !message.answer && message.slot != SlotId() && message.slot_node == self;
}
// The nodes whose answers a request waits for: never ourselves, the addressee if the caller named none.
NodeSet WritersOf(NodeId self, NodeId to, const SendOptions& options);
// Send's rules that need no state: kInvalidArgument with the rule. What passes encodes to a header that decodes.
absl::Status CheckSend(NodeId self, NodeId to, const Message& message, const SendOptions& options);
// kInvalidArgument, naming the field: a limit is exceeded, or two fields do not go together.
absl::Status CheckSettings(const TransportSettings& settings);
// The wait mode that is used: polling with fewer CPUs than pollers makes them wait for one another.
WaitMode EffectiveWaitMode(WaitMode wanted, unsigned pollers, unsigned cpus);
// Index of ClassStatistics::latency.
size_t LatencyBucket(std::chrono::nanoseconds latency);

}  // namespace hk
