// The registered memory of a node on one device: its slots, and nothing else of the process. Receive slots can be
// written by peers, send slots only read by the device.
#pragma once

#include <infiniband/verbs.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "rdma/slot_memory.h"
#include "rdma/transport.h"

namespace hk {

// Frees verbs objects.
struct VerbsDeleter {
  void operator()(ibv_pd* domain) const { ibv_dealloc_pd(domain); }
  void operator()(ibv_mr* region) const { ibv_dereg_mr(region); }
  void operator()(ibv_cq* queue) const { ibv_destroy_cq(queue); }
  void operator()(ibv_comp_channel* channel) const { ibv_destroy_comp_channel(channel); }
};
template <typename Object>
using VerbsObject = std::unique_ptr<Object, VerbsDeleter>;

// Registers `bytes`. `what` is for the error, which says how to raise the limit of locked memory if that was it.
absl::StatusOr<VerbsObject<ibv_mr>> RegisterMemory(ibv_pd* domain, std::span<std::byte> bytes, int access,
                                                   std::string_view what);

// A protection domain for each class, with the class's slots: a queue pair reaches the slots of its own class only.
// Immutable after Create; thread-safe. The device's context and the slot memory outlive it.
class VerbsPool {
 public:
  static absl::StatusOr<std::unique_ptr<VerbsPool>> Create(ibv_context* context, const SlotMemory& memory,
                                                           const TransportSettings& settings);

  ibv_pd* domain(MessageClass message_class) const { return Of(message_class).domain.get(); }
  // What peers need to write to the class's receive slots. REQUIRES: a class with slots.
  uint32_t remote_key(MessageClass message_class) const { return Of(message_class).receive->rkey; }
  // What our queue pairs need to read the class's send slots. REQUIRES: a class with slots.
  uint32_t local_key(MessageClass message_class) const { return Of(message_class).send->lkey; }

 private:
  // What belongs to one class. Members in this order: regions go before their domain.
  struct PerClass {
    VerbsObject<ibv_pd> domain;
    VerbsObject<ibv_mr> receive, send;  // invalidate: none
  };

  const PerClass& Of(MessageClass message_class) const { return classes_[static_cast<size_t>(message_class)]; }

  std::array<PerClass, kMessageClasses> classes_;
};

}  // namespace hk
