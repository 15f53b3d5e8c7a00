// What a node has open on its verbs device while the device is there: the listening identifier of rdma_cm, the
// registered slots, and a completion channel for each class.
#pragma once

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>
#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "hyperkernel/base/address.h"
#include "rdma/slot_memory.h"
#include "rdma/transport.h"
#include "rdma/verbs_pool.h"

namespace hk {

// Frees rdma_cm objects. An identifier's queue pair and events go before it.
struct RdmaDeleter {
  void operator()(rdma_cm_id* id) const { rdma_destroy_id(id); }
  void operator()(rdma_event_channel* channel) const { rdma_destroy_event_channel(channel); }
};
using RdmaId = std::unique_ptr<rdma_cm_id, RdmaDeleter>;
using RdmaEvents = std::unique_ptr<rdma_event_channel, RdmaDeleter>;

// An IP literal and port as the kernel has it. Plain value.
struct RdmaAddress {
  sockaddr_storage storage{};

  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
  // REQUIRES: address.is_literal.
  static RdmaAddress Of(const Address& address, uint16_t port);
};
// "10.0.0.1:7001": where an identifier's other end is; for people.
std::string PeerAddress(rdma_cm_id* id);
// SocketAddress::Source of it.
std::string PeerSource(rdma_cm_id* id);

// Immutable after Open. Opened and destroyed on one thread; the rest is thread-safe. Queue pairs are made on it, and go
// before it.
class VerbsPort {
 public:
  // Listens on `listen`, which names the device: the one that belongs to the address's network interface. `events` and
  // `memory` outlive it. Errors say what to do: no device, none with this address, address in use, limits.
  static absl::StatusOr<std::unique_ptr<VerbsPort>> Open(rdma_event_channel* events, const Address& listen,
                                                         const SlotMemory& memory, const TransportSettings& settings);
  ~VerbsPort();

  ibv_context* context() const { return listener_->verbs; }
  const VerbsPool& pool() const { return *pool_; }
  const std::shared_ptr<ibv_comp_channel>& channel(MessageClass message_class) const {
    return channels_[static_cast<size_t>(message_class)];
  }
  // A channel is kept by its poller for a moment after it was told to let it go.
  bool IsInUse() const;

 private:
  VerbsPort() = default;

  RdmaId listener_;
  std::unique_ptr<VerbsPool> pool_;
  std::array<std::shared_ptr<ibv_comp_channel>, kMessageClasses> channels_;
};

// Closes a device that was removed: rdma_cm's library keeps it open until it hears of another, and the kernel's removal
// may wait for that. When nothing is on the device any more.
void CloseRemovedDevice(std::unique_ptr<VerbsPort> port);

// The events of an event channel. Errors: what is missing on this host.
absl::StatusOr<RdmaEvents> OpenRdmaEvents();

}  // namespace hk
