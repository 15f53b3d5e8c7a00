#include "rdma/send_rules.h"

#include <algorithm>
#include <bit>
#include <string>

#include "rdma/slots.h"
#include "rdma/wire.h"

namespace hk {

namespace {

// Upper limits of settings that bound memory or time; far above what is useful.
constexpr uint32_t kMaxQueue = 1U << 16;        // messages of at most 344 bytes: 22 MiB per class and peer
constexpr uint32_t kMaxMilliseconds = 600'000;  // any time
constexpr uint32_t kMaxSpinUs = 1'000'000;
constexpr uint32_t kMaxStrangers = 4096;  // file descriptors

size_t SlotBytes(MessageClass message_class) {
  return message_class == MessageClass::kBulk ? kBulkSlotBytes : kFaultSlotBytes;
}

absl::Status CheckSlots(NodeId to, const Message& message, const SendOptions& options) {
  const bool payload = options.payload != SlotId();
  if (message.slot == SlotId()) {
    if (message.answer) return absl::InvalidArgumentError("an answer names the slot of its request");
  } else {
    const SlotName name = SlotName::Decode(message.slot);
    if (message.message_class == MessageClass::kInvalidate) {
      return absl::InvalidArgumentError("the invalidate class has no slots");
    }
    if (name.message_class != message.message_class || name.use != SlotUse::kReceive || name.counter == 0) {
      return absl::InvalidArgumentError("a message names a receive slot of its class");
    }
    if (message.slot_node.value() >= kMaxNodes) return absl::InvalidArgumentError("slot_node is no node");
    if (message.answer && message.slot_node != to) {
      return absl::InvalidArgumentError("an answer goes to its slot's node");
    }
    if (!message.answer && message.slot_node == to) {
      return absl::InvalidArgumentError("a request does not go to its slot's node");
    }
  }
  if (payload != (options.payload_bytes != 0))
    return absl::InvalidArgumentError("payload and payload_bytes go together");
  if (!payload) return absl::OkStatus();
  if (!message.answer) return absl::InvalidArgumentError("only an answer has a payload");
  const SlotName name = SlotName::Decode(options.payload);
  if (name.message_class != message.message_class || name.use != SlotUse::kSend) {
    return absl::InvalidArgumentError("a payload is in a send slot of the message's class");
  }
  if (options.payload_bytes > SlotBytes(message.message_class)) {
    return absl::InvalidArgumentError("payload_bytes is more than a slot holds");
  }
  return absl::OkStatus();
}

absl::Status CheckRange(const char* field, uint32_t value, uint32_t least, uint32_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(std::string(field) + " is " + std::to_string(value) + ", not " +
                                    std::to_string(least) + " to " + std::to_string(most));
}

}  // namespace

NodeSet WritersOf(NodeId self, NodeId to, const SendOptions& options) {
  NodeSet writers = options.writers.empty() ? NodeSet::Of(to) : options.writers;
  writers.Remove(self);
  return writers;
}

absl::Status CheckSend(NodeId self, NodeId to, const Message& message, const SendOptions& options) {
  if (to == self || to.value() >= kMaxNodes) return absl::InvalidArgumentError("the addressee is no other node");
  if (static_cast<size_t>(message.message_class) >= kMessageClasses) return absl::InvalidArgumentError("no such class");
  if (message.type < kFirstUserType) return absl::InvalidArgumentError("a message type of the transport's own");
  if (message.body.size() > kMaxBodyBytes) return absl::InvalidArgumentError("the body is too long");
  if (absl::Status slots = CheckSlots(to, message, options); !slots.ok()) return slots;
  if (!IsRequest(self, message)) {
    if (!options.writers.empty() || options.deadline.count() != 0) {
      return absl::InvalidArgumentError("writers and deadline belong to a request");
    }
    return absl::OkStatus();
  }
  if (options.deadline.count() < 0 || options.deadline > kMaxRequestDeadline) {
    return absl::InvalidArgumentError("the deadline is out of range");
  }
  if (WritersOf(self, to, options).empty()) return absl::InvalidArgumentError("nobody else may answer the request");
  return absl::OkStatus();
}

absl::Status CheckSettings(const TransportSettings& s) {
  if (s.cluster.empty()) return absl::InvalidArgumentError("cluster is empty");
  if (s.self.value() >= kMaxNodes) return absl::InvalidArgumentError("self is no node's number");
  for (const absl::Status& status : {
           CheckRange("spin_us", s.spin_us, 0, kMaxSpinUs),
           CheckRange("lease_ms", s.lease_ms, 4, kMaxMilliseconds),
           CheckRange("heartbeat_ms", s.heartbeat_ms, 1, s.lease_ms / 4),
           CheckRange("handshake_ms", s.handshake_ms, 1, kMaxMilliseconds),
           CheckRange("request_ms", s.request_ms, 1, kMaxRequestDeadline.count()),
           CheckRange("backoff_max_ms", s.backoff_max_ms, 1, kMaxMilliseconds),
           CheckRange("backoff_ms", s.backoff_ms, 1, s.backoff_max_ms),
           CheckRange("window_messages", s.window_messages, kMinWindow, kMaxWindow),
           CheckRange("queue_messages", s.queue_messages, s.window_messages, kMaxQueue),
           CheckRange("strangers", s.strangers, 1, kMaxStrangers),
           CheckRange("fault_receive_slots", s.fault_receive_slots, 1, kMaxSlots),
           CheckRange("fault_send_slots", s.fault_send_slots, 1, kMaxSlots),
           CheckRange("bulk_receive_slots", s.bulk_receive_slots, 1, kMaxSlots),
           CheckRange("bulk_send_slots", s.bulk_send_slots, 1, kMaxSlots),
       }) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

WaitMode EffectiveWaitMode(WaitMode wanted, unsigned pollers, unsigned cpus) {
  return cpus < pollers ? WaitMode::kBlocking : wanted;
}

size_t LatencyBucket(std::chrono::nanoseconds latency) {
  if (latency.count() <= 1) return 0;
  const auto bits = static_cast<size_t>(std::bit_width(static_cast<uint64_t>(latency.count())));
  return std::min(bits - 1, ClassStatistics::kLatencyBuckets - 1);
}

}  // namespace hk
